/**
 * separableConv2d: x[n, h, w, c], depthwise[kh, kw, c, m], pointwise[c * m, cout] -> y[n, oh, ow, cout]. The public function emits
 * depthwise and pointwise as separate nodes, each with its gradient; the fusion pass makes the one op below where the device gains by it:
 *   d = intermediateActivation(depthwise(inputActivation(x * inputScale + inputShift)) + depthwiseShift)
 *   y = activation(d . pointwise * scale + shift + residual)
 * In training the fused form may also emit the mean and the (biased) variance of every output channel; the gradient of its pointwise
 * filter then computes d again, so that d is never stored.
 */

import { checkOptions, SepconvError } from '../errors.js'
import type { Attributes, Value } from '../graph/graph.js'
import { defineOp, type HostTensor } from '../graph/op.js'
import { emit, operation } from '../graph/trace.js'
import { elements, formatShape, type TensorType } from '../graph/types.js'
import {
  type Activation,
  activate,
  activationOf,
  applyActivation,
  checkActivation,
  checkEpilogue,
  epilogue,
  prologue,
} from './activation.js'
import { expectChannels, expectRank, expectSameDtype, expectType, required, rowCount, subjectOf, tensorAt } from './arguments.js'
import { channelMoments } from './channelMoments.js'
import { depthwiseSums, emitDepthwise, inferDepthwise } from './depthwiseConv2d.js'
import { applyEpilogue, EPILOGUE_OPTIONS, type EpilogueOptions } from './epilogue.js'
import { geometryOf, type WindowOptions } from './geometry.js'
import { unpackFilter } from './packFilter.js'
import { emitPointwise, pointwiseFilterSums, pointwiseOutputs, pointwiseSums } from './pointwiseConv2d.js'
import { scaleShiftDefinition } from './scaleShift.js'

export const separableConv2dDefinition = defineOp({
  name: 'separableConv2d',
  samples: ({ statistics }) => (statistics ? [] : [0, 8]),
  inputs: ['x', 'depthwise', 'pointwise', 'inputScale?', 'inputShift?', 'depthwiseShift?', 'scale?', 'shift?', 'residual?'],
  outputs: ['y', 'mean', 'variance'],
  infer(inputs, attributes) {
    const op = 'separableConv2d'
    const x = required(op, inputs, 0, 'x')
    const pointwise = required(op, inputs, 2, 'pointwise')
    const d = inferDepthwise(op, x, required(op, inputs, 1, 'depthwise'), geometryOf(attributes), inputs[3], inputs[4])
    expectSameDtype(op, 'pointwise filter', pointwise, x)
    expectChannels(op, 'depthwiseShift', inputs[5], d.shape[3]!)
    const cout = pointwiseOutputs(op, `the depthwise result ${formatShape(d.shape)}`, d.shape[3]!, pointwise, attributes)
    const y: TensorType = { shape: [...d.shape.slice(0, 3), cout], dtype: x.dtype }
    checkEpilogue(op, y, inputs[6], inputs[7], inputs[8])
    if (attributes.statistics !== true) return [y]
    if (activationOf(attributes, 'activation') !== 'none' || inputs[8])
      throw new SepconvError('ERR_INTERNAL', `${op}: statistics are those of the product, so no activation or residual may follow`)
    const perChannel: TensorType = { shape: [cout], dtype: 'float32' }
    return [y, perChannel, perChannel]
  },
  macs(inputs, outputs) {
    const [kh, kw, c, m] = inputs[1]!.shape as [number, number, number, number]
    return (elements(outputs[0]!.shape) / outputs[0]!.shape[3]!) * c * m * (kh * kw + outputs[0]!.shape[3]!)
  },
  reference({ inputs, outputs, attributes }) {
    const [x, depthwise, pointwise, y] = [tensorAt(inputs, 0), tensorAt(inputs, 1), tensorAt(inputs, 2), tensorAt(outputs, 0)]
    const [rows, cout, depth] = [rowCount(y.shape), y.shape[3]!, depthwise.shape[2]! * depthwise.shape[3]!]
    const d = intermediate(x, depthwise, inputs.slice(3, 6), attributes, rows) // [rows, c * m]
    const f = attributes.packed === true ? unpackFilter(pointwise, depth, cout) : pointwise.data // [c * m, cout]
    epilogue(pointwiseSums(d, f, rows, depth, cout), y, activationOf(attributes, 'activation'), inputs[6], inputs[7], inputs[8])
    if (attributes.statistics === true) channelMoments(y, tensorAt(outputs, 1), tensorAt(outputs, 2))
  },
})

/** d[rows, c * m], `perChannel` being inputScale, inputShift and depthwiseShift. */
function intermediate(
  x: HostTensor,
  depthwise: HostTensor,
  [inputScale, inputShift, depthwiseShift]: readonly (HostTensor | null | undefined)[],
  attributes: Attributes,
  rows: number,
): Float64Array {
  const [kh, kw, c, m] = depthwise.shape as [number, number, number, number]
  const z = prologue(x, activationOf(attributes, 'inputActivation'), inputScale, inputShift) // [n, h, w, c]
  const d = depthwiseSums(z, x.shape, depthwise.data, [kh, kw], c, m, geometryOf(attributes), rows * c * m)
  const activation = activationOf(attributes, 'intermediateActivation')
  for (let i = 0; i < d.length; i++) d[i] = activate(activation, d[i]! + (depthwiseShift ? depthwiseShift.data[i % (c * m)]! : 0))
  return d
}

/**
 * separableConv2dPointwiseGradient: x[n, h, w, c], depthwise[kh, kw, c, m], gradient[n, oh, ow, cout], inputScale?[c], inputShift?[c],
 * depthwiseShift?[c * m] -> dpointwise[c * m, cout] = d^T . gradient, always float32, with d computed again from x as in separableConv2d
 */
export const separableConv2dPointwiseGradientDefinition = defineOp({
  name: 'separableConv2dPointwiseGradient',
  inputs: ['x', 'depthwise', 'gradient', 'inputScale?', 'inputShift?', 'depthwiseShift?'],
  outputs: ['dpointwise'],
  infer(inputs, attributes) {
    const op = 'separableConv2dPointwiseGradient'
    const x = required(op, inputs, 0, 'x')
    const gradient = required(op, inputs, 2, 'gradient')
    const d = inferDepthwise(op, x, required(op, inputs, 1, 'depthwise'), geometryOf(attributes), inputs[3], inputs[4])
    expectRank(op, 'gradient', gradient, '[n, oh, ow, cout]')
    const cout = gradient.shape[3]!
    expectType(op, 'gradient', gradient, { shape: [...d.shape.slice(0, 3), cout], dtype: x.dtype }, 'pixels like the depthwise result')
    expectChannels(op, 'depthwiseShift', inputs[5], d.shape[3]!)
    return [{ shape: [d.shape[3]!, cout], dtype: 'float32' }]
  },
  macs(inputs, outputs) {
    const [kh, kw] = inputs[1]!.shape as [number, number]
    const [depth, cout] = outputs[0]!.shape as [number, number]
    return (elements(inputs[2]!.shape) / cout) * depth * (kh * kw + cout)
  },
  reference({ inputs, outputs, attributes }) {
    const [x, depthwise, gradient, dpointwise] = [tensorAt(inputs, 0), tensorAt(inputs, 1), tensorAt(inputs, 2), tensorAt(outputs, 0)]
    const [depth, cout] = dpointwise.shape as [number, number]
    const rows = rowCount(gradient.shape)
    const d = intermediate(x, depthwise, inputs.slice(3, 6), attributes, rows) // [rows, c * m]
    dpointwise.data.set(pointwiseFilterSums(d, gradient.data, rows, depth, cout))
  },
})

/** Options of {@link separableConv2d}. */
export interface SeparableConv2dOptions extends WindowOptions, EpilogueOptions {
  /** Applied to `x` first: `'none'` (default), `'relu'` or `'elu'`. */
  readonly inputActivation?: Activation
  /** [c * m] float32, added between depthwise and pointwise. Default none. */
  readonly depthwiseBias?: Value
  /** Applied between depthwise and pointwise, after `depthwiseBias`: `'none'` (default, as in Xception), `'relu'` or `'elu'`. */
  readonly intermediateActivation?: Activation
}

const OPTIONS = ['strides', 'dilations', 'padding', 'inputActivation', 'intermediateActivation', 'depthwiseBias', ...EPILOGUE_OPTIONS]

/**
 * Depthwise-separable convolution: a spatial filter per channel, then a matrix product over the channels.
 *
 *     d = intermediateActivation(depthwise(inputActivation(x)) + depthwiseBias)
 *     y = activation((d . pointwise + bias) * scale + shift + residual)
 *
 * @param x `[n, h, w, c]`, float32 or bfloat16
 * @param depthwise `[kh, kw, c, m]` with m filters per channel, or `[kh, kw, c]` for m = 1; stored like `x`
 * @param pointwise `[c * m, cout]`, stored like `x`
 * @param options `strides` 1 and `dilations` 1 (of the depthwise half), `padding` `'same'`, no biases, no activations by default
 * @returns `[n, oh, ow, cout]` with oh = ceil(h / stride) for `'same'` and floor((h + pads - ((kh - 1) * dilation + 1)) / stride) + 1 otherwise
 * @throws ERR_SHAPE for channels or a kernel that do not fit; ERR_DTYPE; ERR_ARGUMENT for unknown options or bad values
 * @see Chollet, Xception: Deep Learning with Depthwise Separable Convolutions, 2017 (arXiv 1610.02357)
 */
export const separableConv2d = operation(
  'separableConv2d',
  (x: Value, depthwise: Value, pointwise: Value, options: SeparableConv2dOptions = {}): Value => {
    const subject = subjectOf(x, 'separableConv2d')
    checkOptions(subject, options, OPTIONS)
    checkActivation(subject, 'inputActivation', options.inputActivation)
    checkActivation(subject, 'intermediateActivation', options.intermediateActivation)
    let d = emitDepthwise(subject, applyActivation(x, options.inputActivation), depthwise, options)
    const channels = d.shape[3]!
    pointwiseOutputs(
      subject,
      `the depthwise result ${formatShape(d.shape)}`,
      channels,
      required(subject, [pointwise?.type], 0, 'pointwise'),
      {},
    )
    if (options.depthwiseBias) {
      expectChannels(subject, 'depthwiseBias', options.depthwiseBias.type, channels)
      d = emit(scaleShiftDefinition, [d, null, options.depthwiseBias], { activation: 'none' })
    }
    return applyEpilogue('separableConv2d', emitPointwise(applyActivation(d, options.intermediateActivation), pointwise), options)
  },
)
