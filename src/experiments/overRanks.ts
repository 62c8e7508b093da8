/** Runs of an experiment that take several ranks, started on this machine as `sepconv train --workers` does. */

import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { startRanks } from '../distributed/launch.js'
import { askToStop } from '../distributed/stop.js'
import { type ErrorCode, SepconvError } from '../errors.js'
import { packageRoot } from '../runtime/native.js'
import type { FitEvent } from '../train/events.js'
import type { FitOptions } from '../train/fit.js'
import type { PatternOptions } from './patterns.js'
import type { ExchangeJob, StepsJob } from './rankTimes.js'

/** One run of a variant. */
export interface TrainingJob {
  readonly kind: 'train'
  readonly variant: { readonly architecture: string; readonly options: Readonly<Record<string, unknown>> }
  /** A folder, or what is drawn. */
  readonly pictures: string | PatternOptions
  readonly settings: Partial<FitOptions>
  readonly seed: number
  readonly out: string
  readonly device: string
}

/** What ranks can be asked to do. */
export type RankJob = TrainingJob | StepsJob | ExchangeJob

/** Built: ranks are processes of their own. */
const PROGRAM = join(packageRoot, 'dist/experiments/rankProgram.js')

/**
 * The lines that rank 0 prints, as values. The signal ends a run with a checkpoint.
 * @throws what a rank has thrown, ERR_MPI where there is no MPI, ERR_RANK where the job ended otherwise.
 */
export async function* linesOfRanks<T>(
  job: RankJob,
  workers: number,
  options: { threads?: number; signal?: AbortSignal } = {},
): AsyncGenerator<T, void, undefined> {
  const { threads, signal } = options
  const child = await startRanks({
    ...{ workers, command: [process.execPath, PROGRAM, JSON.stringify(job)], output: 'pipe' },
    ...(threads !== undefined && { threads }),
  })
  let said = ''
  child.stderr!.setEncoding('utf8').on('data', (text: string) => (said = (said + text).slice(-2000)))
  const ended = new Promise<number>((resolve) => child.on('close', (status) => resolve(status ?? 1)))
  const stop = () => askToStop(child)
  signal?.addEventListener('abort', stop)
  if (signal?.aborted) stop()
  let failure: { code: string; message: string } | undefined
  let complete = false
  try {
    for await (const line of createInterface({ input: child.stdout! })) {
      const value = JSON.parse(line) as { type?: string; code: string; message: string }
      if (value.type === 'error') failure ??= value
      else yield value as T
    }
    const status = await ended
    complete = true
    if (failure) throw new SepconvError(failure.code as ErrorCode, failure.message)
    if (status !== 0) throw new SepconvError('ERR_RANK', `ranks ended with status ${status}: ${reasonIn(said)}`, { given: status })
  } finally {
    signal?.removeEventListener('abort', stop)
    if (!complete) child.kill('SIGTERM')
  }
}

/** The events of a run over ranks. */
export const fitOverRanks = (
  job: TrainingJob,
  workers: number,
  options: { threads?: number; signal?: AbortSignal },
): AsyncGenerator<FitEvent, void, undefined> => linesOfRanks<FitEvent>(job, workers, options)

/** The one value that a measurement gives. */
export async function measureOverRanks<T>(job: StepsJob | ExchangeJob, workers: number, threads: number): Promise<T> {
  let value: T | undefined
  for await (const line of linesOfRanks<T>(job, workers, { threads })) value = line
  return value!
}

/** What a process says of its end, without what mpirun adds. */
function reasonIn(text: string): string {
  const lines = text.split('\n').filter((line) => /\w/.test(line))
  return lines.find((line) => /\berror\b/i.test(line)) ?? lines.at(-1) ?? 'they said nothing'
}
