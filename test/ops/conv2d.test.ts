import { describe, expect, it } from 'vitest'
import type { Value } from '../../src/graph/graph.js'
import { opDefinition } from '../../src/graph/op.js'
import { trace } from '../../src/graph/trace.js'
import { conv2d, type Conv2dOptions } from '../../src/ops/conv2d.js'
import { depthwiseConv2d } from '../../src/ops/depthwiseConv2d.js'
import type { Padding } from '../../src/ops/geometry.js'
import { pointwiseConv2d } from '../../src/ops/pointwiseConv2d.js'
import { expectClose, expectGradients, filled, generator, numbers, runOp, shapeOf, uniform, whole } from '../helpers.js'

const convolution = (options?: Conv2dOptions) => (x: Value, filter: Value) => conv2d(x, filter, options)

describe('conv2d by hand', () => {
  // 1 2 3        filter 1 10
  // 4 5 6               100 1000
  // 7 8 9
  const x = filled([1, 3, 3, 1], [1, 2, 3, 4, 5, 6, 7, 8, 9])
  const filter = filled([2, 2, 1, 1], [1, 10, 100, 1000])

  it('valid', () => {
    expect(numbers(convolution({ padding: 'valid' }), [x, filter])).toEqual([5421, 6532, 8754, 9865])
  })
  it('same: the odd row and column of zeros go last', () => {
    expect(numbers(convolution(), [x, filter])).toEqual([5421, 6532, 603, 8754, 9865, 906, 87, 98, 9])
  })
  it('explicit padding on the top left', () => {
    expect(numbers(convolution({ padding: { top: 1, bottom: 0, left: 1, right: 0 } }), [x, filter])).toEqual([
      1000, 2100, 3200, 4010, 5421, 6532, 7040, 8754, 9865,
    ])
  })
  it('stride 2', () => {
    expect(numbers(convolution({ strides: 2 }), [x, filter])).toEqual([5421, 603, 87, 9])
  })
  it('dilation 2', () => {
    expect(numbers(convolution({ dilations: 2, padding: 'valid' }), [x, filter])).toEqual([1 + 30 + 700 + 9000])
  })
  it('two groups see only their own channels', () => {
    const two = filled([1, 1, 1, 4], [1, 2, 3, 4])
    const grouped = filled([1, 1, 2, 2], [1, 10, 100, 1000])
    expect(numbers(convolution({ groups: 2 }), [two, grouped])).toEqual([201, 4030])
  })
  it('applies bias, scale, shift, residual and activation in this order', () => {
    const pixel = filled([1, 1, 1, 1], [2])
    const one = (value: number) => filled([1], [value])
    const build = (x: Value, f: Value, bias: Value, scale: Value, shift: Value, residual: Value) =>
      conv2d(x, f, { bias, scale, shift, residual, activation: 'relu' })
    const f = filled([1, 1, 1, 1], [3])
    expect(numbers(build, [pixel, f, one(4), one(5), one(6), filled([1, 1, 1, 1], [7])])).toEqual([(2 * 3 + 4) * 5 + 6 + 7])
    expect(numbers(build, [pixel, f, one(4), one(5), one(6), filled([1, 1, 1, 1], [-70])])).toEqual([0])
  })
  it('clips its input with inputActivation', () => {
    expect(numbers(convolution({ inputActivation: 'relu' }), [filled([1, 1, 2, 1], [-3, 2]), filled([1, 1, 1, 1], [5])])).toEqual([0, 10])
    expect(numbers(convolution({ inputActivation: 'elu' }), [filled([1, 1, 2, 1], [-3, 2]), filled([1, 1, 1, 1], [5])])).toEqual([
      5 * Math.expm1(-3),
      10,
    ])
  })
})

describe('conv2d agrees with', () => {
  const random = generator(1)
  it('depthwiseConv2d where groups = channels', () => {
    for (const [c, m] of [
      [3, 1],
      [4, 2],
    ] as const) {
      const x = uniform(random, [2, 6, 5, c])
      const filter = uniform(random, [3, 2, c, m])
      // [kh, kw, c, m] and [kh, kw, 1, c * m] are the same bytes: output channel = c * m + j in both.
      const grouped = { ...filter, type: { shape: [3, 2, 1, c * m], dtype: 'float32' as const } }
      const options = { strides: [2, 1], dilations: [1, 2] } as const
      expectClose(
        numbers(convolution({ ...options, groups: c }), [x, grouped]),
        numbers((a, b) => depthwiseConv2d(a, b, options), [x, filter]),
      )
    }
  })
  it('pointwiseConv2d for a 1 x 1 kernel', () => {
    const x = uniform(random, [2, 3, 4, 5])
    const filter = uniform(random, [5, 6])
    const square = { ...filter, type: { shape: [1, 1, 5, 6], dtype: 'float32' as const } }
    expectClose(
      numbers(convolution(), [x, square]),
      numbers((a, b) => pointwiseConv2d(a, b), [x, filter]),
    )
  })
  it('itself, the epilogue and the prologue fused', () => {
    const x = uniform(random, [1, 4, 4, 4])
    const [filter, scale, shift, residual] = [
      uniform(random, [3, 3, 2, 6]),
      uniform(random, [6]),
      uniform(random, [6]),
      uniform(random, [1, 2, 2, 6]),
    ]
    const geometry = { strides: [2, 2], dilations: [1, 1], padding: [0, 1, 0, 1], groups: 2, kernelSize: [3, 3], cout: 6 }
    const fused = runOp('conv2d', [x, filter, scale, shift, residual], { ...geometry, inputActivation: 'relu', activation: 'elu' })
    const build = (x: Value, f: Value, scale: Value, shift: Value, residual: Value) =>
      conv2d(x, f, { strides: 2, groups: 2, inputActivation: 'relu', scale, shift, residual, activation: 'elu' })
    expectClose(fused[0]!.data, numbers(build, [x, filter, scale, shift, residual]))
  })
  it('itself with a packed filter', () => {
    const x = uniform(random, [1, 4, 4, 3])
    const filter = uniform(random, [3, 3, 3, 5])
    const matrix = { ...filter, type: { shape: [27, 5], dtype: 'float32' as const } }
    const packed = runOp('packFilter', [matrix], { panel: 4 })[0]!
    expect(packed.shape).toEqual([2, 27, 4])
    expect(packed.data[27 * 4 + 1]).toBe(0)
    const attributes = { strides: [1, 1], dilations: [1, 1], padding: [1, 1, 1, 1], groups: 1, kernelSize: [3, 3], cout: 5, packed: true }
    expectClose(runOp('conv2d', [x, filled(packed.shape, packed.data)], attributes)[0]!.data, numbers(convolution(), [x, filter]))
  })
})

describe('conv2d gradients', () => {
  it('match central differences for random shapes, strides, dilations, paddings and groups', () => {
    const random = generator(2)
    for (let trial = 0; trial < 16; trial++) {
      const groups = whole(random, 1, 3)
      const [cin, cout] = [groups * whole(random, 1, 2), groups * whole(random, 1, 2)]
      const kernel = [whole(random, 1, 3), whole(random, 1, 3)]
      const options: Conv2dOptions = {
        groups,
        strides: [whole(random, 1, 3), whole(random, 1, 2)],
        dilations: [whole(random, 1, 2), whole(random, 1, 2)],
        padding: (['same', 'valid', { top: 2, bottom: 0, left: 1, right: 3 }] as Padding[])[trial % 3]!,
      }
      const x = uniform(random, [whole(random, 1, 2), whole(random, 5, 7), whole(random, 5, 7), cin])
      expectGradients(convolution(options), [x, uniform(random, [...kernel, cin / groups, cout])], { samples: 10 })
    }
  })
  it('pass through the whole epilogue', () => {
    const random = generator(3)
    const build = (x: Value, f: Value, bias: Value, scale: Value, shift: Value, residual: Value) =>
      conv2d(x, f, { bias, scale, shift, residual, inputActivation: 'elu', activation: 'relu' })
    const vector = () => uniform(random, [3])
    expectGradients(build, [
      uniform(random, [1, 4, 3, 2]),
      uniform(random, [3, 3, 2, 3]),
      vector(),
      vector(),
      vector(),
      uniform(random, [1, 4, 3, 3]),
    ])
  })
  it('of the fused input gradient are masked by the input activation', () => {
    const random = generator(4)
    const [dy, filter, x] = [uniform(random, [1, 3, 3, 2]), uniform(random, [3, 3, 2, 2]), uniform(random, [1, 3, 3, 2])]
    const attributes = { strides: [1, 1], dilations: [1, 1], padding: [1, 1, 1, 1], groups: 1, inputSize: [3, 3] }
    const plain = runOp('conv2dInputGradient', [dy, filter], { ...attributes, inputActivation: 'none' })[0]!.data
    const masked = runOp('conv2dInputGradient', [dy, filter, x], { ...attributes, inputActivation: 'relu' })[0]!.data
    expect([...masked]).toEqual(Array.from(plain, (value, i) => (x.data[i]! > 0 ? value : value * 0)))
  })
  it('of the fused filter gradient read the activated input', () => {
    const random = generator(5)
    const [x, dy] = [uniform(random, [1, 3, 3, 2]), uniform(random, [1, 3, 3, 2])]
    const attributes = { strides: [1, 1], dilations: [1, 1], padding: [1, 1, 1, 1], groups: 1, kernelSize: [3, 3] }
    const clipped = filled(
      x.type.shape,
      Array.from(x.data, (value) => Math.max(value, 0)),
    )
    expectClose(
      runOp('conv2dFilterGradient', [x, dy], { ...attributes, inputActivation: 'relu' })[0]!.data,
      runOp('conv2dFilterGradient', [clipped, dy], { ...attributes, inputActivation: 'none' })[0]!.data,
    )
  })
  it('are refused for a node that is already fused', () => {
    const definition = opDefinition('conv2d')
    expect(() =>
      trace((graph) => {
        const x = graph.input('x', { shape: [1, 2, 2, 1], dtype: 'float32' })
        const f = graph.input('f', { shape: [1, 1, 1, 1], dtype: 'float32' })
        const attributes = { strides: [1, 1], dilations: [1, 1], padding: [0, 0, 0, 0], groups: 1, kernelSize: [1, 1], activation: 'relu' }
        const outputs = graph.emit(definition, [x, f], attributes)
        definition.gradient!({ inputs: [x, f], outputs, attributes, gradients: outputs, needs: [true, true] })
      }),
    ).toThrowError(/conv2d: only the plain op is differentiated/)
  })
})

describe('conv2d shapes', () => {
  it('follow the padding', () => {
    expect(shapeOf(convolution({ strides: 2, padding: 'valid' }), [1, 299, 299, 3], [3, 3, 3, 32])).toEqual([1, 149, 149, 32])
    expect(shapeOf(convolution({ strides: 2 }), [1, 299, 299, 3], [3, 3, 3, 32])).toEqual([1, 150, 150, 32])
    expect(shapeOf(convolution({ strides: [1, 3], dilations: 2 }), [2, 9, 10, 4], [3, 3, 2, 6].with(2, 4))).toEqual([2, 9, 4, 6])
  })
  it('cost k² · cin · cout / groups per output position', () => {
    const type = (shape: number[]) => ({ shape, dtype: 'float32' as const })
    const attributes = { strides: [1, 1], dilations: [1, 1], padding: [1, 1, 1, 1], groups: 2 }
    expect(opDefinition('conv2d').macs!([type([2, 5, 5, 4]), type([3, 3, 2, 6])], [type([2, 5, 5, 6])], attributes)).toBe(
      (2 * 25 * 9 * 4 * 6) / 2,
    )
  })
  it.each([
    [
      'ERR_SHAPE',
      [1, 8, 8, 3],
      [3, 3, 16, 32],
      {},
      /conv2d: filter \[3, 3, 16, 32\] takes 16 channels per group in 1 group\(s\), but x \[1, 8, 8, 3\] has 3 channels/,
    ],
    ['ERR_SHAPE', [8, 8, 3], [3, 3, 3, 8], {}, /conv2d: x must be \[n, h, w, c\], got \[8, 8, 3\].*batch axis/],
    ['ERR_SHAPE', [1, 8, 8, 3], [3, 3, 3], {}, /filter must be \[kh, kw, cin \/ groups, cout\], got \[3, 3, 3\]/],
    ['ERR_SHAPE', [1, 8, 8, 4], [3, 3, 1, 8], { groups: 3 }, /3 does not divide cin = 4.*slice/],
    ['ERR_SHAPE', [1, 8, 8, 4], [3, 3, 2, 7], { groups: 2 }, /2 does not divide cout = 7/],
    ['ERR_ARGUMENT', [1, 8, 8, 4], [3, 3, 2, 8], { groups: 0 }, /groups must be a whole number/],
    ['ERR_SHAPE', [1, 4, 4, 1], [5, 5, 1, 1], { padding: 'valid' }, /a window of 5 x 5 does not fit into the padded input of 4 x 4/],
    ['ERR_ARGUMENT', [1, 4, 4, 1], [3, 3, 1, 1], { stride: 2 }, /unknown option 'stride'. Did you mean 'strides'/],
    ['ERR_ARGUMENT', [1, 4, 4, 1], [3, 3, 1, 1], { activation: 'gelu' }, /activation must be 'none', 'relu' or 'elu', got "gelu"/],
    ['ERR_ARGUMENT', [1, 4, 4, 1], [3, 3, 1, 1], { inputActivation: 'swish' }, /inputActivation must be/],
  ] as [string, number[], number[], Conv2dOptions, RegExp][])('%s for x %j, filter %j, %j', (code, x, filter, options, message) => {
    const build = () => shapeOf(convolution(options), x, filter)
    expect(build).toThrowError(message)
    expect(build).toThrowError(expect.objectContaining({ code }))
  })
  it('checks bias, scale, shift and residual by name', () => {
    for (const name of ['bias', 'scale', 'shift'])
      expect(() => shapeOf((x, f, extra) => conv2d(x!, f!, { [name]: extra }), [1, 4, 4, 1], [3, 3, 1, 8], [1])).toThrowError(
        new RegExp(`conv2d: ${name} must be \\[8\\].*got \\[1\\]`),
      )
    expect(() => shapeOf((x, f, residual) => conv2d(x!, f!, { residual }), [1, 4, 4, 1], [3, 3, 1, 8], [1, 1, 1, 8])).toThrowError(
      /conv2d: residual must be \[1, 4, 4, 8\]/,
    )
  })
  it('checks element types', () => {
    const build = (x: 'float32' | 'uint8', filter: 'float32' | 'bfloat16') => () =>
      trace(
        (graph) =>
          void conv2d(graph.input('x', { shape: [1, 4, 4, 1], dtype: x }), graph.input('f', { shape: [3, 3, 1, 1], dtype: filter })),
      )
    expect(build('uint8', 'float32')).toThrowError(expect.objectContaining({ code: 'ERR_DTYPE' }))
    expect(build('float32', 'bfloat16')).toThrowError(/filter must be float32 like the activations/)
  })
  it('names the layer that is being traced', () => {
    expect(() =>
      trace((graph) =>
        graph.inScope('block1', () =>
          conv2d(graph.input('x', { shape: [4, 4, 1], dtype: 'float32' }), graph.input('f', { shape: [3, 3, 1, 1], dtype: 'float32' })),
        ),
      ),
    ).toThrowError(/^block1: conv2d: x must be/)
  })
})
