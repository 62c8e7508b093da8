/** `results.json`: what an experiment is, and every run that is finished. It is replaced atomically after each, so nothing is run twice. */

import { existsSync } from 'node:fs'
import { join } from 'node:path'
import * as z from 'zod'
import { SepconvError } from '../errors.js'
import { readText, writeAtomic } from '../files.js'

/** Grows when results of an older one would mean something else. */
export const RESULTS_VERSION = 1
export const RESULTS = 'results.json'

const number = z.number()
const epoch = z.object({
  epoch: number,
  step: number,
  loss: number,
  /** Scores of the held-out pictures by name. */
  scores: z.record(z.string(), number),
  /** Of training and scoring. */
  seconds: number,
  /** Of asynchronous ranks: updates between reading weights and applying what was computed on them. */
  staleness: z.object({ mean: number, max: number }).optional(),
})
const run = z.object({
  variant: z.string(),
  seed: number,
  status: z.enum(['done', 'diverged']),
  epochs: z.array(epoch),
  /** Why it diverged. */
  reason: z.string().optional(),
  /** Of synchronous ranks, per step: while gradients were being summed, and of these while rank 0 stood still for it. */
  exchange: z.object({ reduceMs: number, exposedMs: number }).optional(),
})
const link = z.object({ latency: number, bandwidth: number })
const scaling = z.object({
  /** Of a step, of all trained variables. */
  bytes: number,
  bucketBytes: number,
  /** Pictures of a rank in a step. */
  batch: number,
  /** Sums over two ranks, by size, and the link that explains them. */
  exchange: z.array(z.object({ bytes: number, seconds: number })),
  link,
  /** By number of ranks of one thread: a step without and with exchange, and what the arithmetic says of the latter. */
  steps: z.array(z.object({ ranks: number, computeMs: number, stepMs: number, predictedMs: number, reduceMs: number })),
})
const timing = z.object({
  variant: z.string(),
  batch: number,
  stepMs: number,
  stepsPerSecond: number,
  imagesPerSecond: number,
  samples: number,
  /** Share of a step's time by kind of call. */
  shares: z.record(z.string(), number),
})
const results = z.object({
  version: number,
  experiment: z.string(),
  scale: z.string(),
  seeds: z.array(number),
  device: z.string(),
  data: z.string(),
  origin: z.record(z.string(), z.unknown()),
  variants: z.array(
    z.object({ name: z.string(), architecture: z.string(), options: z.record(z.string(), z.unknown()), parameters: number, macs: number }),
  ),
  settings: z.record(z.string(), z.unknown()),
  runs: z.array(run),
  timings: z.array(timing),
  scaling: scaling.optional(),
})

export type EpochResult = z.infer<typeof epoch>
export type RunResult = z.infer<typeof run>
export type TimingResult = z.infer<typeof timing>
export type ScalingResult = z.infer<typeof scaling>
export type Results = z.infer<typeof results>

/**
 * The results in `folder` where they are of the same experiment, else the empty ones given.
 * @throws ERR_ARGUMENT when they are of another version, experiment, scale, seed set, device or data, naming what differs;
 *   ERR_FILE where there are some and `resume` was not asked for; ERR_FORMAT.
 */
export async function openResults(folder: string, fresh: Results, resume: boolean): Promise<Results> {
  const path = join(folder, RESULTS)
  if (!existsSync(path)) return fresh
  if (!resume)
    throw new SepconvError('ERR_FILE', `${folder} holds results already`, {
      subject: folder,
      hint: 'Go on with --resume, or choose another folder with --out',
    })
  const found = await readResults(folder)
  const keys = ['version', 'experiment', 'scale', 'seeds', 'device', 'data', 'variants', 'settings'] as const
  const text = (x: unknown) => JSON.stringify(x)
  const differences = keys.filter((key) => text(found[key]) !== text(JSON.parse(text(fresh[key]))))
  if (differences.length > 0)
    throw new SepconvError(
      'ERR_ARGUMENT',
      `${folder} holds other results: ${differences.map((key) => (key === 'variants' || key === 'settings' ? key : `${key} ${text(found[key])}, now ${text(fresh[key])}`)).join('; ')}`,
      { subject: 'resume', given: differences, hint: 'Choose another folder with --out' },
    )
  return found
}

/** @throws ERR_FILE, ERR_FORMAT. */
export async function readResults(folder: string): Promise<Results> {
  const path = join(folder, RESULTS)
  const text = await readText(path)
  try {
    return results.parse(JSON.parse(text))
  } catch (cause) {
    throw new SepconvError('ERR_FORMAT', `${path} holds no results of an experiment`, { subject: path, cause })
  }
}

export const writeResults = (folder: string, content: Results): Promise<void> =>
  writeAtomic(join(folder, RESULTS), `${JSON.stringify(content, null, 2)}\n`)
