/** What a model costs: a row per layer with its output shape, parameters, multiply-adds and activation memory. */

import { definitionOf, type Node } from '../graph/graph.js'
import { trace } from '../graph/trace.js'
import { byteLength, elements } from '../graph/types.js'
import { isValue } from '../runtime/structure.js'
import type { Network } from './registry.js'

/** A row of a {@link ModelSummary}. */
export interface LayerSummary {
  /** Path of the layer, such as `block2.sepconv1`. */
  readonly name: string
  /** The ops that it runs, such as `depthwiseConv2d, pointwiseConv2d`. */
  readonly ops: string
  /** Of its output, batch axis 1. */
  readonly shape: readonly number[]
  readonly parameters: number
  readonly nonTrainable: number
  /** Multiply-adds of convolutions and products for one picture. */
  readonly macs: number
  /** Bytes of everything that the layer writes for one picture, before fusion. */
  readonly activationBytes: number
}

/** What a network costs; see {@link summarize}. */
export interface ModelSummary {
  readonly parameters: { readonly trainable: number; readonly nonTrainable: number; readonly total: number }
  readonly macs: number
  readonly inputShape: readonly number[]
  readonly layers: readonly LayerSummary[]
}

/** Counts a network at the given input size (default: its own). Nothing is allocated and nothing runs. */
export function summarize(network: Network, inputSize = network.inputSize): ModelSummary {
  const inputShape = [1, inputSize, inputSize, network.inputChannels]
  const graph = trace((traced) => {
    const result = network.forward(traced.input('images', { shape: inputShape, dtype: 'float32' }))
    for (const [name, value] of isValue(result) ? [['output', result] as const] : Object.entries(result)) traced.output(name, value)
  })
  const rows = new Map<string, Node[]>()
  for (const node of graph.nodes) {
    if (node.kind !== 'op' || node.name === 'batchNormCoefficients') continue
    const name = node.scope.split('.').slice(1).join('.') || node.scope
    rows.set(name, [...(rows.get(name) ?? []), node])
  }
  const counted = new Set<unknown>()
  const layers = [...rows].map(([name, nodes]) => summarizeLayer(name, nodes, counted))
  const sum = (pick: (layer: LayerSummary) => number) => layers.reduce((total, row) => total + pick(row), 0)
  const [trainable, nonTrainable] = [sum((row) => row.parameters), sum((row) => row.nonTrainable)]
  return { parameters: { trainable, nonTrainable, total: trainable + nonTrainable }, macs: sum((row) => row.macs), inputShape, layers }
}

function summarizeLayer(name: string, nodes: readonly Node[], counted: Set<unknown>): LayerSummary {
  let [parameters, nonTrainable, macs, activationBytes] = [0, 0, 0, 0]
  const count = (node: Node) => {
    for (const input of node.inputs) {
      if (input?.node.name === 'batchNormCoefficients') count(input.node)
      const variable = input?.node.variable
      if (!variable || counted.has(variable)) continue
      counted.add(variable)
      // What freezing makes constant still is a parameter of the architecture; running statistics never are.
      if (variable.name.match(/\.moving(Mean|Variance)$/)) nonTrainable += elements(variable.type.shape)
      else parameters += elements(variable.type.shape)
    }
  }
  for (const node of nodes) {
    const definition = definitionOf(node)
    count(node)
    macs +=
      definition.macs?.(
        node.inputs.map((input) => input && input.type),
        node.outputs.map(({ type }) => type),
        node.attributes,
      ) ?? 0
    if (!definition.alias) activationBytes += node.outputs.reduce((bytes, { type }) => bytes + byteLength(type), 0)
  }
  const ops = [
    ...new Set(
      nodes
        .filter((node) => !definitionOf(node).alias)
        .map((node) =>
          node.name === 'unary' || node.name === 'binary' || node.name === 'reduce' ? String(node.attributes.function) : node.name,
        ),
    ),
  ]
  return { name, ops: ops.join(', '), shape: nodes.at(-1)!.outputs[0]!.shape, parameters, nonTrainable, macs, activationBytes }
}
