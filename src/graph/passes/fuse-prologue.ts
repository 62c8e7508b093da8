/**
 * What precedes a convolution becomes its prologue, so that the activated or normalised tensor never goes through memory:
 *   conv(relu(x))                        → conv(x; inputActivation relu)
 *   reluGradient(convInputGradient(g), x) → convInputGradient(g; x, inputActivation relu)
 *   depthwise(scaleShift(x, s, t))       → depthwise(x; inputScale s, inputShift t)
 * A prologue is cheap to repeat, so a value is absorbed by all of its readers or by none: only then does it vanish.
 */

import type { Graph, Node, Value } from '../graph.js'
import { definitionOf } from '../graph.js'
import { inputIndex, inputNamed, readers, rewrite, useCounts, withInputs } from '../rewrite.js'

const ACTIVATIONS = new Set(['relu', 'elu'])
/** Ops whose input `x` can take an activation on the way in. */
const TAKES_ACTIVATION = new Set([
  'conv2d',
  'depthwiseConv2d',
  'pointwiseConv2d',
  'conv2dFilterGradient',
  'depthwiseConv2dFilterGradient',
  'pointwiseConv2dFilterGradient',
])
/** Gradients with respect to the input, whose result the activation's derivative can mask on the way out. */
const TAKES_MASK = new Set(['conv2dInputGradient', 'depthwiseConv2dInputGradient', 'pointwiseConv2dInputGradient'])
/** Ops whose input `x` can be normalised on the way in. */
const TAKES_SCALE = new Set(['depthwiseConv2d', 'depthwiseConv2dFilterGradient', 'depthwiseConv2dInputGradient'])

export function fusePrologue(graph: Graph): Graph {
  return absorbScaleShift(absorbActivation(absorbMask(graph)))
}

function absorbMask(graph: Graph): Graph {
  const uses = useCounts(graph)
  return rewrite(graph, (node, inputs, out) => {
    const host = inputs[0]?.node
    if (node.name !== 'unaryGradient' || !host || !TAKES_MASK.has(host.name) || !ACTIVATIONS.has(node.attributes.function as string))
      return undefined
    if (uses.get(node.inputs[0]!) !== 1 || (host.attributes.inputActivation ?? 'none') !== 'none') return undefined
    return out.emit(
      definitionOf(host),
      withInputs(host.name, host.inputs, { x: inputs[1]! }),
      { ...host.attributes, inputActivation: node.attributes.function! },
      host.scope,
    )
  })
}

/** Reads `value` only as its `x`, in an op of `ops`, and `ok` holds. */
const readsAsX = (reader: Node | null, value: Value, ops: ReadonlySet<string>, ok: (reader: Node) => boolean): boolean =>
  reader !== null &&
  ops.has(reader.name) &&
  reader.inputs.every((input, i) => input !== value || i === inputIndex(reader.name, 'x')) &&
  ok(reader)

function absorbActivation(graph: Graph): Graph {
  const readBy = readers(graph)
  const plain = (reader: Node) =>
    (reader.attributes.inputActivation ?? 'none') === 'none' && !inputNamed(reader, 'inputScale') && !inputNamed(reader, 'inputShift')
  const absorbed = new Set<Value>()
  for (const node of graph.nodes) {
    const value = node.outputs[0]!
    if (
      node.name === 'unary' &&
      ACTIVATIONS.has(node.attributes.function as string) &&
      (readBy.get(value) ?? []).every((reader) => readsAsX(reader, value, TAKES_ACTIVATION, plain))
    )
      absorbed.add(value)
  }
  return rewrite(graph, (node, inputs, out) => {
    const x = inputNamed(node, 'x')
    if (!x || !absorbed.has(x)) return undefined
    const activation = inputs[inputIndex(node.name, 'x')]!.node
    return out.emit(
      definitionOf(node),
      withInputs(node.name, inputs, { x: activation.inputs[0]! }),
      { ...node.attributes, inputActivation: activation.attributes.function! },
      node.scope,
    )
  })
}

function absorbScaleShift(graph: Graph): Graph {
  const readBy = readers(graph)
  const absorbed = new Set<Value>()
  for (const node of graph.nodes) {
    const value = node.outputs[0]!
    if (node.name !== 'scaleShift' || inputNamed(node, 'residual')) continue
    const activated = node.attributes.activation !== 'none'
    const plain = (reader: Node) =>
      !inputNamed(reader, 'inputScale') &&
      !inputNamed(reader, 'inputShift') &&
      !(activated && ((reader.attributes.inputActivation ?? 'none') !== 'none' || reader.name === 'depthwiseConv2dInputGradient'))
    if ((readBy.get(value) ?? []).every((reader) => readsAsX(reader, value, TAKES_SCALE, plain))) absorbed.add(value)
  }
  return rewrite(graph, (node, inputs, out) => {
    const x = TAKES_SCALE.has(node.name) ? inputNamed(node, 'x') : null
    if (!x || !absorbed.has(x)) return undefined
    const { inputs: source, attributes } = inputs[inputIndex(node.name, 'x')]!.node
    const inputActivation = attributes.activation !== 'none' ? attributes.activation! : (node.attributes.inputActivation ?? 'none')
    return out.emit(
      definitionOf(node),
      withInputs(node.name, inputs, { x: source[0]!, inputScale: source[1] ?? null, inputShift: source[2] ?? null }),
      { ...node.attributes, inputActivation },
      node.scope,
    )
  })
}
