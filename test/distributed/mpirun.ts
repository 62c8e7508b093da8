/** Running programs as several ranks, for tests; where there is no MPI they are skipped by name. */

import { spawn, spawnSync } from 'node:child_process'
import { existsSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { builtCli } from '../cli/built.js'

const programs = fileURLToPath(new URL('programs/', import.meta.url))
export const program = (name: string): string => join(programs, name)

/** Whether ranks can be started here: mpirun, and mpicc for the shim. */
export const hasMpi = ['mpirun', 'mpicc'].every((command) => spawnSync(command, ['--version']).status === 0)
const openMpi = hasMpi && /Open MPI|OpenRTE/.test(String(spawnSync('mpirun', ['--version']).stdout))

export const environment = {
  ...process.env,
  SEPCONV_THREADS: '1',
  NO_COLOR: '1',
  ...(process.getuid?.() === 0 && { OMPI_ALLOW_RUN_AS_ROOT: '1', OMPI_ALLOW_RUN_AS_ROOT_CONFIRM: '1' }),
}

export interface Ended {
  readonly status: number | null
  readonly stdout: string
  readonly stderr: string
  readonly seconds: number
}

/** Starts `node …args` as `count` ranks, or alone for 1; `watch` sees what they print as it comes, and mpirun's process id;
 * once the file `stopAt` is there, it gets `signal`, by default SIGUSR2, which is what mpirun gets of Ctrl-C under --workers and of Slurm. */
export function ranks(
  count: number,
  args: readonly string[],
  options: {
    cwd?: string
    env?: NodeJS.ProcessEnv
    watch?: (stderr: string, pid: number) => void
    stopAt?: string
    signal?: NodeJS.Signals
    launcher?: readonly string[]
    /** Another MPI than the one that `mpirun` belongs to. */
    mpirun?: string
  } = {},
): Promise<Ended> {
  builtCli()
  const { mpirun = 'mpirun' } = options
  const bound = openMpi && mpirun === 'mpirun' ? ['--oversubscribe', '--bind-to', 'none'] : []
  const command =
    count === 1
      ? [process.execPath, ...args]
      : [mpirun, '-n', String(count), ...bound, ...(options.launcher ?? []), process.execPath, ...args]
  const since = performance.now()
  const child = spawn(command[0]!, command.slice(1), {
    cwd: options.cwd,
    env: { ...environment, ...options.env },
    stdio: ['ignore', 'pipe', 'pipe'],
  })
  let [stdout, stderr] = ['', '']
  child.stdout.setEncoding('utf8').on('data', (text: string) => (stdout += text))
  child.stderr.setEncoding('utf8').on('data', (text: string) => {
    stderr += text
    options.watch?.(stderr, child.pid!)
  })
  const stop = setInterval(() => {
    if (!options.stopAt || !existsSync(options.stopAt)) return
    clearInterval(stop)
    child.kill(options.signal ?? 'SIGUSR2')
  }, 5)
  return new Promise((resolve, reject) => {
    child.on('error', reject)
    child.on('close', () => clearInterval(stop))
    child.on('close', (status) => resolve({ status, stdout, stderr, seconds: (performance.now() - since) / 1e3 }))
  })
}

/** The one JSON value that a program prints. */
export async function json<T>(count: number, name: string, settings: object, env?: NodeJS.ProcessEnv): Promise<T> {
  const { status, stdout, stderr } = await ranks(count, [program(name), JSON.stringify(settings)], env ? { env } : {})
  if (status !== 0) throw new Error(`status ${status}: ${stderr}${stdout}`)
  return JSON.parse(stdout) as T
}

/** What programs/steps.mjs prints. */
export interface Steps {
  losses: number[]
  digest: string
  same: boolean
  weights: Record<string, number[]>
  calls: string[]
}

/** Largest difference of a weight over the largest weight of its tensor. */
export function apart(a: Steps['weights'], b: Steps['weights']): number {
  return Math.max(
    ...Object.entries(a).map(([name, own]) => {
      const scale = Math.max(...own.map(Math.abs))
      return Math.max(...own.map((value, i) => Math.abs(value - b[name]![i]!))) / (scale || 1)
    }),
  )
}
