/**
 * Recomputation under a memory limit (Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost"): a forward result that
 * waits for the backward pass is computed again there, if its op is cheap (OpDefinition.recompute) and its inputs wait anyway
 * or are cheap themselves. Largest saving first, no more of them than it takes until the plan fits.
 */

import { SepconvError } from '../../errors.js'
import { definitionOf, type Graph, type Node, type Value } from '../graph.js'
import { lower } from '../lower.js'
import { rewrite } from '../rewrite.js'
import type { Target } from '../target.js'
import { byteLength } from '../types.js'

export function recompute(graph: Graph, memoryLimit: number, target: Target): Graph {
  let best = graph
  let bytes = arenaBytes(graph, target)
  const chosen = new Set<string>()
  while (bytes > memoryLimit) {
    const candidates = waiting(best).filter(({ node }) => !chosen.has(identity(node)))
    if (candidates.length === 0)
      throw new SepconvError('ERR_MEMORY', `memoryLimit: the smallest plan found needs ${bytes} bytes, the limit is ${memoryLimit}`, {
        subject: 'memoryLimit',
        expected: bytes,
        given: memoryLimit,
        hint: 'Use a smaller batch or input size, or raise the limit',
      })
    // A quarter of the list per round keeps compilation short: a handful of plans, not one per candidate.
    let count = Math.ceil(candidates.length / 4)
    const repeated = (first: number) => {
      const graph = repeatLate(best, new Set(candidates.slice(0, first).map(({ node }) => node)))
      return { graph, bytes: arenaBytes(graph, target) }
    }
    let next = repeated(count)
    // In the round that fits, no more than it takes: the shortest beginning of the list by bisection.
    for (let low = 1; next.bytes <= memoryLimit && low < count; ) {
      const middle = (low + count) >> 1
      const shorter = repeated(middle)
      if (shorter.bytes <= memoryLimit) [count, next] = [middle, shorter]
      else low = middle + 1
    }
    for (const { node } of candidates.slice(0, count)) chosen.add(identity(node))
    best = next.graph
    bytes = next.bytes
  }
  return best
}

const arenaBytes = (graph: Graph, target: Target): number => lower(graph, target).program.arenaBytes
const identity = (node: Node): string => `${node.scope}/${node.name}/${node.outputs[0]!.shape}`

/** Recomputable nodes in the order of bytes × steps between their last early and their first late reader. */
function waiting(graph: Graph): { node: Node; gain: number }[] {
  const readersOf = lateReaders(graph)
  const result: { node: Node; gain: number }[] = []
  for (const [node, { gap }] of readersOf) result.push({ node, gain: gap * byteLength(node.outputs[0]!.type) })
  return result.sort((a, b) => b.gain - a.gain || a.node.id - b.node.id)
}

/** For each recomputable node: the widest gap between two successive reads, and the readers after it. */
function lateReaders(graph: Graph): Map<Node, { gap: number; after: number }> {
  const reads = new Map<Node, number[]>()
  for (const node of graph.nodes)
    for (const input of node.inputs) if (input) reads.set(input.node, [...(reads.get(input.node) ?? [input.node.id]), node.id])
  const result = new Map<Node, { gap: number; after: number }>()
  const outputs = new Set([...graph.outputs, ...graph.updates].map(({ value }) => value.node))
  for (const [node, at] of reads) {
    if (node.kind !== 'op' || !definitionOf(node).recompute || outputs.has(node) || node.outputs.length > 1) continue
    let gap = 0
    let after = 0
    for (let i = 1; i < at.length; i++) if (at[i]! - at[i - 1]! > gap) [gap, after] = [at[i]! - at[i - 1]!, at[i - 1]!]
    if (gap > MINIMUM_GAP && after > node.id) result.set(node, { gap, after })
  }
  return result
}

/** A result that is read again this soon is not worth computing twice. */
const MINIMUM_GAP = 8

function repeatLate(graph: Graph, nodes: ReadonlySet<Node>): Graph {
  const late = lateReaders(graph)
  const again = new Map<Value, Value>()
  return rewrite(graph, (node, inputs, out) => {
    const replaced = node.inputs.map((input, i) =>
      input && nodes.has(input.node) && node.id > (late.get(input.node)?.after ?? Infinity) ? repeat(input, inputs[i]!, out) : inputs[i]!,
    )
    if (replaced.every((input, i) => input === inputs[i])) return undefined
    return out.emit(definitionOf(node), replaced, node.attributes, node.scope)
  })

  function repeat(value: Value, first: Value, out: Graph): Value {
    let copy = again.get(value)
    if (!copy) {
      const { node } = first
      const inputs = node.inputs.map((input, i) => {
        const original = value.node.inputs[i]
        return input && original && nodes.has(original.node) ? repeat(original, input, out) : input
      })
      again.set(value, (copy = out.emit(definitionOf(node), inputs, node.attributes, node.scope)[value.index]!))
    }
    return copy
  }
}
