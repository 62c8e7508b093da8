/**
 * Both gradients of a depthwise convolution → one call, where the target has such a kernel: x and the gradient pass through memory once
 * instead of twice. What else the gradient of x consists of (a shortcut's part) is added on the way out:
 *   add(depthwiseInputGradient(g, f; x), r), depthwiseFilterGradient(x, g) → depthwiseGradients(x, g, f; r)
 * And where x was normalised by the statistics of the batch, the sums of batch norm's gradient are taken from what is written, so that
 * they are not read for it again:
 *   batchNormGradient(dz, x, mean, variance, gamma) → batchNormInputGradient(dz, x, mean, variance, dgamma, dbeta, gamma)
 */

import { definitionOf, Graph, type Node, type Value } from '../graph.js'
import { opDefinition } from '../op.js'
import { copyLeaf, eliminateDeadCode, inputNamed, readers, withInputs } from '../rewrite.js'
import type { Target } from '../target.js'
import type { DType } from '../types.js'

const NAME = 'depthwiseConv2dGradients'

interface Pair {
  readonly data: Node
  readonly filter: Node
  /** The sum that takes the data gradient, and its other operand. */
  readonly sum?: Node
  readonly residual?: Value
  /** The derivative of the activation in front, which takes that sum. */
  readonly mask?: Node
  /** Batch norm's gradient, which takes dz and normalises the same x. */
  readonly norm?: Node
}

export function fuseDepthwiseGradients(graph: Graph, target: Target): Graph {
  const pairs = findPairs(graph, target.fusesDepthwiseGradients ?? [])
  if (pairs.size === 0) return graph
  const out = new Graph()
  const map = new Map<Value, Value>()
  const mapped = (value: Value | null): Value | null => value && map.get(value)!
  const done = new Set<Node>()
  const norms = new Set([...pairs.values()].flatMap(({ norm }) => (norm ? [norm] : [])))
  for (const node of graph.nodes) {
    if (done.has(node)) continue
    const pair = pairs.get(node)
    if (pair) {
      // Where the first of the two stands: whoever reads either comes later.
      const { data, filter, sum, mask, residual, norm } = pair
      const x = inputNamed(filter, 'x')
      const inputs = {
        ...{ x, gradient: inputNamed(filter, 'gradient'), filter: inputNamed(data, 'filter') },
        ...{ inputScale: inputNamed(filter, 'inputScale'), inputShift: inputNamed(filter, 'inputShift'), residual: residual ?? null },
        ...(norm && { mean: inputNamed(norm, 'mean'), variance: inputNamed(norm, 'variance') }),
      }
      const { strides, dilations, padding, inputActivation } = filter.attributes
      const attributes = {
        ...{ strides: strides!, dilations: dilations!, padding: padding!, inputActivation: inputActivation! },
        masked: mask ? 'sum' : inputNamed(data, 'x') ? 'own' : 'none',
        ...(norm && { epsilon: norm.attributes.epsilon! }),
      }
      const [dz, dfilter, dgamma, dbeta] = out.emit(opDefinition(NAME), withInputs(NAME, [], inputs).map(mapped), attributes, data.scope)
      map.set(data.outputs[0]!, dz!)
      map.set(filter.outputs[0]!, dfilter!)
      for (const part of [sum, mask]) if (part) map.set(part.outputs[0]!, dz!)
      if (norm) {
        map.set(norm.outputs[1]!, dgamma!)
        map.set(norm.outputs[2]!, dbeta!)
      }
      for (const part of [data, filter, sum, mask]) if (part) done.add(part)
      continue
    }
    if (norms.has(node)) {
      const op = 'batchNormInputGradient'
      const [dy, x, mean, variance, gamma] = node.inputs.map(mapped)
      const inputs = {
        dy: dy!,
        x: x!,
        mean: mean!,
        variance: variance!,
        dgamma: map.get(node.outputs[1]!)!,
        dbeta: map.get(node.outputs[2]!)!,
      }
      const [dx] = out.emit(opDefinition(op), withInputs(op, [], { ...inputs, gamma: gamma ?? null }), node.attributes, node.scope)
      map.set(node.outputs[0]!, dx!)
      continue
    }
    const outputs =
      node.kind === 'op' ? out.emit(definitionOf(node), node.inputs.map(mapped), node.attributes, node.scope) : [copyLeaf(node, out)]
    node.outputs.forEach((value, i) => map.set(value, outputs[i]!))
  }
  for (const { name, value } of graph.outputs) out.output(name, map.get(value)!)
  for (const { variable, value } of graph.updates) out.update(variable, map.get(value)!)
  return eliminateDeadCode(out)
}

/** By either node of the pair. */
function findPairs(graph: Graph, dtypes: readonly DType[]): Map<Node, Pair> {
  const place = new Map(graph.nodes.map((node, i) => [node, i]))
  const readBy = readers(graph)
  const pairs = new Map<Node, Pair>()
  for (const filter of graph.nodes) {
    if (filter.name !== 'depthwiseConv2dFilterGradient' || !dtypes.includes(inputNamed(filter, 'x')!.dtype)) continue
    const gradient = inputNamed(filter, 'gradient')!
    const candidates = (readBy.get(gradient) ?? []).filter(
      (reader): reader is Node => reader?.name === 'depthwiseConv2dInputGradient' && inputNamed(reader, 'gradient') === gradient,
    )
    const data = candidates.find((candidate) => !pairs.has(candidate) && fits(candidate, filter))
    if (!data) continue
    const first = Math.min(place.get(data)!, place.get(filter)!)
    const before = (value: Value | null) => value === null || place.get(value.node)! < first
    if (![...data.inputs, ...filter.inputs].every(before)) continue
    const dz = data.outputs[0]!
    const [reader, ...others] = readBy.get(dz) ?? []
    const sum = others.length === 0 && reader?.name === 'binary' && reader.attributes.function === 'add' ? reader : undefined
    const residual = sum?.inputs.find((value) => value !== dz)
    const added = sum && residual && before(residual) && residual.dtype === dz.dtype && residual.shape.join() === dz.shape.join()
    const mask = added && !inputNamed(data, 'x') ? maskOf(readBy.get(sum.outputs[0]!) ?? [], filter) : undefined
    const norm = (readBy.get(dz) ?? []).find((other) => other?.name === 'batchNormGradient' && normalises(other, data, filter))
    const pair: Pair = {
      data,
      filter,
      ...(added && { sum, residual }),
      ...(mask && { mask }),
      ...(norm && [norm.inputs[2]!, norm.inputs[3]!].every(before) && { norm }),
    }
    pairs.set(data, pair).set(filter, pair)
  }
  return pairs
}

/** The only reader of the sum, where it is the derivative of the filter gradient's prologue at the same x. */
function maskOf(readBy: readonly (Node | null)[], filter: Node): Node | undefined {
  const [reader, ...others] = readBy
  if (others.length > 0 || reader?.name !== 'unaryGradient' || inputNamed(filter, 'inputScale') || inputNamed(filter, 'inputShift'))
    return undefined
  const same = reader.attributes.function === filter.attributes.inputActivation && reader.inputs[1] === inputNamed(filter, 'x')
  return same ? reader : undefined
}

/** Whether a batch norm's gradient takes dz as its dy and normalises the x that the filter gradient reads. */
const normalises = (norm: Node, data: Node, filter: Node): boolean =>
  norm.inputs[0] === data.outputs[0] && norm.inputs[1] === inputNamed(filter, 'x') && norm.inputs[1]!.shape.length === 4

/** The kernel's shapes, one geometry, and a mask that is the derivative of the filter gradient's prologue, or none. */
function fits(data: Node, filter: Node): boolean {
  const [kh, kw, channels, multiplier] = filter.outputs[0]!.shape as [number, number, number, number]
  const x = inputNamed(filter, 'x')!
  const masked = inputNamed(data, 'x')
  const same = (name: string) => String(data.attributes[name]) === String(filter.attributes[name])
  const steps = [...(filter.attributes.strides as readonly number[]), ...(filter.attributes.dilations as readonly number[])]
  return (
    kh === 3 &&
    kw === 3 &&
    multiplier === 1 &&
    steps.every((step) => step === 1) &&
    channels % (x.dtype === 'bfloat16' ? 8 : 4) === 0 &&
    ['strides', 'dilations', 'padding'].every(same) &&
    (masked === null ||
      (masked === x &&
        same('inputActivation') &&
        ['inputScale', 'inputShift'].every((name) => inputNamed(data, name) === inputNamed(filter, name))))
  )
}
