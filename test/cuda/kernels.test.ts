/**
 * Every CUDA kernel's own source against the reference loops, on random shapes and attributes, in every adversary mode of the
 * emulator; the result must be the same in all modes, bit for bit. The suite also proves that it reaches every variant and tile.
 */

import { describe, expect, it } from 'vitest'
import type { Attributes } from '../../src/graph/graph.js'
import type { TensorType } from '../../src/graph/types.js'
import type { NativeExecutor } from '../../src/runtime/native.js'
import { type Filled, filled, generator, runOp, uniform, whole } from '../helpers.js'
import { encode, floats, inferred, runCall } from './calls.js'
import { emulator, MULTIPROCESSORS } from './emulator.js'

type Random = () => number
type Case = readonly [inputs: (Filled | null)[], attributes: Attributes]

const modes = new Map<string, NativeExecutor>()
for (const { name } of emulator().executors()) modes.set(name, emulator().openExecutor(name))
const chosen = new Map<string, Set<string>>()

const pick = <T>(random: Random, values: readonly T[]): T => values[whole(random, 0, values.length - 1)]!
const maybe = (random: Random, tensor: () => Filled): Filled | null => (random() < 0.5 ? tensor() : null)
const activation = (random: Random) => pick(random, ['none', 'relu', 'elu'])
const typesOf = (inputs: readonly (Filled | null)[]): (TensorType | null)[] => inputs.map((input) => (input === null ? null : input.type))

/** Runs a case in all modes. float32 sums of some hundred terms of size 1 differ from float64 ones by less than 1e-5. */
function check(kernel: string, [inputs, attributes]: Case): void {
  const expected = runOp(kernel, inputs, attributes)
  const description = emulator().describeKernel(
    kernel,
    typesOf(inputs),
    inferred(kernel, inputs, attributes),
    attributes,
    MULTIPROCESSORS,
  ).description
  if (!chosen.has(kernel)) chosen.set(kernel, new Set())
  chosen.get(kernel)!.add(description)
  let first: Uint8Array[] | undefined
  for (const [mode, executor] of modes) {
    const outputs = runCall(executor, kernel, inputs, attributes)
    expected.forEach((tensor, i) => {
      const got = floats(outputs[i]!)
      let worst = 0
      for (let at = 0; at < got.length; at++) {
        const error = Math.abs(got[at]! - tensor.data[at]!) / Math.max(1, Math.abs(tensor.data[at]!))
        if (!(error <= worst)) worst = error // NaN counts
      }
      expect(
        worst,
        `${mode}: ${kernel} output ${i}, ${description}, inputs ${JSON.stringify(typesOf(inputs).map((type) => type?.shape))} ${JSON.stringify(attributes)}`,
      ).toBeLessThan(1e-5)
    })
    first ??= outputs
    expect(
      outputs.every((bytes, i) => Buffer.compare(bytes, first![i]!) === 0),
      `${mode}: ${kernel}, ${description}: same bits as in the first mode`,
    ).toBe(true)
  }
}

/** Panels of the packed form: what CPU programs carry, and one that forbids 16-byte accesses. */
function pack(random: Random, filter: Filled): Filled {
  const packed = runOp('packFilter', [filter], { panel: pick(random, [4, 6, 16, 32]) })[0]!
  return filled(packed.shape, packed.data)
}

interface WindowCase {
  readonly x: Filled
  readonly filter: Filled
  readonly geometry: { strides: [number, number]; dilations: [number, number]; padding: [number, number, number, number] }
  readonly c: number
  readonly m: number
}

/** Any window over any input that it fits into; `simple`: 3x3 of that stride, as in Xception. */
function windowCase(random: Random, simple: 1 | 2 | undefined, c: number, m: number): WindowCase {
  const kernel = simple ? [3, 3] : [whole(random, 1, 5), whole(random, 1, 5)]
  const strides: [number, number] = simple ? [simple, simple] : [whole(random, 1, 3), whole(random, 1, 3)]
  const dilations: [number, number] = simple ? [1, 1] : [whole(random, 1, 3), whole(random, 1, 3)]
  const padding = Array.from({ length: 4 }, () => whole(random, 0, 2)) as [number, number, number, number]
  const least = (axis: 0 | 1) => Math.max(1, (kernel[axis]! - 1) * dilations[axis] + 1 - padding[axis * 2]! - padding[axis * 2 + 1]!)
  const size = [least(0) + whole(random, 0, 9), least(1) + whole(random, 0, 20)]
  return {
    x: uniform(random, [whole(random, 1, 2), size[0]!, size[1]!, c]),
    filter: uniform(random, [kernel[0]!, kernel[1]!, c, m]),
    geometry: { strides, dilations, padding },
    c,
    m,
  }
}

function depthwiseCase(random: Random, simple: 1 | 2 | undefined, c: number, m: number, fused: boolean): Case {
  const { x, filter, geometry } = windowCase(random, simple, c, m)
  if (!fused) return [[x, filter, null, null, null, null, null], geometry]
  const y = inferred('depthwiseConv2d', [x, filter], geometry)[0]!
  const vector = (length: number) => () => uniform(random, [length])
  const inputs = [
    x,
    filter,
    maybe(random, vector(c)),
    maybe(random, vector(c)),
    maybe(random, vector(c * m)),
    maybe(random, vector(c * m)),
    maybe(random, () => uniform(random, y.shape)),
  ]
  return [inputs, { ...geometry, inputActivation: activation(random), activation: activation(random) }]
}

function pointwiseCase(random: Random, leading: number[], depth: number, columns: number, packed: boolean, statistics = false): Case {
  const filter = uniform(random, [depth, columns])
  const optional = <T>(make: () => T) => (statistics || random() < 0.5 ? null : make())
  const inputs = [
    uniform(random, [...leading, depth]),
    packed ? pack(random, filter) : filter,
    optional(() => uniform(random, [columns])),
    optional(() => uniform(random, [columns])),
    optional(() => uniform(random, [...leading, columns])),
  ]
  const attributes = { inputActivation: activation(random), activation: statistics ? 'none' : activation(random), packed, cout: columns }
  return [inputs, statistics ? { ...attributes, statistics } : attributes]
}

function separableCase(random: Random, simple: 1 | 2 | undefined, c: number, m: number, columns: number, packed: boolean): Case {
  const { x, filter, geometry } = windowCase(random, simple, c, m)
  const pointwise = uniform(random, [c * m, columns])
  const y = inferred('separableConv2d', [x, filter, pointwise], geometry)[0]!
  const vector = (length: number) => maybe(random, () => uniform(random, [length]))
  const inputs = [
    x,
    filter,
    packed ? pack(random, pointwise) : pointwise,
    vector(c),
    vector(c),
    vector(c * m),
    vector(columns),
    vector(columns),
  ]
  return [
    [...inputs, maybe(random, () => uniform(random, y.shape))],
    {
      ...geometry,
      inputActivation: activation(random),
      intermediateActivation: activation(random),
      activation: activation(random),
      packed,
      cout: columns,
    },
  ]
}

describe('depthwiseConv2d', () => {
  it('plain and fused, 3x3, channels in fours and odd ones', () => {
    const random = generator(1)
    for (const stride of [1, 2] as const)
      for (const c of [4, 8, 36, 1, 33]) check('depthwiseConv2d', depthwiseCase(random, stride, c, 1, c % 8 > 0))
  })
  it('any window, stride, dilation and padding', () => {
    const random = generator(2)
    for (let trial = 0; trial < 30; trial++)
      check('depthwiseConv2d', depthwiseCase(random, undefined, pick(random, [3, 4, 12, 34]), 1, trial % 3 > 0))
  })
  it('5x5', () => {
    const random = generator(17)
    for (const c of [4, 36])
      check('depthwiseConv2d', [
        [uniform(random, [2, 7, 9, c]), uniform(random, [5, 5, c, 1])],
        { strides: [1, 1], dilations: [1, 1], padding: [2, 2, 2, 2], inputActivation: 'relu' },
      ])
  })
  it('multipliers', () => {
    const random = generator(3)
    for (const m of [2, 3, 4]) check('depthwiseConv2d', depthwiseCase(random, m === 2 ? 1 : undefined, pick(random, [1, 3, 4]), m, true))
  })
  it('a window whose tile exceeds shared memory, and one output alone', () => {
    const random = generator(4)
    const wide = { strides: [1, 1], dilations: [9, 9], padding: [18, 18, 18, 18] }
    check('depthwiseConv2d', [[uniform(random, [1, 21, 21, 4]), uniform(random, [5, 5, 4, 1])], wide])
    const global = { strides: [1, 1], dilations: [1, 1], padding: [0, 0, 0, 0] }
    check('depthwiseConv2d', [[uniform(random, [2, 5, 7, 8]), uniform(random, [5, 7, 8, 1])], global])
  })
})

describe('depthwiseConv2dFilterGradient', () => {
  it('3x3 and 5x5 in one pass, other windows a tap per block', () => {
    const random = generator(18)
    for (const [kernel, c, m, stride, dilation] of [
      [3, 4, 1, 1, 1],
      [3, 36, 1, 1, 1],
      [3, 33, 1, 1, 1],
      [3, 8, 1, 2, 1],
      [3, 5, 1, 3, 2],
      [5, 36, 1, 1, 1],
      [5, 4, 1, 2, 1],
      [5, 3, 1, 1, 1],
      [3, 4, 2, 1, 1],
      [4, 8, 1, 1, 1],
    ] as const)
      for (const [height, width] of [
        [7, 9],
        [20, 37],
      ] as const) {
        const geometry = { strides: [stride, stride], dilations: [dilation, dilation], padding: [2, 1, 0, 2] }
        const x = uniform(random, [2, height, width, c])
        const y = inferred('depthwiseConv2d', [x, uniform(random, [kernel, kernel, c, m])], geometry)[0]!
        const attributes = { ...geometry, kernelSize: [kernel, kernel], inputActivation: activation(random) }
        const normalised = random() < 0.5
        const vector = () => (normalised ? uniform(random, [c]) : null)
        check('depthwiseConv2dFilterGradient', [[x, uniform(random, y.shape), vector(), vector()], attributes])
      }
  })
})

describe('pointwiseConv2d', () => {
  it('rows, depths and columns that fill no tile', () => {
    const random = generator(5)
    for (let trial = 0; trial < 20; trial++)
      check(
        'pointwiseConv2d',
        pointwiseCase(random, [whole(random, 1, 3), whole(random, 1, 30)], whole(random, 1, 40), whole(random, 1, 70), trial % 2 > 0),
      )
  })
  it('channels in fours', () => {
    const random = generator(6)
    for (const packed of [false, true]) {
      check('pointwiseConv2d', pointwiseCase(random, [1, 7, 5], 36, 68, packed))
      check('pointwiseConv2d', pointwiseCase(random, [70], 20, 72, packed))
    }
  })
  it('the large tile', () => {
    const random = generator(7)
    check('pointwiseConv2d', pointwiseCase(random, [2, 13, 15], 12, 68, false))
  })
  it('many rows of odd channels', () => {
    const random = generator(8)
    check('pointwiseConv2d', pointwiseCase(random, [100], 17, 67, true))
  })
  it('dense: one row', () => {
    const random = generator(9)
    check('pointwiseConv2d', pointwiseCase(random, [1], 64, 10, false))
  })
  it('emits the statistics of what it stores', () => {
    const random = generator(10)
    for (const rows of [1, 5, 300]) check('pointwiseConv2d', pointwiseCase(random, [rows], 8, 37, rows === 5, true))
  })
})

describe('separableConv2d', () => {
  it('3x3 as in Xception, with all prologues and epilogues', () => {
    const random = generator(11)
    for (let trial = 0; trial < 18; trial++)
      check(
        'separableConv2d',
        separableCase(random, trial % 3 > 0 ? 1 : 2, pick(random, [4, 16, 20]), 1, pick(random, [8, 12, 68]), trial % 2 > 0),
      )
  })
  it('any window, multiplier and channel count', () => {
    const random = generator(12)
    for (let trial = 0; trial < 20; trial++)
      check(
        'separableConv2d',
        separableCase(random, undefined, whole(random, 1, 9), whole(random, 1, 3), whole(random, 1, 20), trial % 2 > 0),
      )
  })
  it('the wide tile', () => {
    const random = generator(13)
    const inputs = [uniform(random, [2, 8, 9, 20]), uniform(random, [3, 3, 20, 1]), uniform(random, [20, 72])]
    check('separableConv2d', [inputs, { strides: [1, 1], dilations: [1, 1], padding: [1, 1, 1, 1], inputActivation: 'relu' }])
    check('separableConv2d', [inputs, { strides: [1, 1], dilations: [2, 1], padding: [2, 2, 1, 1], activation: 'elu' }])
    check('separableConv2d', [
      [inputs[0]!, inputs[1]!, uniform(random, [20, 24])],
      { strides: [1, 1], dilations: [1, 2], padding: [1, 1, 2, 2] },
    ])
  })
})

describe('batchNormStatistics', () => {
  it('keeps its digits when the mean is large', () => {
    const random = generator(14)
    const shape = [3, 10, 13, 35]
    const x = filled(
      shape,
      Float32Array.from({ length: 3 * 10 * 13 * 35 }, (_, i) => 1000 + (i % 35) + random()),
    )
    const expected = runOp('batchNormStatistics', [x], {})
    for (const [mode, executor] of modes) {
      const [mean, variance] = runCall(executor, 'batchNormStatistics', [x], {}).map(floats)
      for (let c = 0; c < 35; c++) {
        expect(mean![c], mode).toBeCloseTo(expected[0]!.data[c]!, 3)
        expect(Math.abs(variance![c]! / expected[1]!.data[c]! - 1), mode).toBeLessThan(1e-3)
      }
    }
  })
  it('shapes around the size of a chunk', () => {
    const random = generator(15)
    for (const rows of [1, 255, 256, 257, 600]) check('batchNormStatistics', [[uniform(random, [rows, whole(random, 1, 40)])], {}])
  })
})

describe('packFilter and copy', () => {
  it('packs like the reference', () => {
    const random = generator(16)
    for (const panel of [1, 4, 6, 16, 48]) check('packFilter', [[uniform(random, [whole(random, 1, 20), whole(random, 1, 50)])], { panel }])
  })
  it('copies any dtype and length', () => {
    for (const [dtype, length] of [
      ['float32', 1],
      ['float32', 1027],
      ['int32', 7],
      ['uint8', 1],
      ['uint8', 4099],
    ] as const) {
      const x = filled(
        [length],
        Array.from({ length }, (_, i) => (i * 7) % 251),
        dtype,
      )
      for (const executor of modes.values()) expect(Buffer.compare(runCall(executor, 'copy', [x], {}, [x.type])[0]!, encode(x))).toBe(0)
    }
  })
})

describe('the cases above', () => {
  it('have reached every variant and tile', () => {
    // Tiles of depthwise kernels vary with the shape: their variants count.
    const variants = (kernel: string) => [...new Set([...chosen.get(kernel)!].map((text) => text.replace(/ \d+x\d+,/, ',')))].sort()
    expect(variants('depthwiseConv2d')).toEqual([
      'direct, 1 channel per access',
      'direct, 4 channels per access',
      'tiled, 1 channel per access',
      'tiled, 4 channels per access',
      'tiled3x3, 1 channel per access',
      'tiled3x3, 4 channels per access',
      'tiled3x3Stride2, 4 channels per access',
      'tiled5x5, 4 channels per access',
    ])
    expect(variants('depthwiseConv2dFilterGradient')).toEqual([
      'a tap per block, 1 channel per access',
      'a tap per block, 4 channels per access',
      'tiled, 1 channel per access',
      'tiled, 4 channels per access',
    ])
    expect([...chosen.get('pointwiseConv2d')!].sort()).toEqual([
      '128x128, 4 elements per access',
      '32x64, 1 element per access',
      '32x64, 4 elements per access',
      '64x64, 4 elements per access',
    ])
    expect([...chosen.get('separableConv2d')!].sort()).toEqual([
      '32x64, 1 element per access, any taps',
      '32x64, 4 elements per access, 3x3 taps',
      '32x64, 4 elements per access, any taps',
      '64x128, 4 elements per access, 3x3 taps',
      '64x128, 4 elements per access, any taps',
    ])
  })
})
