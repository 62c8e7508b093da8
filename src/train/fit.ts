/**
 * The training loop as an async generator of events. Everything that a step does is a function of the settings, the seed and
 * the step's number; so a run that was stopped anywhere and resumed ends with the same bits as one that was not.
 */

import { createHash } from 'node:crypto'
import { join } from 'node:path'
import type { AugmentOptions } from '../data/augment.js'
import type { Dataset } from '../data/folder.js'
import { checkOptions, SepconvError } from '../errors.js'
import { appendLine, lockFolder } from '../files.js'
import type { Value } from '../graph/graph.js'
import { type Classification, ClassificationMeter } from '../metrics.js'
import type { Model } from '../models/model.js'
import { softmaxCrossEntropy } from '../ops/index.js'
import { compile, type TrainStep } from '../runtime/function.js'
import { readState, writeState } from '../runtime/state.js'
import { type Tensor, upload } from '../runtime/tensor.js'
import { BEST, loadCheckpoint, openRun, saveCheckpoint, type TrainingState } from './checkpoint.js'
import { type Evaluation, Evaluator } from './evaluate.js'
import { type AverageKind, checkRange, sgd, type SgdOptimizer, type SgdOptions, type TrackedAverage, weightAverage } from './optimizer.js'
import { checkSchedule, rateAt, type Schedule } from './schedule.js'

/** Options of {@link fit}. */
export interface FitOptions {
  model: Model
  data: Dataset
  /** Folder for checkpoints and log; without one nothing is written. */
  out?: string
  /** Goes on where the run in `out` stopped. Default false. */
  resume?: boolean
  /** Passes over the training pictures. Default 10. */
  epochs?: number
  /** Pictures per step; the incomplete last batch of an epoch is left out. Default 32. */
  batch?: number
  /** Side of the training pictures. Default: the model's. */
  size?: number
  /** First learning rate. Default 0.045 · batch / 32. */
  rate?: number
  /** Default cosine with half an epoch of warm-up. */
  schedule?: Schedule
  /** Of SGD. Defaults: momentum 0.9, weightDecay 1e-5 (the paper's for Xception) on filters. */
  momentum?: number
  weightDecay?: number
  nesterov?: boolean
  /** Which average of the weights is kept and evaluated. Default `'ema'`. */
  average?: AverageKind
  /** Of `'ema'`. Default 0.999. */
  averageDecay?: number
  /** Share of every label spread over all classes. Default 0. */
  labelSmoothing?: number
  /** Gradients are scaled down to this global norm. Default: no limit. */
  clipNorm?: number
  /** Random crops, mirroring and colours; `false` for none. */
  augment?: AugmentOptions | false
  /** Decides order and augmentation; weights have a seed of their own. Default 0. */
  seed?: number
  /** Most bytes of scratch memory per step; see compile(). */
  memoryLimit?: number
  /** Steps between checkpoints besides the one after each epoch. Default: none in between but every 60 seconds. */
  checkpointSteps?: number
  /** Unreadable pictures end the run instead of being skipped and counted. Default false. */
  strict?: boolean
  /** Stops after the step (or evaluation) under way, with a checkpoint. */
  signal?: AbortSignal
}

const OPTIONS = [
  ...[
    'model',
    'data',
    'out',
    'resume',
    'epochs',
    'batch',
    'size',
    'rate',
    'schedule',
    'momentum',
    'weightDecay',
    'nesterov',
    'average',
    'averageDecay',
  ],
  ...['labelSmoothing', 'clipNorm', 'augment', 'seed', 'memoryLimit', 'checkpointSteps', 'strict', 'signal'],
]

/** What {@link fit} reports; docs/json.md says what the fields mean. */
export type FitEvent =
  | {
      readonly type: 'start'
      readonly step: number
      readonly steps: number
      readonly epochs: number
      readonly stepsPerEpoch: number
      readonly images: number
      readonly validationImages: number
      readonly classes: number
      readonly parameters: number
      readonly device: string
    }
  | {
      readonly type: 'step'
      readonly epoch: number
      readonly step: number
      readonly steps: number
      readonly loss: number
      readonly top1: number
      readonly rate: number
      readonly imagesPerSecond: number
      readonly waitShare: number
    }
  | { readonly type: 'evaluating'; readonly epoch: number; readonly done: number; readonly total: number }
  | {
      readonly type: 'epoch'
      readonly epoch: number
      readonly step: number
      readonly loss: number
      readonly top1: number
      readonly validation: Classification | null
      readonly best: boolean
      readonly seconds: number
      readonly skipped: readonly string[]
    }
  | { readonly type: 'checkpoint'; readonly step: number; readonly path: string }
  | { readonly type: 'stopped'; readonly epoch: number; readonly step: number; readonly out: string | null }
  | {
      readonly type: 'done'
      readonly epoch: number
      readonly step: number
      readonly best: { readonly top1: number; readonly epoch: number } | null
      readonly out: string | null
    }

/** Seconds after which a long epoch is checkpointed in between. */
const CHECKPOINT_SECONDS = 60

/**
 * Trains a classifier.
 * @returns events, in order: `start`; `step` after each step; after each epoch `evaluating`, `epoch` and `checkpoint`; at the
 *   end `done`, or `stopped` when the signal fired.
 * @throws ERR_DIVERGED when the loss or a gradient is not finite (weights and checkpoints stay as they were before that step);
 *   ERR_BUSY when another process trains in `out`; ERR_DATA, ERR_FILE, ERR_ARGUMENT, ERR_MEMORY.
 * @example for await (const event of fit({ model, data: await imageFolder('photos') })) if (event.type === 'epoch') console.log(event)
 */
export async function* fit(options: FitOptions): AsyncGenerator<FitEvent, void, undefined> {
  const run = new Run(options)
  await using lock = options.out === undefined ? undefined : await lockFolder(options.out)
  void lock
  try {
    yield* run.events()
  } finally {
    run.dispose()
  }
}

type Step = TrainStep<{ images: Tensor; labels: Tensor }, { logits: Tensor }>

class Run {
  readonly #optimizer: SgdOptimizer
  readonly #average: TrackedAverage | undefined
  readonly #schedule: Schedule
  readonly #step: Step
  readonly #evaluator: Evaluator | undefined
  readonly #settings: Required<Pick<FitOptions, 'epochs' | 'batch' | 'size' | 'rate' | 'seed' | 'labelSmoothing' | 'strict' | 'resume'>>
  #meter = new EpochMeter()
  #state: TrainingState = { step: 0, sample: 0, epochLoss: 0, epochCorrect: 0, epochImages: 0, best: null }

  constructor(private readonly options: FitOptions) {
    checkOptions('fit', options, OPTIONS)
    for (const [name, value] of Object.entries({ model: options?.model, data: options?.data }))
      if (!value) throw new SepconvError('ERR_ARGUMENT', `fit: '${name}' is missing`, { subject: name })
    const { model, data, epochs = 10, batch = 32, seed = 0, labelSmoothing = 0, strict = false, resume = false, out } = options
    const size = options.size ?? model.config.preprocessing.size
    const rate = options.rate ?? (0.045 * batch) / 32
    for (const [name, value] of Object.entries({ epochs, batch, size }))
      checkRange('fit', name, value, (x) => Number.isInteger(x) && x >= 1, 'a whole number of at least 1')
    checkRange('fit', 'rate', rate, (x) => x > 0, 'positive')
    checkRange('fit', 'seed', seed, (x) => Number.isSafeInteger(x) && x >= 0, 'a whole number of at least 0')
    checkRange('fit', 'labelSmoothing', labelSmoothing, (x) => x >= 0 && x < 1, 'in [0, 1)')
    if (resume && out === undefined) throw new SepconvError('ERR_ARGUMENT', "fit: resume needs the run's folder as out", { subject: 'out' })
    if (data.classes.length !== model.network.classes)
      throw new SepconvError('ERR_DATA', `fit: the data has ${data.classes.length} classes, the model ${model.network.classes}`, {
        subject: 'classes',
        expected: model.network.classes,
        given: data.classes.length,
        hint: `Create the model with classes: ${data.classes.length}`,
      })
    if (data.train.length < batch)
      throw new SepconvError('ERR_DATA', `fit: ${data.train.length} training pictures do not fill one batch of ${batch}`, {
        subject: 'batch',
        given: batch,
        hint: 'Use a smaller batch',
      })
    this.#settings = { epochs, batch, size, rate, seed, labelSmoothing, strict, resume }
    this.#schedule = options.schedule ?? { kind: 'cosine', warmup: Math.min(0.5, epochs / 10) }
    checkSchedule(this.#schedule)
    const { momentum = 0.9, weightDecay = 1e-5, nesterov = false, average = 'ema', averageDecay = 0.999 } = options
    this.#optimizer = sgd({ rate, momentum, weightDecay, nesterov } satisfies SgdOptions)
    this.#average = average === 'none' ? undefined : weightAverage(average, averageDecay)
    model.labels ??= data.classes
    this.#step = compile(
      ({ images, labels }: { images: Value; labels: Value }) => {
        const logits = model(images)
        return { loss: softmaxCrossEntropy(logits, labels, { labelSmoothing }), logits }
      },
      {
        device: model.device,
        train: this.#optimizer,
        memoryLimit: options.memoryLimit,
        clipNorm: options.clipNorm,
        ...(this.#average && { average: this.#average }),
      },
    ) as unknown as Step
    const averaged = this.#average && ((variable: Parameters<TrackedAverage['variable']>[0]) => this.#tracked().get(variable) ?? variable)
    // Without the signal: an evaluation is finished before a run stops, so that the checkpoint after it holds the epoch's scores.
    if (data.validation.length > 0) this.#evaluator = new Evaluator(model, data.validation, { batch, size, strict }, averaged)
  }

  async *events(): AsyncGenerator<FitEvent, void, undefined> {
    const { model, data, out, signal } = this.options
    const { epochs, batch, size, resume } = this.#settings
    const stepsPerEpoch = Math.floor(data.train.length / batch)
    const steps = epochs * stepsPerEpoch
    await this.#prepare(size, batch)
    if (out !== undefined) {
      await openRun(out, this.#config(), resume)
      if (resume) {
        this.#state = await loadCheckpoint(out, model, this.#companions())
        this.#meter.restore(this.#state)
      }
    }
    yield* this.#emit({
      type: 'start',
      step: this.#state.step,
      steps,
      epochs,
      stepsPerEpoch,
      images: data.train.length,
      validationImages: data.validation.length,
      classes: data.classes.length,
      parameters: this.#step.parameters.length,
      device: model.device,
    })

    const { ImageLoader } = await import('../data/loader.js')
    const loader = new ImageLoader(data.train, {
      ...{
        size,
        batch,
        seed: this.#settings.seed,
        shuffle: true,
        epochs,
        start: this.#state.sample,
        last: 'drop',
        corrupt: this.#settings.strict ? 'throw' : 'replace',
      },
      augment: this.options.augment ?? {},
    })
    let saved = performance.now()
    let epochStart = performance.now()
    const speed = new Speed()
    for await (const { images, labels, next, waitMs } of loader) {
      if (signal?.aborted) return yield* this.#stop(stepsPerEpoch)
      const { step } = this.#state
      const rate = rateAt(this.#settings.rate, this.#schedule, { step, stepsPerEpoch, epochs })
      const loss = await this.#train(images, labels, rate)
      const epoch = Math.floor(step / stepsPerEpoch) + 1
      this.#state = { ...this.#state, ...this.#meter.sums, step: step + 1, sample: next }
      const { imagesPerSecond, waitShare } = speed.add(labels.length, waitMs)
      yield* this.#emit({ type: 'step', epoch, step: step + 1, steps, loss, top1: this.#meter.top1, rate, imagesPerSecond, waitShare })
      const last = (step + 1) % stepsPerEpoch === 0
      if (last) {
        const validation = yield* this.#evaluate(epoch)
        const best = validation !== null && validation.top1 > (this.#state.best?.top1 ?? -1)
        const summary = { loss: this.#meter.loss, top1: this.#meter.top1 }
        this.#meter = new EpochMeter()
        this.#state = { ...this.#state, ...this.#meter.sums, best: best ? { top1: validation.top1, epoch } : this.#state.best }
        if (out !== undefined && (best || !this.#evaluator)) await this.#saveBest(out)
        const skipped = [...loader.statistics.skipped.keys(), ...(validation?.skipped.keys() ?? [])]
        const scores = validation && { images: validation.images, top1: validation.top1, top5: validation.top5, loss: validation.loss }
        yield* this.#emit({
          type: 'epoch',
          epoch,
          step: step + 1,
          ...summary,
          validation: scores,
          best,
          seconds: (performance.now() - epochStart) / 1e3,
          skipped,
        })
        epochStart = performance.now()
      }
      const due =
        this.options.checkpointSteps === undefined
          ? performance.now() - saved > CHECKPOINT_SECONDS * 1e3
          : (step + 1) % this.options.checkpointSteps === 0
      if (last || due) {
        yield* this.#save()
        saved = performance.now()
      }
      if (last) speed.reset()
      if (signal?.aborted && step + 1 < steps) return yield* this.#stop(stepsPerEpoch)
    }
    yield* this.#emit({ type: 'done', epoch: epochs, step: this.#state.step, best: this.#state.best, out: out ?? null })
  }

  dispose(): void {
    this.#step.dispose()
    this.#evaluator?.dispose()
  }

  /** Compiles the step, which creates velocities and averages; averages start as the weights themselves. */
  async #prepare(size: number, batch: number): Promise<void> {
    const { model } = this.options
    const images = upload(
      model.executor,
      { shape: [batch, size, size, model.network.inputChannels], dtype: 'uint8' },
      new Uint8Array(batch * size * size * model.network.inputChannels),
    )
    const labels = upload(model.executor, { shape: [batch], dtype: 'int32' }, new Int32Array(batch))
    this.#step.executable({ images, labels })
    images.dispose()
    labels.dispose()
    for (const [source, average] of this.#average?.entries() ?? []) writeState(average, await readState(source), model.executor)
  }

  async #train(images: Uint8Array, labels: Int32Array, rate: number): Promise<number> {
    const { model } = this.options
    const { size } = this.#settings
    const batch = {
      images: upload(model.executor, { shape: [labels.length, size, size, model.network.inputChannels], dtype: 'uint8' }, images),
      labels: upload(model.executor, { shape: [labels.length], dtype: 'int32' }, labels),
    }
    const decay = this.#average?.decay(this.#state.step) ?? 0
    const { loss, logits, finite } = await this.#step.run(batch, { rate, decay, sample: this.#state.sample })
    const [lossValue, scores, flag] = [
      ((await loss.data()) as Float32Array)[0]!,
      (await logits.data()) as Float32Array,
      ((await finite.data()) as Float32Array)[0]!,
    ]
    for (const tensor of [batch.images, batch.labels, loss, logits, finite]) tensor.dispose()
    if (flag === 0)
      throw new SepconvError(
        'ERR_DIVERGED',
        `training diverged at step ${this.#state.step + 1}: the loss is ${lossValue}${Number.isFinite(lossValue) ? ', a gradient is not finite' : ''}`,
        {
          subject: 'loss',
          given: lossValue,
          hint: `Nothing was changed by this step and the last checkpoint is good. Try a lower rate than ${rate.toPrecision(3)}, a longer warm-up, or clipNorm`,
        },
      )
    this.#meter.add(lossValue, scores, labels)
    return lossValue
  }

  async *#evaluate(epoch: number): AsyncGenerator<FitEvent, Evaluation | null, undefined> {
    if (!this.#evaluator) return null
    yield { type: 'evaluating', epoch, done: 0, total: this.options.data.validation.length }
    return await this.#evaluator.run()
  }

  async *#stop(stepsPerEpoch: number): AsyncGenerator<FitEvent, void, undefined> {
    yield* this.#save()
    yield* this.#emit({
      type: 'stopped',
      epoch: Math.floor(this.#state.step / stepsPerEpoch) + 1,
      step: this.#state.step,
      out: this.options.out ?? null,
    })
  }

  async *#save(): AsyncGenerator<FitEvent, void, undefined> {
    const { out, model } = this.options
    if (out === undefined) return
    await saveCheckpoint(out, model, this.#companions(), this.#state)
    yield* this.#emit({ type: 'checkpoint', step: this.#state.step, path: join(out, 'last.safetensors') })
  }

  async #saveBest(out: string): Promise<void> {
    const tracked = this.#tracked()
    await this.options.model.saveWeights(join(out, BEST), { variable: (variable) => tracked.get(variable) ?? variable })
  }

  async *#emit(event: FitEvent): AsyncGenerator<FitEvent, void, undefined> {
    if (this.options.out !== undefined)
      await appendLine(join(this.options.out, 'log.jsonl'), JSON.stringify({ time: new Date().toISOString(), ...event }), {
        durable: false,
      })
    yield event
  }

  #tracked(): ReadonlyMap<unknown, Parameters<TrackedAverage['variable']>[0]> {
    return new Map(this.#average?.entries() ?? [])
  }

  #companions() {
    return [...this.#optimizer.slots(), ...(this.#average?.entries() ?? [])].map(([, companion]) => companion)
  }

  /** All that a resumed run must share, data included. */
  #config() {
    const { model, data, augment = {}, average = 'ema', averageDecay = 0.999, clipNorm = null } = this.options
    const names = createHash('sha256')
    for (const { name, label } of [...data.train, ...data.validation]) names.update(`${name}\0${label}\n`)
    const { resume: _, strict: __, ...settings } = this.#settings
    return {
      version: 1,
      model: { architecture: model.config.architecture, options: model.config.options, preprocessing: model.config.preprocessing },
      data: {
        root: data.root,
        classes: data.classes,
        train: data.train.length,
        validation: data.validation.length,
        names: names.digest('hex'),
      },
      settings: { ...settings, schedule: this.#schedule, ...this.#optimizer.options, augment, average, averageDecay, clipNorm },
    }
  }
}

/** Mean loss and accuracy of the epoch under way. */
class EpochMeter {
  #loss = 0
  #correct = 0
  #images = 0

  add(loss: number, logits: Float32Array, labels: Int32Array): void {
    const meter = new ClassificationMeter()
    meter.add(logits, labels)
    this.#loss += loss * labels.length
    this.#correct += Math.round(meter.result().top1 * labels.length)
    this.#images += labels.length
  }
  restore(state: TrainingState): void {
    this.#loss = state.epochLoss
    this.#correct = state.epochCorrect
    this.#images = state.epochImages
  }
  get sums() {
    return { epochLoss: this.#loss, epochCorrect: this.#correct, epochImages: this.#images }
  }
  get loss(): number {
    return this.#loss / this.#images
  }
  get top1(): number {
    return this.#correct / this.#images
  }
}

/** Images per second over the last steps, and the share of the time that was spent waiting for pictures. */
class Speed {
  #marks: { at: number; images: number; wait: number }[] = [{ at: performance.now(), images: 0, wait: 0 }]
  reset(): void {
    this.#marks = [{ at: performance.now(), images: 0, wait: 0 }]
  }
  add(images: number, waitMs: number) {
    this.#marks.push({ at: performance.now(), images, wait: waitMs })
    if (this.#marks.length > 50) this.#marks.shift()
    const seconds = (this.#marks.at(-1)!.at - this.#marks[0]!.at) / 1e3
    const sum = (pick: (mark: { images: number; wait: number }) => number) =>
      this.#marks.slice(1).reduce((total, mark) => total + pick(mark), 0)
    return { imagesPerSecond: sum(({ images: n }) => n) / seconds, waitShare: sum(({ wait }) => wait) / 1e3 / seconds }
  }
}
