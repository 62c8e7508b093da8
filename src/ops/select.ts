/** select(condition, a, b) -> c: a where the condition is not 0, else b; all of one shape. */

import type { Value } from '../graph/graph.js'
import { defineOp } from '../graph/op.js'
import { emit, operation, scalar } from '../graph/trace.js'
import { expectFloat, expectType, required, tensorAt } from './arguments.js'
import { broadcast, castTo } from './builders.js'

export const selectDefinition = defineOp({
  name: 'select',
  samples: () => [0, 1, 2],
  inputs: ['condition', 'a', 'b'],
  outputs: ['c'],
  inPlace: [1, 2],
  recompute: true,
  infer(inputs) {
    const a = required('where', inputs, 1, 'a')
    expectFloat('where', 'a', a)
    expectType('where', 'condition', required('where', inputs, 0, 'condition'), { shape: a.shape, dtype: 'float32' }, 'like a')
    expectType('where', 'b', required('where', inputs, 2, 'b'), a, 'like a')
    return [a]
  },
  gradient({ inputs, gradients, needs }) {
    const [condition, g] = [inputs[0]!, gradients[0]!]
    const zero = broadcast(castTo(scalar(g, 0), g.dtype), g.shape)
    return [
      null,
      needs[1] ? emit(selectDefinition, [condition, g, zero]) : null,
      needs[2] ? emit(selectDefinition, [condition, zero, g]) : null,
    ]
  },
  reference({ inputs, outputs }) {
    const [condition, a, b] = [tensorAt(inputs, 0), tensorAt(inputs, 1), tensorAt(inputs, 2)]
    for (let i = 0; i < a.data.length; i++) outputs[0]!.data[i] = condition.data[i] !== 0 ? a.data[i]! : b.data[i]!
  },
})

/**
 * `a` where `condition` is not 0 (NaN is not 0), else `b`.
 * @param condition float32, such as the result of greater()
 * @param a the same shape, float32 or bfloat16
 * @param b like a
 * @returns the same shape; the gradient reaches a or b only where it was taken, condition never
 * @throws ERR_SHAPE unless all shapes are equal; ERR_DTYPE
 */
export const where = operation('where', (condition: Value, a: Value, b: Value): Value => emit(selectDefinition, [condition, a, b]))
