/** Starting several ranks on this machine: `sepconv train --workers N` is `mpirun -n N sepconv train`. */

import { type ChildProcess, spawn, spawnSync } from 'node:child_process'
import { availableParallelism } from 'node:os'
import { SepconvError } from '../errors.js'
import { INSTALL, mpiShim } from './shim.js'
import { askToStop, stopEnvironment } from './stop.js'

/** Seconds that ranks have to end after mpirun has told them to. */
const GRACE_SECONDS = 10

export interface RanksToStart {
  readonly workers: number
  /** The command that each rank runs. */
  readonly command: readonly string[]
  /** Threads of each rank's cpu device. Default: an equal part of the processor. */
  readonly threads?: number
  /** Whether what ranks print goes where this process prints, the default, or is for the caller to read. */
  readonly output?: 'inherit' | 'pipe'
}

export interface LaunchOptions extends RanksToStart {
  /** Called when Ctrl-C has been passed on. */
  readonly onInterrupt?: () => void
}

/**
 * Starts a command as several connected ranks of this machine.
 * @returns mpirun, which ends them on SIGTERM; see {@link askToStop}.
 * @throws ERR_MPI where there is no mpirun or no mpicc, with how to get them.
 */
export async function startRanks({ workers, command, threads, output = 'inherit' }: RanksToStart): Promise<ChildProcess> {
  const launcher = process.env.SEPCONV_MPIRUN ?? 'mpirun'
  const { stdout, error } = spawnSync(launcher, ['--version'], { encoding: 'utf8' })
  if (error) throw new SepconvError('ERR_MPI', `there is no MPI here: '${launcher}' was not found`, { subject: 'mpirun', hint: INSTALL })
  // Once here rather than by every rank at the same time.
  const shim = await mpiShim()
  const open = /Open MPI|OpenRTE/.test(stdout)
  const options = open
    ? [
        ...['--bind-to', 'none', '--mca', 'odls_base_sigkill_timeout', String(GRACE_SECONDS)],
        ...(workers > availableParallelism() ? ['--oversubscribe'] : []),
        ...(process.getuid?.() === 0 ? ['--allow-run-as-root'] : []),
      ]
    : []
  return spawn(launcher, ['-n', String(workers), ...options, ...command], {
    stdio: ['pipe', output, output],
    // Out of the terminal's foreground group: Ctrl-C is for this process, which knows what to do with it.
    detached: true,
    env: {
      ...process.env,
      ...stopEnvironment,
      SEPCONV_MPI_SHIM: shim,
      SEPCONV_THREADS: String(threads ?? Math.max(1, Math.floor(availableParallelism() / workers))),
    },
  })
}

/**
 * Runs a command as several connected ranks and waits for them. The first Ctrl-C asks them to stop, which ends training with
 * a checkpoint; the second one kills them.
 * @returns the exit status of the first rank that failed, else 0.
 * @throws ERR_MPI where there is no mpirun or no mpicc, with how to get them.
 */
export async function launch({ onInterrupt, ...ranks }: LaunchOptions): Promise<number> {
  const child = await startRanks(ranks)
  let asked = false
  const pass = () => {
    if (asked) child.kill('SIGTERM')
    else {
      askToStop(child)
      onInterrupt?.()
    }
    asked = true
  }
  process.on('SIGINT', pass)
  process.on('SIGTERM', pass)
  try {
    return await new Promise((resolve, reject) => {
      child.on('error', reject)
      child.on('close', (status, signal) => resolve(status ?? (signal === 'SIGINT' ? 130 : 1)))
    })
  } finally {
    process.off('SIGINT', pass)
    process.off('SIGTERM', pass)
  }
}
