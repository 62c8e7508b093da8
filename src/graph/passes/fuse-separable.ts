/**
 * pointwise(depthwise(x)) → separableConv2d(x), where the target says that one kernel is faster than two and nobody else reads
 * the depthwise result; and pointwise + batchNormStatistics → one kernel that emits the statistics of what it stores.
 */

import type { Graph, Node } from '../graph.js'
import { definitionOf } from '../graph.js'
import { opDefinition } from '../op.js'
import { inputNamed, readers, rewrite, useCounts, withInputs } from '../rewrite.js'
import type { Target } from '../target.js'
import { emitAll } from '../trace.js'

export function fuseSeparable(graph: Graph, target: Target): Graph {
  const uses = useCounts(graph)
  return rewrite(graph, (node, inputs) => {
    const depthwise = inputs[0]?.node
    if (
      node.name !== 'pointwiseConv2d' ||
      depthwise?.name !== 'depthwiseConv2d' ||
      uses.get(node.inputs[0]!) !== 1 ||
      node.outputs.length > 1
    )
      return undefined
    if (inputNamed(depthwise, 'scale') || inputNamed(depthwise, 'residual')) return undefined
    const [before, after] = [depthwise.attributes.activation as string, node.attributes.inputActivation as string]
    if (before !== 'none' && after !== 'none') return undefined
    if (!target.fusesSeparable(separableShape(depthwise, node))) return undefined
    const [, pointwise, scale, shift, residual] = withInputs(node.name, inputs, {})
    const named = {
      x: depthwise.inputs[0]!,
      depthwise: depthwise.inputs[1]!,
      pointwise: pointwise!,
      inputScale: inputNamed(depthwise, 'inputScale'),
      inputShift: inputNamed(depthwise, 'inputShift'),
      depthwiseShift: inputNamed(depthwise, 'shift'),
      scale: scale!,
      shift: shift!,
      residual: residual!,
    }
    const { strides, dilations, padding, inputActivation } = depthwise.attributes
    return emitAll(opDefinition('separableConv2d'), withInputs('separableConv2d', [], named), {
      strides: strides!,
      dilations: dilations!,
      padding: padding!,
      inputActivation: inputActivation!,
      intermediateActivation: before !== 'none' ? before : after,
      activation: node.attributes.activation!,
      packed: false,
      cout: node.outputs[0]!.shape.at(-1)!,
    })
  })
}

function separableShape(depthwise: Node, pointwise: Node): Parameters<Target['fusesSeparable']>[0] {
  const [kh, kw, cin, multiplier] = depthwise.inputs[1]!.shape as [number, number, number, number]
  const [, height, width] = depthwise.outputs[0]!.shape as [number, number, number, number]
  return {
    kernel: [kh, kw],
    strides: depthwise.attributes.strides as unknown as [number, number],
    cin,
    multiplier,
    cout: pointwise.outputs[0]!.shape.at(-1)!,
    height,
    width,
  }
}

export function fuseStatistics(graph: Graph): Graph {
  const readBy = readers(graph)
  const statistics = (node: Node) => readBy.get(node.outputs[0]!)?.some((reader) => reader?.name === 'batchNormStatistics')
  return rewrite(graph, (node, inputs, out) => {
    if (
      node.name === 'pointwiseConv2d' &&
      node.outputs.length === 1 &&
      node.attributes.activation === 'none' &&
      !inputNamed(node, 'residual') &&
      statistics(node)
    )
      return out.emit(definitionOf(node), inputs, { ...node.attributes, statistics: true }, node.scope).slice(0, 1)
    const host = inputs[0]?.node
    if (node.name === 'batchNormStatistics' && host?.name === 'pointwiseConv2d' && host.outputs.length === 3)
      return [host.outputs[1]!, host.outputs[2]!]
    return undefined
  })
}
