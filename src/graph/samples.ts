/**
 * Whether a graph treats the samples of its batch independently of each other, so that it may run on a few of them at a time:
 * activations then stay in cache instead of going through memory layer by layer.
 */

import { definitionOf, type Graph, type Value } from './graph.js'

/** The number of independent samples in the graph's inputs; 0 where they depend on each other or state changes. */
export function independentSamples(graph: Graph): number {
  const batch = graph.inputs[0]?.shape[0] ?? 0
  if (batch < 2 || graph.updates.length > 0) return 0
  const sampled = new Set<Value>(graph.inputs)
  if (graph.inputs.some(({ shape }) => shape[0] !== batch)) return 0
  for (const node of graph.nodes) {
    if (node.kind !== 'op') continue
    const dependent = node.inputs.flatMap((input, i) => (input && sampled.has(input) ? [i] : []))
    if (dependent.length === 0) continue
    const along =
      definitionOf(node).samples?.(
        node.attributes,
        node.inputs.map((input) => input && input.type),
      ) ?? []
    // A vector's only axis is the batch: what runs over channels would run over samples.
    const fits = along.every(
      (i) => !node.inputs[i] || (dependent.includes(i) && node.inputs[i].shape.length > 1 && node.inputs[i].shape[0] === batch),
    )
    if (!fits || dependent.some((i) => !along.includes(i)) || node.outputs.some(({ shape }) => shape[0] !== batch)) return 0
    for (const output of node.outputs) sampled.add(output)
  }
  return graph.outputs.every(({ value }) => sampled.has(value)) ? batch : 0
}

/** The most samples at a time whose activations fit into `cacheBytes`: a divisor of `batch`; `sampleBytes` is what one takes. */
export function samplesAtOnce(batch: number, sampleBytes: number, cacheBytes: number): number {
  for (let count = batch; count > 1; count--) if (batch % count === 0 && count * sampleBytes <= cacheBytes) return count
  return 1
}
