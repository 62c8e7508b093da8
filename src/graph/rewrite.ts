/**
 * How passes are written: `rewrite` walks a graph in order and copies it, letting the pass replace nodes on the way; dead code
 * falls away at the end. A pass looks back through the new graph at what produced its inputs, so chains fuse in one walk.
 */

import { definitionOf, Graph, type Node, type Value } from './graph.js'
import { opDefinition } from './op.js'

/** Says what becomes of a node: its new outputs, or `undefined` to copy it. `inputs` are already values of the new graph. */
export type Visitor = (node: Node, inputs: readonly (Value | null)[], out: Graph) => readonly Value[] | undefined

export function rewrite(graph: Graph, visit: Visitor): Graph {
  const out = new Graph()
  const map = new Map<Value, Value>()
  const mapped = (value: Value): Value => map.get(value)!
  for (const node of graph.nodes) {
    const inputs = node.inputs.map((input) => input && mapped(input))
    const outputs = out.atScope(node.scope, () =>
      node.kind === 'op'
        ? (visit(node, inputs, out) ?? out.emit(definitionOf(node), inputs, node.attributes, node.scope))
        : [copyLeaf(node, out)],
    )
    node.outputs.forEach((output, i) => map.set(output, outputs[i]!))
  }
  for (const { name, value } of graph.outputs) out.output(name, mapped(value))
  for (const { variable, value } of graph.updates) out.update(variable, mapped(value))
  return eliminateDeadCode(out)
}

export function copyLeaf(node: Node, out: Graph): Value {
  switch (node.kind) {
    case 'input':
      return out.input(node.name, node.outputs[0]!.type)
    case 'state':
      return out.state(node.variable!)
    case 'prepared':
      return out.prepared(node.name, node.outputs[0]!.type)
    default:
      return out.constant(node.outputs[0]!.type, node.data!)
  }
}

/** The graph without nodes that neither an output nor an update needs; inputs stay, since they are the signature. */
export function eliminateDeadCode(graph: Graph): Graph {
  const live = new Set<Node>()
  const pending = [...graph.outputs, ...graph.updates].map(({ value }) => value.node)
  while (pending.length > 0) {
    const node = pending.pop()!
    if (live.has(node)) continue
    live.add(node)
    for (const input of node.inputs) if (input && !live.has(input.node)) pending.push(input.node)
  }
  if (graph.nodes.every((node) => live.has(node) || node.kind === 'input')) return graph
  const out = new Graph()
  const map = new Map<Value, Value>()
  for (const node of graph.nodes) {
    if (!live.has(node) && node.kind !== 'input') continue
    const outputs =
      node.kind === 'op'
        ? out.emit(
            definitionOf(node),
            node.inputs.map((input) => input && map.get(input)!),
            node.attributes,
            node.scope,
          )
        : [copyLeaf(node, out)]
    node.outputs.forEach((output, i) => map.set(output, outputs[i]!))
  }
  for (const { name, value } of graph.outputs) out.output(name, map.get(value)!)
  for (const { variable, value } of graph.updates) out.update(variable, map.get(value)!)
  return out
}

/** How often each value is read: by nodes, outputs and updates. */
export function useCounts(graph: Graph): Map<Value, number> {
  const counts = new Map<Value, number>()
  const count = (value: Value | null) => value && counts.set(value, (counts.get(value) ?? 0) + 1)
  for (const node of graph.nodes) node.inputs.forEach(count)
  for (const { value } of [...graph.outputs, ...graph.updates]) count(value)
  return counts
}

/** The nodes that read each value; a value that is an output or an update counts the node `null` as a reader. */
export function readers(graph: Graph): Map<Value, (Node | null)[]> {
  const map = new Map<Value, (Node | null)[]>()
  const note = (value: Value | null, node: Node | null) => {
    if (!value) return
    const list = map.get(value)
    if (list) list.push(node)
    else map.set(value, [node])
  }
  for (const node of graph.nodes) for (const input of node.inputs) note(input, node)
  for (const { value } of [...graph.outputs, ...graph.updates]) note(value, null)
  return map
}

/** The input of a node by its name in the op's definition (`scale` for `scale?`), or `null`. */
export function inputNamed(node: Node, name: string): Value | null {
  const index = inputIndex(node.name, name)
  return index < 0 ? null : (node.inputs[index] ?? null)
}

/** The place of an input by its name in the op's definition, or -1. */
export const inputIndex = (op: string, name: string): number =>
  opDefinition(op).inputs.findIndex((input) => input === name || input === `${name}?`)

/** A copy of an op's inputs, padded to full length, with some replaced by name. */
export function withInputs(
  op: string,
  inputs: readonly (Value | null)[],
  changes: Readonly<Record<string, Value | null>>,
): (Value | null)[] {
  const result: (Value | null)[] = opDefinition(op).inputs.map((_, i) => inputs[i] ?? null)
  for (const [name, value] of Object.entries(changes)) result[inputIndex(op, name)] = value
  return result
}
