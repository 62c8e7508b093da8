/**
 * Weights in the form that the kernels want: filters that do not change between runs are packed for the target, and every
 * computation on state alone (folding, packing) moves into a prepare graph, which runs again only when state changed. Prepared
 * values are known by a structural key, so that executables for other batch sizes share them.
 */

import { createHash } from 'node:crypto'
import { definitionOf, Graph, type Node, type Value } from '../graph.js'
import { opDefinition } from '../op.js'
import { copyLeaf, inputIndex, rewrite, withInputs } from '../rewrite.js'
import type { Target } from '../target.js'
import { emit } from '../trace.js'
import { attributeKey } from './common.js'
import { staticValues } from './static.js'

const updatedVariables = (graph: Graph) => new Set(graph.updates.map(({ variable }) => variable))

/** Inserts `packFilter` before every product whose weights are static. */
export function packFilters(graph: Graph, target: Target): Graph {
  const { panel } = target
  if (panel === 0) return graph
  const isStatic = staticValues(updatedVariables(graph))
  return rewrite(graph, (node, inputs, out) => {
    const slot = { pointwiseConv2d: 'filter', separableConv2d: 'pointwise', conv2d: 'filter' }[node.name]
    if (!slot || node.attributes.packed || (node.name === 'conv2d' && node.attributes.groups !== 1)) return undefined
    const filter = inputs[inputIndex(node.name, slot)]!
    if (!isStatic(filter)) return undefined
    const cout = filter.shape.at(-1)!
    const rows = filter.shape.slice(0, -1).reduce((product, size) => product * size, 1)
    const matrix = filter.shape.length === 2 ? filter : emit(opDefinition('reshape'), [filter], { shape: [rows, cout] })
    const packed = emit(opDefinition('packFilter'), [matrix], { panel, ...(filter.dtype === 'bfloat16' && { pair: 2 }) })
    return out.emit(
      definitionOf(node),
      withInputs(node.name, inputs, { [slot]: packed }),
      { ...node.attributes, packed: true, cout },
      node.scope,
    )
  })
}

export interface Hoisted {
  readonly main: Graph
  /** Makes the prepared values, its outputs named by their keys; `undefined` where there are none. */
  readonly prepare?: Graph
}

/** Splits the graph into what must run each time and what depends on unwritten state alone. */
export function hoist(graph: Graph): Hoisted {
  const isStatic = staticValues(updatedVariables(graph))
  const prepare = new Graph()
  const moved = new Map<Value, Value>()
  const keys = new Map<Value, string>()
  const move = (value: Value): Value => {
    let copy = moved.get(value)
    if (copy) return copy
    const { node } = value
    const outputs =
      node.kind === 'op'
        ? prepare.emit(
            definitionOf(node),
            node.inputs.map((input) => input && move(input)),
            node.attributes,
            node.scope,
          )
        : [copyLeaf(node, prepare)]
    node.outputs.forEach((output, i) => moved.set(output, outputs[i]!))
    copy = moved.get(value)!
    return copy
  }
  // Aliases are worth nothing in memory: a static reshape of state stays where it is and hoists nothing by itself.
  const worthMoving = (value: Value): boolean =>
    value.node.kind === 'op' && (!definitionOf(value.node).alias || worthMoving(value.node.inputs[0]!))

  const exported = new Map<string, Value>()
  const main = rewrite(graph, (node, inputs, out) => {
    if (!node.outputs.every(isStatic)) {
      const replaced = node.inputs.map((input, i) => {
        if (!input || !isStatic(input) || !worthMoving(input)) return inputs[i]!
        const key = structuralKey(input, keys)
        let leaf = exported.get(key)
        if (!leaf) {
          exported.set(key, (leaf = out.prepared(key, input.type)))
          prepare.output(key, move(input))
        }
        return leaf
      })
      return out.emit(definitionOf(node), replaced, node.attributes, node.scope)
    }
    return undefined
  })
  return exported.size > 0 ? { main, prepare } : { main }
}

/** A name for a static value: equal exactly when it is computed in the same way from the same variables and constants. */
function structuralKey(value: Value, keys: Map<Value, string>): string {
  let key = keys.get(value)
  if (key) return key
  const { node } = value
  if (node.kind === 'state') key = `state:${node.variable!.id}`
  else if (node.kind === 'constant')
    key = `constant:${value.dtype}[${value.shape}]:${digest(Buffer.from(node.data!.buffer, node.data!.byteOffset, node.data!.byteLength))}`
  else
    key = `${label(node)}:${digest(`${node.name}${attributeKey(node)}${value.index}(${node.inputs.map((input) => (input ? structuralKey(input, keys) : '-'))})`)}`
  keys.set(value, key)
  return key
}

const label = (node: Node): string => (node.scope ? `${node.scope}/${node.name}` : node.name)
const digest = (data: string | Buffer): string => createHash('sha256').update(data).digest('hex').slice(0, 16)
