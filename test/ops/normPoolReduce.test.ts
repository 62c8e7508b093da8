import { describe, expect, it } from 'vitest'
import type { Value } from '../../src/graph/graph.js'
import { opDefinition } from '../../src/graph/op.js'
import { avgPool2d } from '../../src/ops/avgPool2d.js'
import { batchNorm } from '../../src/ops/batchNorm.js'
import { maxPool2d } from '../../src/ops/maxPool2d.js'
import { globalAveragePool, globalMaxPool, max, mean, min, sum } from '../../src/ops/reduce.js'
import { expectClose, expectGradients, filled, generator, gradientOf, numbers, positive, run, runOp, shapeOf, uniform } from '../helpers.js'

describe('batchNorm in training', () => {
  it('normalises by the biased variance and returns the statistics', () => {
    const x = filled([4, 2], [1, 10, 2, 20, 3, 30, 6, 60])
    const [y, mean, variance] = run(
      (x, gamma, beta) => batchNorm(x!, { gamma, beta, epsilon: 0.5, training: true }),
      [x, filled([2], [2, 1]), filled([2], [5, 0])],
    )
    expect([...mean!.data]).toEqual([3, 30])
    expect([...variance!.data]).toEqual([3.5, 350])
    expectClose(
      y!.data,
      [1, 10, 2, 20, 3, 30, 6, 60].map((value, i) => (i % 2 ? (value - 30) / Math.sqrt(350.5) : 5 + (2 * (value - 3)) / 2)),
    )
  })
  it('has gradients, also where the statistics themselves enter the loss', () => {
    const random = generator(1)
    const inputs = [uniform(random, [2, 3, 2, 3]), positive(random, [3]), uniform(random, [3])]
    const training = { training: true, epsilon: 1e-3 } as const
    expectGradients((x, gamma, beta) => batchNorm(x!, { gamma, beta, ...training })[0], inputs)
    expectGradients((x) => batchNorm(x!, training)[0], inputs.slice(0, 1))
    expectGradients((x, gamma, beta) => batchNorm(x!, { gamma, beta, ...training }), inputs)
    expectGradients((x) => batchNorm(x!, training).slice(1), inputs.slice(0, 1))
    expectGradients((x) => batchNorm(x!, training)[1], inputs.slice(0, 1))
  })
  it('decomposes into statistics, coefficients and scaleShift', () => {
    const random = generator(2)
    const [x, gamma, beta] = [uniform(random, [5, 4, 3]), positive(random, [3]), uniform(random, [3])]
    const whole = run((x, gamma, beta) => batchNorm(x!, { gamma, beta, training: true }), [x, gamma, beta])
    const vector = (tensor: { data: ArrayLike<number> }) => filled([3], tensor.data)
    const [mean, variance] = runOp('batchNormStatistics', [x])
    const [scale, shift] = runOp('batchNormCoefficients', [vector(mean!), vector(variance!), gamma, beta], { epsilon: 1e-3 })
    expectClose(runOp('scaleShift', [x, vector(scale!), vector(shift!)], { activation: 'none' })[0]!.data, whole[0]!.data)
    expectClose(mean!.data, whole[1]!.data)
    expectClose(variance!.data, whole[2]!.data)
  })
  it('is exact for values far from zero', () => {
    const [, variance] = runOp('batchNormStatistics', [filled([4, 1], [1e6 + 1, 1e6 + 2, 1e6 + 3, 1e6 + 4])])
    expect(variance!.data[0]).toBe(1.25)
  })
  it('refuses one value per channel', () => {
    const build = () => shapeOf((x) => batchNorm(x!, { training: true })[0], [1, 1, 1, 8])
    expect(build).toThrowError(/batchNorm: training needs more than one value per channel, got x \[1, 1, 1, 8\]\. Use a larger batch/)
    expect(build).toThrowError(expect.objectContaining({ code: 'ERR_SHAPE' }))
  })
})

describe('batchNorm in inference', () => {
  const random = generator(3)
  const inputs = [uniform(random, [2, 3, 4]), positive(random, [4]), uniform(random, [4]), uniform(random, [4]), positive(random, [4])]
  const build = (x: Value, gamma: Value, beta: Value, mean: Value, variance: Value) => batchNorm(x, { gamma, beta, mean, variance })
  it('normalises by what it is given', () => {
    const [x, gamma, beta, mean, variance] = inputs.map((input) => input.data) as [
      ArrayLike<number>,
      ArrayLike<number>,
      ArrayLike<number>,
      ArrayLike<number>,
      ArrayLike<number>,
    ]
    const expected = Array.from(
      x,
      (value, i) => ((value - mean[i % 4]!) / Math.sqrt(variance[i % 4]! + 1e-3)) * gamma[i % 4]! + beta[i % 4]!,
    )
    expectClose(numbers(build as never, inputs), expected)
  })
  it('has gradients in every argument', () => {
    expectGradients(build as never, inputs)
    expectGradients((x, mean, variance) => batchNorm(x!, { mean: mean!, variance: variance! }), [inputs[0]!, inputs[3]!, inputs[4]!])
  })
  it('takes one value per channel', () => {
    expect(shapeOf((x, mean, variance) => batchNorm(x!, { mean: mean!, variance: variance! }), [1, 1, 1, 8], [8], [8])).toEqual([
      1, 1, 1, 8,
    ])
  })
  it('explains bad options', () => {
    const shapes = [[4, 8], [8], [8], [3]]
    const call = (options: (v: Value[]) => object) => () =>
      shapeOf((...v) => batchNorm(v[0]!, options(v) as { training: true })[0]!, ...shapes)
    expect(call(() => ({}))).toThrowError(/batchNorm: mean and variance are needed without training/)
    expect(call((v) => ({ training: true, mean: v[1] }))).toThrowError(
      /training uses the statistics of the batch, but mean or variance was given/,
    )
    expect(call((v) => ({ mean: v[1], variance: v[2], gamma: v[3] }))).toThrowError(/batchNorm: gamma must be \[8\].*got \[3\]/)
    expect(call((v) => ({ mean: v[1], variance: v[2], epsilon: -1 }))).toThrowError(/epsilon must be finite/)
    expect(call(() => ({ training: true, epsilon: Number.NaN }))).toThrowError(/epsilon must be finite/)
    expect(call(() => ({ training: true, momentum: 0.9 }))).toThrowError(/unknown option 'momentum'/)
  })
})

describe('scaleShift', () => {
  const random = generator(4)
  it.each(['none', 'relu', 'elu'])('with residual and activation %s has gradients', (activation) => {
    const inputs = [uniform(random, [3, 2, 4]), uniform(random, [4]), uniform(random, [4]), uniform(random, [3, 2, 4])]
    const emit = (...values: (Value | null)[]) => values[0]!.graph.emit(opDefinition('scaleShift'), values, { activation })[0]!
    expectGradients((x, scale, shift, residual) => emit(x!, scale!, shift!, residual!), inputs)
    expectGradients((x, shift) => emit(x!, null, shift!), [inputs[0]!, inputs[2]!])
    expectGradients((x, scale) => emit(x!, scale!), [inputs[0]!, inputs[1]!])
  })
})

describe('maxPool2d', () => {
  const x = filled([1, 3, 3, 1], [1, 2, 3, 4, 9, 6, 7, 8, 5])
  it('by hand', () => {
    expect(numbers((x) => maxPool2d(x!, { windowSize: 2, strides: 1, padding: 'valid' }), [x])).toEqual([9, 9, 9, 9])
    expect(numbers((x) => maxPool2d(x!, { windowSize: 3, strides: 2 }), [x])).toEqual([9, 9, 9, 9])
    expect(numbers((x) => maxPool2d(x!, { windowSize: 2 }), [x])).toEqual([9, 6, 8, 5])
  })
  it('never takes padding, however negative the input', () => {
    const negative = filled([1, 2, 2, 1], [-1, -2, -3, -4])
    expect(numbers((x) => maxPool2d(x!, { windowSize: 3, strides: 1 }), [negative])).toEqual([-1, -1, -1, -1])
  })
  it('tf and symmetric padding differ at an even size', () => {
    const row = filled([1, 1, 4, 1], [4, 3, 2, 1])
    expect(numbers((x) => maxPool2d(x!, { windowSize: [1, 3], strides: [1, 2] }), [row])).toEqual([4, 2])
    expect(
      numbers((x) => maxPool2d(x!, { windowSize: [1, 3], strides: [1, 2], padding: { top: 0, bottom: 0, left: 1, right: 1 } }), [row]),
    ).toEqual([4, 3])
  })
  it('adds the residual in the fused form', () => {
    const attributes = { windowSize: [3, 3], strides: [3, 3], padding: [0, 0, 0, 0] }
    expect([...runOp('maxPool2d', [x, filled([1, 1, 1, 1], [0.5])], attributes)[0]!.data]).toEqual([9.5])
  })
  it('sends the gradient to the first maximum, and to the first NaN', () => {
    const attributes = { windowSize: [1, 3], strides: [1, 3], padding: [0, 0, 0, 0] }
    const gradient = (values: number[]) => [
      ...runOp('maxPool2dGradient', [filled([1, 1, 1, 1], [7]), filled([1, 1, 3, 1], values)], attributes)[0]!.data,
    ]
    expect(gradient([5, 5, 5])).toEqual([7, 0, 0])
    expect(gradient([1, 5, 5])).toEqual([0, 7, 0])
    expect(gradient([9, Number.NaN, Number.NaN])).toEqual([0, 7, 0])
    expect(gradient([-Infinity, -Infinity, -Infinity])).toEqual([7, 0, 0])
    expect([...runOp('maxPool2d', [filled([1, 1, 3, 1], [1, Number.NaN, 3])], attributes)[0]!.data]).toEqual([Number.NaN])
  })
  it('has gradients over overlapping windows', () => {
    const random = generator(5)
    for (const options of [
      { windowSize: 3, strides: 2 },
      { windowSize: [2, 3], strides: 1, padding: 'valid' },
      { windowSize: 3, strides: 2, padding: { top: 1, bottom: 1, left: 1, right: 1 } },
    ] as const)
      expectGradients((x) => maxPool2d(x!, options), [uniform(random, [2, 6, 5, 2])], { samples: 60 })
  })
  it('explains bad options', () => {
    const call =
      (options: object, shape = [1, 4, 4, 1]) =>
      () =>
        shapeOf((x) => maxPool2d(x!, options as { windowSize: 2 }), shape)
    expect(call({})).toThrowError(/maxPool2d: option windowSize is missing/)
    expect(call({ windowSize: 2, stride: 2 })).toThrowError(/unknown option 'stride'. Did you mean 'strides'/)
    expect(call({ windowSize: 2, padding: { top: 2, bottom: 0, left: 0, right: 0 } })).toThrowError(
      /padding must be smaller than the window of 2 x 2/,
    )
    expect(call({ windowSize: 5, padding: 'valid' })).toThrowError(/does not fit/)
    expect(call({ windowSize: 2 }, [4, 4, 1])).toThrowError(/x must be \[n, h, w, c\]/)
  })
})

describe('avgPool2d', () => {
  const x = filled([1, 2, 2, 1], [1, 2, 3, 6])
  it('counts padding or not', () => {
    const options = { windowSize: 3, strides: 1, padding: { top: 1, bottom: 0, left: 0, right: 1 } } as const
    // One window of 3 x 3 holds the whole picture and five zeros.
    expect(numbers((x) => avgPool2d(x!, options), [x])).toEqual([3])
    expectClose(
      numbers((x) => avgPool2d(x!, { ...options, countPadding: true }), [x]),
      [12 / 9],
    )
  })
  it('divides by the inputs under each window', () => {
    expect(numbers((x) => avgPool2d(x!, { windowSize: 2, strides: 1 }), [x])).toEqual([3, 4, 4.5, 6])
  })
  it('has gradients', () => {
    const random = generator(6)
    for (const countPadding of [false, true])
      for (const options of [
        { windowSize: 3, strides: 2 },
        { windowSize: [3, 2] },
        { windowSize: 2, strides: 1, padding: 'valid' },
      ] as const)
        expectGradients((x) => avgPool2d(x!, { ...options, countPadding }), [uniform(random, [2, 5, 6, 2])])
  })
  it('rejects unknown options', () => {
    expect(() => shapeOf((x) => avgPool2d(x!, { windowSize: 2, countPading: true } as never), [1, 4, 4, 1])).toThrowError(
      /Did you mean 'countPadding'/,
    )
  })
})

describe('reduce', () => {
  const x = filled([2, 3], [1, 5, 3, 4, 2, 9])
  it('by hand', () => {
    expect(numbers((x) => sum(x!), [x])).toEqual([24])
    expect(numbers((x) => sum(x!, { axes: 0 }), [x])).toEqual([5, 7, 12])
    expect(numbers((x) => mean(x!, { axes: -1 }), [x])).toEqual([3, 5])
    expect(numbers((x) => max(x!, { axes: [1] }), [x])).toEqual([5, 9])
    expect(numbers((x) => min(x!, { axes: [1, 0] }), [x])).toEqual([1])
  })
  it('reduces inner and outer axes alike', () => {
    const cube = filled(
      [2, 3, 2],
      Array.from({ length: 12 }, (_, i) => i),
    )
    expect(numbers((x) => sum(x!, { axes: [0, 2] }), [cube])).toEqual([14, 22, 30])
    expect(numbers((x) => sum(x!, { axes: 1 }), [cube])).toEqual([6, 9, 24, 27])
  })
  it('keeps dimensions on demand', () => {
    expect(shapeOf((x) => sum(x!, { axes: [0, -1], keepDims: true }), [2, 3, 4])).toEqual([1, 3, 1])
    expect(shapeOf((x) => sum(x!, { axes: [0, -1] }), [2, 3, 4])).toEqual([3])
    expect(shapeOf((x) => sum(x!), [2, 3, 4])).toEqual([])
    expect(shapeOf((x) => sum(x!, { axes: [] }), [2, 3])).toEqual([2, 3])
  })
  it('passes NaN on', () => {
    for (const op of [sum, mean, max, min]) expect(numbers((x) => op(x!), [filled([3], [1, Number.NaN, 2])])).toEqual([Number.NaN])
  })
  it('has gradients', () => {
    const random = generator(7)
    for (const op of [sum, mean, max, min])
      for (const options of [{}, { axes: 1 }, { axes: [0, 2], keepDims: true }, { axes: [1, 2] }])
        expectGradients((x) => op(x!, options), [uniform(random, [3, 2, 4])])
  })
  it('shares the gradient of a tie', () => {
    expect(gradientOf((x) => max(x!), [filled([4], [2, 7, 7, 1])])).toEqual([0, 0.5, 0.5, 0])
    expect(gradientOf((x) => sum(min(x!, { axes: 1 })), [filled([2, 2], [3, 3, 2, 4])])).toEqual([0.5, 0.5, 1, 0])
  })
  it('global pools', () => {
    const picture = filled([1, 2, 2, 2], [1, 10, 2, 20, 3, 30, 6, 80])
    expect(numbers((x) => globalAveragePool(x!), [picture])).toEqual([3, 35])
    expect(numbers((x) => globalMaxPool(x!), [picture])).toEqual([6, 80])
    expect(() => shapeOf((x) => globalAveragePool(x!), [2, 2, 2])).toThrowError(/globalAveragePool: x must be \[n, h, w, c\]/)
  })
  it('explains bad axes', () => {
    expect(() => shapeOf((x) => sum(x!, { axes: 2 }), [2, 3])).toThrowError(/sum: axis 2 does not exist in x \[2, 3\]/)
    expect(() => shapeOf((x) => sum(x!, { axes: [1, -1] }), [2, 3])).toThrowError(/name one axis twice/)
    expect(() => shapeOf((x) => sum(x!, { axis: 1 } as never), [2, 3])).toThrowError(/Did you mean 'axes'/)
  })
})
