/** The layers that models are built of; each is one op or a short chain of ops with its variables. */

import { checkChoice, checkOptions, SepconvError } from '../errors.js'
import type { Value } from '../graph/graph.js'
import { opDefinition } from '../graph/op.js'
import { currentTrace, emit, emitAll, read } from '../graph/trace.js'
import { type Initializer, Variable } from '../graph/variable.js'
import * as ops from '../ops/index.js'
import { type Activation, checkActivation } from '../ops/activation.js'
import { checkPadding, type Padding, type Pair, resolvePair } from '../ops/geometry.js'
import { type InitializerName, initializerOf, ones, zeros } from './initializers.js'
import { checkCount, isLayer, type Layer, layer } from './layer.js'

const variable = (shape: readonly number[], initializer: Initializer, trainable = true) =>
  new Variable('', { shape, dtype: 'float32' }, initializer, { trainable })

/** What every convolution layer can be told. */
export interface ConvolutionOptions {
  /** Size of the window, one number or [height, width]. Default 3. */
  kernel?: Pair
  /** Default 1. */
  strides?: Pair
  /** Default 1. */
  dilations?: Pair
  /** Default `'same'` (TensorFlow's rule: the odd row goes last). */
  padding?: Padding
  /** A bias per output channel. Default false: batch norm usually follows. */
  bias?: boolean
  /** Default `'glorotUniform'`; fans are counted per group. */
  initializer?: InitializerName
}
const CONVOLUTION = ['kernel', 'strides', 'dilations', 'padding', 'bias', 'initializer']

/** Options with their defaults, checked when the layer is made and not only when it is traced. */
function resolveConvolution(kind: string, options: ConvolutionOptions) {
  const { strides = 1, dilations = 1, padding = 'same', bias = false, initializer = 'glorotUniform' } = options
  const kernel = resolvePair(kind, 'kernel', options.kernel ?? 3)
  resolvePair(kind, 'strides', strides)
  resolvePair(kind, 'dilations', dilations)
  checkPadding(kind, padding)
  return { kernel, geometry: { strides, dilations, padding }, bias, initializer }
}

export interface Conv2dOptions extends ConvolutionOptions {
  /** Channels are split into this many groups that do not see each other. Default 1; must divide both channel counts. */
  groups?: number
}

/** Regular or grouped convolution: [n, h, w, in] → [n, h', w', out]. */
export function conv2d(channelsIn: number, channelsOut: number, options: Conv2dOptions = {}): Layer {
  checkOptions('conv2d', options, [...CONVOLUTION, 'groups'])
  const { groups = 1 } = options
  const {
    kernel: [kh, kw],
    geometry,
    bias,
    initializer,
  } = resolveConvolution('conv2d', options)
  for (const [name, value] of Object.entries({ in: channelsIn, out: channelsOut, groups })) checkCount('conv2d', name, value)
  if (channelsIn % groups || channelsOut % groups)
    throw new SepconvError(
      'ERR_ARGUMENT',
      `conv2d: groups must divide both channel counts, got ${groups} for ${channelsIn} and ${channelsOut}`,
      { subject: 'groups', given: groups },
    )
  const fans = { fanIn: (kh * kw * channelsIn) / groups, fanOut: (kh * kw * channelsOut) / groups }
  const filter = variable([kh, kw, channelsIn / groups, channelsOut], initializerOf('conv2d', initializer, fans))
  const shift = bias ? variable([channelsOut], zeros) : undefined
  return layer('conv2d', { variables: { filter, bias: shift } }, (x) =>
    ops.conv2d(x, read(filter), { ...geometry, groups, ...(shift && { bias: read(shift) }) }),
  )
}

export interface SeparableOptions extends ConvolutionOptions {
  /** Filters per input channel. Default 1. */
  multiplier?: number
  /** Between depthwise and pointwise. Default `'none'`, as in Xception (Chollet 2017, Figure 10). */
  intermediateActivation?: Activation
  /** Batch norm between depthwise and pointwise, before the activation. Default false. */
  intermediateBatchNorm?: boolean
  /** Settings of that batch norm. */
  batchNorm?: BatchNormOptions
  /**
   * The spectrum of Chollet 2017, section 1.2: into how many independent segments the channels are cut for the spatial
   * convolution, or how wide each is. 1 is a regular convolution; the default, one per channel, is depthwise.
   */
  segments?: number | { width: number }
  /**
   * `'depthwise-first'` (default) as in Xception, or `'inception'`: the 1×1 first, then the spatial convolution on segments of its
   * outputs, one filter per output channel by default: the extreme Inception module (Chollet 2017, Figure 4). The intermediate activation
   * is then ReLU unless said otherwise.
   */
  order?: 'depthwise-first' | 'inception'
  /** `bias`: one after the pointwise and, with `depthwiseBias`, one after the depthwise half. Default false. */
  depthwiseBias?: boolean
}

/** Depthwise-separable convolution: [n, h, w, in] → [n, h', w', out], a spatial filter per channel, then a product over channels. */
export function separable(channelsIn: number, channelsOut: number, options: SeparableOptions = {}): Layer {
  checkOptions('separable', options, [
    ...CONVOLUTION,
    'multiplier',
    'intermediateActivation',
    'intermediateBatchNorm',
    'batchNorm',
    'segments',
    'order',
    'depthwiseBias',
  ])
  const { depthwiseBias = false, multiplier = 1, segments, order = 'depthwise-first' } = options
  checkChoice('separable', 'order', order, ['depthwise-first', 'inception'])
  const { intermediateActivation = order === 'inception' ? 'relu' : 'none' } = options
  const { bias, initializer } = resolveConvolution('separable', options)
  checkActivation('separable', 'intermediateActivation', intermediateActivation)
  for (const [name, value] of Object.entries({ in: channelsIn, out: channelsOut, multiplier })) checkCount('separable', name, value)
  if (order === 'inception') return inceptionOrder(channelsIn, channelsOut, { ...options, intermediateActivation })
  const middle = channelsIn * multiplier
  const spatial = spatialHalf(channelsIn, multiplier, options, segments)
  const pointwise = variable([middle, channelsOut], initializerOf('separable', initializer, { fanIn: middle, fanOut: channelsOut }))
  const shift = depthwiseBias ? variable([middle], zeros) : undefined
  const outShift = bias ? variable([channelsOut], zeros) : undefined
  const normalise = options.intermediateBatchNorm ? batchNorm(middle, options.batchNorm) : undefined
  return layer(
    'separable',
    {
      variables: { ...spatial.variables, pointwise, depthwiseBias: shift, bias: outShift },
      children: { intermediateBatchNorm: normalise },
    },
    (x) => {
      let d = spatial.forward(x)
      if (shift) d = emit(opDefinition('scaleShift'), [d, null, read(shift), null], { activation: 'none' })
      if (normalise) d = normalise(d)
      if (intermediateActivation !== 'none') d = ops[intermediateActivation](d)
      return ops.pointwiseConv2d(d, read(pointwise), outShift ? { bias: read(outShift) } : {})
    },
  )
}

/** The 1×1 first, then the spatial half on its outputs; names of variables are those of the other order. */
function inceptionOrder(channelsIn: number, channelsOut: number, options: SeparableOptions): Layer {
  const { intermediateActivation = 'relu', multiplier = 1, depthwiseBias = false } = options
  if (multiplier !== 1 || depthwiseBias)
    throw new SepconvError('ERR_ARGUMENT', `separable: order 'inception' has no multiplier and no depthwiseBias`, { subject: 'order' })
  const { bias, initializer } = resolveConvolution('separable', options)
  const pointwise = variable([channelsIn, channelsOut], initializerOf('separable', initializer, { fanIn: channelsIn, fanOut: channelsOut }))
  const spatial = spatialHalf(channelsOut, 1, options, options.segments)
  const shift = bias ? variable([channelsOut], zeros) : undefined
  const normalise = options.intermediateBatchNorm ? batchNorm(channelsOut, options.batchNorm) : undefined
  return layer(
    'separable',
    { variables: { pointwise, ...spatial.variables, bias: shift }, children: { intermediateBatchNorm: normalise } },
    (x) => {
      let y = ops.pointwiseConv2d(x, read(pointwise))
      if (normalise) y = normalise(y)
      if (intermediateActivation !== 'none') y = ops[intermediateActivation](y)
      y = spatial.forward(y)
      return shift ? emit(opDefinition('scaleShift'), [y, null, read(shift), null], { activation: 'none' }) : y
    },
  )
}

/** Sizes of the segments that `channels` are cut into: equal where they divide, else the first ones one wider (728 in 3: 243, 243, 242). */
export function segmentSizes(channels: number, segments: number | { width: number }): number[] {
  const count = typeof segments === 'number' ? segments : Math.ceil(channels / segments.width)
  if (!Number.isInteger(count) || count < 1 || count > channels)
    throw new SepconvError(
      'ERR_ARGUMENT',
      `segments: expected 1 to ${channels} segments, or { width } of 1 to ${channels}, got ${JSON.stringify(segments)}`,
      { subject: 'segments', given: segments },
    )
  const base = Math.floor(channels / count)
  return Array.from({ length: count }, (_, i) => base + (i < channels % count ? 1 : 0))
}

interface SpatialHalf {
  readonly variables: Record<string, Variable>
  forward(x: Value): Value
}

function spatialHalf(channels: number, multiplier: number, options: SeparableOptions, segments: SeparableOptions['segments']): SpatialHalf {
  const {
    kernel: [kh, kw],
    geometry,
    initializer,
  } = resolveConvolution('separable', options)
  const sizes = segments === undefined ? undefined : segmentSizes(channels, segments)
  if (!sizes || sizes.length === channels) {
    const fans = { fanIn: kh * kw, fanOut: kh * kw * multiplier }
    const depthwise = variable([kh, kw, channels, multiplier], initializerOf('separable', initializer, fans))
    return { variables: { depthwise }, forward: (x) => ops.depthwiseConv2d(x, read(depthwise), geometry) }
  }
  if (multiplier !== 1)
    throw new SepconvError('ERR_ARGUMENT', 'separable: segments and multiplier cannot be combined', { subject: 'segments' })
  const filterOf = (size: number, groups: number) =>
    variable([kh, kw, size, size * groups], initializerOf('separable', initializer, { fanIn: kh * kw * size, fanOut: kh * kw * size }))
  if (sizes.every((size) => size === sizes[0])) {
    const segment = filterOf(sizes[0]!, sizes.length)
    return { variables: { segments: segment }, forward: (x) => ops.conv2d(x, read(segment), { ...geometry, groups: sizes.length }) }
  }
  const filters = sizes.map((size) => filterOf(size, 1))
  return {
    variables: Object.fromEntries(filters.map((filter, i) => [`segment${i + 1}`, filter])),
    forward(x) {
      let at = 0
      const parts = filters.map((filter, i) => {
        const part = ops.slice(x, { begin: [0, 0, 0, at], size: [...x.shape.slice(0, 3), sizes[i]!] })
        at += sizes[i]!
        return ops.conv2d(part, read(filter), geometry)
      })
      return ops.concat(parts, { axis: 3 })
    },
  }
}

/** Options of {@link batchNorm}. */
export interface BatchNormOptions {
  /** Added to the variance. Default 1e-3, as in Keras; PyTorch has 1e-5. */
  epsilon?: number
  /** The share of the old running statistics that is kept. Default 0.99 (PyTorch would call this 0.01). */
  momentum?: number
  /** A trainable scale and shift. Default true. */
  affine?: boolean
  /** The scale of the two; Keras' Inception V3 has none. Default true. */
  scale?: boolean
  /** Keeps running statistics for inference; without them the batch's own are always used. Default true. */
  runningStatistics?: boolean
}

/**
 * Batch normalisation over all axes but the last (Ioffe and Szegedy 2015). Training uses the batch's biased variance and
 * stores the unbiased one; inference, and a layer whose variables are frozen, uses what is stored.
 */
export function batchNorm(channels: number, options: BatchNormOptions = {}): Layer {
  checkOptions('batchNorm', options, ['epsilon', 'momentum', 'affine', 'scale', 'runningStatistics'])
  checkCount('batchNorm', 'channels', channels)
  const { epsilon = 1e-3, momentum = 0.99, affine = true, scale: scaled = true, runningStatistics = true } = options
  if (!(epsilon > 0))
    throw new SepconvError('ERR_ARGUMENT', `batchNorm: epsilon must be positive, got ${epsilon}`, { subject: 'epsilon', given: epsilon })
  if (!(momentum >= 0 && momentum < 1))
    throw new SepconvError('ERR_ARGUMENT', `batchNorm: momentum must be in [0, 1), got ${momentum}`, {
      subject: 'momentum',
      given: momentum,
      hint: "It is the share that is kept: 1 minus PyTorch's momentum",
    })
  const gamma = affine && scaled ? variable([channels], ones) : undefined
  const beta = affine ? variable([channels], zeros) : undefined
  const movingMean = runningStatistics ? variable([channels], zeros, false) : undefined
  const movingVariance = runningStatistics ? variable([channels], ones, false) : undefined
  return layer('batchNorm', { variables: { gamma, beta, movingMean, movingVariance } }, (x) => {
    const { training, averages, synchronise = 1 } = currentTrace()
    const [scale, shift] = [gamma ? read(gamma) : null, beta ? read(beta) : null]
    const frozen = beta !== undefined && !beta.trainable && !gamma?.trainable
    if (movingMean && movingVariance && (!training || frozen)) {
      const coefficients = emitAll(opDefinition('batchNormCoefficients'), [read(movingMean), read(movingVariance), scale, shift], {
        epsilon,
      })
      return emit(opDefinition('scaleShift'), [x, coefficients[0]!, coefficients[1]!, null], { activation: 'none' })
    }
    const [y, mean, variance] = emitAll(opDefinition('batchNorm'), [x, scale, shift], {
      epsilon,
      ...(synchronise > 1 && { ranks: synchronise }),
    })
    if (training && movingMean && movingVariance) {
      const rows = synchronise * x.shape.slice(0, -1).reduce((product, size) => product * size, 1)
      averages.push(
        { variable: movingMean, value: mean!, momentum, factor: 1 },
        { variable: movingVariance, value: variance!, momentum, factor: rows / (rows - 1) },
      )
    }
    return y!
  })
}

/** Fully connected: [..., in] → [..., out]. */
export function dense(channelsIn: number, channelsOut: number, options: { bias?: boolean; initializer?: InitializerName } = {}): Layer {
  checkOptions('dense', options, ['bias', 'initializer'])
  checkCount('dense', 'in', channelsIn)
  checkCount('dense', 'out', channelsOut)
  const weight = variable(
    [channelsIn, channelsOut],
    initializerOf('dense', options.initializer ?? 'glorotUniform', { fanIn: channelsIn, fanOut: channelsOut }),
  )
  const bias = (options.bias ?? true) ? variable([channelsOut], zeros) : undefined
  return layer('dense', { variables: { weight, bias } }, (x) => ops.dense(x, read(weight), bias ? { bias: read(bias) } : {}))
}

/** max(x, 0) of any shape. */
export const relu = (): Layer => layer('relu', {}, (x) => ops.relu(x))
/** x where positive, else exp(x) − 1 (Clevert et al. 2016); any shape. */
export const elu = (): Layer => layer('elu', {}, (x) => ops.elu(x))
/** The activation layer of that name; `none` gives its input back. */
export function activationLayer(name: Activation): Layer {
  checkActivation('activationLayer', 'name', name)
  return layer(name, {}, (x) => (name === 'none' ? x : ops[name](x)))
}

/** Options of {@link maxPool2d} and {@link avgPool2d}. */
export interface PoolOptions {
  /** Size of the window. Default 2. */
  window?: Pair
  /** Default: the window's size. */
  strides?: Pair
  /** Default `'valid'`. */
  padding?: Padding
}
function poolOptions(kind: string, { window = 2, strides = window, padding = 'valid', ...unknown }: PoolOptions) {
  checkOptions(kind, unknown, ['window', 'strides', 'padding'])
  resolvePair(kind, 'window', window)
  resolvePair(kind, 'strides', strides)
  checkPadding(kind, padding)
  return { windowSize: window, strides, padding }
}

/** Maximum over windows: [n, h, w, c] → [n, h', w', c]. Padding never wins. */
export function maxPool2d(options: PoolOptions = {}): Layer {
  const resolved = poolOptions('maxPool2d', options)
  return layer('maxPool2d', {}, (x) => ops.maxPool2d(x, resolved))
}
/** Mean over windows: [n, h, w, c] → [n, h', w', c]; `countPadding` (default false) says whether padding counts as zeros. */
export function avgPool2d({ countPadding = false, ...options }: PoolOptions & { countPadding?: boolean } = {}): Layer {
  const resolved = poolOptions('avgPool2d', options)
  return layer('avgPool2d', {}, (x) => ops.avgPool2d(x, { ...resolved, countPadding }))
}
/** Mean over height and width: [n, h, w, c] → [n, c]. */
export const globalAveragePool = (): Layer => layer('globalAveragePool', {}, (x) => ops.globalAveragePool(x))
/** Maximum over height and width: [n, h, w, c] → [n, c]. */
export const globalMaxPool = (): Layer => layer('globalMaxPool', {}, (x) => ops.globalMaxPool(x))

/**
 * In training, zeroes each element with probability `rate` and scales the rest by 1 / (1 − rate); a function of (seed, stream,
 * sample, element) alone, so the same sample meets the same mask whatever the batch. Nothing in inference.
 * @param options `seed`: the training step's (see `compile`) by default. `stream` sets the layers of a model apart: by
 *   default the layer's place among those of the step.
 * @throws ERR_ARGUMENT for a rate outside [0, 1).
 */
export function dropout(rate: number, options: { seed?: number; stream?: number } = {}): Layer {
  checkOptions('dropout', options, ['seed', 'stream'])
  if (!(rate >= 0 && rate < 1))
    throw new SepconvError('ERR_ARGUMENT', `dropout: rate must be in [0, 1), got ${rate}`, { subject: 'rate', given: rate })
  return layer('dropout', {}, (x) => {
    const { training, random } = currentTrace()
    if (!training || rate === 0) return x
    if (!random)
      throw new SepconvError('ERR_ARGUMENT', 'dropout: this trace has no random counter', {
        hint: 'Train through compile(…, { train }), which supplies it',
      })
    const { seed = random.seed, stream = random.streams++ } = options
    return ops.dropout(x, { rate, seed, stream, counter: random.counter })
  })
}

/** Layers one after the other, named by their place. @throws ERR_ARGUMENT for what is no layer. */
export function sequential(...layers: Layer[]): Layer {
  const odd = layers.findIndex((child) => !isLayer(child))
  if (odd >= 0)
    throw new SepconvError('ERR_ARGUMENT', `sequential: argument ${odd + 1} is no layer but ${typeof layers[odd]}`, {
      subject: 'sequential',
      hint: 'Pass what sepconv/nn makes, such as relu()',
    })
  return layer('sequential', { children: Object.fromEntries(layers.map((child, i) => [String(i), child])) }, (x) =>
    layers.reduce((value, child) => child(value), x),
  )
}
