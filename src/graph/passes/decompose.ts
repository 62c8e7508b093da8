/**
 * Training batch norm into the pieces that fuse with their neighbours: statistics (an epilogue of the product before it),
 * coefficients (one value per channel), scale and shift (a prologue of the convolution after it). Runs after differentiation,
 * whose rule for `batchNorm` as a whole is better conditioned than the chain rule through the pieces.
 */

import type { Graph } from '../graph.js'
import { opDefinition } from '../op.js'
import { rewrite } from '../rewrite.js'
import { emit, emitAll } from '../trace.js'
import { momentsOfRanks } from '../../ops/batchNorm.js'

export function decompose(graph: Graph): Graph {
  return rewrite(graph, (node, [x, gamma, beta]) => {
    if (node.name !== 'batchNorm') return undefined
    const own = emitAll(opDefinition('batchNormStatistics'), [x!])
    const ranks = node.attributes.ranks as number | undefined
    const [mean, variance] = ranks === undefined ? own : momentsOfRanks(own[0]!, own[1]!, ranks)
    const [scale, shift] = emitAll(opDefinition('batchNormCoefficients'), [mean!, variance!, gamma ?? null, beta ?? null], {
      epsilon: node.attributes.epsilon!,
    })
    return [emit(opDefinition('scaleShift'), [x!, scale!, shift!, null], { activation: 'none' }), mean!, variance!]
  })
}
