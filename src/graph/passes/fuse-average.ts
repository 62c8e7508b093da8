/**
 * An optimizer's update and the average of its parameters → one call, where the target has such kernels: the parameters then pass
 * through memory once less.
 */

import { definitionOf, Graph, type Node, type Value } from '../graph.js'
import { copyLeaf, eliminateDeadCode } from '../rewrite.js'
import type { Target } from '../target.js'

/** Outputs of each optimizer before its groups, and per group, whose first one is the parameter. */
const OUTPUTS: Readonly<Record<string, readonly [before: number, perGroup: number]>> = {
  sgdUpdate: [0, 2],
  rmspropUpdate: [0, 3],
  adamUpdate: [1, 3],
}

export function fuseAverage(graph: Graph, target: Target): Graph {
  if (!target.fusesAverage) return graph
  const averageOf = new Map<Node, Node>()
  for (const node of graph.nodes) {
    const update = node.name === 'averageUpdate' ? node.inputs[3]?.node : undefined
    if (update && follows(node, update)) averageOf.set(update, node)
  }
  if (averageOf.size === 0) return graph
  const updateOf = new Map([...averageOf].map(([update, average]) => [average, update]))
  const out = new Graph()
  const map = new Map<Value, Value>()
  const mapped = (value: Value | null): Value | null => value && map.get(value)!
  // Leaves first: the averages' state was read behind the optimizer.
  for (const node of graph.nodes) if (node.kind !== 'op') map.set(node.outputs[0]!, copyLeaf(node, out))
  for (const node of graph.nodes) {
    if (node.kind !== 'op' || updateOf.has(node)) continue
    const average = averageOf.get(node)
    const [decay, , ...groups] = average?.inputs ?? []
    const extra = average ? [decay!, ...groups.filter((_, i) => i % 2 === 0)] : []
    const attributes = average ? { ...node.attributes, averaged: true } : node.attributes
    const outputs = out.emit(definitionOf(node), [...node.inputs, ...extra].map(mapped), attributes, node.scope)
    const all = [...node.outputs, ...(average?.outputs ?? [])]
    all.forEach((value, i) => map.set(value, outputs[i]!))
  }
  for (const { name, value } of graph.outputs) out.output(name, map.get(value)!)
  for (const { variable, value } of graph.updates) out.update(variable, map.get(value)!)
  return eliminateDeadCode(out)
}

/** Whether an average takes exactly the parameters of an update, unscaled, at the same flag, and else only leaves. */
function follows(average: Node, update: Node): boolean {
  const [before, perGroup] = OUTPUTS[update.name] ?? [0, 0]
  if (perGroup === 0 || update.attributes.averaged || average.inputs[1] !== update.inputs[1]) return false
  const groups = (update.outputs.length - before) / perGroup
  return (
    average.outputs.length === groups &&
    average.inputs[0]?.node.kind !== 'op' &&
    average.outputs.every((_, i) => {
      const [own, value] = [average.inputs[2 + 2 * i], average.inputs[3 + 2 * i]]
      return own?.node.kind !== 'op' && value === update.outputs[before + i * perGroup]
    }) &&
    (average.attributes.factor as readonly number[]).every((factor) => factor === 1)
  )
}
