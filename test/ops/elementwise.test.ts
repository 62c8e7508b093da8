import { describe, expect, it } from 'vitest'
import type { Value } from '../../src/graph/graph.js'
import { opDefinition } from '../../src/graph/op.js'
import { emit, trace } from '../../src/graph/trace.js'
import * as ops from '../../src/ops/index.js'
import { philox4x32 } from '../../src/ops/philox.js'
import { expectClose, expectGradients, filled, generator, gradientOf, numbers, positive, run, runOp, shapeOf, uniform } from '../helpers.js'

const unary = (name: string) => (x: Value) => emit(opDefinition('unary'), [x], { function: name })
const NAMES = ['relu', 'elu', 'negate', 'exp', 'log', 'sqrt', 'reciprocalSqrt', 'square', 'abs', 'sigmoid', 'tanh', 'reciprocal', 'sign']

describe('unary', () => {
  it.each([
    ['relu', [0, 0, 0, 1, 2]],
    ['elu', [Math.expm1(-2), Math.expm1(-1), 0, 1, 2]],
    ['negate', [2, 1, -0, -1, -2]],
    ['exp', [Math.exp(-2), Math.exp(-1), 1, Math.E, Math.exp(2)]],
    ['square', [4, 1, 0, 1, 4]],
    ['abs', [2, 1, 0, 1, 2]],
    ['sigmoid', [1 / (1 + Math.exp(2)), 1 / (1 + Math.E), 0.5, 1 / (1 + Math.exp(-1)), 1 / (1 + Math.exp(-2))]],
    ['tanh', [-2, -1, 0, 1, 2].map(Math.tanh)],
    ['reciprocal', [-0.5, -1, Infinity, 1, 0.5]],
    ['sign', [-1, -1, 0, 1, 1]],
  ])('%s by hand', (name, expected) => {
    expect(numbers(unary(name) as never, [filled([5], [-2, -1, 0, 1, 2])])).toEqual(expected)
  })
  it('roots and logarithms', () => {
    const x = filled([3], [1, 4, 0.25])
    expect(numbers((x) => ops.sqrt(x!), [x])).toEqual([1, 2, 0.5])
    expect(numbers(unary('reciprocalSqrt') as never, [x])).toEqual([1, 0.5, 2])
    expectClose(
      numbers((x) => ops.log(x!), [x]),
      [0, Math.log(4), -Math.log(4)],
    )
  })
  it.each(NAMES)('%s passes NaN', (name) => {
    expect(numbers(unary(name) as never, [filled([1], [Number.NaN])])).toEqual([Number.NaN])
  })
  it.each(NAMES)('%s has a gradient', (name) => {
    const random = generator(NAMES.indexOf(name))
    expectGradients(unary(name) as never, [positive(random, [2, 3])])
    if (!['log', 'sqrt', 'reciprocalSqrt'].includes(name))
      expectGradients(((x: Value) => unary(name)(ops.negate(x))) as never, [positive(random, [2, 3])])
  })
  it.each(NAMES)('%s has a second derivative', (name) => {
    // The gradient of sum(f(x) · x), as a function of x, is differentiated once more.
    const slope = (x: Value) => emit(opDefinition('unaryGradient'), [ops.square(x), x], { function: name })
    expectGradients(slope as never, [positive(generator(40), [5])])
    if (!['log', 'sqrt', 'reciprocalSqrt'].includes(name))
      expectGradients(((x: Value) => slope(ops.negate(x))) as never, [positive(generator(41), [5])])
  })
  it('at 0 relu and abs have gradient 0, and an inactive relu stops even infinity', () => {
    const gradient = (name: string, dy: number, x: number) =>
      runOp('unaryGradient', [filled([1], [dy]), filled([1], [x])], { function: name })[0]!.data[0]
    expect(gradient('relu', 1, 0)).toBe(0)
    expect(gradient('abs', 1, 0)).toBe(0)
    expect(gradient('relu', Infinity, -1)).toBe(0)
    expect(gradient('relu', Number.NaN, 1)).toBeNaN()
  })
  it('takes no integers and no unknown function', () => {
    const integers = filled([2], [1, 2], 'int32')
    expect(() => numbers((x) => ops.relu(x!), [integers])).toThrowError(
      /relu: x must be float32 or bfloat16, got int32\[2\]. Convert it with cast/,
    )
    expect(() => runOp('unary', [filled([1], [1])], { function: 'gelu' })).toThrowError(/function 'gelu' does not exist/)
  })
})

/** The public functions by name. */
const { add, subtract, multiply, divide, maximum, minimum, power, greater, greaterEqual, equal } = ops
const BINARY = { add, subtract, multiply, divide, maximum, minimum, power, greater, greaterEqual, equal }

describe('binary', () => {
  const [a, b] = [filled([2, 3], [1, 2, 3, 4, 5, 6]), filled([3], [10, 5, 2])]
  it.each([
    ['add', [11, 7, 5, 14, 10, 8]],
    ['subtract', [-9, -3, 1, -6, 0, 4]],
    ['multiply', [10, 10, 6, 40, 25, 12]],
    ['divide', [0.1, 0.4, 1.5, 0.4, 1, 3]],
    ['maximum', [10, 5, 3, 10, 5, 6]],
    ['minimum', [1, 2, 2, 4, 5, 2]],
    ['power', [1, 32, 9, 1048576, 3125, 36]],
    ['greater', [0, 0, 1, 0, 0, 1]],
    ['greaterEqual', [0, 0, 1, 0, 1, 1]],
    ['equal', [0, 0, 0, 0, 1, 0]],
  ] as const)('%s broadcasts the last axis', (name, expected) => {
    expect(numbers((a, b) => BINARY[name](a!, b!), [a, b])).toEqual(expected)
  })
  it('broadcasts both sides and takes numbers', () => {
    expect(numbers((a, b) => ops.add(a!, b!), [filled([2, 1], [10, 20]), filled([1, 3], [1, 2, 3])])).toEqual([11, 12, 13, 21, 22, 23])
    expect(numbers((a) => ops.subtract(1, a!), [b])).toEqual([-9, -4, -1])
    expect(shapeOf((a, b) => ops.multiply(a!, b!), [4, 1, 5, 1], [3, 1, 2])).toEqual([4, 3, 5, 2])
  })
  it.each(['add', 'subtract', 'multiply', 'divide', 'maximum', 'minimum', 'power'] as const)(
    '%s has gradients, summed over broadcast axes',
    (name) => {
      const random = generator(11)
      const call = (a: Value, b: Value) => BINARY[name](a, b)
      for (const [left, right] of [
        [
          [2, 3],
          [2, 3],
        ],
        [[2, 3], [3]],
        [[], [2, 2]],
        [
          [3, 1, 2],
          [4, 1],
        ],
        [
          [1, 3],
          [3, 1, 1],
        ],
      ] as const)
        expectGradients(call as never, [positive(random, left), positive(random, right)])
    },
  )
  it('comparisons stop the gradient', () => {
    expect(gradientOf((x) => ops.sum(ops.add(ops.greater(x!, 0), x!)), [b])).toEqual([1, 1, 1])
  })
  it('at equality maximum and minimum send the gradient to a', () => {
    for (const name of ['maximum', 'minimum'] as const) {
      expect(gradientOf((a, b) => ops.sum(BINARY[name](a!, b!)), [filled([1], [2]), filled([1], [2])])).toEqual([1])
      expect(
        gradientOf((b, a) => ops.sum(ops.add(BINARY[name](a!, b!), ops.multiply(b!, 3))), [filled([1], [2]), filled([1], [2])]),
      ).toEqual([3])
    }
  })
  it('the gradient of a power in its exponent is 0 at 0', () => {
    expect(gradientOf((b, a) => ops.sum(ops.power(a!, b!)), [filled([2], [2, 3]), filled([2], [0, 1])])).toEqual([0, 0])
  })
  it('NaN survives maximum and minimum', () => {
    for (const name of ['maximum', 'minimum'] as const)
      expect(numbers((a, b) => BINARY[name](a!, b!), [filled([2], [Number.NaN, 1]), filled([2], [1, Number.NaN])])).toEqual([
        Number.NaN,
        Number.NaN,
      ])
  })
  it('int32 wraps around, and has no division', () => {
    const [a, b] = [filled([2], [2147483647, 123456789], 'int32'), filled([2], [1, 987654321], 'int32')]
    expect(numbers((a, b) => ops.add(a!, b!), [a, b])).toEqual([-2147483648, 1111111110])
    expect(numbers((a, b) => ops.multiply(a!, b!), [a, b])).toEqual([2147483647, Math.imul(123456789, 987654321)])
    expect(numbers((a) => ops.subtract(a!, 1), [b])).toEqual([0, 987654320])
    expect(() => numbers((a, b) => ops.divide(a!, b!), [a, b])).toThrowError(
      /divide: expected two tensors of one dtype, float32, bfloat16, got int32/,
    )
    expect(() => numbers((a) => ops.add(a!, 0.5), [a])).toThrowError(/0.5 is not a whole number/)
  })
  it('explains shapes and arguments that do not fit', () => {
    const build = () => shapeOf((a, b) => ops.add(a!, b!), [2, 3], [2, 4])
    expect(build).toThrowError(/add: shapes \[2, 3\] and \[2, 4\] do not broadcast/)
    expect(build).toThrowError(expect.objectContaining({ code: 'ERR_SHAPE' }))
    expect(() => shapeOf((a) => ops.add(a!, 'one' as never), [2])).toThrowError(/add: expected a tensor or a number, got one/)
  })
})

describe('where', () => {
  const condition = filled([4], [1, 0, -2, Number.NaN])
  it('chooses, and NaN is not 0', () => {
    expect(numbers((c, a, b) => ops.where(c!, a!, b!), [condition, filled([4], [1, 2, 3, 4]), filled([4], [5, 6, 7, 8])])).toEqual([
      1, 6, 3, 4,
    ])
  })
  it('has gradients', () => {
    const random = generator(12)
    expectGradients((a, b) => ops.where(ops.greater(a!, b!), ops.square(a!), b!), [uniform(random, [3, 4]), uniform(random, [3, 4])])
  })
  it('wants one shape', () => {
    expect(() => shapeOf((c, a) => ops.where(c!, a!, a!), [4], [2, 2])).toThrowError(
      /where: condition must be \[2, 2\] \(like a\), got \[4\]/,
    )
  })
})

describe('cast', () => {
  it('rounds half to even and saturates', () => {
    const x = filled([9], [-0.5, 0.5, 1.5, 2.5, -3, 300, 254.5, Infinity, Number.NaN])
    expect(numbers((x) => ops.cast(x!, 'uint8'), [x])).toEqual([0, 0, 2, 2, 0, 255, 254, 255, 0])
    expect(numbers((x) => ops.cast(x!, 'int32'), [filled([5], [-2.5, -3.5, 3e9, -3e9, 7.49])])).toEqual([
      -2, -4, 2147483647, -2147483648, 7,
    ])
  })
  it('scales and shifts pictures', () => {
    expectClose(
      numbers((x) => ops.cast(x!, 'float32', { scale: 1 / 127.5, offset: -1 }), [filled([3], [0, 51, 255], 'uint8')]),
      [-1, -0.6, 1],
      3e-7,
    ) // the scale is rounded to float32
    expect(numbers((x) => ops.cast(x!, 'int32'), [filled([1], [16777217], 'int32')])).toEqual([16777217])
  })
  it('has a gradient between float32 tensors and none through integers', () => {
    expectGradients((x) => ops.cast(x!, 'float32', { scale: 3, offset: 1 }), [uniform(generator(13), [4])], { tolerance: 1e-6 })
    expect(gradientOf((x) => ops.sum(ops.add(x!, ops.cast(ops.cast(x!, 'int32'), 'float32'))), [filled([2], [1.2, 3.4])])).toEqual([1, 1])
  })
  it('explains bad arguments', () => {
    expect(() => shapeOf((x) => ops.cast(x!, 'float16' as never), [2])).toThrowError(/dtype 'float16' does not exist/)
    expect(() => shapeOf((x) => ops.cast(x!, 'float32', { scale: Number.NaN }), [2])).toThrowError(/cast: scale must be a finite number/)
    expect(() => shapeOf((x) => ops.cast(x!, 'float32', { factor: 2 } as never), [2])).toThrowError(/unknown option 'factor'/)
  })
})

describe('dropout', () => {
  const counter = (low: number, high = 0) => filled([2], [low, high], 'int32')
  const ones = filled([3, 7], Array(21).fill(1))
  const drop =
    (rate: number, seed = 5, stream = 6) =>
    (x: Value, counter: Value) =>
      ops.dropout(x, { rate, seed, stream, counter })
  it('keeps word e % 4 of block e / 4 where it is at least rate · 2^32', () => {
    const y = numbers(drop(0.25) as never, [ones, counter(-2, 9)]) // 2^32 - 2: the row index carries into the high word
    for (let n = 0; n < 3; n++)
      for (let e = 0; e < 7; e++) {
        const sample = 9 * 2 ** 32 + 2 ** 32 - 2 + n
        const word = philox4x32([Math.floor(e / 4), 0, sample % 2 ** 32, Math.floor(sample / 2 ** 32)], [5, 6])[e % 4]!
        expect(y[7 * n + e]).toBe(word >= 0.25 * 2 ** 32 ? Math.fround(1 / 0.75) : 0)
      }
  })
  it('does not depend on where the batch begins', () => {
    const whole = numbers(drop(0.5) as never, [ones, counter(10)])
    const tail = numbers(drop(0.5) as never, [filled([2, 7], Array(14).fill(1)), counter(11)])
    expect(tail).toEqual(whole.slice(7))
  })
  it('keeps its share, and differs between streams', () => {
    const x = filled([50, 400], Array(20000).fill(1))
    const kept = numbers(drop(0.3) as never, [x, counter(0)])
    // Four standard deviations of a binomial share.
    expect(Math.abs(kept.filter((y) => y !== 0).length / 20000 - 0.7)).toBeLessThan(4 * Math.sqrt(0.21 / 20000))
    const other = numbers(drop(0.3, 5, 7) as never, [x, counter(0)])
    expect(kept.filter((y, i) => (y === 0) !== (other[i] === 0)).length).toBeGreaterThan(7000)
  })
  it('has a gradient with the same mask', () => {
    const random = generator(14)
    expectGradients(drop(0.4) as never, [uniform(random, [3, 5]), counter(77)], { wanted: [0] })
    expect(gradientOf((x, c) => ops.sum(drop(0.5)(x!, c!)), [ones, counter(3)])).toEqual(numbers(drop(0.5) as never, [ones, counter(3)]))
  })
  it('explains bad options', () => {
    const call = (options: object) => () => run((x, counter) => ops.dropout(x!, { counter, ...options } as never), [ones, counter(0)])
    expect(call({ rate: 1 })).toThrowError(/dropout: rate must be in \[0, 1\), got 1/)
    expect(call({ rate: 0.5, seed: -1 })).toThrowError(/dropout: seed must be a whole number from 0 to 2\^32 - 1, got -1/)
    expect(call({ rate: 0.5, counter: undefined })).toThrowError(/argument 'counter' is missing/)
    expect(call({ rate: 0.5, p: 1 })).toThrowError(/unknown option 'p'/)
    expect(() =>
      trace(
        (graph) =>
          void ops.dropout(graph.input('x', { shape: [], dtype: 'float32' }), {
            rate: 0.5,
            counter: graph.input('c', { shape: [2], dtype: 'int32' }),
          }),
      ),
    ).toThrowError(/batch axis/)
  })
})
