/**
 * Xception (Chollet 2017, arXiv 1610.02357, Figure 5): 36 convolutions in 14 modules, entry flow, middle flow, exit flow.
 * Layer for layer the published Keras model; names are Keras' block names.
 *
 *     entry   block1   conv 3×3 32 /2 · conv 3×3 64                       299² → 147² × 64
 *             block2   sep 128 · sep 128 · max pool /2   + projection    →  74² × 128
 *             block3   sep 256 · sep 256 · max pool /2   + projection    →  37² × 256
 *             block4   sep 728 · sep 728 · max pool /2   + projection    →  19² × 728
 *     middle  block5…12  (sep 728) × 3                   + identity      →  19² × 728
 *     exit    block13  sep 728 · sep 1024 · max pool /2  + projection    →  10² × 1024
 *             block14  sep 1536 · sep 2048                               →  10² × 2048
 *             global average pool · (4096 · 4096) · logistic regression
 *
 * Every convolution is followed by batch norm; ReLU stands before each separable convolution of blocks 3 to 13, inside block 2,
 * and after those of block 14. Shortcuts read the sum before any ReLU.
 */

import { checkChoice, checkOptions, SepconvError } from '../errors.js'
import type { Value } from '../graph/graph.js'
import { scoped } from '../graph/trace.js'
import { xceptionBlock } from '../nn/blocks.js'
import type { InitializerName } from '../nn/initializers.js'
import { checkCount, type Layer, layer } from '../nn/layer.js'
import {
  batchNorm,
  conv2d,
  dense,
  dropout,
  globalAveragePool,
  globalMaxPool,
  relu,
  type SeparableOptions,
  separable,
} from '../nn/layers.js'
import type { Activation } from '../ops/activation.js'
import type { Padding } from '../ops/geometry.js'
import { MAX_REPEATS, named } from './common.js'
import { type Network, registerModel } from './registry.js'
import { xceptionNames } from './xceptionNames.js'

/** Options of Xception; the defaults are the published model. */
export interface XceptionOptions {
  /** Outputs of the logistic regression; 0 gives the pooled embedding instead. Default 1000. */
  classes?: number
  /** Default 3. */
  inputChannels?: number
  /** Height and width of the input in pixels, at least 71. Default 299. Convolutional weights fit every size. */
  inputSize?: number
  /** Multiplies every channel count, rounded to multiples of 8 (at least 8). Default 1. */
  width?: number
  /** Repeats of the middle-flow module. Default 8. */
  middleRepeats?: number
  /** Share of the pooled features zeroed in training. Default 0; the paper's ImageNet recipe has 0.5. */
  dropout?: number
  /** Of the last feature map. Default `'avg'`. */
  pooling?: 'avg' | 'max'
  /** Shortcuts around blocks 2 to 13; off for the ablation of Figure 9. Default true. */
  residual?: boolean
  /** Between depthwise and pointwise: the ablation of Figure 10. Default `'none'`. */
  intermediateActivation?: Activation
  /** Batch norm between depthwise and pointwise. Default false. */
  intermediateBatchNorm?: boolean
  /** Independent channel segments of the spatial convolutions: a count or a width; 1 is regular convolution. Default: one per channel. */
  segments?: number | { width: number }
  /** Which half of the separable convolutions comes first; `'inception'` puts the 1×1 first, with ReLU between. Default `'depthwise-first'`. */
  order?: SeparableOptions['order']
  /** Fully connected layers with ReLU before the logistic regression: `true` for the paper's two of 4096 units. Default none. */
  fullyConnected?: boolean | readonly number[]
  /** Returns the feature pyramid (strides 2, 4, 8, 16, 32) instead of classes. Default false. */
  featuresOnly?: boolean
  /** Biases in the separable convolutions of block 14, as in Lucid 1 and 2 (22,862,096 parameters). Default false. */
  exitBias?: boolean
  /** Of the 3×3 max pools: `'tf'` (the odd row last, Keras weights) or `'symmetric'` (one on each side, PyTorch weights). Default `'tf'`. */
  poolPadding?: 'tf' | 'symmetric'
  /** Of every batch norm. Default 1e-3 (Keras weights); PyTorch ports have 1e-5. */
  epsilon?: number
  /** Share of the running statistics that is kept. Default 0.99. */
  momentum?: number
  /** Default `'glorotUniform'`. */
  initializer?: InitializerName
}

const OPTIONS = [
  ...[
    'classes',
    'inputChannels',
    'inputSize',
    'width',
    'middleRepeats',
    'dropout',
    'pooling',
    'residual',
    'intermediateActivation',
    'intermediateBatchNorm',
  ],
  ...['segments', 'order', 'fullyConnected', 'featuresOnly', 'exitBias', 'poolPadding', 'epsilon', 'momentum', 'initializer'],
]

/** The smallest input whose last feature map still is 3×3. */
const SMALLEST_INPUT = 71

/** The layers of Xception, without device or preprocessing. @throws ERR_ARGUMENT for unknown options and values out of range. */
export function buildXception(options: XceptionOptions = {}): Network {
  checkOptions('xception', options, OPTIONS)
  const {
    classes = 1000,
    inputChannels = 3,
    inputSize = 299,
    width = 1,
    middleRepeats = 8,
    residual = true,
    exitBias = false,
    pooling = 'avg',
    featuresOnly = false,
  } = options
  checkCount('xception', 'classes', classes, 0)
  checkCount('xception', 'inputChannels', inputChannels)
  checkCount('xception', 'middleRepeats', middleRepeats, 0, MAX_REPEATS)
  checkCount('xception', 'inputSize', inputSize, SMALLEST_INPUT)
  if (!(width > 0 && width <= 16))
    throw new SepconvError('ERR_ARGUMENT', `xception: width must be in (0, 16], got ${width}`, { subject: 'width', given: width })
  const { poolPadding = 'tf', fullyConnected = false, intermediateBatchNorm = false } = options
  checkChoice('xception', 'pooling', pooling, ['avg', 'max'])
  checkChoice('xception', 'poolPadding', poolPadding, ['tf', 'symmetric'])
  for (const [name, value] of Object.entries({ residual, featuresOnly, exitBias, intermediateBatchNorm }))
    checkChoice('xception', name, value, [true, false])
  if (Array.isArray(fullyConnected)) checkCount('xception', 'fullyConnected: the number of layers', fullyConnected.length, 0, MAX_REPEATS)
  else checkChoice('xception', 'fullyConnected', fullyConnected, [true, false])

  const channels = (count: number) => (width === 1 ? count : Math.max(8, Math.round((count * width) / 8) * 8))
  const normalise = { epsilon: options.epsilon ?? 1e-3, momentum: options.momentum ?? 0.99 }
  const initializer = options.initializer ?? 'glorotUniform'
  const sep: SeparableOptions = {
    initializer,
    intermediateActivation: options.intermediateActivation,
    intermediateBatchNorm,
    segments: options.segments,
    order: options.order,
    batchNorm: normalise,
  }
  const pad: Padding = poolPadding === 'tf' ? 'same' : { top: 1, bottom: 1, left: 1, right: 1 }
  const stem = (from: number, to: number, strides: number) => conv2d(from, to, { strides, padding: 'valid', initializer })
  const block = (from: number, to: number, reps: number, rest: { stride?: number; startWithRelu?: boolean; growFirst?: boolean } = {}) =>
    xceptionBlock({
      in: channels(from),
      out: channels(to),
      reps,
      residual,
      poolPadding: pad,
      separable: sep,
      batchNorm: normalise,
      ...rest,
    })
  const bn = (count: number) => batchNorm(channels(count), normalise)

  // Entry flow
  const block1 = named('block', {
    conv1: stem(inputChannels, channels(32), 2),
    conv1_bn: bn(32),
    conv1_act: relu(),
    conv2: stem(channels(32), channels(64), 1),
    conv2_bn: bn(64),
    conv2_act: relu(),
  })
  const block2 = block(64, 128, 2, { stride: 2, startWithRelu: false })
  const block3 = block(128, 256, 2, { stride: 2 })
  const block4 = block(256, 728, 2, { stride: 2 })
  // Middle flow
  const middle = Array.from({ length: middleRepeats }, () => block(728, 728, 3))
  // Exit flow
  const block13 = block(728, 1024, 2, { stride: 2, growFirst: false })
  const biased = { ...sep, bias: exitBias, depthwiseBias: exitBias }
  const block14 = named('block', {
    ...{ sepconv1: separable(channels(1024), channels(1536), biased), sepconv1_bn: bn(1536), sepconv1_act: relu() },
    ...{ sepconv2: separable(channels(1536), channels(2048), biased), sepconv2_bn: bn(2048), sepconv2_act: relu() },
  })
  const head = featuresOnly ? {} : headLayers(channels(2048), classes, pooling, options)

  const blocks: Record<string, Layer> = { block1, block2, block3, block4 }
  middle.forEach((module, i) => (blocks[`block${5 + i}`] = module))
  blocks[`block${5 + middleRepeats}`] = block13
  blocks[`block${6 + middleRepeats}`] = block14

  const entry = [block2, block3, block4]
  const features = (x: Value): Record<string, Value> => {
    const stride2 = block1(x)
    const [stride4, stride8, stride16] = entry.reduce<Value[]>((taps, module) => [...taps, module(taps.at(-1) ?? stride2)], []) as [
      Value,
      Value,
      Value,
    ]
    const deep = middle.reduce((value, module) => module(value), stride16)
    return { stride2, stride4, stride8, stride16: deep, stride32: block14(block13(deep)) }
  }
  const root = layer('xception', { children: { ...blocks, ...head } }, (x) =>
    Object.values(head).reduce((value, child) => child(value), features(x).stride32!),
  )
  return {
    root,
    forward: (x) => (featuresOnly ? scoped(root.label, () => features(x)) : root(x)),
    inputSize,
    inputChannels,
    classes: featuresOnly ? 0 : classes,
    variableInputSize: true,
  }
}

function headLayers(features: number, classes: number, pooling: 'avg' | 'max', options: XceptionOptions): Record<string, Layer> {
  const { fullyConnected = false, dropout: rate = 0 } = options
  const head: Record<string, Layer> = { [`${pooling}_pool`]: pooling === 'avg' ? globalAveragePool() : globalMaxPool() }
  let width = features
  for (const [i, units] of (fullyConnected === true ? [4096, 4096] : fullyConnected || []).entries()) {
    head[`fc${i + 1}`] = dense(width, units)
    head[`fc${i + 1}_act`] = relu()
    width = units
  }
  if (rate > 0) head.dropout = dropout(rate, { stream: 0 })
  if (classes > 0) head.predictions = dense(width, classes)
  return head
}

const KERAS = { options: { poolPadding: 'tf', epsilon: 1e-3 } }
const PYTORCH = { options: { poolPadding: 'symmetric', epsilon: 1e-5 } }

registerModel({
  name: 'xception',
  description: 'Xception (Chollet 2017), 22,855,952 parameters at 1000 classes',
  options: OPTIONS,
  layerNames: (options) => xceptionNames(options),
  stages({ middleRepeats = 8 }) {
    const blocks = (first: number, last: number) => Array.from({ length: last - first + 1 }, (_, i) => `block${first + i}`)
    const last = 6 + (middleRepeats as number)
    return { entry: blocks(1, 4), middle: blocks(5, last - 2), exit: blocks(last - 1, last), head: ['fc1', 'fc2', 'predictions'] }
  },
  sources: { keras: KERAS, keras1: KERAS, keras3: KERAS, timm: PYTORCH, lucid: PYTORCH },
  build: (options) => buildXception(options as XceptionOptions),
})
