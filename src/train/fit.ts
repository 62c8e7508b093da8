/**
 * The training loop as an async generator of events. Everything that a step does is a function of the settings, the seed and
 * the step's number; so a run that was stopped anywhere and resumed ends with the same bits as one that was not.
 */

import { existsSync } from 'node:fs'
import { join } from 'node:path'
import type { Communicator } from '../distributed/communicator.js'
import type { Dataset } from '../data/folder.js'
import type { Batch, ImageLoader } from '../data/loader.js'
import { SepconvError } from '../errors.js'
import { lockFolder, writeAtomic } from '../files.js'
import { opDefinition } from '../graph/op.js'
import { emit, read } from '../graph/trace.js'
import type { Variable } from '../graph/variable.js'
import { countTop1 } from '../metrics.js'
import type { Model } from '../models/model.js'
import { compile, type CompiledFunction } from '../runtime/function.js'
import type { Tensor } from '../runtime/tensor.js'
import type { Staleness } from './asynchronous.js'
import { mixes } from '../data/mix.js'
import { BatchMaker } from './batch.js'
import { BEST, LAST, loadCheckpoint, openRun, PREDICTIONS, saveCheckpoint, storedState, type TrainingState } from './checkpoint.js'
import { type Evaluation, Evaluator, isBetter, type Scored, scoresOf } from './evaluate.js'
import type { FitEvent } from './events.js'
import type { FreezeOptions } from './freeze.js'
import { RunLog } from './log.js'
import { EpochMeter, Speed } from './progress.js'
import { loadRecipe, type Recipe } from './recipe.js'
import { rateAt } from './schedule.js'
import { checkFitOptions, describeRun, resolveSettings, type Settings, type TrainingSettings } from './settings.js'
import { Stepper } from './stepper.js'
import { type StepOfAll, Team } from './team.js'

export type { FitEvent } from './events.js'

/** Called with every event before `fit` yields it; a promise is waited for. `stop()` ends the run after this step, with a checkpoint. */
export type Callback = (event: FitEvent, run: { readonly model: Model; stop(): void }) => void | Promise<void>

/** Options of {@link fit}. */
export interface FitOptions extends TrainingSettings, FreezeOptions {
  model: Model
  data: Dataset
  /** Where settings that are not given come from: the name of a recipe that ships, a path, or the recipe itself. */
  recipe?: string | Recipe
  /** Folder for checkpoints and log; without one nothing is written. */
  out?: string
  /** Goes on where the run in `out` stopped; begins it where that stopped before its first checkpoint. Default false. */
  resume?: boolean
  /** Most bytes of scratch memory per step; see compile(). */
  memoryLimit?: number
  /** Steps between checkpoints besides the one after each epoch. Default: none in between but every 60 seconds. */
  checkpointSteps?: number
  /** Epochs between weights that are kept for good, as `epoch-<n>.safetensors`. Default: none are. */
  snapshots?: number
  /** Unreadable pictures end the run instead of being skipped and counted. Default false. */
  strict?: boolean
  callbacks?: readonly Callback[]
  /** Stops after the step (or evaluation) under way, with a checkpoint. */
  signal?: AbortSignal
  /**
   * The ranks that train together, from openCommunicator(): each gets its part of every batch (`batch` counts all of it) and of every
   * evaluation. Rank 0 writes; a checkpoint goes on with any number of ranks. Default: alone.
   */
  ranks?: Communicator | undefined
}

const OPTIONS = [
  'model',
  'data',
  'recipe',
  'out',
  'resume',
  'memoryLimit',
  'checkpointSteps',
  'snapshots',
  'strict',
  'callbacks',
  'signal',
  'ranks',
  'freeze',
  'unfreezeEvery',
  'rates',
]

/** Seconds after which a long epoch is checkpointed in between. */
const CHECKPOINT_SECONDS = 60

/**
 * Trains a classifier.
 * @returns events, in order: `start`; `step` after each step; after each epoch `evaluating`, `epoch` and `checkpoint`; at the
 *   end `done`, or `stopped` when the signal fired. The model then holds the averaged weights, which is what was evaluated.
 * @throws ERR_DIVERGED when the loss or a gradient is not finite (weights and checkpoints stay as they were before that step);
 *   ERR_BUSY when another process trains in `out`; ERR_RANK when another rank left or differs, with its name; ERR_DATA, ERR_FILE, ERR_ARGUMENT, ERR_DEVICE, ERR_MEMORY.
 * @example for await (const event of fit({ model, data: await imageFolder('photos') })) if (event.type === 'epoch') console.log(event)
 */
export async function* fit(options: FitOptions): AsyncGenerator<FitEvent, void, undefined> {
  checkFitOptions(options, OPTIONS)
  for (const [name, value] of Object.entries({ model: options?.model, data: options?.data }))
    if (!value) throw new SepconvError('ERR_ARGUMENT', `fit: '${name}' is missing`, { subject: name })
  const { model, data, out, resume = false } = options
  if (resume && out === undefined) throw new SepconvError('ERR_ARGUMENT', "fit: resume needs the run's folder as out", { subject: 'out' })
  const { ranks } = options
  const team = new Team(ranks)
  let ended = false
  try {
    const recipe = typeof options.recipe === 'string' ? await loadRecipe(options.recipe) : options.recipe
    const run = new Run(options, resolveSettings(options, recipe, model, data, team.size), team)
    await using lock = out === undefined || !team.first ? undefined : await lockFolder(out)
    void lock
    try {
      yield* run.events()
      ended = true
    } finally {
      await run.dispose()
    }
  } catch (error) {
    // The others would wait for this rank for ever.
    ranks?.fail(error)
    throw error
  } finally {
    if (!ended) ranks?.fail('left the run before its end')
  }
}

class Run {
  readonly #stepper: Stepper
  readonly #batches: BatchMaker
  #evaluator: Evaluator | undefined
  #scored: Scored[] = []
  #log: RunLog | undefined
  #pictures: ImageLoader | undefined
  #meter = new EpochMeter()
  #state: TrainingState = { step: 0, sample: 0, epochLoss: 0, epochCorrect: 0, epochImages: 0, best: null }
  #asked = false
  readonly #finite: CompiledFunction<[], Tensor>
  /** The step whose weights were last found finite, and that of the checkpoint. */
  #checked = -1
  #stored: number | undefined
  /** Learning rate of the step under way. */
  #rate = 0
  /** Where this rank writes: rank 0 does for all. */
  readonly #out: string | undefined
  /** Sums of the epoch that all ranks already have in common. */
  #settled = new EpochMeter().sums
  /** Of several ranks: whether one of them wanted to stop at the last step. */
  #agreed = false

  constructor(
    private readonly options: FitOptions,
    private readonly settings: Settings,
    private readonly team: Team,
  ) {
    this.#out = team.first ? options.out : undefined
    const { model, data } = options
    this.#batches = new BatchMaker(model, data.train, settings, data.multiLabel === true, team.size)
    model.labels ??= data.classes
    this.#stepper = new Stepper(options, settings, team)
    this.#finite = compile(() => emit(opDefinition('allFinite'), [...model.variables.values()].map(read)), { device: model.device })
    this.#evaluator = this.#newEvaluator()
  }

  #newEvaluator(): Evaluator | undefined {
    const { model, data, strict = false } = this.options
    const { batch, size } = this.settings
    // Averages come with the step's first program, after this.
    const averaged = this.settings.average === 'none' ? undefined : (variable: Variable) => this.#stepper.tracked.get(variable) ?? variable
    // Without the signal: an evaluation is finished before a run stops, so that the checkpoint after it holds the epoch's scores.
    const onScored = (scored: Scored) => void this.#scored.push(scored)
    if (data.validation.length === 0) return undefined
    const { ranks } = this.team
    return new Evaluator(model, data.validation, { batch: Math.min(batch, 256), size, strict, onScored, ranks }, averaged)
  }

  /** Trains more stages where an epoch does. */
  async #thaw(epoch: number): Promise<boolean> {
    if (!this.#stepper.thaw(epoch)) return false
    // Its program reads averages in place of weights, and there are more of them now.
    this.#evaluator?.dispose()
    this.#evaluator = this.#newEvaluator()
    await this.#stepper.prepare(this.#batches.inputs)
    return true
  }

  /** What the run is; freezing only where it was asked for, so that runs without it stay as they were. */
  #description() {
    const { model, data, freeze, unfreezeEvery, rates } = this.options
    const description = describeRun(model, data, this.settings, this.#stepper.optimizer.options)
    const tuning = {
      ...(freeze !== undefined && { freeze }),
      ...(unfreezeEvery !== undefined && { unfreezeEvery }),
      ...(rates && { rates }),
    }
    return { ...description, settings: { ...(description.settings as object), ...tuning } }
  }

  /** What must be the same on every rank; where the data lies may differ from machine to machine. */
  #common() {
    const { model, resume = false, strict = false, memoryLimit = null, out = null } = this.options
    const { data, ...description } = this.#description()
    const { root: _, ...same } = data
    const { name } = model.executor
    const isa = (model.executor as { info?: { isa?: string } }).info?.isa ?? null
    return { ...description, data: same, device: name.replace(/:\d+$/, ''), isa, resume, strict, memoryLimit, out }
  }

  async *events(): AsyncGenerator<FitEvent, void, undefined> {
    const { model, data, resume = false } = this.options
    const { epochs, batch } = this.settings
    const { team } = this
    const out = this.#out
    const stepsPerEpoch = Math.floor(data.train.length / batch)
    const steps = epochs * stepsPerEpoch
    await team.agree(() => this.#common())
    if (!this.#stepper.asynchronous) await team.connect(model.device)
    await this.#stepper.prepare(this.#batches.inputs)
    if (out !== undefined) await openRun(out, this.#description(), resume)
    const stored = await team.fromFirst(out !== undefined && resume && existsSync(join(out, LAST)) ? await storedState(out) : null)
    if (stored) {
      // The checkpoint holds what the last step trained; what the next epoch adds comes in the loop.
      await this.#thaw(Math.floor(Math.max(0, stored.step - 1) / stepsPerEpoch) + 1)
      this.#state = out === undefined ? stored : await loadCheckpoint(out, model, this.#stepper.companions)
      this.#meter.restore(this.#state)
      this.#settled = this.#meter.sums
      this.#stored = this.#state.step
    }
    await team.adopt([...model.variables.values(), ...this.#stepper.companions], model.executor)
    if (out !== undefined) this.#log = await RunLog.open(out)
    yield* this.#emit({
      type: 'start',
      step: this.#state.step,
      steps,
      epochs,
      stepsPerEpoch,
      images: data.train.length,
      validationImages: data.validation.length,
      classes: data.classes.length,
      parameters: this.#stepper.parameters,
      frozen: this.#stepper.frozen,
      device: model.device,
      ranks: team.size,
    })

    let saved = performance.now()
    let epochStart = performance.now()
    const speed = new Speed()
    let early = this.#worn(stepsPerEpoch)
    if (!early)
      for await (const loaded of await this.#loader()) {
        if (this.#stopping) return yield* this.#stop(stepsPerEpoch)
        const { step } = this.#state
        if (step % stepsPerEpoch === 0 && (await this.#thaw(step / stepsPerEpoch + 1))) {
          const { stages, frozen } = this.#stepper
          yield* this.#emit({ type: 'unfrozen', epoch: step / stepsPerEpoch + 1, stages, frozen })
        }
        const position = { step, stepsPerEpoch, epochs, batch }
        const rate = rateAt(this.settings.rate, this.settings.schedule, position)
        this.#rate = rate
        const { loss, all, ...times } = await this.#train(loaded, rate)
        this.#agreed = all.stop
        const epoch = Math.floor(step / stepsPerEpoch) + 1
        this.#state = { ...this.#state, ...this.#meter.sums, step: step + 1, sample: loaded.next }
        const { waitMs, decodeMs } = all
        const { imagesPerSecond, waitShare } = speed.add(batch, waitMs)
        const event: FitEvent = {
          ...{ type: 'step', epoch, step: step + 1, steps, loss, top1: this.#meter.top1, rate },
          ...{ imagesPerSecond, waitShare, decodeMs, waitMs, ...times },
        }
        // Without yield*, whose inner generator costs several turns of the event loop per step.
        const noted = this.#note(event)
        if (noted) await noted
        yield event
        if (all.straggler) yield* this.#emit({ type: 'straggler', step: step + 1, ...all.straggler })
        const last = (step + 1) % stepsPerEpoch === 0
        if (last) {
          yield* this.#finishEpoch(epoch, speed.waitShare, epochStart)
          early = this.#worn(stepsPerEpoch)
          epochStart = performance.now()
        }
        const every = this.options.checkpointSteps
        // Asynchronous ranks have one state in common at the end of an epoch only.
        const due = this.#stepper.asynchronous
          ? false
          : every === undefined
            ? performance.now() - saved > CHECKPOINT_SECONDS * 1e3
            : (step + 1) % every === 0
        if (last || due) {
          yield* this.#save()
          saved = performance.now()
        }
        if (last) {
          speed.reset()
          team.forgive()
        }
        if (early) break
        if (this.#stopping && step + 1 < steps) return yield* this.#stop(stepsPerEpoch)
      }
    const { step, best } = this.#state
    await this.#stepper.adoptAverage()
    yield* this.#emit({ type: 'done', epoch: Math.ceil(step / stepsPerEpoch), step, best, early, out: this.options.out ?? null })
  }

  async dispose(): Promise<void> {
    this.#batches.dispose()
    this.#finite.dispose()
    this.#evaluator?.dispose()
    this.#stepper.dispose()
    await this.#log?.close()
  }

  async #loader(): Promise<ImageLoader> {
    const { data, strict = false } = this.options
    const { size, batch, seed, epochs, augment, mix } = this.settings
    const { rank, size: count } = this.team
    const loader = await import('../data/loader.js')
    const corrupt = strict ? 'throw' : 'replace'
    this.#pictures = new loader.ImageLoader(data.train, {
      ...{ size, batch, seed, epochs, augment, corrupt, shuffle: true, last: 'drop', start: this.#state.sample },
      ...(count > 1 && { share: { index: rank, count, mirror: mixes(mix) } }),
      ...(data.order && { order: (from: number, epoch: number) => data.order!(from, epoch) }),
    })
    return this.#pictures
  }

  get #stopping(): boolean {
    return this.team.size > 1 ? this.#agreed : this.#wishes
  }

  /** Whether this rank wants to stop. */
  get #wishes(): boolean {
    return this.#asked || this.options.signal?.aborted === true
  }

  /** Whether the score has not risen for `patience` epochs. */
  #worn(stepsPerEpoch: number): boolean {
    const { best, step } = this.#state
    return this.settings.patience !== undefined && best !== null && Math.floor(step / stepsPerEpoch) - best.epoch >= this.settings.patience
  }

  /** One update, and what it took; returns the mean loss of the batch. */
  async #train(
    batch: Batch,
    rate: number,
  ): Promise<{ loss: number; all: StepOfAll; computeMs: number; reduceMs?: number; exposedMs?: number }> {
    const since = performance.now()
    const { accumulate, batch: size } = this.settings
    const decay = this.#stepper.decay(this.#state.step)
    const { rank, size: ranks } = this.team
    const rows = this.#batches.rows
    const known = this.#batches.labels(batch).slice(0, rows * accumulate)
    let [total, correct, part] = [0, 0, 0]
    for (const inputs of this.#batches.parts(batch)) {
      const sample = this.#state.sample + rank * (size / ranks) + part * rows
      const { loss, finite, logits } = await this.#stepper.run(inputs, { rate, decay, sample, part })
      correct += countTop1(logits, accumulate === 1 ? known : known.slice(part * rows, (part + 1) * rows))
      if (finite === 0)
        throw this.#diverged(this.#state.step + 1, Number.isFinite(loss) ? 'a gradient is not finite' : `the loss is ${loss}`, loss)
      total += loss / accumulate
      part++
    }
    const computeMs = performance.now() - since
    if (this.#stepper.asynchronous) {
      // Every rank counts its own pictures; they are added up at the end of the epoch.
      const all = { correct, stop: await this.#stepper.asynchronous.agreed(this.#wishes), waitMs: batch.waitMs, decodeMs: batch.decodeMs }
      this.#meter.add(total, correct, size / ranks)
      return { loss: total, all, computeMs }
    }
    const { reductions = 0, busySeconds = 0, waitSeconds = 0 } = this.team.ranks?.statistics() ?? {}
    const exposedMs = waitSeconds * 1e3
    const { waitMs, decodeMs } = batch
    const all = await this.team.meet({ correct, stop: this.#wishes, ownMs: computeMs - exposedMs, waitMs, decodeMs })
    this.#meter.add(total, all.correct, size)
    return { loss: total, all, computeMs, ...(reductions > 0 && { reduceMs: busySeconds * 1e3, exposedMs }) }
  }

  /** Brings asynchronous ranks together: the same weights everywhere, the epoch's sums over all of them. */
  async #settle(): Promise<Staleness | undefined> {
    if (!this.#stepper.asynchronous) return undefined
    const { staleness, stop } = await this.#stepper.asynchronous.settle(this.#stepper.companions, this.#wishes)
    this.#agreed ||= stop
    this.#state = { ...this.#state, ...(await this.team.sum(this.#meter.sums, this.#settled)) }
    this.#meter.restore(this.#state)
    this.#settled = this.#meter.sums
    return staleness
  }

  #diverged(step: number, reason: string, given?: number): SepconvError {
    const stored = this.#stored
    const kept = stored === undefined ? 'No checkpoint had been written' : `The checkpoint holds step ${stored}, whose weights are finite`
    return new SepconvError('ERR_DIVERGED', `training diverged at step ${step}: ${reason}`, {
      subject: 'loss',
      given,
      hint: `${kept}. Try a lower rate than ${this.#rate.toPrecision(3)}, a longer warm-up, or clipNorm`,
    })
  }

  /** An update by finite gradients can still overflow: such weights are neither scored nor written over good ones. */
  async #checkWeights(): Promise<void> {
    if (this.#checked === this.#state.step) return
    const finite = await this.#finite.run()
    const [flag] = await finite.data()
    finite.dispose()
    if (flag === 0) throw this.#diverged(this.#state.step, 'weights are not finite after it')
    this.#checked = this.#state.step
  }

  async *#finishEpoch(epoch: number, waitShare: number, since: number): AsyncGenerator<FitEvent, void, undefined> {
    const { snapshots } = this.options
    const out = this.#out
    const staleness = await this.#settle()
    await this.#checkWeights()
    const evaluation = yield* this.#evaluate(epoch)
    const scores = evaluation && scoresOf(evaluation)
    const value = scores?.[this.settings.metric]
    const best = value !== undefined && isBetter(this.settings.metric, value, this.#state.best?.value)
    const { loss, top1 } = this.#meter
    this.#meter = new EpochMeter()
    this.#settled = this.#meter.sums
    this.#state = { ...this.#state, ...this.#meter.sums, best: best ? { metric: this.settings.metric, value, epoch } : this.#state.best }
    if (out !== undefined) {
      if (best || !this.#evaluator) await this.#saveWeights(join(out, BEST))
      if (best) await this.#savePredictions(join(out, PREDICTIONS), epoch)
      if (snapshots !== undefined && epoch % snapshots === 0)
        await this.#saveWeights(join(out, `epoch-${String(epoch).padStart(4, '0')}.safetensors`))
    }
    const skipped = [...(this.#pictures?.statistics.skipped.keys() ?? []), ...(evaluation?.skipped.keys() ?? [])]
    const seconds = (performance.now() - since) / 1e3
    yield* this.#emit({
      type: 'epoch',
      epoch,
      step: this.#state.step,
      loss,
      top1,
      validation: scores,
      best,
      seconds,
      waitShare,
      skipped,
      ...(staleness && { staleness }),
    })
  }

  async *#evaluate(epoch: number): AsyncGenerator<FitEvent, Evaluation | null, undefined> {
    if (!this.#evaluator) return null
    yield* this.#emit({ type: 'evaluating', epoch, done: 0, total: this.options.data.validation.length }, false)
    this.#scored = []
    return await this.#evaluator.run()
  }

  async *#stop(stepsPerEpoch: number): AsyncGenerator<FitEvent, void, undefined> {
    await this.#settle()
    yield* this.#save()
    const { step } = this.#state
    await this.#stepper.adoptAverage()
    yield* this.#emit({ type: 'stopped', epoch: Math.floor(step / stepsPerEpoch) + 1, step, out: this.options.out ?? null })
  }

  async *#save(): AsyncGenerator<FitEvent, void, undefined> {
    const { model } = this.options
    const out = this.#out
    if (out === undefined) return
    await this.#checkWeights()
    await saveCheckpoint(out, model, this.#stepper.companions, this.#state)
    this.#stored = this.#state.step
    yield* this.#emit({ type: 'checkpoint', step: this.#state.step, path: join(out, LAST) })
  }

  async #saveWeights(path: string): Promise<void> {
    const { tracked } = this.#stepper
    await this.options.model.saveWeights(path, { variable: (variable) => tracked.get(variable) ?? variable })
  }

  /** What the best weights make of each held-out picture, for reports. */
  async #savePredictions(path: string, epoch: number): Promise<void> {
    const pictures = this.#scored.map(({ sample: { name, label, labels }, predicted, confidence }) => ({
      name,
      labels: labels ?? [label],
      predicted,
      confidence: Number(confidence.toPrecision(6)),
    }))
    await writeAtomic(path, `${JSON.stringify({ epoch, classes: this.options.data.classes, pictures })}\n`)
  }

  async *#emit(event: FitEvent, logged = true): AsyncGenerator<FitEvent, void, undefined> {
    await this.#note(event, logged)
    yield event
  }

  /** Tells the log and the callbacks; a promise only where there is something to wait for. */
  #note(event: FitEvent, logged = true): Promise<void> | undefined {
    const written = logged ? this.#log?.add(event) : undefined
    const { callbacks = [], model } = this.options
    if (callbacks.length === 0) return written
    return (async () => {
      await written
      for (const callback of callbacks) await callback(event, { model, stop: () => void (this.#asked = true) })
    })()
  }
}
