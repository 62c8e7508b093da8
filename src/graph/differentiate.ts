/**
 * Reverse-mode differentiation, graph to graph: for every node between the sources and the loss, in reverse order, the op's own
 * gradient rule emits nodes into the same graph. Fusion happens afterwards, so rules are needed for primitive ops only.
 */

import { SepconvError } from '../errors.js'
import { definitionOf, type Graph, type Node, type Value } from './graph.js'
import { opDefinition } from './op.js'
import { emit, scalar } from './trace.js'
import { formatType } from './types.js'

/**
 * Appends the gradients of `loss` (a float32 scalar) with respect to `sources` to `graph`.
 * @returns one value per source, `null` where the loss does not depend on it.
 * @throws ERR_SHAPE when the loss is no scalar; ERR_ARGUMENT when an op on the way has no gradient.
 */
export function differentiate(graph: Graph, loss: Value, sources: readonly Value[]): (Value | null)[] {
  if (loss.shape.length !== 0 || loss.dtype !== 'float32')
    throw new SepconvError('ERR_SHAPE', `differentiate: the loss must be a float32 scalar, got ${formatType(loss.type)}`, {
      hint: 'Reduce it with mean() or sum()',
    })
  const forward = graph.nodes.slice(0, loss.node.id + 1)
  const depends = dependents(forward, sources)
  const gradients = new Map<Value, Value>()
  gradients.set(loss, scalar(loss, 1))
  for (const node of forward.reverse()) {
    if (node.kind !== 'op' || !node.outputs.some((output) => gradients.has(output))) continue
    const needs = node.inputs.map((input) => input !== null && depends.has(input))
    if (!needs.includes(true)) continue
    graph.atScope(node.scope, () => propagate(node, needs, gradients))
  }
  return sources.map((source) => gradients.get(source) ?? null)
}

/** All values that depend on one of `sources`, the sources included. */
function dependents(nodes: readonly Node[], sources: readonly Value[]): Set<Value> {
  const depends = new Set(sources)
  for (const node of nodes)
    if (node.inputs.some((input) => input && depends.has(input))) for (const output of node.outputs) depends.add(output)
  return depends
}

function propagate(node: Node, needs: readonly boolean[], gradients: Map<Value, Value>): void {
  const { gradient } = definitionOf(node)
  if (!gradient)
    throw new SepconvError('ERR_ARGUMENT', `${node.scope ? `${node.scope}: ` : ''}op '${node.name}' has no gradient`, {
      subject: node.scope || node.name,
    })
  const results = gradient({
    inputs: node.inputs,
    outputs: node.outputs,
    attributes: node.attributes,
    gradients: node.outputs.map((output) => gradients.get(output) ?? null),
    needs,
  })
  node.inputs.forEach((input, i) => {
    const result = results[i]
    if (!input || !needs[i] || !result) return
    const sum = gradients.get(input)
    gradients.set(input, sum ? emit(opDefinition('binary'), [sum, result], { function: 'add' }) : result)
  })
}
