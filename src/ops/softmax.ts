/** softmax(x[..., k]) -> y over the last axis, and its gradient y · (dy − Σ dy · y). */

import type { Value } from '../graph/graph.js'
import { defineOp } from '../graph/op.js'
import { emit, operation } from '../graph/trace.js'
import { expectFloat, expectType, lastSize, required, tensorAt } from './arguments.js'

export const softmaxDefinition = defineOp({
  name: 'softmax',
  samples: () => [0],
  inputs: ['x'],
  outputs: ['y'],
  infer(inputs) {
    const x = required('softmax', inputs, 0, 'x')
    expectFloat('softmax', 'x', x)
    return [x]
  },
  gradient: ({ outputs, gradients }) => [emit(softmaxGradientDefinition, [gradients[0]!, outputs[0]!])],
  reference({ inputs, outputs }) {
    const x = tensorAt(inputs, 0)
    const k = lastSize(x.shape)
    for (let row = 0; row < x.data.length; row += k) {
      let [highest, sum] = [-Infinity, 0]
      for (let c = 0; c < k; c++) highest = Math.max(highest, x.data[row + c]!)
      for (let c = 0; c < k; c++) sum += Math.exp(x.data[row + c]! - highest)
      for (let c = 0; c < k; c++) outputs[0]!.data[row + c] = Math.exp(x.data[row + c]! - highest) / sum
    }
  },
})

export const softmaxGradientDefinition = defineOp({
  name: 'softmaxGradient',
  inputs: ['dy', 'y'],
  outputs: ['dx'],
  infer(inputs) {
    const dy = required('softmaxGradient', inputs, 0, 'dy')
    expectType('softmaxGradient', 'y', required('softmaxGradient', inputs, 1, 'y'), dy, 'like dy')
    return [dy]
  },
  reference({ inputs, outputs }) {
    const [dy, y] = [tensorAt(inputs, 0), tensorAt(inputs, 1)]
    const k = lastSize(y.shape)
    for (let row = 0; row < y.data.length; row += k) {
      let sum = 0
      for (let c = 0; c < k; c++) sum += dy.data[row + c]! * y.data[row + c]!
      for (let c = 0; c < k; c++) outputs[0]!.data[row + c] = y.data[row + c]! * (dy.data[row + c]! - sum)
    }
  },
})

/** Softmax over the last axis: [..., k] → [..., k], rows summing to 1. @throws ERR_DTYPE */
export const softmax = operation('softmax', (x: Value): Value => emit(softmaxDefinition, [x]))
