/**
 * bfloat16 storage in every kernel that takes it, and the tensor-core kernels (mma.sync) in both formats: every tile, splits, groups,
 * prologues and epilogues, in every adversary mode with the same bits. The reference gets operands rounded as the hardware rounds
 * them, so that what is left is the order of float32 sums and, for bfloat16 outputs, their own rounding.
 */

import { describe, expect, it } from 'vitest'
import type { Attributes } from '../../src/graph/graph.js'
import type { TensorType } from '../../src/graph/types.js'
import type { NativeExecutor } from '../../src/runtime/native.js'
import { relativeError } from '../../src/runtime/verify.js'
import { type Filled, filled, generator, runOp, uniform } from '../helpers.js'
import { Cases, STORED, typeOf } from '../runtime/cases.js'
import { makers } from '../runtime/makers.js'
import { decode, encode, inferred, runCall } from './calls.js'

/** Where to run: executors of one device that must give the same bits. */
export interface Bench {
  readonly modes: ReadonlyMap<string, NativeExecutor>
  /** The variant that is chosen for a call; absent where the device is what it is. */
  describe?(kernel: string, inputs: readonly (TensorType | null)[], outputs: readonly TensorType[], attributes: Attributes): string
}

export const roundBfloat16 = (data: ArrayLike<number>): Float32Array => {
  const type: TensorType = { dtype: 'bfloat16', shape: [data.length] }
  return decode(type, encode({ type, data }))
}
/** Nearest with 10 bits of mantissa, ties away from zero. */
const roundTf32 = (data: ArrayLike<number>): Float32Array => {
  const bits = new Uint32Array(Float32Array.from(data).buffer)
  for (let i = 0; i < bits.length; i++) bits[i] = (bits[i]! + 0x1000) & 0xffffe000
  return new Float32Array(bits.buffer)
}

const isFloat = (tensor: Filled | null): tensor is Filled => tensor?.type.dtype === 'float32'

/** The case in another storage or precision, and what the reference makes of it. */
export function convert(kernel: string, inputs: readonly (Filled | null)[], attributes: Attributes, precision: 'bfloat16' | 'tf32') {
  const stored = (i: number) => STORED[kernel]!.includes(i)
  const round = precision === 'bfloat16' ? roundBfloat16 : roundTf32
  // tf32 rounds the operands of the product alone: what comes after reads float32.
  const rounds = (i: number) => (precision === 'bfloat16' ? stored(i) : i < (kernel.startsWith('separableConv2d') ? 0 : 2))
  const rounded = inputs.map((tensor, i) => (isFloat(tensor) && rounds(i) ? filled(tensor.type.shape, round(tensor.data)) : tensor))
  const given = rounded.map((tensor, i) =>
    isFloat(tensor) && stored(i) && precision === 'bfloat16' ? filled(tensor.type.shape, tensor.data, 'bfloat16') : tensor,
  )
  return {
    given,
    attributes: precision === 'tf32' ? { ...attributes, precision } : attributes,
    expected: runOp(kernel, rounded, attributes),
    outputs: inferred(kernel, given, attributes),
  }
}

export function testPrecision(bench: Bench): void {
  describe('bfloat16 storage', () => {
    const all = makers(16)
    it.each(Object.keys(STORED))('%s', (kernel) => {
      const executors = [...bench.modes]
      for (let round = 0; round < 14; round++) {
        const made = all[kernel]!(new Cases(500 * round + kernel.length))
        if (made.inputs.some((tensor, i) => STORED[kernel]!.includes(i) && tensor && !(tensor.data instanceof Float32Array))) continue
        const inputs = made.inputs.map((tensor) => tensor && { type: typeOf(tensor)!, data: tensor.data })
        const { given, expected, outputs } = convert(kernel, inputs, made.attributes, 'bfloat16')
        const [mode, executor] = executors[round % executors.length]!
        const got = runCall(executor, kernel, given, made.attributes, outputs)
        expected.forEach(({ data }, i) => {
          const half = outputs[i]!.dtype === 'bfloat16'
          // One rounding of the result; separableConv2d rounds its intermediate result too where tensor cores take it. A depthwise
          // tile in bfloat16 rounds what a prologue other than ReLU makes of x.
          const inexact = kernel === 'depthwiseConv2dFilterGradient' && (given[2] || given[3] || made.attributes.inputActivation === 'elu')
          const summed = inexact || ['batchNormStatistics', 'pointwiseConv2d', 'separableConv2dPointwiseGradient'].includes(kernel)
          expect(
            relativeError(decode(outputs[i]!, got[i]!), half ? roundBfloat16(data) : data),
            `${mode}: ${kernel} round ${round} output ${i} ${JSON.stringify({ shapes: made.inputs.map((x) => x?.shape ?? null), attributes: made.attributes })}`,
          ).toBeLessThan(half || summed ? 0.01 : 2e-5)
        })
      }
    })
  })

  const chosen = new Set<string>()

  /** Any case in all modes: the reference's values, and the same bits. */
  function agree(kernel: string, inputs: readonly (Filled | null)[], attributes: Attributes, precision: 'tf32' | 'bfloat16'): string {
    const converted = convert(kernel, inputs, attributes, precision)
    const types = converted.given.map((tensor) => tensor && tensor.type)
    const description = bench.describe?.(kernel, types, converted.outputs, converted.attributes) ?? ''
    let first: Uint8Array[] | undefined
    for (const [mode, executor] of bench.modes) {
      const got = runCall(executor, kernel, converted.given, converted.attributes, converted.outputs)
      converted.expected.forEach(({ data }, i) => {
        const half = converted.outputs[i]!.dtype === 'bfloat16'
        const rounded = kernel.startsWith('separableConv2d') // the depthwise result
        const tolerance = rounded
          ? half || (precision === 'bfloat16' && i)
            ? 0.01
            : precision === 'bfloat16'
              ? 4e-3
              : 1e-3
          : half
            ? 0.005
            : precision === 'bfloat16' && i
              ? 1e-2
              : 2e-5
        expect(
          relativeError(decode(converted.outputs[i]!, got[i]!), data),
          `${mode}: ${kernel} output ${i}, ${description}, ${JSON.stringify(types.map((type) => type?.shape))} ${JSON.stringify(attributes)}`,
        ).toBeLessThan(tolerance)
      })
      first ??= got
      expect(
        got.every((bytes, i) => Buffer.compare(bytes, first![i]!) === 0),
        `${mode}: ${kernel}, ${description}: same bits as in the first mode`,
      ).toBe(true)
    }
    return description
  }

  function check(kernel: string, inputs: readonly (Filled | null)[], attributes: Attributes): void {
    for (const precision of ['tf32', 'bfloat16'] as const) {
      const description = agree(kernel, inputs, attributes, precision)
      if (!bench.describe) continue
      expect(description, kernel).toMatch(new RegExp(`^${precision} `))
      chosen.add(`${kernel}: ${description.replace(/\d+ splits/, 'splits')}`)
    }
  }

  describe('bfloat16 depthwise tiles, 16 bytes per copy', () => {
    const random = generator(22)
    const tensor = (...shape: number[]) => uniform(random, shape)
    const reached = new Set<string>()
    const window = (kernel: number, stride: number, dilation = 1) => ({
      strides: [stride, stride],
      dilations: [dilation, dilation],
      padding: Array.from({ length: 4 }, () => ((kernel - 1) / 2) * dilation),
    })
    const shapes = [
      [3, 1, 1],
      [3, 2, 1],
      [5, 1, 1],
      [3, 1, 2],
      [5, 2, 1],
      [7, 1, 1],
    ] as const
    const note = (description: string) => reached.add(description.replace(/ \d+x\d+,/, ','))
    it.each(shapes)('window of %i, stride %i, dilation %i: forward and both gradients', (kernel, stride, dilation) => {
      for (const [height, width, c] of [
        [9, 21, 72],
        [4, 5, 8],
        [19, 3, 136],
      ] as const) {
        const geometry = window(kernel, stride, dilation)
        const [x, filter] = [tensor(2, height, width, c), tensor(kernel, kernel, c, 1)]
        const [y] = inferred('depthwiseConv2d', [x, filter], geometry)
        const dy = uniform(random, y!.shape)
        const prologues = [{ inputActivation: 'none' }, { inputActivation: 'relu' }] as const
        for (const before of prologues) {
          note(agree('depthwiseConv2d', [x, filter], { ...geometry, ...before }, 'bfloat16'))
          const mask = before.inputActivation === 'relu' ? x : null
          const inputSize = [height, width]
          agree('depthwiseConv2dInputGradient', [dy, filter, mask, null, null], { ...geometry, ...before, inputSize }, 'bfloat16')
          const attributes = { ...geometry, ...before, kernelSize: [kernel, kernel] }
          note(`gradient ${agree('depthwiseConv2dFilterGradient', [x, dy], attributes, 'bfloat16')}`)
        }
        // Normalised and activated on the way in, everything on the way out: the normalised tile is rounded to bfloat16 once.
        const inputs = [x, filter, tensor(c), tensor(c), tensor(c), tensor(c), uniform(random, y!.shape)]
        agree('depthwiseConv2d', inputs, { ...geometry, inputActivation: 'relu', activation: 'elu' }, 'bfloat16')
      }
    })
    it.skipIf(!bench.describe)('have reached every variant', () => {
      for (const variant of ['tiled3x3', 'tiled3x3Stride2', 'tiled5x5', 'tiled', 'gradient tiled'])
        expect([...reached]).toContain(`${variant}, 4 channels per access, bfloat16 tile`)
    })
  })

  describe('tensor cores', () => {
    const random = generator(21)
    const tensor = (...shape: number[]) => uniform(random, shape)
    it('pointwise: tiles that are not filled, prologue, epilogue, residual', () => {
      for (const [rows, cin, cout] of [
        [1, 8, 8],
        [70, 40, 72],
        [130, 24, 136],
        [300, 72, 128],
      ] as const) {
        check('pointwiseConv2d', [tensor(rows, cin), tensor(cin, cout), tensor(cout), tensor(cout), tensor(rows, cout)], {
          inputActivation: 'relu',
          activation: 'elu',
        })
        check('pointwiseConv2d', [tensor(rows, cin), tensor(cin, cout)], {})
      }
    })
    it('pointwise: statistics out of the epilogue', () => {
      for (const rows of [2, 65, 300]) check('pointwiseConv2d', [tensor(rows, 16), tensor(16, 136)], { statistics: true })
    })
    it('pointwise: data gradient', () => {
      check('pointwiseConv2dInputGradient', [tensor(300, 72), tensor(136, 72), tensor(300, 136)], { inputActivation: 'elu' })
      check('pointwiseConv2dInputGradient', [tensor(9, 40), tensor(24, 40), null], { inputActivation: 'none' })
    })
    it('pointwise: filter gradient, whole and split', () => {
      check('pointwiseConv2dFilterGradient', [tensor(50, 24), tensor(50, 72)], { inputActivation: 'none' })
      check('pointwiseConv2dFilterGradient', [tensor(517, 72), tensor(517, 136)], { inputActivation: 'relu' })
    })
    const same = { strides: [1, 1], dilations: [1, 1], padding: [1, 1, 1, 1] } as const
    it('convolution: strides, dilations, groups', () => {
      for (const [groups, geometry] of [
        [1, same],
        [2, { strides: [2, 1], dilations: [1, 2], padding: [0, 1, 2, 2] }],
      ] as const) {
        const [cin, cout] = [16 * groups, 24 * groups]
        const [x, filter] = [tensor(2, 9, 10, cin), tensor(3, 3, cin / groups, cout)]
        const attributes = { ...geometry, groups, kernelSize: [3, 3], cout, packed: false, inputActivation: 'relu', activation: 'none' }
        const [y] = inferred('conv2d', [x, filter], attributes)
        const dy = uniform(random, y!.shape)
        check('conv2d', [x, filter, tensor(cout), tensor(cout), uniform(random, y!.shape)], attributes)
        check('conv2dInputGradient', [dy, filter, x], {
          ...geometry,
          groups,
          inputActivation: 'relu',
          inputSize: [9, 10],
          kernelSize: [3, 3],
        })
        check('conv2dFilterGradient', [x, dy], { ...geometry, groups, inputActivation: 'relu', kernelSize: [3, 3] })
      }
    })
    it('convolution: the large tile', () => {
      const attributes = { ...same, groups: 1, kernelSize: [3, 3], cout: 136, packed: false }
      const [x, filter] = [tensor(1, 12, 13, 16), tensor(3, 3, 16, 136)]
      check('conv2d', [x, filter], attributes)
      check('conv2dInputGradient', [tensor(1, 12, 13, 16), tensor(3, 3, 136, 16), null], {
        ...same,
        groups: 1,
        inputSize: [12, 13],
        kernelSize: [3, 3],
      })
      check('conv2dFilterGradient', [x, tensor(1, 12, 13, 136)], { ...same, groups: 1, kernelSize: [3, 3] })
    })
    it('separable: the depthwise result straight into the operand tile', () => {
      for (const [c, cout, stride] of [
        [16, 24, 1],
        [40, 136, 1],
        [24, 72, 2],
      ] as const) {
        const geometry = { strides: [stride, stride], dilations: [1, 1], padding: [1, 1, 1, 1] }
        const inputs = [tensor(2, 13, 12, c), tensor(3, 3, c, 1), tensor(c, cout)]
        const [y] = inferred('separableConv2d', inputs, geometry)
        check('separableConv2d', inputs, geometry)
        check('separableConv2d', [...inputs, tensor(c), tensor(c), tensor(c), tensor(cout), tensor(cout), uniform(random, y!.shape)], {
          ...geometry,
          inputActivation: 'relu',
          intermediateActivation: 'elu',
          activation: 'relu',
        })
      }
    })
    it('separable: other windows, strides and dilations', () => {
      for (const [kernel, c, cout, strides, dilations, padding] of [
        [[5, 5], 16, 24, [1, 1], [1, 1], [2, 2, 2, 2]],
        [[3, 3], 24, 136, [1, 1], [2, 2], [2, 2, 2, 2]],
        [[1, 4], 8, 72, [2, 1], [1, 3], [0, 1, 3, 2]],
        [[7, 3], 40, 136, [1, 2], [1, 1], [3, 3, 0, 2]],
      ] as const) {
        const geometry = { strides, dilations, padding }
        const inputs = [tensor(2, 12, 13, c), tensor(...kernel, c, 1), tensor(c, cout)]
        check('separableConv2d', inputs, geometry)
        check('separableConv2d', [...inputs, tensor(c), tensor(c), tensor(c), tensor(cout), tensor(cout)], {
          ...geometry,
          inputActivation: 'elu',
          intermediateActivation: 'relu',
          activation: 'elu',
        })
      }
    })
    it('separable: statistics out of the epilogue', () => {
      for (const width of [3, 13])
        check('separableConv2d', [tensor(2, 12, width, 16), tensor(3, 3, 16, 1), tensor(16, 136)], { ...same, statistics: true })
    })
    it('separable: gradient of the pointwise filter, the depthwise result computed again', () => {
      for (const [kernel, c, cout, strides, dilations, padding] of [
        [[3, 3], 24, 40, [1, 1], [1, 1], [1, 1, 1, 1]], // rows of 13: strips that cross them
        [[3, 3], 72, 136, [1, 1], [1, 1], [0, 2, 2, 0]],
        [[3, 3], 72, 136, [2, 2], [1, 1], [1, 1, 1, 1]],
        [[3, 3], 16, 24, [2, 1], [1, 1], [1, 1, 1, 1]],
        [[5, 2], 40, 24, [1, 1], [1, 2], [2, 2, 1, 1]],
        [[3, 3], 72, 136, [1, 1], [2, 2], [2, 2, 2, 2]],
      ] as const) {
        const geometry = { strides, dilations, padding }
        const [x, filter] = [tensor(2, 12, 13, c), tensor(...kernel, c, 1)]
        const [, height, width] = inferred('depthwiseConv2d', [x, filter], geometry)[0]!.shape
        const dy = tensor(2, height!, width!, cout)
        check('separableConv2dPointwiseGradient', [x, filter, dy], geometry)
        check('separableConv2dPointwiseGradient', [x, filter, dy, tensor(c), tensor(c), tensor(c)], {
          ...geometry,
          inputActivation: 'relu',
          intermediateActivation: 'elu',
        })
      }
    })
    it.skipIf(!bench.describe)('have reached every kernel in both tiles', () => {
      const kernels = ['pointwiseConv2d', 'pointwiseConv2dInputGradient', 'separableConv2d', 'conv2d', 'conv2dInputGradient']
      for (const precision of ['tf32', 'bfloat16']) {
        for (const kernel of kernels)
          for (const tile of ['64x64', '128x128'])
            for (const taps of kernel === 'separableConv2d' ? [', 3x3 taps', ', any taps'] : [''])
              expect([...chosen]).toContain(`${kernel}: ${precision} ${tile}${taps}`)
        for (const tile of ['64x64', '128x128'])
          expect(
            [...chosen].some((text) => text.startsWith(`conv2dFilterGradient: ${precision} ${tile}`)),
            tile,
          ).toBe(true)
        expect([...chosen]).toContain(`pointwiseConv2dFilterGradient: ${precision} 128x128, splits`)
        for (const tile of ['64x64, splits', '128x128, splits'])
          for (const taps of ['3x3', 'any'])
            expect([...chosen]).toContain(`separableConv2dPointwiseGradient: ${precision} ${tile}, ${taps} taps`)
      }
    })
    const products: [kernel: string, inputs: () => (Filled | null)[], attributes: Attributes][] = [
      ['pointwiseConv2d', () => [tensor(70, 16), tensor(16, 72)], {}],
      ['pointwiseConv2dInputGradient', () => [tensor(70, 72), tensor(16, 72), null], { inputActivation: 'none' }],
      ['pointwiseConv2dFilterGradient', () => [tensor(200, 16), tensor(200, 72)], { inputActivation: 'relu' }],
      ['separableConv2d', () => [tensor(1, 9, 13, 16), tensor(3, 3, 16, 1), tensor(16, 72)], same],
      ['separableConv2d', () => [tensor(1, 9, 13, 16), tensor(3, 3, 16, 1), tensor(16, 72)], { ...same, statistics: true }],
      ['separableConv2dPointwiseGradient', () => [tensor(1, 9, 13, 16), tensor(3, 3, 16, 1), tensor(1, 9, 13, 72)], same],
      [
        'conv2d',
        () => [tensor(1, 9, 13, 16), tensor(3, 3, 16, 72)],
        { ...same, groups: 1, kernelSize: [3, 3], cout: 72, packed: false, inputActivation: 'relu' },
      ],
      [
        'conv2dInputGradient',
        () => [tensor(1, 9, 13, 72), tensor(3, 3, 16, 72), null],
        { ...same, groups: 1, inputSize: [9, 13], kernelSize: [3, 3] },
      ],
      ['conv2dFilterGradient', () => [tensor(1, 9, 13, 16), tensor(1, 9, 13, 72)], { ...same, groups: 1, kernelSize: [3, 3] }],
    ]
    it.each(products)('%s: every tile that the tuner may take', (kernel, make, attributes) => {
      const [executor] = bench.modes.values()
      for (const precision of ['tf32', 'bfloat16'] as const) {
        const inputs = make()
        const { given, outputs, attributes: all } = convert(kernel, inputs, attributes, precision)
        const types = given.map((input) => input && input.type)
        const tiles = executor!.tiles(kernel, types, outputs, all)
        expect(tiles).toEqual(['64x64', '128x128'])
        for (const tile of tiles) {
          const description = agree(kernel, inputs, { ...attributes, tile }, precision)
          if (bench.describe) expect(description).toMatch(new RegExp(`^${precision} ${tile}`))
        }
        expect(() => runCall(executor!, kernel, given, { ...all, tile: '32x64' }, outputs)).toThrow(
          /there is no tile '32x64' for this shape/,
        )
      }
    })
    it('pass NaN through the ReLU in front', () => {
      const x = filled(
        [8, 8],
        Float32Array.from({ length: 64 }, (_, i) => (i === 9 ? Number.NaN : -1)),
      )
      for (const precision of ['tf32', 'bfloat16'] as const) {
        const { given, attributes, outputs } = convert('pointwiseConv2d', [x, tensor(8, 8)], { inputActivation: 'relu' }, precision)
        const y = decode(outputs[0]!, runCall([...bench.modes.values()][0]!, 'pointwiseConv2d', given, attributes, outputs)[0]!)
        expect(y.map((value, i) => (Number.isNaN(value) ? 1 : 0) ^ (i >= 8 && i < 16 ? 1 : 0)).every((wrong) => wrong === 0)).toBe(true)
      }
    })
  })
}
