/**
 * depthwiseConv2d: x[n, h, w, c], filter[kh, kw, c, m] -> y[n, oh, ow, c * m], with its two gradients. Every channel has m filters of
 * its own; output channel = c * m + j. The fused forms read z = inputActivation(x * inputScale + inputShift) in place of x; padding is
 * zero after that. One multiply-add per tap and output: bound by memory, not arithmetic, hence the fused separableConv2d.
 */

import { checkOptions, SepconvError } from '../errors.js'
import type { Attributes, Value } from '../graph/graph.js'
import { defineOp } from '../graph/op.js'
import { emit, operation } from '../graph/trace.js'
import { elements, formatShape, type TensorType } from '../graph/types.js'
import {
  type Activation,
  activationOf,
  activationSlope,
  applyActivation,
  checkActivation,
  checkEpilogue,
  checkMask,
  epilogue,
  prologue,
} from './activation.js'
import {
  expectChannels,
  expectFloat,
  expectRank,
  expectSameDtype,
  expectType,
  refuseFused,
  required,
  subjectOf,
  tensorAt,
} from './arguments.js'
import { castTo, reshaped } from './builders.js'
import { applyEpilogue, EPILOGUE_OPTIONS, type EpilogueOptions } from './epilogue.js'
import { forEachTap, type Geometry, geometryOf, outputSize, resolveGeometry, type WindowOptions } from './geometry.js'

type Size = readonly [number, number]

/** The type of depthwiseConv2d's result; separableConv2d has the same rule for its first half. */
export function inferDepthwise(
  op: string,
  x: TensorType,
  filter: TensorType,
  geometry: Geometry,
  inputScale?: TensorType | null,
  inputShift?: TensorType | null,
): TensorType {
  expectFloat(op, 'x', x)
  expectRank(op, 'x', x, '[n, h, w, c]')
  expectRank(op, 'depthwise filter', filter, '[kh, kw, c, m]')
  expectSameDtype(op, 'depthwise filter', filter, x)
  const [n, h, w, c] = x.shape as [number, number, number, number]
  const [kh, kw, channels, m] = filter.shape as [number, number, number, number]
  if (channels !== c)
    throw new SepconvError(
      'ERR_SHAPE',
      `${op}: depthwise filter ${formatShape(filter.shape)} has ${channels} channels, but x ${formatShape(x.shape)} has ${c}`,
      {
        subject: op,
        expected: c,
        given: channels,
        hint: 'Depthwise filters are [kh, kw, c, m] and activations [n, h, w, c]',
      },
    )
  expectChannels(op, 'inputScale', inputScale, c)
  expectChannels(op, 'inputShift', inputShift, c)
  return { shape: [n, ...outputSize(op, [h, w], [kh, kw], geometry), c * m], dtype: x.dtype }
}

export const depthwiseConv2dDefinition = defineOp({
  name: 'depthwiseConv2d',
  samples: () => [0, 6],
  inputs: ['x', 'filter', 'inputScale?', 'inputShift?', 'scale?', 'shift?', 'residual?'],
  outputs: ['y'],
  infer(inputs, attributes) {
    const op = 'depthwiseConv2d'
    const y = inferDepthwise(
      op,
      required(op, inputs, 0, 'x'),
      required(op, inputs, 1, 'filter'),
      geometryOf(attributes),
      inputs[2],
      inputs[3],
    )
    checkEpilogue(op, y, inputs[4], inputs[5], inputs[6])
    return [y]
  },
  gradient({ inputs, attributes, gradients, needs }) {
    refuseFused('depthwiseConv2d', inputs, 2, attributes)
    const [x, filter, dy] = [inputs[0]!, inputs[1]!, gradients[0]!]
    const { strides, dilations, padding } = attributes
    const common = { strides, dilations, padding, inputActivation: 'none' } as Attributes
    return [
      needs[0] ? emit(depthwiseConv2dInputGradientDefinition, [dy, filter], { ...common, inputSize: x.shape.slice(1, 3) }) : null,
      needs[1]
        ? castTo(emit(depthwiseConv2dFilterGradientDefinition, [x, dy], { ...common, kernelSize: filter.shape.slice(0, 2) }), filter.dtype)
        : null,
    ]
  },
  macs: (inputs, outputs) => elements(outputs[0]!.shape) * inputs[1]!.shape[0]! * inputs[1]!.shape[1]!,
  reference({ inputs, outputs, attributes }) {
    const [x, filter, y] = [tensorAt(inputs, 0), tensorAt(inputs, 1), tensorAt(outputs, 0)]
    const [kh, kw, c, m] = filter.shape as [number, number, number, number]
    const z = prologue(x, activationOf(attributes, 'inputActivation'), inputs[2], inputs[3]) // [n, h, w, c]
    const acc = depthwiseSums(z, x.shape, filter.data, [kh, kw], c, m, geometryOf(attributes), y.data.length)
    epilogue(acc, y, activationOf(attributes, 'activation'), inputs[4], inputs[5], inputs[6])
  },
})

/** z[n, h, w, c] (of shape `input`), filter[kh, kw, c, m] -> sums[n, oh, ow, c * m] of `length` elements */
export function depthwiseSums(
  z: ArrayLike<number>,
  input: readonly number[],
  filter: ArrayLike<number>,
  kernel: Size,
  c: number,
  m: number,
  geometry: Geometry,
  length: number,
): Float64Array {
  const sums = new Float64Array(length)
  forEachTap(input, kernel, geometry, (o, i, t) => {
    for (let channel = 0; channel < c; channel++)
      for (let j = 0; j < m; j++) sums[(o * c + channel) * m + j]! += z[i * c + channel]! * filter[(t * c + channel) * m + j]!
  })
  return sums
}

/**
 * depthwiseConv2dInputGradient: gradient[n, oh, ow, c * m], filter[kh, kw, c, m], x?[n, h, w, c], inputScale?[c], inputShift?[c] -> dz[n, h, w, c],
 * the gradient with respect to x * inputScale + inputShift (not multiplied by inputScale: batch norm's own gradient does that)
 */
export const depthwiseConv2dInputGradientDefinition = defineOp({
  name: 'depthwiseConv2dInputGradient',
  inputs: ['gradient', 'filter', 'x?', 'inputScale?', 'inputShift?'],
  outputs: ['dz'],
  infer(inputs, attributes) {
    const op = 'depthwiseConv2dInputGradient'
    const gradient = required(op, inputs, 0, 'gradient')
    const filter = required(op, inputs, 1, 'filter')
    expectFloat(op, 'gradient', gradient)
    expectRank(op, 'gradient', gradient, '[n, oh, ow, c * m]')
    expectRank(op, 'filter', filter, '[kh, kw, c, m]')
    const size = attributes.inputSize as unknown as Size
    const dz: TensorType = { shape: [gradient.shape[0]!, size[0], size[1], filter.shape[2]!], dtype: gradient.dtype }
    expectType(
      op,
      'gradient',
      gradient,
      inferDepthwise(op, dz, filter, geometryOf(attributes), inputs[3], inputs[4]),
      'like the forward output',
    )
    checkMask(op, activationOf(attributes, 'inputActivation'), inputs[2], dz)
    return [dz]
  },
  macs: (inputs) => elements(inputs[0]!.shape) * inputs[1]!.shape[0]! * inputs[1]!.shape[1]!,
  reference({ inputs, outputs, attributes }) {
    const [gradient, filter, dz] = [tensorAt(inputs, 0), tensorAt(inputs, 1), tensorAt(outputs, 0)]
    const [kh, kw, c, m] = filter.shape as [number, number, number, number]
    const acc = new Float64Array(dz.data.length) // [n, h, w, c]
    forEachTap(dz.shape, [kh, kw], geometryOf(attributes), (o, i, t) => {
      for (let channel = 0; channel < c; channel++)
        for (let j = 0; j < m; j++)
          acc[i * c + channel]! += gradient.data[(o * c + channel) * m + j]! * filter.data[(t * c + channel) * m + j]!
    })
    const activation = activationOf(attributes, 'inputActivation')
    const z = inputs[2] ? prologue(inputs[2], 'none', inputs[3], inputs[4]) : null // [n, h, w, c], before the activation
    for (let i = 0; i < acc.length; i++) dz.data[i] = acc[i]! * (z ? activationSlope(activation, z[i]!) : 1)
  },
})

/** depthwiseConv2dFilterGradient: x[n, h, w, c], gradient[n, oh, ow, c * m], inputScale?[c], inputShift?[c] -> dfilter[kh, kw, c, m], always float32 */
export const depthwiseConv2dFilterGradientDefinition = defineOp({
  name: 'depthwiseConv2dFilterGradient',
  inputs: ['x', 'gradient', 'inputScale?', 'inputShift?'],
  outputs: ['dfilter'],
  infer(inputs, attributes) {
    const op = 'depthwiseConv2dFilterGradient'
    const x = required(op, inputs, 0, 'x')
    const gradient = required(op, inputs, 1, 'gradient')
    expectFloat(op, 'x', x)
    expectRank(op, 'x', x, '[n, h, w, c]')
    expectRank(op, 'gradient', gradient, '[n, oh, ow, c * m]')
    const c = x.shape[3]!
    const shape = [...(attributes.kernelSize as readonly number[]), c, Math.floor(gradient.shape[3]! / c)]
    expectType(
      op,
      'gradient',
      gradient,
      inferDepthwise(op, x, { shape, dtype: x.dtype }, geometryOf(attributes), inputs[2], inputs[3]),
      'like the forward output',
    )
    return [{ shape, dtype: 'float32' }]
  },
  macs: (inputs, outputs) => elements(inputs[1]!.shape) * outputs[0]!.shape[0]! * outputs[0]!.shape[1]!,
  reference({ inputs, outputs, attributes }) {
    const [x, gradient, dfilter] = [tensorAt(inputs, 0), tensorAt(inputs, 1), tensorAt(outputs, 0)]
    const [kh, kw, c, m] = dfilter.shape as [number, number, number, number]
    const z = prologue(x, activationOf(attributes, 'inputActivation'), inputs[2], inputs[3]) // [n, h, w, c]
    const acc = new Float64Array(dfilter.data.length) // [kh, kw, c, m]
    forEachTap(x.shape, [kh, kw], geometryOf(attributes), (o, i, t) => {
      for (let channel = 0; channel < c; channel++)
        for (let j = 0; j < m; j++) acc[(t * c + channel) * m + j]! += z[i * c + channel]! * gradient.data[(o * c + channel) * m + j]!
    })
    dfilter.data.set(acc)
  },
})

/**
 * depthwiseConv2dGradients: both gradients at once, so that x and gradient are read once: x[n, h, w, c], gradient[n, oh, ow, c],
 * filter[3, 3, c, 1], inputScale?[c], inputShift?[c], residual?[n, h, w, c] -> dz[n, h, w, c], dfilter[3, 3, c, 1] (always float32).
 * `masked`: `'own'` multiplies the convolution's gradient by the derivative of inputActivation, as depthwiseConv2dInputGradient with x
 * does, `'sum'` its sum with the residual, `'none'` neither. The residual is what else the gradient with respect to x consists of.
 * Strides and dilations 1. With mean[c] and variance[c], the statistics by
 * which x is normalised, also the sums that batch norm's gradient needs, with xhat = (x - mean) / sqrt(variance + epsilon):
 * dgamma[c] = sum dz * xhat and dbeta[c] = sum dz.
 */
export const depthwiseConv2dGradientsDefinition = defineOp({
  name: 'depthwiseConv2dGradients',
  inputs: ['x', 'gradient', 'filter', 'inputScale?', 'inputShift?', 'residual?', 'mean?', 'variance?'],
  outputs: ['dz', 'dfilter', 'dgamma', 'dbeta'],
  infer(inputs, attributes) {
    const op = 'depthwiseConv2dGradients'
    const [x, gradient, filter] = [required(op, inputs, 0, 'x'), required(op, inputs, 1, 'gradient'), required(op, inputs, 2, 'filter')]
    const geometry = geometryOf(attributes)
    expectType(op, 'gradient', gradient, inferDepthwise(op, x, filter, geometry, inputs[3], inputs[4]), 'like the forward output')
    expectType(op, 'filter', filter, { shape: [3, 3, x.shape[3]!, 1], dtype: x.dtype }, '3x3 with one filter per channel')
    if ([...geometry.strides, ...geometry.dilations].some((step) => step !== 1))
      throw new SepconvError('ERR_SHAPE', `${op}: strides and dilations must be 1`, { subject: op, expected: 1 })
    if (inputs[5]) expectType(op, 'residual', inputs[5], x, 'like x')
    const dfilter: TensorType = { shape: filter.shape, dtype: 'float32' }
    if (!inputs[6]) return [x, dfilter]
    for (const [i, name] of ['mean', 'variance'].entries()) expectChannels(op, name, required(op, inputs, 6 + i, name), x.shape[3]!)
    return [x, dfilter, inputs[6], inputs[6]]
  },
  macs: (inputs) => 2 * elements(inputs[0]!.shape) * 9,
  reference({ inputs, outputs, attributes }) {
    const [x, gradient, filter, residual] = [tensorAt(inputs, 0), tensorAt(inputs, 1), tensorAt(inputs, 2), inputs[5]]
    const [dz, dfilter] = [tensorAt(outputs, 0), tensorAt(outputs, 1)]
    const c = x.shape[3]!
    const activation = activationOf(attributes, 'inputActivation')
    const z = prologue(x, activation, inputs[3], inputs[4]) // [n, h, w, c]
    const before = prologue(x, 'none', inputs[3], inputs[4])
    const [toInput, toFilter] = [new Float64Array(dz.data.length), new Float64Array(dfilter.data.length)]
    forEachTap(x.shape, [3, 3], geometryOf(attributes), (o, i, t) => {
      for (let channel = 0; channel < c; channel++) {
        const slope = gradient.data[o * c + channel]!
        toInput[i * c + channel]! += slope * filter.data[t * c + channel]!
        toFilter[t * c + channel]! += z[i * c + channel]! * slope
      }
    })
    const { masked } = attributes
    for (let i = 0; i < toInput.length; i++) {
      const [slope, other] = [activationSlope(activation, before[i]!), residual ? residual.data[i]! : 0]
      dz.data[i] = masked === 'sum' ? (toInput[i]! + other) * slope : toInput[i]! * (masked === 'own' ? slope : 1) + other
    }
    dfilter.data.set(toFilter)
    const [mean, variance] = [inputs[6], inputs[7]]
    if (!mean || !variance) return
    const [dgamma, dbeta] = [tensorAt(outputs, 2), tensorAt(outputs, 3)]
    for (let channel = 0; channel < c; channel++) {
      const inverse = 1 / Math.sqrt(variance.data[channel]! + (attributes.epsilon as number))
      let [sum, product] = [0, 0]
      for (let i = channel; i < toInput.length; i += c) {
        sum += dz.data[i]!
        product += dz.data[i]! * (x.data[i]! - mean.data[channel]!) * inverse
      }
      dgamma.data[channel] = product
      dbeta.data[channel] = sum
    }
  },
})

/** Options of {@link depthwiseConv2d}. */
export interface DepthwiseConv2dOptions extends WindowOptions, EpilogueOptions {
  /** Applied to `x` first: `'none'` (default), `'relu'` or `'elu'`. */
  readonly inputActivation?: Activation
}

const OPTIONS = ['strides', 'dilations', 'padding', 'inputActivation', ...EPILOGUE_OPTIONS]

/** A depthwise filter as [kh, kw, c, m]; rank 3 stands for m = 1. */
export function depthwiseFilter(subject: string, filter: Value): Value {
  if (required(subject, [filter?.type], 0, 'depthwise filter').shape.length === 3) return reshaped(filter, [...filter.shape, 1])
  expectRank(subject, 'depthwise filter', filter.type, '[kh, kw, c, m]')
  return filter
}

/** Emits the plain op, without bias or activation. */
export function emitDepthwise(subject: string, x: Value, filter: Value, options: WindowOptions): Value {
  const full = depthwiseFilter(subject, filter)
  expectRank(subject, 'x', x.type, '[n, h, w, c]')
  const geometry = resolveGeometry(subject, [x.shape[1]!, x.shape[2]!], [full.shape[0]!, full.shape[1]!], options)
  inferDepthwise(subject, x.type, full.type, geometry)
  return emit(depthwiseConv2dDefinition, [x, full], { ...geometry, inputActivation: 'none', activation: 'none' })
}

/**
 * Depthwise two-dimensional convolution: every channel is filtered on its own.
 *
 *     y = activation((depthwise(inputActivation(x), filter) + bias) * scale + shift + residual)
 *
 * @param x `[n, h, w, c]`, float32 or bfloat16
 * @param filter `[kh, kw, c, m]` with m filters per channel (output channel = c * m + j), or `[kh, kw, c]` for m = 1; stored like `x`
 * @param options `strides` 1, `dilations` 1, `padding` `'same'`, no bias, no activation by default
 * @returns `[n, oh, ow, c * m]` with oh = ceil(h / stride) for `'same'` and floor((h + pads - ((kh - 1) * dilation + 1)) / stride) + 1 otherwise
 * @throws ERR_SHAPE for channels or a kernel that do not fit; ERR_DTYPE; ERR_ARGUMENT for unknown options or bad values
 */
export const depthwiseConv2d = operation('depthwiseConv2d', (x: Value, filter: Value, options: DepthwiseConv2dOptions = {}): Value => {
  const subject = subjectOf(x, 'depthwiseConv2d')
  checkOptions(subject, options, OPTIONS)
  checkActivation(subject, 'inputActivation', options.inputActivation)
  return applyEpilogue('depthwiseConv2d', emitDepthwise(subject, applyActivation(x, options.inputActivation), filter, options), options)
})
