/**
 * maxPool2d: x[n, h, w, c] -> y[n, oh, ow, c], the largest value under each window, padding left out, plus the residual in the fused
 * form. Its gradient goes to the first maximum in row-major window order; a NaN counts as the maximum, the first one wins.
 */

import { checkOptions } from '../errors.js'
import type { Attributes, Value } from '../graph/graph.js'
import { defineOp, type HostTensor } from '../graph/op.js'
import { emit, operation } from '../graph/trace.js'
import type { TensorType } from '../graph/types.js'
import { expectType, required, subjectOf, tensorAt } from './arguments.js'
import { forEachTap, geometryOf } from './geometry.js'
import { inferPool, type Pool2dOptions, resolvePool } from './pool.js'

type Size = readonly [number, number]

export const maxPool2dDefinition = defineOp({
  name: 'maxPool2d',
  samples: () => [0, 1],
  inputs: ['x', 'residual?'],
  outputs: ['y'],
  infer(inputs, attributes) {
    const y = inferPool('maxPool2d', 'x', required('maxPool2d', inputs, 0, 'x'), attributes)
    expectType('maxPool2d', 'residual', inputs[1], y, 'like the output')
    return [y]
  },
  gradient({ inputs, attributes, gradients, needs }) {
    const dy = gradients[0]!
    return [needs[0] ? emit(maxPool2dGradientDefinition, [dy, inputs[0]!], attributes) : null, needs[1] ? dy : null]
  },
  reference({ inputs, outputs, attributes }) {
    const [x, y] = [tensorAt(inputs, 0), tensorAt(outputs, 0)]
    maxima(x, y.data.length, attributes).forEach((source, i) => {
      y.data[i] = x.data[source]! + (inputs[1] ? inputs[1].data[i]! : 0)
    })
  },
})

/** For every output element, the index into x[n, h, w, c] of the first maximum of its window. */
function maxima(x: HostTensor, outputs: number, attributes: Attributes): Int32Array {
  const c = x.shape[3]!
  const sources = new Int32Array(outputs).fill(-1)
  forEachTap(x.shape, attributes.windowSize as unknown as Size, geometryOf(attributes), (o, i) => {
    for (let channel = 0; channel < c; channel++) {
      const best = sources[o * c + channel]!
      const value = x.data[i * c + channel]!
      if (best < 0 || value > x.data[best]! || (Number.isNaN(value) && !Number.isNaN(x.data[best]!)))
        sources[o * c + channel] = i * c + channel
    }
  })
  return sources
}

/** maxPool2dGradient: dy[n, oh, ow, c], x[n, h, w, c] -> dx[n, h, w, c] */
export const maxPool2dGradientDefinition = defineOp({
  name: 'maxPool2dGradient',
  inputs: ['dy', 'x'],
  outputs: ['dx'],
  infer(inputs, attributes) {
    const op = 'maxPool2dGradient'
    const x: TensorType = required(op, inputs, 1, 'x')
    expectType(op, 'dy', required(op, inputs, 0, 'dy'), inferPool(op, 'x', x, attributes), 'like the forward output')
    return [x]
  },
  reference({ inputs, outputs, attributes }) {
    const [dy, x, dx] = [tensorAt(inputs, 0), tensorAt(inputs, 1), tensorAt(outputs, 0)]
    const acc = new Float64Array(dx.data.length)
    maxima(x, dy.data.length, attributes).forEach((source, i) => {
      acc[source]! += dy.data[i]!
    })
    dx.data.set(acc)
  },
})

/**
 * Maximum of every window, per channel; padding never wins.
 *
 * @param x `[n, h, w, c]`, float32 or bfloat16
 * @param options `windowSize` is required; `strides` default to it, `padding` to `'same'`
 * @returns `[n, oh, ow, c]` with oh = ceil(h / stride) for `'same'` and floor((h + pads - window) / stride) + 1 otherwise
 * @throws ERR_SHAPE for a window that does not fit or padding as large as the window; ERR_DTYPE; ERR_ARGUMENT for unknown options or bad values
 */
export const maxPool2d = operation('maxPool2d', (x: Value, options: Pool2dOptions): Value => {
  const subject = subjectOf(x, 'maxPool2d')
  checkOptions(subject, options, ['windowSize', 'strides', 'padding'])
  return emit(maxPool2dDefinition, [x], resolvePool(subject, x.type, options))
})
