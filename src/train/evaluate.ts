/** Exact evaluation of a model over samples: the padded rows of the last batch count for nothing. */

import { agree } from '../distributed/agreement.js'
import type { Communicator } from '../distributed/communicator.js'
import type { LoaderOptions, LoaderStatistics } from '../data/loader.js'
import type { Sample } from '../data/folder.js'
import { checkOptions, SepconvError } from '../errors.js'
import type { Variable } from '../graph/variable.js'
import type { Value } from '../graph/graph.js'
import { type MeanAveragePrecision, MeanAveragePrecisionMeter, type MeanAveragePrecisionOptions } from '../meanAveragePrecision.js'
import { type Classification, ClassificationMeter, MultiLabelMeter } from '../metrics.js'
import type { Model } from '../models/model.js'
import type { Metric, Scores } from './events.js'
import { type CompiledFunction, compile } from '../runtime/function.js'
import { type Tensor, upload } from '../runtime/tensor.js'

/** Options of {@link evaluate}. */
export interface EvaluateOptions {
  /** Rows per batch. Default 32. */
  batch?: number
  /** Side of the pictures. Default: the model's. */
  size?: number
  /** Pictures that cannot be read end the evaluation instead of being counted. Default false. */
  strict?: boolean
  /** Also scores by MAP (see {@link MeanAveragePrecisionOptions}). Default: where pictures have several labels. */
  map?: MeanAveragePrecisionOptions | boolean
  /** Called for every picture that was scored. */
  onScored?: (scored: Scored) => void
  /** Most bytes of decoded pictures to keep between evaluations. Default: the loader's. */
  cacheBytes?: number
  signal?: AbortSignal
  /** Sees the logits of every picture that could be read, with its place among the samples. */
  observe?: (logits: Float32Array, sample: number) => void
  /** The ranks that evaluate together, each its part of every batch; rank 0 scores, and all return the result. Default: alone. */
  ranks?: Communicator | undefined
  /** Called after every batch. */
  onProgress?: (progress: { readonly done: number; readonly total: number }) => void
}

/** The outcome for one picture. */
export interface Scored {
  readonly sample: Sample
  /** The class with the highest logit, and its softmax probability (with several labels per picture: its sigmoid). */
  readonly predicted: number
  readonly confidence: number
}

/** What {@link evaluate} measured. */
export interface Evaluation extends Classification {
  /** Where it was asked for, or pictures have several labels. */
  readonly map?: MeanAveragePrecision
  /** Pictures that could not be read: name to reason. */
  readonly skipped: ReadonlyMap<string, string>
}

/** Evaluates the same samples any number of times; programs and decoded pictures are kept. */
export class Evaluator {
  readonly #logits: CompiledFunction<[Tensor], Tensor>
  #loader:
    | (AsyncIterable<{ images: Uint8Array; labels: Int32Array; indices: Int32Array; count: number }> & {
        readonly statistics: LoaderStatistics
      })
    | undefined

  /** @param substitute reads another variable in place of one, such as its average. */
  constructor(
    private readonly model: Model,
    private readonly samples: readonly Sample[],
    private readonly options: EvaluateOptions = {},
    substitute?: (variable: Variable) => Variable,
  ) {
    checkOptions('evaluate', options, [
      'batch',
      'size',
      'strict',
      'map',
      'onScored',
      'cacheBytes',
      'signal',
      'observe',
      'onProgress',
      'ranks',
    ])
    this.#logits = compile((x: Value) => model(x), { device: model.device, precision: model.precision, ...(substitute && { substitute }) })
  }

  async run(): Promise<Evaluation> {
    const { model, samples } = this
    const {
      batch = 32,
      size = model.config.preprocessing.size,
      strict = false,
      cacheBytes,
      signal,
      observe,
      onProgress,
      onScored,
      ranks,
    } = this.options
    const count = ranks?.size ?? 1
    if (samples.length === 0) throw new SepconvError('ERR_DATA', 'evaluate: there are no pictures', { subject: 'samples' })
    const several = samples.some(({ labels }) => labels !== undefined)
    const outside = samples.find(({ label, labels }) => Math.max(label, ...(labels ?? [])) >= model.network.classes)
    if (outside)
      throw new SepconvError(
        'ERR_DATA',
        `evaluate: '${outside.name}' has class ${Math.max(outside.label, ...(outside.labels ?? []))}, the model knows ${model.network.classes} classes`,
        { subject: outside.name, expected: model.network.classes, given: outside.labels ?? outside.label },
      )
    /** Of a batch here; the batch is as many times larger as there are ranks. */
    const rows = Math.ceil(Math.min(batch, samples.length) / count)
    if (ranks)
      await agree(ranks, { pictures: samples.length, batch, size, classes: model.network.classes, model: model.config.architecture })
    if (!this.#loader) {
      const { ImageLoader } = await import('../data/loader.js')
      const { resize, crop, interpolation } = model.config.preprocessing
      const options: LoaderOptions = {
        size,
        batch: rows * count,
        ...(ranks && { share: { index: ranks.rank, count } }),
        preprocess: { resize: Math.round((resize * size) / model.config.preprocessing.size), crop, interpolation },
        corrupt: strict ? 'throw' : 'mask',
        ...(cacheBytes !== undefined && { cacheBytes }),
      }
      this.#loader = new ImageLoader(samples, options)
    }
    const meter = several ? new MultiLabelMeter() : new ClassificationMeter()
    const map = this.options.map ?? several
    const ranking = map && new MeanAveragePrecisionMeter(model.network.classes, map === true ? {} : map)
    let done = 0
    for await (const own of this.#loader) {
      signal?.throwIfAborted()
      const input = upload(model.executor, { shape: [rows, size, size, model.network.inputChannels], dtype: 'uint8' }, own.images)
      const logits = await this.#logits.run(input)
      const computed = (await logits.data()) as Float32Array
      input.dispose()
      logits.dispose()
      const gathered = ranks ? await gatherRows(ranks, own.indices, computed) : { indices: own.indices, scores: computed }
      if (!gathered) continue
      const { indices, scores } = gathered
      const labels = ranks ? indices.map((index) => (index < 0 ? -1 : samples[index]!.label)) : own.labels
      const sets = several || ranking ? labelSets(samples, labels, indices) : []
      if (meter instanceof MultiLabelMeter) meter.add(scores, sets)
      else meter.add(scores, labels)
      if (ranking) ranking.add(scores, sets)
      if (onScored) report(scores, indices, samples, several, onScored)
      if (observe) {
        const { classes } = model.network
        for (const [row, index] of indices.entries()) if (index >= 0) observe(scores.subarray(row * classes, (row + 1) * classes), index)
      }
      done += indices.reduce((sum, index) => sum + (index >= 0 ? 1 : 0), 0)
      onProgress?.({ done, total: samples.length })
    }
    // Where others have seen the rows, there is nothing to average here.
    const result = { ...meter.result(), ...(ranking && (ranks?.rank ?? 0) === 0 && { map: ranking.result() }) }
    const { skipped } = this.#loader.statistics
    return ranks ? agreedResult(ranks, result, skipped) : { ...result, skipped }
  }

  dispose(): void {
    this.#logits.dispose()
  }
}

/** Which samples the rows of a batch are and their logits, in the order of the batch: on rank 0, for which the others work. */
async function gatherRows(
  ranks: Communicator,
  indices: Int32Array,
  logits: Float32Array,
): Promise<{ indices: Int32Array; scores: Float32Array } | undefined> {
  const own = new Uint8Array(indices.byteLength + logits.byteLength)
  own.set(new Uint8Array(indices.buffer, indices.byteOffset, indices.byteLength))
  own.set(new Uint8Array(logits.buffer, logits.byteOffset, logits.byteLength), indices.byteLength)
  const all = await ranks.gather(own)
  if (ranks.rank !== 0) return undefined
  const rows = { indices: new Int32Array(ranks.size * indices.length), scores: new Float32Array(ranks.size * logits.length) }
  for (let rank = 0; rank < ranks.size; rank++) {
    const at = all.byteOffset + rank * own.length
    rows.indices.set(new Int32Array(all.buffer, at, indices.length), rank * indices.length)
    rows.scores.set(new Float32Array(all.buffer, at + indices.byteLength, logits.length), rank * logits.length)
  }
  return rows
}

/** What rank 0 has found, and what any rank could not read. */
async function agreedResult(
  ranks: Communicator,
  found: Omit<Evaluation, 'skipped'>,
  own: ReadonlyMap<string, string>,
): Promise<Evaluation> {
  const result = await ranks.fromFirst(found)
  const all = (await ranks.share([...own])) as [string, string][][]
  // JSON has no NaN, which a loss may be.
  return { ...result, loss: result.loss ?? Number.NaN, skipped: new Map(all.flat()) }
}

/** The labels of each row; `null` for rows without a picture. */
const labelSets = (samples: readonly Sample[], labels: Int32Array, indices: Int32Array): (readonly number[] | null)[] =>
  Array.from(indices, (index, row) => (index < 0 ? null : (samples[index]!.labels ?? [labels[row]!])))

function report(
  scores: Float32Array,
  indices: Int32Array,
  samples: readonly Sample[],
  several: boolean,
  onScored: (scored: Scored) => void,
): void {
  const classes = scores.length / indices.length
  for (const [row, index] of indices.entries()) {
    if (index < 0) continue
    const own = scores.subarray(row * classes, (row + 1) * classes)
    const predicted = own.reduce((best, score, c) => (score > own[best]! ? c : best), 0)
    const top = own[predicted]!
    const confidence = several ? 1 / (1 + Math.exp(-top)) : 1 / own.reduce((sum, score) => sum + Math.exp(score - top), 0)
    onScored({ sample: samples[index]!, predicted, confidence })
  }
}

/**
 * Top-1, top-5 and loss of a model over labelled pictures.
 * @throws ERR_DATA when there are none, or a label is outside the model's classes.
 */
export async function evaluate(model: Model, samples: readonly Sample[], options: EvaluateOptions = {}): Promise<Evaluation> {
  const evaluator = new Evaluator(model, samples, options)
  try {
    return await evaluator.run()
  } finally {
    evaluator.dispose()
  }
}

/** What events and logs say of an evaluation. */
export const scoresOf = ({ images, top1, top5, loss, map }: Evaluation): Scores => ({
  images,
  top1,
  top5,
  loss,
  ...(map && { map: map.map }),
})

/** Whether a score is better than the best so far. */
export const isBetter = (metric: Metric, value: number, than: number | undefined): boolean =>
  than === undefined || (metric === 'loss' ? value < than : value > than)
