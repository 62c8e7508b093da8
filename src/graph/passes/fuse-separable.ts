/**
 * pointwise(depthwise(x)) → separableConv2d(x), where the target says that one kernel is faster than two and nobody else reads the
 * depthwise result. In training the gradient of the pointwise filter reads it too, and computes it again:
 *   pointwiseFilterGradient(depthwise(x), dy) → separableConv2dPointwiseGradient(x, dy)
 * And a product + batchNormStatistics → one kernel that emits the statistics of what it stores.
 */

import type { Graph, Node, Value } from '../graph.js'
import { definitionOf } from '../graph.js'
import { opDefinition } from '../op.js'
import { inputNamed, readers, rewrite, withInputs } from '../rewrite.js'
import type { SeparableShape, Target } from '../target.js'
import { emitAll } from '../trace.js'

export function fuseSeparable(graph: Graph, target: Target): Graph {
  const fused = new Set<Value>()
  const readBy = readers(graph)
  for (const node of graph.nodes)
    if (node.name === 'depthwiseConv2d' && pays(node, readBy.get(node.outputs[0]!) ?? [], target)) fused.add(node.outputs[0]!)
  if (fused.size === 0) return graph
  return rewrite(graph, (node, inputs) => {
    if (!node.inputs[0] || !fused.has(node.inputs[0])) return undefined
    const depthwise = inputs[0]!.node
    const [before, after] = [depthwise.attributes.activation as string, node.attributes.inputActivation as string]
    const { strides, dilations, padding, inputActivation } = depthwise.attributes
    const attributes = {
      strides: strides!,
      dilations: dilations!,
      padding: padding!,
      inputActivation: inputActivation!,
      intermediateActivation: before !== 'none' ? before : after,
      ...(node.attributes.precision !== undefined && { precision: node.attributes.precision }),
    }
    const common = {
      x: depthwise.inputs[0]!,
      depthwise: depthwise.inputs[1]!,
      inputScale: inputNamed(depthwise, 'inputScale'),
      inputShift: inputNamed(depthwise, 'inputShift'),
      depthwiseShift: inputNamed(depthwise, 'shift'),
    }
    if (node.name === 'pointwiseConv2dFilterGradient') {
      const op = 'separableConv2dPointwiseGradient'
      return emitAll(opDefinition(op), withInputs(op, [], { ...common, gradient: inputs[1]! }), attributes)
    }
    const [, pointwise, scale, shift, residual] = withInputs(node.name, inputs, {})
    const op = 'separableConv2d'
    const own = { pointwise: pointwise!, scale: scale!, shift: shift!, residual: residual! }
    return emitAll(opDefinition(op), withInputs(op, [], { ...common, ...own }), {
      ...attributes,
      activation: node.attributes.activation!,
      packed: false,
      cout: node.outputs[0]!.shape.at(-1)!,
    })
  })
}

/** Whether the depthwise result is to vanish: its readers are one product and at most the gradient of that product's filter. */
function pays(depthwise: Node, readBy: readonly (Node | null)[], target: Target): boolean {
  const value = depthwise.outputs[0]!
  const asX = (name: string) => readBy.filter((reader) => reader?.name === name && reader.inputs[0] === value)
  const [product, gradient] = [asX('pointwiseConv2d'), asX('pointwiseConv2dFilterGradient')]
  if (product.length !== 1 || gradient.length > 1 || product.length + gradient.length !== readBy.length) return false
  const [pointwise] = product
  if (pointwise!.outputs.length > 1 || inputNamed(depthwise, 'scale') || inputNamed(depthwise, 'residual')) return false
  // Between the two there is one activation at most, the same for both readers.
  const after = pointwise!.attributes.inputActivation
  if (after !== 'none' && depthwise.attributes.activation !== 'none') return false
  if (gradient.some((reader) => reader!.attributes.inputActivation !== after)) return false
  const shape = separableShape(depthwise, pointwise!)
  return gradient.length > 0 ? target.recomputesSeparable?.(shape) === true : target.fusesSeparable(shape)
}

function separableShape(depthwise: Node, pointwise: Node): SeparableShape {
  const [kh, kw, cin, multiplier] = depthwise.inputs[1]!.shape as [number, number, number, number]
  const [, height, width] = depthwise.outputs[0]!.shape as [number, number, number, number]
  return {
    precision: depthwise.outputs[0]!.dtype === 'bfloat16' ? 'bfloat16' : pointwise.attributes.precision === 'tf32' ? 'tf32' : 'float32',
    kernel: [kh, kw],
    strides: depthwise.attributes.strides as unknown as [number, number],
    cin,
    multiplier,
    cout: pointwise.outputs[0]!.shape.at(-1)!,
    height,
    width,
  }
}

export function fuseStatistics(graph: Graph, target: Target): Graph {
  const readBy = readers(graph)
  const products = new Set(['pointwiseConv2d', ...(target.recomputesSeparable ? ['separableConv2d'] : [])])
  const statistics = (node: Node) => readBy.get(node.outputs[0]!)?.some((reader) => reader?.name === 'batchNormStatistics')
  return rewrite(graph, (node, inputs, out) => {
    if (
      products.has(node.name) &&
      node.outputs.length === 1 &&
      node.attributes.activation === 'none' &&
      !inputNamed(node, 'residual') &&
      statistics(node)
    )
      return out.emit(definitionOf(node), inputs, { ...node.attributes, statistics: true }, node.scope).slice(0, 1)
    const host = inputs[0]?.node
    if (node.name === 'batchNormStatistics' && host && products.has(host.name) && host.outputs.length === 3)
      return [host.outputs[1]!, host.outputs[2]!]
    return undefined
  })
}
