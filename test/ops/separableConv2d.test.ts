import { describe, expect, it } from 'vitest'
import type { Value } from '../../src/graph/graph.js'
import { opDefinition } from '../../src/graph/op.js'
import { depthwiseConv2d, type DepthwiseConv2dOptions } from '../../src/ops/depthwiseConv2d.js'
import type { Padding } from '../../src/ops/geometry.js'
import { dense, pointwiseConv2d } from '../../src/ops/pointwiseConv2d.js'
import { separableConv2d } from '../../src/ops/separableConv2d.js'
import { expectClose, expectGradients, filled, generator, numbers, run, runOp, shapeOf, uniform, whole } from '../helpers.js'

const depthwise = (options?: DepthwiseConv2dOptions) => (x: Value, filter: Value) => depthwiseConv2d(x, filter, options)
const geometry = { strides: [1, 1], dilations: [1, 1], padding: [1, 1, 1, 1] }

describe('depthwiseConv2d', () => {
  it('by hand: two channels, two filters each, output channel = c * m + j', () => {
    const x = filled([1, 1, 2, 2], [1, 2, 3, 4])
    const filter = filled([1, 2, 2, 2], [1, 10, 100, 1000, 2, 20, 200, 2000])
    expect(numbers(depthwise({ padding: 'valid' }), [x, filter])).toEqual([1 + 6, 10 + 60, 200 + 800, 2000 + 8000])
  })
  it('takes rank 3 filters for m = 1', () => {
    const random = generator(1)
    const x = uniform(random, [1, 4, 4, 3])
    const filter = uniform(random, [3, 3, 3])
    expect(numbers(depthwise(), [x, filter])).toEqual(numbers(depthwise(), [x, filled([3, 3, 3, 1], filter.data)]))
    expectGradients(depthwise(), [x, filter])
  })
  it('has gradients for random shapes, strides, dilations, paddings and multipliers', () => {
    const random = generator(2)
    for (let trial = 0; trial < 16; trial++) {
      const c = whole(random, 1, 4)
      const options: DepthwiseConv2dOptions = {
        strides: [whole(random, 1, 3), whole(random, 1, 2)],
        dilations: [whole(random, 1, 2), whole(random, 1, 3)],
        padding: (['same', 'valid', { top: 0, bottom: 3, left: 2, right: 1 }] as Padding[])[trial % 3]!,
      }
      const x = uniform(random, [whole(random, 1, 2), whole(random, 5, 7), whole(random, 7, 8), c])
      expectGradients(depthwise(options), [x, uniform(random, [whole(random, 1, 3), whole(random, 1, 3), c, whole(random, 1, 3)])], {
        samples: 10,
      })
    }
  })
  it('pads with zeros after the fused prologue', () => {
    const x = filled([1, 1, 1, 1], [1])
    const ones = filled([3, 3, 1, 1], Array(9).fill(1))
    const attributes = { ...geometry, inputActivation: 'relu', activation: 'none' }
    // relu(1 * 2 + 5) = 7 once; were the padding shifted too, eight more fives would appear.
    expect([...runOp('depthwiseConv2d', [x, ones, filled([1], [2]), filled([1], [5])], attributes)[0]!.data]).toEqual([7])
  })
  it('fused agrees with its parts', () => {
    const random = generator(3)
    const [x, filter, inputScale, inputShift] = [
      uniform(random, [2, 4, 5, 3]),
      uniform(random, [3, 3, 3, 2]),
      uniform(random, [3]),
      uniform(random, [3]),
    ]
    const [scale, shift, residual] = [uniform(random, [6]), uniform(random, [6]), uniform(random, [2, 4, 5, 6])]
    const z = runOp('scaleShift', [x, inputScale, inputShift], { activation: 'relu' })[0]!
    const parts = numbers(
      (z, f, scale, shift, residual) => depthwiseConv2d(z!, f!, { scale, shift, residual, activation: 'relu' }),
      [filled(z.shape, z.data), filter, scale, shift, residual],
    )
    const fused = runOp('depthwiseConv2d', [x, filter, inputScale, inputShift, scale, shift, residual], {
      ...geometry,
      inputActivation: 'relu',
      activation: 'relu',
    })
    expectClose(fused[0]!.data, parts)

    // The fused gradients: with respect to the prologue's sum, and of the filter through the activated input.
    const dy = uniform(random, [2, 4, 5, 6])
    const plain = runOp('depthwiseConv2dInputGradient', [dy, filter], { ...geometry, inputActivation: 'none', inputSize: [4, 5] })[0]!.data
    const masked = runOp('depthwiseConv2dInputGradient', [dy, filter, x, inputScale, inputShift], {
      ...geometry,
      inputActivation: 'relu',
      inputSize: [4, 5],
    })[0]!.data
    expect(z.data.some((value) => value === 0)).toBe(true)
    expect([...masked]).toEqual(Array.from(plain, (value, i) => (z.data[i]! > 0 ? value : value * 0)))
    expectClose(
      runOp('depthwiseConv2dFilterGradient', [x, dy, inputScale, inputShift], {
        ...geometry,
        inputActivation: 'relu',
        kernelSize: [3, 3],
      })[0]!.data,
      runOp('depthwiseConv2dFilterGradient', [filled(z.shape, z.data), dy], {
        ...geometry,
        inputActivation: 'none',
        kernelSize: [3, 3],
      })[0]!.data,
    )
  })
  it.each([
    [
      'ERR_SHAPE',
      [1, 8, 8, 3],
      [3, 3, 4, 1],
      {},
      /depthwiseConv2d: depthwise filter \[3, 3, 4, 1\] has 4 channels, but x \[1, 8, 8, 3\] has 3/,
    ],
    ['ERR_SHAPE', [1, 8, 8, 3], [3, 3], {}, /depthwise filter must be \[kh, kw, c, m\]/],
    ['ERR_SHAPE', [8, 8, 3], [3, 3, 3, 1], {}, /x must be \[n, h, w, c\], got \[8, 8, 3\]/],
    ['ERR_SHAPE', [1, 2, 2, 3], [3, 3, 3, 1], { padding: 'valid' }, /does not fit/],
    ['ERR_ARGUMENT', [1, 8, 8, 3], [3, 3, 3, 1], { groups: 2 }, /unknown option 'groups'/],
  ] as [string, number[], number[], DepthwiseConv2dOptions, RegExp][])(
    '%s for x %j, filter %j, %j',
    (code, x, filter, options, message) => {
      const build = () => shapeOf(depthwise(options), x, filter)
      expect(build).toThrowError(message)
      expect(build).toThrowError(expect.objectContaining({ code }))
    },
  )
})

describe('pointwiseConv2d', () => {
  const random = generator(4)
  it('is a matrix product over rows of any rank', () => {
    const filter = filled([2, 3], [1, 2, 3, 10, 20, 30])
    expect(numbers((x, f) => pointwiseConv2d(x!, f!), [filled([2, 2], [1, 2, 3, 4]), filter])).toEqual([21, 42, 63, 43, 86, 129])
    expect(shapeOf((x, f) => pointwiseConv2d(x!, f!), [2, 5, 7, 2], [2, 3])).toEqual([2, 5, 7, 3])
    expect(shapeOf((x, f) => pointwiseConv2d(x!, f!), [2, 5, 2], [2, 3])).toEqual([2, 5, 3])
  })
  it('has gradients, also through prologue and epilogue', () => {
    expectGradients((x, f) => pointwiseConv2d(x!, f!), [uniform(random, [2, 3, 2, 4]), uniform(random, [4, 5])])
    expectGradients(
      (x, f, bias, residual) => pointwiseConv2d(x!, f!, { bias, residual, inputActivation: 'relu', activation: 'elu' }),
      [uniform(random, [5, 4]), uniform(random, [4, 3]), uniform(random, [3]), uniform(random, [5, 3])],
    )
  })
  it('fused with a packed filter and statistics', () => {
    const [x, filter] = [uniform(random, [2, 3, 4]), uniform(random, [4, 5])]
    const packed = runOp('packFilter', [filter], { panel: 8 })[0]!
    const [y, mean, variance] = runOp('pointwiseConv2d', [x, filled(packed.shape, packed.data)], {
      packed: true,
      cout: 5,
      statistics: true,
      inputActivation: 'relu',
    })
    const expected = run((x, f) => pointwiseConv2d(x!, f!, { inputActivation: 'relu' }), [x, filter])[0]!
    expectClose(y!.data, expected.data)
    const moments = runOp('batchNormStatistics', [filled(expected.shape, expected.data)])
    expectClose(mean!.data, moments[0]!.data)
    expectClose(variance!.data, moments[1]!.data)
  })
  it('fused gradients mask and activate', () => {
    const [x, filter, dy] = [uniform(random, [6, 3]), uniform(random, [3, 2]), uniform(random, [6, 2])]
    const plain = runOp('pointwiseConv2dInputGradient', [dy, filter], { inputActivation: 'none' })[0]!.data
    const masked = runOp('pointwiseConv2dInputGradient', [dy, filter, x], { inputActivation: 'elu' })[0]!.data
    expectClose(
      masked,
      Array.from(plain, (value, i) => value * (x.data[i]! > 0 ? 1 : Math.exp(x.data[i]!))),
    )
    const clipped = filled(
      [6, 3],
      Array.from(x.data, (value) => Math.max(value, 0)),
    )
    expectClose(
      runOp('pointwiseConv2dFilterGradient', [x, dy], { inputActivation: 'relu' })[0]!.data,
      runOp('pointwiseConv2dFilterGradient', [clipped, dy], { inputActivation: 'none' })[0]!.data,
    )
  })
  it('dense adds a bias', () => {
    expect(numbers((x, f, bias) => dense(x!, f!, { bias }), [filled([1, 2], [1, 2]), filled([2, 1], [3, 4]), filled([1], [5])])).toEqual([
      16,
    ])
    expect(() => shapeOf((x, f, bias) => dense(x!, f!, { bias }), [1, 2], [2, 3], [2])).toThrowError(/dense: bias must be \[3\]/)
    expect(() => shapeOf((x, f) => dense(x!, f!, { relu: true } as never), [1, 2], [2, 3])).toThrowError(/dense: unknown option 'relu'/)
  })
  it('explains channels that do not fit', () => {
    expect(() => shapeOf((x, f) => pointwiseConv2d(x!, f!), [1, 4, 4, 3], [4, 8])).toThrowError(
      /pointwiseConv2d: pointwise filter \[4, 8\] takes 4 channels, but x \[1, 4, 4, 3\] has 3\. Pointwise filters are \[cin, cout\]/,
    )
    expect(() => shapeOf((x, f) => pointwiseConv2d(x!, f!), [3], [3, 8])).toThrowError(/at least two axes/)
  })
})

describe('separableConv2d', () => {
  const random = generator(5)
  const inputs = [uniform(random, [2, 5, 4, 3]), uniform(random, [3, 3, 3, 2]), uniform(random, [6, 5])]

  it('is depthwise then pointwise', () => {
    for (const options of [{}, { strides: 2 }, { dilations: 2, padding: 'same' }, { padding: 'valid' }] as const)
      expectClose(
        numbers((x, d, p) => separableConv2d(x!, d!, p!, options), inputs),
        numbers((x, d, p) => pointwiseConv2d(depthwiseConv2d(x!, d!, options), p!), inputs),
        1e-12,
      )
  })

  const extras = [uniform(random, [6]), uniform(random, [5]), uniform(random, [5]), uniform(random, [2, 5, 4, 5])]
  const full = (x: Value, d: Value, p: Value, depthwiseBias: Value, scale: Value, shift: Value, residual: Value) =>
    separableConv2d(x, d, p, {
      inputActivation: 'relu',
      depthwiseBias,
      intermediateActivation: 'elu',
      scale,
      shift,
      residual,
      activation: 'relu',
    })

  it('emitted as primitives equals the fused op', () => {
    const [x, d, p] = inputs as [(typeof inputs)[0], (typeof inputs)[0], (typeof inputs)[0]]
    const attributes = { ...geometry, inputActivation: 'relu', intermediateActivation: 'elu', activation: 'relu', packed: false, cout: 5 }
    const fused = runOp('separableConv2d', [x, d, p, null, null, ...extras], attributes)[0]!.data
    expectClose(fused, numbers(full as never, [...inputs, ...extras]))
    const packed = runOp('packFilter', [p], { panel: 4 })[0]!
    expectClose(
      runOp('separableConv2d', [x, d, filled(packed.shape, packed.data), null, null, ...extras], { ...attributes, packed: true })[0]!.data,
      fused,
    )
  })
  it('fused reads the prologue of batch norm', () => {
    const [x, d, p] = inputs as [(typeof inputs)[0], (typeof inputs)[0], (typeof inputs)[0]]
    const [inputScale, inputShift] = [uniform(random, [3]), uniform(random, [3])]
    const attributes = { ...geometry, inputActivation: 'relu', intermediateActivation: 'none', activation: 'none', packed: false, cout: 5 }
    const z = runOp('scaleShift', [x, inputScale, inputShift], { activation: 'relu' })[0]!
    expectClose(
      runOp('separableConv2d', [x, d, p, inputScale, inputShift], attributes)[0]!.data,
      numbers((x, d, p) => separableConv2d(x!, d!, p!), [filled(z.shape, z.data), d, p]),
    )
  })
  it('has gradients through every option', () => {
    expectGradients(full as never, [...inputs, ...extras], { samples: 12 })
  })
  it('counts both halves', () => {
    const type = (shape: number[]) => ({ shape, dtype: 'float32' as const })
    expect(opDefinition('separableConv2d').macs!([type([2, 8, 8, 3]), type([3, 3, 3, 2]), type([6, 5])], [type([2, 8, 8, 5])], {})).toBe(
      2 * 64 * (9 * 6 + 6 * 5),
    )
  })
  it('names itself in errors of either half', () => {
    const build =
      (options: object, ...shapes: number[][]) =>
      () =>
        shapeOf((x, d, p) => separableConv2d(x!, d!, p!, options), ...shapes)
    expect(build({}, [1, 8, 8, 4], [3, 3, 3, 1], [3, 8])).toThrowError(
      /separableConv2d: depthwise filter \[3, 3, 3, 1\] has 3 channels, but x \[1, 8, 8, 4\] has 4/,
    )
    expect(build({}, [1, 8, 8, 3], [3, 3, 3, 2], [3, 8])).toThrowError(
      /separableConv2d: pointwise filter \[3, 8\] takes 3 channels, but the depthwise result \[1, 8, 8, 6\] has 6/,
    )
    expect(build({ intermediateActivaton: 'relu' }, [1, 8, 8, 3], [3, 3, 3], [3, 8])).toThrowError(
      /separableConv2d: unknown option 'intermediateActivaton'. Did you mean 'intermediateActivation'/,
    )
    expect(build({ intermediateActivation: 'sigmoid' }, [1, 8, 8, 3], [3, 3, 3], [3, 8])).toThrowError(
      /separableConv2d: intermediateActivation must be/,
    )
    expect(() =>
      shapeOf((x, d, p, depthwiseBias) => separableConv2d(x!, d!, p!, { depthwiseBias }), [1, 8, 8, 3], [3, 3, 3, 2], [6, 8], [3]),
    ).toThrowError(/separableConv2d: depthwiseBias must be \[6\]/)
  })
})
