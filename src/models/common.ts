/** What the baselines share: the options that every one of them takes, scaled channel counts, the classifier. */

import { checkOptions, SepconvError } from '../errors.js'
import type { Value } from '../graph/graph.js'
import type { InitializerName } from '../nn/initializers.js'
import { checkCount, type Layer, layer } from '../nn/layer.js'
import { dense, dropout, globalAveragePool, relu } from '../nn/layers.js'
import type { Preprocessing } from './preprocessing.js'

/** Repeats of a block: options come out of files too, and a thousand million blocks would fill the memory before anything is compared. */
export const MAX_REPEATS = 1000

/** Options of every baseline. */
export interface BaselineOptions {
  /** Outputs of the logistic regression; 0 gives the pooled embedding instead. Default 1000. */
  classes?: number
  /** Default 3. */
  inputChannels?: number
  /** Height and width of the input in pixels. */
  inputSize?: number
  /** Multiplies every channel count, rounded to multiples of 8 (at least 8). Default 1. */
  width?: number
  /** Repeats per stage. Default: the published ones. */
  blocks?: readonly number[]
  /** Share of the features before the classifier that is zeroed in training. Default 0. */
  dropout?: number
  /** Units of fully connected layers with ReLU before the logistic regression (not VGG's, which has its own): `true` for two of 4096. Default none. */
  fullyConnected?: boolean | readonly number[]
  /** Default `'glorotUniform'`. */
  initializer?: InitializerName
}

export const BASELINE_OPTIONS = ['classes', 'inputChannels', 'inputSize', 'width', 'blocks', 'dropout', 'initializer']

export interface Resolved {
  readonly classes: number
  readonly inputChannels: number
  readonly inputSize: number
  readonly blocks: readonly number[]
  readonly dropout: number
  readonly fullyConnected: readonly number[]
  readonly initializer: InitializerName
  /** A channel count times the width. */
  channels(count: number): number
}

/** Checks options that all baselines have. @throws ERR_ARGUMENT naming the model and the option. */
export function resolveBaseline(
  name: string,
  options: BaselineOptions,
  own: readonly string[],
  published: { readonly inputSize: number; readonly smallest: number; readonly blocks: readonly number[] },
): Resolved {
  checkOptions(name, options, [...BASELINE_OPTIONS, ...own])
  const { classes = 1000, inputChannels = 3, inputSize = published.inputSize, width = 1, blocks = published.blocks } = options
  checkCount(name, 'classes', classes, 0)
  checkCount(name, 'inputChannels', inputChannels)
  checkCount(name, 'inputSize', inputSize, published.smallest)
  if (!(width > 0 && width <= 16))
    throw new SepconvError('ERR_ARGUMENT', `${name}: width must be in (0, 16], got ${width}`, { subject: 'width', given: width })
  checkBlocks(name, blocks, published.blocks)
  return {
    ...{ classes, inputChannels, inputSize, blocks },
    dropout: options.dropout ?? 0,
    fullyConnected: options.fullyConnected === true ? [4096, 4096] : options.fullyConnected || [],
    initializer: options.initializer ?? 'glorotUniform',
    channels: (count) => (width === 1 ? count : Math.max(8, Math.round((count * width) / 8) * 8)),
  }
}

/** @throws ERR_ARGUMENT unless there are as many stages as published, each with 1 to 1000 blocks. */
export function checkBlocks(name: string, blocks: readonly number[], published: readonly number[]): void {
  const fits = (count: number) => Number.isInteger(count) && count >= 1 && count <= MAX_REPEATS
  if (Array.isArray(blocks) && blocks.length === published.length && blocks.every(fits)) return
  throw new SepconvError(
    'ERR_ARGUMENT',
    `${name}: blocks must be ${published.length} whole numbers from 1 to ${MAX_REPEATS}, got ${JSON.stringify(blocks)}`,
    { subject: 'blocks', expected: published, given: blocks },
  )
}

/** Mean over the last feature map, fully connected layers where wanted, dropout, logistic regression under the name `classifier`. */
export function pooledClassifier(
  features: number,
  { classes, dropout: rate, initializer, fullyConnected }: Resolved,
  classifier: string,
): Record<string, Layer> {
  const hidden = fullyConnected.flatMap((units, i): [string, Layer][] => [
    [`fc${i + 1}`, dense(i === 0 ? features : fullyConnected[i - 1]!, units, { initializer })],
    [`fc${i + 1}_act`, relu()],
  ])
  return {
    avgpool: globalAveragePool(),
    ...Object.fromEntries(hidden),
    ...(rate > 0 && { dropout: dropout(rate, { stream: 0 }) }),
    ...(classes > 0 && { [classifier]: dense(fullyConnected.at(-1) ?? features, classes, { initializer }) }),
  }
}

/** Layers in a row, named. */
export const named = (kind: string, children: Record<string, Layer>): Layer =>
  layer(kind, { children }, (x) => inTurn(Object.values(children), x))

export const inTurn = (layers: readonly Layer[], x: Value): Value => layers.reduce((value, child) => child(value), x)

/** What torchvision's classifiers of 224 pixels were trained with. */
export const torchvisionPreprocessing = (inputSize: number, inputChannels: number): Partial<Preprocessing> => ({
  resize: Math.round((inputSize * 256) / 224),
  interpolation: 'bilinear',
  ...(inputChannels === 3 && { mean: [0.485, 0.456, 0.406], deviation: [0.229, 0.224, 0.225] }),
})
