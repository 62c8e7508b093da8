/**
 * bfloat16 storage: feature maps [n, h, w, c] between ops, and the filters that meet them, become bfloat16; arithmetic stays
 * float32. Convolutions ask for it, what lies between them follows its input:
 *   conv(x, w)        → conv(cast x, cast w)       float32 maps are cast down, once per value
 *   relu, pools, …    → bfloat16 where an operand is
 *   everything else   → float32: vectors (pooled features, dense layers, logits), losses, statistics, parameters, updates, outputs
 * With `'tf32'` everything is stored as float32, and the products of feature maps are marked instead: attribute `precision`.
 * Runs after the fusions: what never reaches memory is never rounded, and folded filters are rounded once.
 */

import { SepconvError } from '../../errors.js'
import { definitionOf, Graph, type Node, type Value } from '../graph.js'
import { opDefinition } from '../op.js'
import { copyLeaf, eliminateDeadCode, rewrite } from '../rewrite.js'
import { PRECISIONS, type Precision } from '../precision.js'
import type { Target } from '../target.js'
import type { DType } from '../types.js'

/** @throws ERR_ARGUMENT unless `precision` is known or absent. */
export function checkPrecision(subject: string, precision: unknown): void {
  if (precision === undefined || (PRECISIONS as readonly unknown[]).includes(precision)) return
  throw new SepconvError('ERR_ARGUMENT', `${subject}: precision must be ${PRECISIONS.join(' or ')}, got ${JSON.stringify(precision)}`, {
    subject: 'precision',
    expected: PRECISIONS,
    given: precision,
  })
}

/** @throws ERR_DEVICE unless the target stores and multiplies feature maps so. */
export function checkStorage(precision: Precision, target: Target): void {
  const takes = (name: Precision) => (name === 'tf32' ? target.tensorFloat === true : target.dtypes.includes(name))
  if (takes(precision)) return
  const expected = PRECISIONS.filter(takes)
  throw new SepconvError('ERR_DEVICE', `precision '${precision}': device '${target.name}' takes ${expected.join(', ')} only`, {
    subject: 'precision',
    expected,
    given: precision,
  })
}

/** Inputs that are stored like feature maps: of convolutions, which cast them down… */
const ASKS: Readonly<Record<string, readonly number[]>> = {
  conv2d: [0, 1, 4],
  conv2dInputGradient: [0, 1, 2],
  conv2dFilterGradient: [0, 1],
  depthwiseConv2d: [0, 1, 6],
  depthwiseConv2dInputGradient: [0, 1, 2],
  depthwiseConv2dFilterGradient: [0, 1],
  pointwiseConv2d: [0, 1, 4],
  pointwiseConv2dInputGradient: [0, 1, 2],
  pointwiseConv2dFilterGradient: [0, 1],
}
/** … and of ops that take them as they come: all are cast where one is bfloat16 already. */
const FOLLOWS: Readonly<Record<string, readonly number[]>> = {
  scaleShift: [0, 3],
  unary: [0],
  unaryGradient: [0, 1],
  binary: [0, 1],
  maxPool2d: [0, 1],
  maxPool2dGradient: [0, 1],
  avgPool2d: [0],
  avgPool2dGradient: [0],
  batchNormStatistics: [0],
  batchNormGradient: [0, 1],
  dropout: [0],
  slice: [0],
}
/** Elementwise functions that lose nothing by it; a user's exp or sqrt stays float32. */
const FUNCTIONS: ReadonlySet<string> = new Set(['relu', 'elu', 'add'])

/**
 * The graph with bfloat16 feature maps; inputs, outputs and state keep their types.
 * @throws ERR_DEVICE where the target has no kernels for it.
 */
export function assignStorage(graph: Graph, precision: Precision, target: Target): Graph {
  if (precision === 'float32') return graph
  checkStorage(precision, target)
  if (precision === 'tf32') return markProducts(graph)
  const out = new Graph()
  const map = new Map<Value, Value>()
  const casts = new Map<Value, Value>()
  const as = (value: Value, dtype: DType): Value => {
    if (value.dtype === dtype) return value
    // Widening undoes a narrowing only up to its rounding, so neither direction is skipped.
    let cast = casts.get(value)
    if (!cast) casts.set(value, (cast = castOf(value, dtype, out)))
    return cast
  }
  for (const node of graph.nodes) {
    const outputs = node.kind === 'op' ? copyOp(node) : [copyLeaf(node, out)]
    node.outputs.forEach((output, i) => map.set(output, outputs[i]!))
  }
  const original = (value: Value): Value => {
    const mapped = map.get(value)!
    return out.atScope(value.node.scope, () => as(mapped, value.dtype))
  }
  for (const { name, value } of graph.outputs) out.output(name, original(value))
  for (const { variable, value } of graph.updates) out.update(variable, original(value))
  return eliminateDeadCode(out)

  function copyOp(node: Node): readonly Value[] {
    const inputs = node.inputs.map((input) => input && map.get(input)!)
    return out.atScope(node.scope, () => {
      const stored = storedInputs(node, inputs)
      const cast = inputs.map((input, i) => {
        const given = node.inputs[i]
        if (!input || !given) return input
        return stored.includes(i) ? as(input, 'bfloat16') : as(input, given.dtype)
      })
      return out.emit(definitionOf(node), cast, node.attributes, node.scope)
    })
  }
}

/** Products of feature maps with the attribute `precision`; those of vectors (dense layers) stay exact, as they do in bfloat16. */
function markProducts(graph: Graph): Graph {
  return rewrite(graph, (node, inputs, out) => {
    const product = /^(conv2d|pointwiseConv2d)/.test(node.name) && node.inputs[0]?.shape.length === 4
    return product && node.inputs[0]!.dtype === 'float32'
      ? out.emit(definitionOf(node), inputs, { ...node.attributes, precision: 'tf32' }, node.scope)
      : undefined
  })
}

/** The inputs of a node that are to be bfloat16; `inputs` are the values that its own will become. */
function storedInputs(node: Node, inputs: readonly (Value | null)[]): readonly number[] {
  const first = node.inputs[0]
  if (first?.shape.length !== 4 || (first.dtype !== 'float32' && first.dtype !== 'bfloat16')) return []
  const asks = ASKS[node.name]
  if (asks) return asks
  const follows = node.name === 'concat' ? inputs.map((_, i) => i) : FOLLOWS[node.name]
  if (!follows?.some((i) => inputs[i]?.dtype === 'bfloat16')) return []
  if (['unary', 'unaryGradient', 'binary'].includes(node.name) && !FUNCTIONS.has(node.attributes.function as string)) return []
  // A sum that broadcasts, such as that of a vector per channel, is none of feature maps.
  if (node.name === 'binary' && String(node.inputs[1]!.shape) !== String(first.shape)) return []
  return follows
}

/** Pictures come through a cast that normalises: bfloat16 is then its own result. */
function castOf(value: Value, dtype: DType, out: Graph): Value {
  const { node } = value
  const direct = node.name === 'cast' && dtype === 'bfloat16' && node.inputs[0]!.dtype === 'uint8'
  return out.emit(
    opDefinition('cast'),
    [direct ? node.inputs[0]! : value],
    direct ? { ...node.attributes, dtype } : { dtype, scale: 1, offset: 0 },
  )[0]!
}
