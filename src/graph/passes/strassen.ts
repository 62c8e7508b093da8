/**
 * Products that the target computes faster by one level of Strassen's algorithm get the attribute `strassen`: seven products of quarters
 * instead of eight. What the op means is the same; the reference ignores it. In float32 and in inference alone: training steps measured
 * 0.99 to 1.01 times as fast with it, so theirs stay plain sums.
 */

import { definitionOf, type Graph } from '../graph.js'
import { inputIndex, rewrite } from '../rewrite.js'
import type { Target } from '../target.js'

/** The operand whose last axis the product sums over; of a separable convolution that is the filter's first. */
const SUMMED: Readonly<Record<string, string>> = { pointwiseConv2d: 'x', separableConv2d: 'pointwise' }

export function chooseStrassen(graph: Graph, target: Target): Graph {
  const { strassenPays } = target
  if (!strassenPays || graph.updates.length > 0) return graph
  return rewrite(graph, (node, inputs, out) => {
    const operand = SUMMED[node.name]
    const y = node.outputs[0]!
    // Batch statistics come from plain products alone: gradients without an update, as asynchronous training computes them.
    if (!operand || y.dtype !== 'float32' || node.attributes.statistics === true) return undefined
    const { shape } = inputs[inputIndex(node.name, operand)]!
    const k = node.name === 'separableConv2d' ? shape[0]! : shape.at(-1)!
    const rows = y.shape.slice(0, -1).reduce((product, size) => product * size, 1)
    if (!strassenPays(rows, k, y.shape.at(-1)!)) return undefined
    return out.emit(definitionOf(node), inputs, { ...node.attributes, strassen: true }, node.scope)
  })
}
