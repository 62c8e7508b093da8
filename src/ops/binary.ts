/** Functions of two elements with NumPy's broadcasting: binary(a, b) -> c. Comparisons give 1 or 0. */

import { SepconvError } from '../errors.js'
import { Value } from '../graph/graph.js'
import { defineOp, type HostTensor, opDefinition } from '../graph/op.js'
import { emit, operation, scalar } from '../graph/trace.js'
import { broadcastShapes, elements, formatShape, formatType, type Shape, sameShape } from '../graph/types.js'
import { required, tensorAt } from './arguments.js'
import { binary as apply, broadcast, castTo, reshaped, unary } from './builders.js'

const FUNCTIONS: Readonly<Record<string, (a: number, b: number) => number>> = {
  add: (a, b) => a + b,
  subtract: (a, b) => a - b,
  multiply: (a, b) => a * b,
  divide: (a, b) => a / b,
  maximum: (a, b) => Math.max(a, b),
  minimum: (a, b) => Math.min(a, b),
  power: (a, b) => (a === 1 || (a === -1 && Math.abs(b) === Infinity) ? 1 : a ** b), // IEEE 754's pow; JavaScript's gives NaN there
  greater: (a, b) => (a > b ? 1 : 0),
  greaterEqual: (a, b) => (a >= b ? 1 : 0),
  equal: (a, b) => (a === b ? 1 : 0),
}
const ON_INTEGERS = new Set(['add', 'subtract', 'multiply', 'maximum', 'minimum'])

export const binaryDefinition = defineOp({
  name: 'binary',
  // An operand of lower rank is broadcast along the batch.
  samples: (_, [a, b]) =>
    [0, 1].filter((i) => [a, b][i]!.shape.length >= Math.max(a!.shape.length, b!.shape.length) && [a, b][i]!.shape[0] !== 1),
  inputs: ['a', 'b'],
  outputs: ['c'],
  inPlace: [0, 1],
  recompute: true,
  infer(inputs, attributes) {
    const op = String(attributes.function)
    if (!(op in FUNCTIONS))
      throw new SepconvError('ERR_ARGUMENT', `binary: function '${op}' does not exist`, {
        subject: 'function',
        expected: Object.keys(FUNCTIONS),
        given: op,
      })
    const [a, b] = [required(op, inputs, 0, 'a'), required(op, inputs, 1, 'b')]
    if (a.dtype !== b.dtype || a.dtype === 'uint8' || (a.dtype === 'int32' && !ON_INTEGERS.has(op)))
      throw new SepconvError(
        'ERR_DTYPE',
        `${op}: expected two tensors of one dtype, float32, bfloat16${ON_INTEGERS.has(op) ? ' or int32' : ''}, got ${formatType(a)} and ${formatType(b)}`,
        { subject: op, given: [a.dtype, b.dtype], hint: 'Convert with cast()' },
      )
    const shape = broadcastShapes(a.shape, b.shape)
    if (!shape)
      throw new SepconvError('ERR_SHAPE', `${op}: shapes ${formatShape(a.shape)} and ${formatShape(b.shape)} do not broadcast`, {
        subject: op,
        given: [a.shape, b.shape],
        hint: 'Sizes must be equal or 1, counted from the last axis',
      })
    return [{ shape, dtype: a.dtype }]
  },
  gradient({ inputs, outputs, gradients, attributes, needs }) {
    const [a, b, c, g] = [inputs[0]!, inputs[1]!, outputs[0]!, gradients[0]!]
    const [da, db] = partials(attributes.function as string, a, b, c, g, needs)
    return [da && sumTo(da, a.shape), db && sumTo(db, b.shape)]
  },
  reference({ inputs, outputs, attributes }) {
    const name = attributes.function as string
    // A product of two int32 may exceed 2^53: only imul keeps its low 32 bits.
    const f = name === 'multiply' && outputs[0]!.data instanceof Int32Array ? Math.imul : FUNCTIONS[name]!
    const [a, b, c] = [tensorAt(inputs, 0), tensorAt(inputs, 1), outputs[0]!]
    const [at, bt] = [places(a, c.shape), places(b, c.shape)]
    for (let i = 0; i < c.data.length; i++) c.data[i] = f(a.data[at(i)]!, b.data[bt(i)]!)
  },
})

/** The place in a broadcast tensor of element `i` of the result. */
function places(tensor: HostTensor, shape: Shape): (i: number) => number {
  if (sameShape(tensor.shape, shape)) return (i) => i
  const offset = shape.length - tensor.shape.length
  const strides = tensor.shape.map((size, axis) => (size === 1 ? 0 : elements(tensor.shape.slice(axis + 1))))
  return (i) => {
    let place = 0
    for (let axis = shape.length - 1; axis >= 0; axis--) {
      const index = i % shape[axis]!
      i = (i - index) / shape[axis]!
      if (axis >= offset) place += index * strides[axis - offset]!
    }
    return place
  }
}

function partials(name: string, a: Value, b: Value, c: Value, g: Value, needs: readonly boolean[]): [Value | null, Value | null] {
  const when = (i: number, make: () => Value) => (needs[i] ? make() : null)
  switch (name) {
    case 'add':
      return [when(0, () => g), when(1, () => g)]
    case 'subtract':
      return [when(0, () => g), when(1, () => unary(g, 'negate'))]
    case 'multiply':
      return [when(0, () => apply(g, b, 'multiply')), when(1, () => apply(g, a, 'multiply'))]
    case 'divide':
      return [when(0, () => apply(g, b, 'divide')), when(1, () => unary(apply(g, apply(c, b, 'divide'), 'multiply'), 'negate'))]
    case 'maximum':
    case 'minimum': {
      // Where both are equal the first takes the gradient.
      const first = name === 'maximum' ? apply(a, b, 'greaterEqual') : apply(b, a, 'greaterEqual')
      const one = constant(g, 1)
      return [when(0, () => apply(g, first, 'multiply')), when(1, () => apply(g, apply(one, first, 'subtract'), 'multiply'))]
    }
    case 'power': {
      return [
        when(0, () => apply(g, apply(b, apply(a, apply(b, constant(b, 1), 'subtract'), 'power'), 'multiply'), 'multiply')),
        // c log a, and 0 at a = 0, where the logarithm alone is infinite
        when(1, () => {
          const zero = broadcast(constant(a, 0), a.shape)
          const log = emit(opDefinition('select'), [castTo(apply(a, zero, 'greater'), 'float32'), unary(a, 'log'), zero])
          return apply(g, apply(c, log, 'multiply'), 'multiply')
        }),
      ]
    }
    default:
      return [null, null]
  }
}

/** A number with the dtype of `like`. */
function constant(like: Value, x: number): Value {
  if (like.dtype !== 'int32') return castTo(scalar(like, x), like.dtype)
  if (!Number.isInteger(x))
    throw new SepconvError('ERR_DTYPE', `${x} is not a whole number, but the other operand is ${formatType(like.type)}`, {
      given: x,
      hint: 'Convert with cast()',
    })
  return like.graph.constant({ shape: [], dtype: 'int32' }, Int32Array.of(x))
}

/** The sum of a gradient over the axes along which its tensor was broadcast. */
function sumTo(g: Value, shape: Shape): Value {
  if (sameShape(g.shape, shape)) return g
  const offset = g.shape.length - shape.length
  const axes = g.shape.flatMap((size, axis) => (axis < offset || (shape[axis - offset] === 1 && size !== 1) ? [axis] : []))
  if (axes.length === 0) return reshaped(g, shape)
  return reshaped(emit(opDefinition('reduce'), [g], { function: 'sum', axes, keepDims: false }), shape)
}

/** A value, or a number that stands for a scalar of the other operand's dtype. */
export type Operand = Value | number

const arithmetic = (name: string) =>
  operation(name, (a: Operand, b: Operand): Value => {
    const like = a instanceof Value ? a : (b as Value)
    const lift = (x: Operand) => {
      if (x instanceof Value) return x
      if (typeof x !== 'number')
        throw new SepconvError('ERR_ARGUMENT', `${name}: expected a tensor or a number, got ${String(x)}`, { subject: name, given: x })
      return constant(like, x)
    }
    return emit(binaryDefinition, [lift(a), lift(b)], { function: name })
  })

/**
 * a + b, element by element.
 * @param a any shape, float32, bfloat16 or int32, or a number
 * @param b the same dtype; its shape broadcasts with a's as in NumPy: counted from the last axis, sizes are equal or 1
 * @returns the joint shape
 * @throws ERR_SHAPE for shapes that do not broadcast; ERR_DTYPE; ERR_ARGUMENT
 */
export const add = arithmetic('add')
/** a − b; see {@link add}. */
export const subtract = arithmetic('subtract')
/** a · b, element by element; see {@link add}. */
export const multiply = arithmetic('multiply')
/** a / b, float32 or bfloat16; see {@link add}. */
export const divide = arithmetic('divide')
/** The larger of a and b; at equality the gradient goes to a. See {@link add}. */
export const maximum = arithmetic('maximum')
/** The smaller of a and b; at equality the gradient goes to a. See {@link add}. */
export const minimum = arithmetic('minimum')
/** aᵇ, float32 or bfloat16; NaN for negative a unless b is whole. The gradient in b is 0 where a = 0. See {@link add}. */
export const power = arithmetic('power')
/** 1 where a > b, else 0; no gradient. See {@link add}. */
export const greater = arithmetic('greater')
/** 1 where a ≥ b, else 0; no gradient. See {@link add}. */
export const greaterEqual = arithmetic('greaterEqual')
/** 1 where a = b, else 0; no gradient. See {@link add}. */
export const equal = arithmetic('equal')
