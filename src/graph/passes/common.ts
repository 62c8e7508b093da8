/** Two nodes with the same op, inputs and attributes become one. */

import { definitionOf, type Graph, type Node, type Value } from '../graph.js'
import { rewrite } from '../rewrite.js'

export function mergeCommon(graph: Graph): Graph {
  const seen = new Map<string, readonly Value[]>()
  const constants = new Map<string, Value>()
  const canonical = (value: Value): Value => {
    if (value.node.kind !== 'constant' || value.node.data!.length > 1) return value
    const key = `${value.dtype}${value.shape.length}:${value.node.data![0]}`
    if (!constants.has(key)) constants.set(key, value)
    return constants.get(key)!
  }
  return rewrite(graph, (node, inputs, out) => {
    const shared = inputs.map((input) => input && canonical(input))
    const key = `${node.name}(${shared.map((input) => (input ? `${input.node.id}.${input.index}` : '-'))})${attributeKey(node)}`
    let outputs = seen.get(key)
    if (!outputs) seen.set(key, (outputs = emitCopy(node, shared, out)))
    return outputs
  })
}

/** The attributes as a string that does not depend on the order in which they were given. */
export const attributeKey = (node: Node): string => JSON.stringify(Object.entries(node.attributes).sort(([a], [b]) => (a < b ? -1 : 1)))

const emitCopy = (node: Node, inputs: readonly (Value | null)[], out: Graph) =>
  out.emit(definitionOf(node), inputs, node.attributes, node.scope)
