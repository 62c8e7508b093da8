/**
 * dropout(x[n, ...], counter int32[2]) -> y: zero with probability `rate`, else x / (1 − rate). The mask of an element is a
 * function of (seed, stream, global sample index, place within the sample), so it does not depend on the batch, and the
 * gradient makes it again instead of keeping it.
 */

import { checkOptions, SepconvError } from '../errors.js'
import type { Value } from '../graph/graph.js'
import { defineOp } from '../graph/op.js'
import { emit, operation } from '../graph/trace.js'
import { expectFloat, expectType, required, tensorAt } from './arguments.js'
import { philox4x32 } from './philox.js'

export const dropoutDefinition = defineOp({
  name: 'dropout',
  inputs: ['x', 'counter'],
  outputs: ['y'],
  inPlace: [0],
  recompute: true,
  infer(inputs) {
    const x = required('dropout', inputs, 0, 'x')
    expectFloat('dropout', 'x', x)
    if (x.shape.length === 0) throw new SepconvError('ERR_SHAPE', 'dropout: x must have a batch axis', { subject: 'x' })
    expectType(
      'dropout',
      'counter',
      required('dropout', inputs, 1, 'counter'),
      { shape: [2], dtype: 'int32' },
      'low and high word of the first sample index',
    )
    return [x]
  },
  gradient: ({ inputs, gradients, attributes }) => [emit(dropoutDefinition, [gradients[0]!, inputs[1]!], attributes), null],
  reference({ inputs, outputs, attributes }) {
    const [x, counter] = [tensorAt(inputs, 0), tensorAt(inputs, 1)]
    const rate = attributes.rate as number
    const threshold = Math.floor(rate * 2 ** 32)
    const scale = Math.fround(1 / (1 - rate))
    const first = (counter.data[0]! >>> 0) + (counter.data[1]! >>> 0) * 2 ** 32
    const size = x.data.length / x.shape[0]!
    const words = new Uint32Array(4)
    const key = [attributes.seed as number, attributes.stream as number]
    for (let n = 0; n < x.shape[0]!; n++) {
      const sample = first + n
      for (let e = 0; e < size; e++) {
        if (e % 4 === 0) philox4x32([e / 4, 0, sample >>> 0, Math.floor(sample / 2 ** 32)], key, words)
        outputs[0]!.data[n * size + e] = words[e % 4]! >= threshold ? x.data[n * size + e]! * scale : 0
      }
    }
  },
})

/** Options of {@link dropout}. */
export interface DropoutOptions {
  /** Probability of zero, in [0, 1). */
  readonly rate: number
  /** Whole number below 2^32. Default 0. */
  readonly seed?: number
  /** Tells apart the dropouts of one model; whole number below 2^32. Default 0. */
  readonly stream?: number
  /** int32 [2], low and high word: the global index of the first sample. */
  readonly counter: Value
}

/**
 * Dropout (Srivastava et al. 2014): zero with probability `rate`, else x / (1 − rate).
 * @param x [n, ...], float32 or bfloat16
 * @param options `rate` and `counter` are needed; `seed` and `stream` are 0 by default
 * @returns the same shape
 * @throws ERR_ARGUMENT for a rate outside [0, 1), a seed or stream beyond 32 bits, unknown options; ERR_SHAPE, ERR_DTYPE
 */
export const dropout = operation('dropout', (x: Value, options: DropoutOptions = {} as DropoutOptions): Value => {
  checkOptions('dropout', options, ['rate', 'seed', 'stream', 'counter'])
  const { rate, seed = 0, stream = 0, counter } = options
  if (!(rate >= 0 && rate < 1))
    throw new SepconvError('ERR_ARGUMENT', `dropout: rate must be in [0, 1), got ${rate}`, { subject: 'rate', given: rate })
  for (const [name, value] of Object.entries({ seed, stream }))
    if (!Number.isInteger(value) || value < 0 || value >= 2 ** 32)
      throw new SepconvError('ERR_ARGUMENT', `dropout: ${name} must be a whole number from 0 to 2^32 - 1, got ${String(value)}`, {
        subject: name,
        given: value,
      })
  return emit(dropoutDefinition, [x, counter], { rate, seed, stream })
})
