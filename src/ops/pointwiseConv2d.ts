/**
 * pointwiseConv2d: x[..., cin], filter[cin, cout] -> y[..., cout], a matrix product over all rows of x, with its two gradients. It is the
 * 1 x 1 convolution and the fully-connected layer alike, and where nearly all arithmetic of a separable network happens. In training the
 * fused form also emits the mean and the (biased) variance of every output channel, so that batch norm needs no pass of its own.
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
  expectFloat,
  expectRank,
  expectRows,
  expectSameDtype,
  expectType,
  lastSize,
  refuseFused,
  required,
  rowCount,
  subjectOf,
  tensorAt,
} from './arguments.js'
import { castTo } from './builders.js'
import { channelMoments } from './channelMoments.js'
import { applyEpilogue, EPILOGUE_OPTIONS, type EpilogueOptions } from './epilogue.js'
import { checkPacked, unpackFilter } from './packFilter.js'

/** Output channels of a [cin, cout] filter, packed or not; throws unless it takes `cin` channels. */
export function pointwiseOutputs(op: string, given: string, cin: number, filter: TensorType, attributes: Attributes): number {
  if (attributes.packed === true) {
    checkPacked(op, filter, cin, attributes.cout as number)
    return attributes.cout as number
  }
  expectRank(op, 'pointwise filter', filter, '[cin, cout]')
  if (filter.shape[0] !== cin)
    throw new SepconvError(
      'ERR_SHAPE',
      `${op}: pointwise filter ${formatShape(filter.shape)} takes ${filter.shape[0]} channels, but ${given} has ${cin}`,
      {
        subject: op,
        expected: cin,
        given: filter.shape[0],
        hint: 'Pointwise filters are [cin, cout]',
      },
    )
  return filter.shape[1]!
}

export const pointwiseConv2dDefinition = defineOp({
  name: 'pointwiseConv2d',
  samples: ({ statistics }) => (statistics ? [] : [0, 4]),
  inputs: ['x', 'filter', 'scale?', 'shift?', 'residual?'],
  outputs: ['y', 'mean', 'variance'],
  infer(inputs, attributes) {
    const op = 'pointwiseConv2d'
    const x = required(op, inputs, 0, 'x')
    const filter = required(op, inputs, 1, 'filter')
    expectFloat(op, 'x', x)
    expectRows(op, 'x', x)
    expectSameDtype(op, 'pointwise filter', filter, x)
    const cout = pointwiseOutputs(op, `x ${formatShape(x.shape)}`, lastSize(x.shape), filter, attributes)
    const y: TensorType = { shape: [...x.shape.slice(0, -1), cout], dtype: x.dtype }
    checkEpilogue(op, y, inputs[2], inputs[3], inputs[4])
    if (attributes.statistics !== true) return [y]
    if (activationOf(attributes, 'activation') !== 'none' || inputs[4])
      throw new SepconvError('ERR_INTERNAL', `${op}: statistics are those of the product, so no activation or residual may follow`)
    const perChannel: TensorType = { shape: [cout], dtype: 'float32' }
    return [y, perChannel, perChannel]
  },
  gradient({ inputs, attributes, gradients, needs }) {
    refuseFused('pointwiseConv2d', inputs, 2, attributes)
    const [x, filter, dy] = [inputs[0]!, inputs[1]!, gradients[0]!]
    return [
      needs[0] ? emit(pointwiseConv2dInputGradientDefinition, [dy, filter], { inputActivation: 'none' }) : null,
      needs[1] ? castTo(emit(pointwiseConv2dFilterGradientDefinition, [x, dy], { inputActivation: 'none' }), filter.dtype) : null,
    ]
  },
  macs: (inputs, outputs) => elements(outputs[0]!.shape) * lastSize(inputs[0]!.shape),
  reference({ inputs, outputs, attributes }) {
    const [x, filter, y] = [tensorAt(inputs, 0), tensorAt(inputs, 1), tensorAt(outputs, 0)]
    const cout = lastSize(y.shape)
    const z = prologue(x, activationOf(attributes, 'inputActivation')) // [rows, cin]
    const f = attributes.packed === true ? unpackFilter(filter, lastSize(x.shape), cout) : filter.data // [cin, cout]
    epilogue(
      pointwiseSums(z, f, rowCount(x.shape), lastSize(x.shape), cout),
      y,
      activationOf(attributes, 'activation'),
      inputs[2],
      inputs[3],
      inputs[4],
    )
    if (attributes.statistics === true) channelMoments(y, tensorAt(outputs, 1), tensorAt(outputs, 2))
  },
})

/** z[rows, cin] . filter[cin, cout] -> sums[rows, cout] */
export function pointwiseSums(z: ArrayLike<number>, filter: ArrayLike<number>, rows: number, cin: number, cout: number): Float64Array {
  const sums = new Float64Array(rows * cout)
  for (let row = 0; row < rows; row++)
    for (let ci = 0; ci < cin; ci++) {
      const value = z[row * cin + ci]!
      for (let co = 0; co < cout; co++) sums[row * cout + co]! += value * filter[ci * cout + co]!
    }
  return sums
}

/** pointwiseConv2dInputGradient: gradient[..., cout], filter[cin, cout], x?[..., cin] -> dx[..., cin] = inputActivation'(x) * (gradient . filter^T) */
export const pointwiseConv2dInputGradientDefinition = defineOp({
  name: 'pointwiseConv2dInputGradient',
  inputs: ['gradient', 'filter', 'x?'],
  outputs: ['dx'],
  infer(inputs, attributes) {
    const op = 'pointwiseConv2dInputGradient'
    const gradient = required(op, inputs, 0, 'gradient')
    const filter = required(op, inputs, 1, 'filter')
    expectFloat(op, 'gradient', gradient)
    expectRows(op, 'gradient', gradient)
    expectRank(op, 'filter', filter, '[cin, cout]')
    expectType(
      op,
      'filter',
      filter,
      { shape: [filter.shape[0]!, lastSize(gradient.shape)], dtype: gradient.dtype },
      'cout like the gradient',
    )
    const dx: TensorType = { shape: [...gradient.shape.slice(0, -1), filter.shape[0]!], dtype: gradient.dtype }
    checkMask(op, activationOf(attributes, 'inputActivation'), inputs[2], dx)
    return [dx]
  },
  macs: (inputs) => elements(inputs[0]!.shape) * inputs[1]!.shape[0]!,
  reference({ inputs, outputs, attributes }) {
    const [gradient, filter, dx] = [tensorAt(inputs, 0), tensorAt(inputs, 1), tensorAt(outputs, 0)]
    const [cin, cout] = filter.shape as [number, number]
    const activation = activationOf(attributes, 'inputActivation')
    const x = inputs[2]
    for (let row = 0; row < rowCount(dx.shape); row++)
      for (let ci = 0; ci < cin; ci++) {
        let sum = 0
        for (let co = 0; co < cout; co++) sum += gradient.data[row * cout + co]! * filter.data[ci * cout + co]!
        dx.data[row * cin + ci] = sum * (x ? activationSlope(activation, x.data[row * cin + ci]!) : 1)
      }
  },
})

/** pointwiseConv2dFilterGradient: x[..., cin], gradient[..., cout] -> dfilter[cin, cout] = inputActivation(x)^T . gradient, always float32 */
export const pointwiseConv2dFilterGradientDefinition = defineOp({
  name: 'pointwiseConv2dFilterGradient',
  inputs: ['x', 'gradient'],
  outputs: ['dfilter'],
  infer(inputs) {
    const op = 'pointwiseConv2dFilterGradient'
    const x = required(op, inputs, 0, 'x')
    const gradient = required(op, inputs, 1, 'gradient')
    expectFloat(op, 'x', x)
    expectRows(op, 'x', x)
    expectType(op, 'gradient', gradient, { shape: [...x.shape.slice(0, -1), lastSize(gradient.shape)], dtype: x.dtype }, 'rows like x')
    return [{ shape: [lastSize(x.shape), lastSize(gradient.shape)], dtype: 'float32' }]
  },
  macs: (inputs) => elements(inputs[1]!.shape) * lastSize(inputs[0]!.shape),
  reference({ inputs, outputs, attributes }) {
    const [x, gradient, dfilter] = [tensorAt(inputs, 0), tensorAt(inputs, 1), tensorAt(outputs, 0)]
    const [cin, cout] = dfilter.shape as [number, number]
    const z = prologue(x, activationOf(attributes, 'inputActivation')) // [rows, cin]
    dfilter.data.set(pointwiseFilterSums(z, gradient.data, rowCount(x.shape), cin, cout))
  },
})

/** z[rows, cin]^T . gradient[rows, cout] -> sums[cin, cout] */
export function pointwiseFilterSums(
  z: ArrayLike<number>,
  gradient: ArrayLike<number>,
  rows: number,
  cin: number,
  cout: number,
): Float64Array {
  const sums = new Float64Array(cin * cout)
  for (let row = 0; row < rows; row++)
    for (let ci = 0; ci < cin; ci++) {
      const value = z[row * cin + ci]!
      for (let co = 0; co < cout; co++) sums[ci * cout + co]! += value * gradient[row * cout + co]!
    }
  return sums
}

/** Options of {@link pointwiseConv2d}. */
export interface PointwiseConv2dOptions extends EpilogueOptions {
  /** Applied to `x` first: `'none'` (default), `'relu'` or `'elu'`. */
  readonly inputActivation?: Activation
}

/** Options of {@link dense}. */
export interface DenseOptions {
  /** [cout] float32. Default none. */
  readonly bias?: Value
  /** Applied last: `'none'` (default), `'relu'` or `'elu'`. */
  readonly activation?: Activation
}

/** Emits the plain product. */
export const emitPointwise = (x: Value, filter: Value): Value =>
  emit(pointwiseConv2dDefinition, [x, filter], {
    inputActivation: 'none',
    activation: 'none',
    packed: false,
    cout: filter?.type ? lastSize(filter.shape) : 0,
  })

/**
 * Pointwise (1 x 1) convolution: a matrix product over the channels of every position.
 *
 *     y = activation((inputActivation(x) . filter + bias) * scale + shift + residual)
 *
 * @param x `[..., cin]` of any rank from 2, usually `[n, h, w, cin]`; float32 or bfloat16
 * @param filter `[cin, cout]`, stored like `x`
 * @param options no bias, no activation by default; for strides use {@link conv2d} with a 1 x 1 filter
 * @returns `[..., cout]`
 * @throws ERR_SHAPE for channels that do not fit; ERR_DTYPE; ERR_ARGUMENT for unknown options or bad values
 */
export const pointwiseConv2d = operation('pointwiseConv2d', (x: Value, filter: Value, options: PointwiseConv2dOptions = {}): Value => {
  const subject = subjectOf(x, 'pointwiseConv2d')
  checkOptions(subject, options, ['inputActivation', ...EPILOGUE_OPTIONS])
  checkActivation(subject, 'inputActivation', options.inputActivation)
  return applyEpilogue('pointwiseConv2d', emitPointwise(applyActivation(x, options.inputActivation), filter), options)
})

/**
 * Fully-connected layer: `activation(x . filter + bias)`.
 *
 * @param x `[..., cin]`, usually `[n, cin]`; float32 or bfloat16
 * @param filter `[cin, cout]`, stored like `x`
 * @param options no bias, no activation by default
 * @returns `[..., cout]`
 * @throws ERR_SHAPE for channels that do not fit; ERR_DTYPE; ERR_ARGUMENT for unknown options or bad values
 */
export const dense = operation('dense', (x: Value, filter: Value, options: DenseOptions = {}): Value => {
  checkOptions(subjectOf(x, 'dense'), options, ['bias', 'activation'])
  return applyEpilogue('dense', emitPointwise(x, filter), options)
})
