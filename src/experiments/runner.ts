/** Runs an experiment: every variant with every seed, seed by seed, so that an interrupted one has pairs to compare. */

import { existsSync } from 'node:fs'
import { mkdir, rm } from 'node:fs/promises'
import { join } from 'node:path'
import { type Origin, origin, round } from '../bench/machine.js'
import type { Dataset } from '../data/folder.js'
import { SepconvError } from '../errors.js'
import { fileError } from '../files.js'
import { createModel } from '../models/index.js'
import { openDevice } from '../runtime/device.js'
import { LAST } from '../train/checkpoint.js'
import type { FitEvent } from '../train/events.js'
import { fit, type FitOptions } from '../train/fit.js'
import type { TrainingSettings } from '../train/settings.js'
import { type Experiment, experiment, REDUCED_SETTINGS, type Scale, SIZES, type Sizes } from './definition.js'
import { type SizedVariant, sizeVariants } from './models.js'
import { PATTERN_CLASSES, type PatternOptions, patternSet } from './patterns.js'
import { fitOverRanks } from './overRanks.js'
import { measureScaling } from './measureScaling.js'
import { type EpochResult, openResults, RESULTS_VERSION, type Results, type RunResult, writeResults } from './results.js'
import { timeVariants } from './speed.js'

export interface ExperimentOptions {
  readonly out: string
  readonly scale?: Scale
  readonly device?: string
  /** How many, from 0. Default 3. */
  readonly seeds?: number
  readonly resume?: boolean
  /** Real pictures instead of generated ones; `full` needs them. */
  readonly data?: Dataset
  /** Other sizes than the scale's; they go into the results. */
  readonly sizes?: Partial<Sizes>
  /** Over the scale's settings of `fit`, such as another rate. */
  readonly settings?: TrainingSettings
  /** Seconds for which a variant is timed in each turn, where an experiment times. Default 1. */
  readonly turnSeconds?: number
  readonly signal?: AbortSignal
  /** `done` and `total` count training steps of the whole experiment; steps of finished runs count as done. */
  onProgress?(progress: { readonly done: number; readonly total: number; readonly label: string }): void
}

/**
 * @returns the results, complete; they are in `out` too. Stopped by the signal it throws the signal's reason, with every finished run
 *   kept and the one under way checkpointed.
 * @throws what {@link openResults} and `fit` throw, but for ERR_DIVERGED, which is a result.
 */
export async function runExperiment(name: string, options: ExperimentOptions): Promise<Results> {
  const { out, scale = 'tiny', resume = false, signal } = options
  const defined = experiment(name)
  const seeds = Array.from({ length: options.seeds ?? 3 }, (_, seed) => seed)
  if (!(scale in SIZES))
    throw new SepconvError('ERR_ARGUMENT', `there is no scale '${scale}'`, { subject: 'scale', expected: Object.keys(SIZES), given: scale })
  if (scale === 'full' && !options.data && defined.kind === 'accuracy')
    throw new SepconvError('ERR_ARGUMENT', `${name} at full scale needs pictures`, {
      subject: 'data',
      hint: 'Name a folder in the form of ImageNet, shards or a prepared folder with --data',
    })
  const executor = openDevice(options.device)
  const sizes: Sizes = { ...SIZES[scale], ...defined.sizes?.[scale], ...options.sizes }
  const data = options.data ?? patternSet({ ...sizes, multiLabel: defined.multiLabel === true })
  if (options.data && (options.data.multiLabel === true) !== (defined.multiLabel === true))
    throw new SepconvError('ERR_DATA', `${name} takes pictures with ${defined.multiLabel ? 'several labels' : 'one label'}`, {
      subject: 'data',
    })
  // Timed networks are the paper's, of a thousand classes.
  const classes = options.data?.classes.length ?? (defined.kind === 'speed' ? 1000 : PATTERN_CLASSES.length)
  const variants = sizeVariants(defined, sizes, classes)
  const from: Origin = origin((executor as { info?: { isa?: string } }).info?.isa ?? null)
  const settings = { ...trainingSettings(defined.recipe, scale, sizes), ...options.settings }
  const results = await openResults(
    out,
    {
      ...{ version: RESULTS_VERSION, experiment: defined.name, scale, seeds, device: executor.name, data: data.root },
      origin: { ...from },
      variants: variants.map(({ name: variant, architecture, options: own, parameters, macs }) => ({
        ...{ name: variant, architecture, options: own, parameters, macs },
      })),
      settings: { ...sizes, ...settings },
      ...{ runs: [], timings: [] },
    },
    resume,
  )
  try {
    await mkdir(out, { recursive: true })
  } catch (error) {
    throw fileError(error, out, 'write')
  }
  const time = async () => {
    if (results.timings.length === 0)
      results.timings.push(...(await timeVariants(variants, { device: executor.name, batch: sizes.batch, ...options })))
    await writeResults(out, results)
    return results
  }
  if (defined.kind === 'speed') return await time()
  const jobs = seeds.flatMap((seed) => variants.map((variant) => ({ seed, variant })))
  let done = 0
  let total = 0
  for (const { seed, variant } of jobs) {
    const label = `${variant.name}, seed ${seed}`
    const finished = results.runs.some((run) => run.variant === variant.name && run.seed === seed)
    if (!finished) {
      const folder = join(out, 'runs', `${variants.indexOf(variant)}-${seed}`)
      const before = done
      const pictures = options.data ? options.data.root : { ...sizes, multiLabel: defined.multiLabel === true }
      const run = await train(variant, seed, folder, { data, pictures, device: executor.name, settings, signal }, (step, steps) => {
        total = steps * jobs.length
        done = before + step
        options.onProgress?.({ done, total, label })
      })
      results.runs.push(run)
      await writeResults(out, results)
      await rm(folder, { recursive: true, force: true })
      done = before + (total / jobs.length || 0)
    } else done += results.runs.find((run) => run.variant === variant.name && run.seed === seed)!.epochs.at(-1)?.step ?? 0
  }
  if (defined.scaling && !results.scaling) {
    results.scaling = await measureScaling(variants[0]!, { batch: sizes.batch, ...options })
    await writeResults(out, results)
  }
  return defined.timed ? await time() : results
}

/** At full scale the paper's recipe as it stands; else what can converge in a few epochs. */
function trainingSettings(recipe: Experiment['recipe'], scale: Scale, sizes: Sizes): Partial<FitOptions> {
  if (scale === 'full') return { recipe, size: sizes.size }
  const { epochs, batch, size } = sizes
  return { epochs, batch, size, ...REDUCED_SETTINGS[recipe] }
}

async function train(
  variant: SizedVariant,
  seed: number,
  out: string,
  options: {
    data: Dataset
    pictures: string | PatternOptions
    device: string
    settings: Partial<FitOptions>
    signal: AbortSignal | undefined
  },
  onStep: (step: number, steps: number) => void,
): Promise<RunResult> {
  const { signal } = options
  const logged = existsSync(join(out, LAST)) ? await epochsIn(out) : []
  let epochs: EpochResult[] = logged
  let [reduceMs, exposedMs, exchanges] = [0, 0, 0]
  try {
    for await (const event of eventsOf(variant, seed, out, options)) {
      // An epoch that was logged and not checkpointed is done again.
      if (event.type === 'start') epochs = logged.filter(({ step }) => step <= event.step)
      if (event.type === 'step') onStep(event.step, event.steps)
      if (event.type === 'step' && event.reduceMs !== undefined) {
        reduceMs += event.reduceMs
        exposedMs += event.exposedMs!
        exchanges++
      }
      if (event.type === 'epoch') epochs.push(...epochOf(event))
      if (event.type === 'stopped') signal?.throwIfAborted()
    }
    const exchange = exchanges > 0 && { exchange: { reduceMs: round(reduceMs / exchanges), exposedMs: round(exposedMs / exchanges) } }
    return { variant: variant.name, seed, status: 'done', epochs, ...exchange }
  } catch (error) {
    if (!(error instanceof SepconvError && error.code === 'ERR_DIVERGED')) throw error
    return { variant: variant.name, seed, status: 'diverged', epochs, reason: error.message }
  }
}

/** Steps that ranks without waiting may be ahead of each other: the default of `sepconv train --asynchronous`. */
const MAX_STALENESS = 4

/** Of this process, or of the ranks that the variant asks for. */
async function* eventsOf(
  { architecture, options: own, ranks }: SizedVariant,
  seed: number,
  out: string,
  { data, pictures, device, settings, signal }: Parameters<typeof train>[3],
): AsyncGenerator<FitEvent, void, undefined> {
  if (ranks) {
    const all = { ...settings, ...(ranks.asynchronous && { asynchronous: { maxStaleness: MAX_STALENESS } }) }
    const job = { kind: 'train', variant: { architecture, options: own }, pictures, settings: all, seed, out, device } as const
    return yield* fitOverRanks(job, ranks.count, { ...(signal && { signal }) })
  }
  using model = await createModel(architecture, { ...own, device, seed })
  yield* fit({ ...settings, model, data, seed, out, resume: existsSync(join(out, LAST)), ...(signal && { signal }) })
}

function epochOf({ epoch, step, loss, validation, seconds, staleness }: Extract<FitEvent, { type: 'epoch' }>): EpochResult[] {
  if (!validation) return []
  const { images: _, ...scores } = validation
  return [{ epoch, step, loss, scores: { ...scores }, seconds, ...(staleness && { staleness: { ...staleness } }) }]
}

/** Epochs of a run that was interrupted, out of its log; one that was logged again after a crash counts once. */
async function epochsIn(folder: string): Promise<EpochResult[]> {
  const { readRun } = await import('../report/run.js')
  const { epochs } = await readRun(folder)
  const byEpoch = new Map(epochs.flatMap((event) => epochOf(event).map((epoch) => [epoch.epoch, epoch] as const)))
  return [...byEpoch.values()]
}
