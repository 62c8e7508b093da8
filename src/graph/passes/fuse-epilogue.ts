/**
 * What follows a convolution becomes its epilogue, applied while the result is still in registers:
 *   scaleShift(conv(x, w), s, t)  → conv(x, w; scale s, shift t)
 *                                 → depthwise(x, w·s; shift t)   where s and w do not change between runs (folded batch norm)
 * Only depthwise filters are folded: there the fused separable kernel has a shift but no scale. Elsewhere the scale is one
 * multiply-add on sums that are in registers, and filters that stay as they are need no second copy (runtime/state.ts).
 *   relu|elu(conv(…))             → conv(…; activation)
 *   add(conv(…), r)               → conv(…; residual r)      in the order activation(scale·acc + shift + residual)
 *   add(maxPool2d(x), r)          → maxPool2d(x; residual r)
 * Only results that nobody else reads are fused.
 */

import type { Graph, Node, Value } from '../graph.js'
import { definitionOf } from '../graph.js'
import { opDefinition } from '../op.js'
import { inputNamed, rewrite, useCounts, withInputs } from '../rewrite.js'
import { emit } from '../trace.js'
import { sameShape } from '../types.js'
import { staticValues } from './static.js'

const CONVOLUTIONS = new Set(['conv2d', 'depthwiseConv2d', 'pointwiseConv2d'])
const ACTIVATIONS = new Set(['relu', 'elu'])

export function fuseEpilogue(graph: Graph): Graph {
  const uses = useCounts(graph)
  const isStatic = staticValues(new Set(graph.updates.map(({ variable }) => variable)))
  const soleReader = (node: Node, input: number) => node.inputs[input] != null && uses.get(node.inputs[input]!) === 1

  return rewrite(graph, (node, inputs, out) => {
    const again = (host: Node, changes: Record<string, Value | null>, attributes = {}) =>
      out.atScope(host.scope, () => [
        out.emit(definitionOf(host), withInputs(host.name, host.inputs, changes), { ...host.attributes, ...attributes }, host.scope)[0]!,
      ])
    const host = inputs[0]?.node
    switch (node.name) {
      case 'scaleShift': {
        if (!host || !soleReader(node, 0) || !CONVOLUTIONS.has(host.name) || !isLinear(host)) return undefined
        const [, scale, shift, residual] = [inputs[0], inputs[1] ?? null, inputs[2] ?? null, inputs[3] ?? null]
        const oldScale = inputNamed(host, 'scale')
        const oldShift = inputNamed(host, 'shift')
        const newShift = sum(product(oldShift, scale), shift)
        const filter = inputNamed(host, 'filter')!
        const common = { shift: newShift, residual }
        const activation = { activation: node.attributes.activation ?? 'none' }
        if (host.name === 'depthwiseConv2d' && scale && isStatic(scale) && isStatic(filter))
          return again(host, { ...common, filter: scaleDepthwise(filter, scale) }, activation)
        return again(host, { ...common, scale: product(oldScale, scale) ?? oldScale ?? scale }, activation)
      }
      case 'unary': {
        const name = node.attributes.function as string
        if (!host || !ACTIVATIONS.has(name) || !soleReader(node, 0)) return undefined
        if (
          !(CONVOLUTIONS.has(host.name) || host.name === 'scaleShift') ||
          host.attributes.activation !== 'none' ||
          host.outputs.length > 1
        )
          return undefined
        return again(host, {}, { activation: name })
      }
      case 'binary': {
        if (node.attributes.function !== 'add' || !inputs[0] || !inputs[1] || !sameShape(inputs[0].shape, inputs[1].shape)) return undefined
        const fits = (i: number, names: ReadonlySet<string>) => {
          const producer = inputs[i]!.node
          return (
            soleReader(node, i) &&
            names.has(producer.name) &&
            producer.outputs.length === 1 &&
            !inputNamed(producer, 'residual') &&
            (producer.attributes.activation ?? 'none') === 'none'
          )
        }
        for (const names of [new Set(['maxPool2d']), CONVOLUTIONS, new Set(['scaleShift'])])
          for (const i of inputs[0].node.id > inputs[1].node.id ? [0, 1] : [1, 0])
            if (fits(i, names)) return again(inputs[i]!.node, { residual: inputs[1 - i]! })
        return undefined
      }
      default:
        return undefined
    }
  })
}

/** Whether a convolution's result is still the plain product, perhaps scaled and shifted. */
const isLinear = (node: Node): boolean =>
  (node.attributes.activation ?? 'none') === 'none' && !inputNamed(node, 'residual') && node.outputs.length === 1

const multiply = (a: Value, b: Value) => emit(opDefinition('binary'), [a, b], { function: 'multiply' })
const product = (a: Value | null, b: Value | null): Value | null => (a && b ? multiply(a, b) : a)
const sum = (a: Value | null, b: Value | null): Value | null =>
  a && b ? emit(opDefinition('binary'), [a, b], { function: 'add' }) : (a ?? b)

/** filter[kh, kw, c, m] · scale[c * m]: the output channels lie on the last two axes. */
function scaleDepthwise(filter: Value, scale: Value): Value {
  const [, , c, m] = filter.shape as [number, number, number, number]
  return multiply(filter, emit(opDefinition('reshape'), [scale], { shape: [c, m] }))
}
