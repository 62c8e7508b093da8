/** Functions of one element: unary(x) -> y and unaryGradient(dy, x) -> dy · f'(x), any shape. NaN passes through relu. */

import { SepconvError } from '../errors.js'
import type { Attributes, Value } from '../graph/graph.js'
import { defineOp } from '../graph/op.js'
import { emit, operation, scalar } from '../graph/trace.js'
import { expectFloat, expectType, required, tensorAt } from './arguments.js'
import { binary, castTo } from './builders.js'

interface Elementary {
  f(x: number): number
  /** The derivative at x. */
  slope(x: number): number
}

const sigmoidOf = (x: number): number => 1 / (1 + Math.exp(-x))

const FUNCTIONS: Readonly<Record<string, Elementary>> = {
  relu: { f: (x) => Math.max(x, 0), slope: (x) => (x > 0 ? 1 : 0) },
  elu: { f: (x) => (x < 0 ? Math.expm1(x) : x), slope: (x) => (x < 0 ? Math.exp(x) : 1) },
  negate: { f: (x) => -x, slope: () => -1 },
  exp: { f: Math.exp, slope: Math.exp },
  log: { f: Math.log, slope: (x) => 1 / x },
  sqrt: { f: Math.sqrt, slope: (x) => 0.5 / Math.sqrt(x) },
  reciprocalSqrt: { f: (x) => 1 / Math.sqrt(x), slope: (x) => -0.5 / (x * Math.sqrt(x)) },
  square: { f: (x) => x * x, slope: (x) => 2 * x },
  abs: { f: Math.abs, slope: Math.sign },
  sigmoid: { f: sigmoidOf, slope: (x) => sigmoidOf(x) * sigmoidOf(-x) },
  tanh: { f: Math.tanh, slope: (x) => Math.cosh(x) ** -2 },
  reciprocal: { f: (x) => 1 / x, slope: (x) => -1 / (x * x) },
  sign: { f: Math.sign, slope: () => 0 },
}

/** The name of the function for messages, once it is known to exist. */
function functionOf(attributes: Attributes): string {
  const name = String(attributes.function)
  if (name in FUNCTIONS) return name
  throw new SepconvError('ERR_ARGUMENT', `unary: function '${name}' does not exist`, {
    subject: 'function',
    expected: Object.keys(FUNCTIONS),
    given: name,
  })
}

export const unaryDefinition = defineOp({
  name: 'unary',
  samples: () => [0],
  inputs: ['x'],
  outputs: ['y'],
  inPlace: [0],
  recompute: true,
  infer(inputs, attributes) {
    const name = functionOf(attributes)
    const x = required(name, inputs, 0, 'x')
    expectFloat(name, 'x', x)
    return [x]
  },
  gradient: ({ inputs, gradients, attributes }) => [emit(unaryGradientDefinition, [gradients[0]!, inputs[0]!], attributes)],
  reference({ inputs, outputs, attributes }) {
    const { f } = FUNCTIONS[attributes.function as string]!
    const [x, y] = [tensorAt(inputs, 0), tensorAt(outputs, 0)]
    for (let i = 0; i < x.data.length; i++) y.data[i] = f(x.data[i]!)
  },
})

export const unaryGradientDefinition = defineOp({
  name: 'unaryGradient',
  inputs: ['dy', 'x'],
  outputs: ['dx'],
  inPlace: [0],
  infer(inputs, attributes) {
    const op = `gradient of ${functionOf(attributes)}`
    const dy = required(op, inputs, 0, 'dy')
    expectFloat(op, 'dy', dy)
    expectType(op, 'x', required(op, inputs, 1, 'x'), dy, 'like dy')
    return [dy]
  },
  /** Linear in dy, so its derivative there is the same op again; in x it takes the second derivative. */
  gradient({ inputs, gradients, attributes, needs }) {
    const name = attributes.function as string
    const dx = needs[1] ? secondOrder(name, binary(gradients[0]!, inputs[0]!, 'multiply'), inputs[1]!) : null
    return [emit(unaryGradientDefinition, [gradients[0]!, inputs[1]!], attributes), dx]
  },
  reference({ inputs, outputs, attributes }) {
    const { slope } = FUNCTIONS[attributes.function as string]!
    const [dy, x] = [tensorAt(inputs, 0), tensorAt(inputs, 1)]
    dy.data.forEach((g, i) => {
      const derivative = slope(x.data[i]!)
      outputs[0]!.data[i] = derivative === 0 ? 0 : g * derivative // an infinite gradient does not pass an inactive relu
    })
  },
})

/** g · f''(x), composed of other ops; `null` where f is piecewise linear. */
function secondOrder(name: string, g: Value, x: Value): Value | null {
  const apply = (f: string, value: Value) => emit(unaryDefinition, [value], { function: f })
  const slope = (f: string, of: Value) => emit(unaryGradientDefinition, [of, x], { function: f }) // of · f'(x)
  const scaled = (value: Value, by: number) => binary(value, castTo(scalar(value, by), value.dtype), 'multiply')
  const times = (f: string, of: Value) => binary(g, apply(f, of), 'multiply') // g · f(of)
  switch (name) {
    case 'exp':
      return slope('exp', g)
    case 'elu': // exp(x) below 0: elu' without its 1 above
      return binary(slope('elu', g), slope('relu', g), 'subtract')
    case 'log': // -1 / x^2
      return slope('reciprocal', g)
    case 'sqrt': // -1/4 x^(-3/2)
      return scaled(slope('reciprocalSqrt', g), 0.5)
    case 'reciprocalSqrt': // 3/4 x^(-5/2)
      return scaled(slope('reciprocalSqrt', times('reciprocal', x)), -1.5)
    case 'square':
      return scaled(g, 2)
    case 'sigmoid': // f' (1 - 2 f), where 1 - 2 f = -tanh(x / 2)
      return scaled(slope('sigmoid', times('tanh', scaled(x, 0.5))), -1)
    case 'tanh': // -2 f f'
      return scaled(slope('tanh', times('tanh', x)), -2)
    case 'reciprocal': // 2 / x^3
      return scaled(slope('reciprocal', times('reciprocal', x)), -2)
    default:
      return null
  }
}

const elementwise = (name: string) => operation(name, (x: Value): Value => emit(unaryDefinition, [x], { function: name }))

/** max(x, 0), any shape; NaN stays NaN. The derivative at 0 is 0. @throws ERR_DTYPE unless float32 or bfloat16. */
export const relu = elementwise('relu')
/** x where positive, else exp(x) − 1 (alpha 1; Clevert et al. 2015), any shape. @throws ERR_DTYPE */
export const elu = elementwise('elu')
/** −x, any shape. @throws ERR_DTYPE */
export const negate = elementwise('negate')
/** eˣ, any shape. @throws ERR_DTYPE */
export const exp = elementwise('exp')
/** Natural logarithm, any shape; NaN below 0. @throws ERR_DTYPE */
export const log = elementwise('log')
/** Square root, any shape; NaN below 0. @throws ERR_DTYPE */
export const sqrt = elementwise('sqrt')
/** x², any shape. @throws ERR_DTYPE */
export const square = elementwise('square')
/** |x|, any shape; the derivative at 0 is 0. @throws ERR_DTYPE */
export const abs = elementwise('abs')
/** 1 / (1 + e⁻ˣ), any shape. @throws ERR_DTYPE */
export const sigmoid = elementwise('sigmoid')
/** Hyperbolic tangent, any shape. @throws ERR_DTYPE */
export const tanh = elementwise('tanh')
/** 1 / x, any shape. @throws ERR_DTYPE */
export const reciprocal = elementwise('reciprocal')
