/**
 * avgPool2d: x[n, h, w, c] -> y[n, oh, ow, c], the mean under each window. With countPadding the divisor is always the window's
 * size (PyTorch's default), without it the number of inputs under the window (TensorFlow's rule).
 */

import { checkOptions } from '../errors.js'
import type { Attributes, Value } from '../graph/graph.js'
import { defineOp } from '../graph/op.js'
import { emit, operation } from '../graph/trace.js'
import { elements, type Shape, type TensorType } from '../graph/types.js'
import { expectFloat, expectRank, expectType, required, subjectOf, tensorAt } from './arguments.js'
import { forEachTap, geometryOf } from './geometry.js'
import { inferPool, type Pool2dOptions, resolvePool } from './pool.js'

type Size = readonly [number, number]

export const avgPool2dDefinition = defineOp({
  name: 'avgPool2d',
  samples: () => [0],
  inputs: ['x'],
  outputs: ['y'],
  infer: (inputs, attributes) => [inferPool('avgPool2d', 'x', required('avgPool2d', inputs, 0, 'x'), attributes)],
  gradient({ inputs, attributes, gradients }) {
    return [emit(avgPool2dGradientDefinition, [gradients[0]!], { ...attributes, inputSize: inputs[0]!.shape.slice(1, 3) })]
  },
  reference({ inputs, outputs, attributes }) {
    const [x, y] = [tensorAt(inputs, 0), tensorAt(outputs, 0)]
    const c = x.shape[3]!
    const sums = new Float64Array(y.data.length) // [n, oh, ow, c]
    forEachTap(x.shape, attributes.windowSize as unknown as Size, geometryOf(attributes), (o, i) => {
      for (let channel = 0; channel < c; channel++) sums[o * c + channel]! += x.data[i * c + channel]!
    })
    const counts = divisors(x.shape, y.shape, attributes)
    for (let i = 0; i < sums.length; i++) y.data[i] = sums[i]! / counts[Math.floor(i / c)]!
  },
})

/** By what the sum of each window [n, oh, ow] is divided. */
function divisors(input: Shape, output: Shape, attributes: Attributes): Float64Array {
  const windowSize = attributes.windowSize as unknown as Size
  const counts = new Float64Array(elements(output.slice(0, 3)))
  if (attributes.countPadding === true) return counts.fill(windowSize[0] * windowSize[1])
  forEachTap(input, windowSize, geometryOf(attributes), (o) => {
    counts[o]! += 1
  })
  return counts
}

/** avgPool2dGradient: dy[n, oh, ow, c] -> dx[n, h, w, c] */
export const avgPool2dGradientDefinition = defineOp({
  name: 'avgPool2dGradient',
  inputs: ['dy'],
  outputs: ['dx'],
  infer(inputs, attributes) {
    const op = 'avgPool2dGradient'
    const dy = required(op, inputs, 0, 'dy')
    expectFloat(op, 'dy', dy)
    expectRank(op, 'dy', dy, '[n, oh, ow, c]')
    const dx: TensorType = { shape: [dy.shape[0]!, ...(attributes.inputSize as readonly number[]), dy.shape[3]!], dtype: dy.dtype }
    expectType(op, 'dy', dy, inferPool(op, 'x', dx, attributes), 'like the forward output')
    return [dx]
  },
  reference({ inputs, outputs, attributes }) {
    const [dy, dx] = [tensorAt(inputs, 0), tensorAt(outputs, 0)]
    const c = dx.shape[3]!
    const counts = divisors(dx.shape, dy.shape, attributes)
    const acc = new Float64Array(dx.data.length) // [n, h, w, c]
    forEachTap(dx.shape, attributes.windowSize as unknown as Size, geometryOf(attributes), (o, i) => {
      for (let channel = 0; channel < c; channel++) acc[i * c + channel]! += dy.data[o * c + channel]! / counts[o]!
    })
    dx.data.set(acc)
  },
})

/** Options of {@link avgPool2d}. */
export interface AvgPool2dOptions extends Pool2dOptions {
  /** Whether zeros of the padding count in the mean. Default false. */
  readonly countPadding?: boolean
}

/**
 * Mean of every window, per channel.
 *
 * @param x `[n, h, w, c]`, float32 or bfloat16
 * @param options `windowSize` is required; `strides` default to it, `padding` to `'same'`, `countPadding` to false
 * @returns `[n, oh, ow, c]` with oh = ceil(h / stride) for `'same'` and floor((h + pads - window) / stride) + 1 otherwise
 * @throws ERR_SHAPE for a window that does not fit or padding as large as the window; ERR_DTYPE; ERR_ARGUMENT for unknown options or bad values
 */
export const avgPool2d = operation('avgPool2d', (x: Value, options: AvgPool2dOptions): Value => {
  const subject = subjectOf(x, 'avgPool2d')
  checkOptions(subject, options, ['windowSize', 'strides', 'padding', 'countPadding'])
  return emit(avgPool2dDefinition, [x], { ...resolvePool(subject, x.type, options), countPadding: options.countPadding ?? false })
})
