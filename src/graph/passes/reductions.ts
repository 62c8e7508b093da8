/**
 * Sums over ranks beside the computation: an `allReduce` becomes buckets of values in the order in which they are computed. A bucket is
 * started right behind its last value, while the backward pass goes on, and waited for where the `allReduce` stood. Bucket boundaries
 * depend on the graph alone, hence are the same on every rank.
 */

import { definitionOf, Graph, type Node, type Value } from '../graph.js'
import { opDefinition } from '../op.js'
import { copyLeaf } from '../rewrite.js'
import { byteLength } from '../types.js'

interface Bucket {
  /** Places among the inputs of the allReduce. */
  readonly inputs: readonly number[]
  /** The node behind which all of them are known. */
  readonly last: Node
}

export function bucketReductions(graph: Graph): Graph {
  const reductions = graph.nodes.filter(({ name, kind }) => kind === 'op' && name === 'allReduce')
  if (reductions.length === 0) return graph
  const position = new Map(graph.nodes.map((node, i) => [node, i]))
  const buckets = new Map(reductions.map((node) => [node, bucketsOf(node, position)]))
  const due = new Map<Node, { node: Node; bucket: Bucket }[]>()
  for (const node of reductions)
    for (const bucket of buckets.get(node)!) due.set(bucket.last, [...(due.get(bucket.last) ?? []), { node, bucket }])

  const out = new Graph()
  const map = new Map<Value, Value>()
  const started = new Map<Bucket, readonly Value[]>()
  for (const node of graph.nodes) {
    if (buckets.has(node)) {
      for (const bucket of buckets.get(node)!) {
        const sums = out.emit(opDefinition('allReduceWait'), started.get(bucket)!, { ranks: node.attributes.ranks! }, node.scope)
        bucket.inputs.forEach((input, i) => map.set(node.outputs[input]!, sums[i]!))
      }
    } else {
      const inputs = node.inputs.map((input) => input && map.get(input)!)
      const outputs = node.kind === 'op' ? out.emit(definitionOf(node), inputs, node.attributes, node.scope) : [copyLeaf(node, out)]
      node.outputs.forEach((output, i) => map.set(output, outputs[i]!))
    }
    for (const { node: reduction, bucket } of due.get(node) ?? []) {
      const values = bucket.inputs.map((input) => map.get(reduction.inputs[input]!)!)
      started.set(bucket, out.emit(opDefinition('allReduceStart'), values, { ranks: reduction.attributes.ranks! }, reduction.scope))
    }
  }
  for (const { name, value } of graph.outputs) out.output(name, map.get(value)!)
  for (const { variable, value } of graph.updates) out.update(variable, map.get(value)!)
  return out
}

/** Of a bucket: the most that the last one has. Nothing is left to be computed beside it, so its sum is waited for in full. */
const LAST_SHARE = 1 / 8

function bucketsOf(node: Node, position: ReadonlyMap<Node, number>): Bucket[] {
  const at = (input: number) => position.get(node.inputs[input]!.node)!
  const order = node.inputs.map((_, i) => i).sort((a, b) => at(a) - at(b) || a - b)
  const most = node.attributes.bucketBytes as number
  const bytesOf = (input: number) => byteLength(node.inputs[input]!.type)
  let last = order.length
  for (let bytes = 0; last > 0; last--) {
    bytes += bytesOf(order[last - 1]!)
    if (bytes > most * LAST_SHARE) break
  }
  const buckets: { inputs: number[]; bytes: number }[] = []
  for (const [i, input] of order.entries()) {
    const bytes = bytesOf(input)
    const open = buckets.at(-1)
    if (open && i !== last && open.bytes + bytes <= most) {
      open.inputs.push(input)
      open.bytes += bytes
    } else buckets.push({ inputs: [input], bytes })
  }
  return buckets.map(({ inputs }) => ({ inputs, last: node.inputs[inputs.at(-1)!]!.node }))
}
