/** How ranks learn that their job shall stop: by SIGUSR2, which Slurm sends before a job's time is over and Open MPI's mpirun passes on, or by
 * a line on the stdin of rank 0, which every launcher passes on (MPICH's mpiexec ends at SIGUSR2). */

import type { ChildProcess } from 'node:child_process'

/** Set for ranks whose stdin belongs to {@link askToStop}. */
const VARIABLE = 'SEPCONV_STOP_BY_STDIN'

export const stopEnvironment: NodeJS.ProcessEnv = { [VARIABLE]: '1' }

/** Asks the ranks of a launcher, whose stdin is a pipe, to stop. */
export function askToStop(launcher: ChildProcess): void {
  // It may have ended meanwhile.
  launcher.stdin?.on('error', () => {})
  launcher.stdin?.write('stop\n')
}

/** Calls `stop` when this rank is asked to. @returns a function that no longer listens. */
export function onStopRequest(stop: () => void): () => void {
  process.on('SIGUSR2', stop)
  const listens = process.env[VARIABLE] !== undefined
  if (listens) {
    process.stdin.on('data', stop)
    // The pipe must not keep the process alive.
    ;(process.stdin as { unref?: () => void }).unref?.()
  }
  return () => {
    process.off('SIGUSR2', stop)
    if (!listens) return
    process.stdin.off('data', stop)
    process.stdin.pause()
  }
}
