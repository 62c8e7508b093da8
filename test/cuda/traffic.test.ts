/** What the kernels move, counted on the emulator: global bytes against the least possible, and bank conflicts of shared memory. */

import { describe, expect, it } from 'vitest'
import type { Attributes } from '../../src/graph/graph.js'
import { byteLength } from '../../src/graph/types.js'
import { type Filled, filled, generator, uniform } from '../helpers.js'
import { inferred, runCall } from './calls.js'
import { type Account, emulator } from './emulator.js'

const executor = emulator().openExecutor('emulator:counting')
const random = generator(31)
const tensor = (...shape: number[]) => uniform(random, shape)
const half = (t: Filled) => filled(t.type.shape, t.data, 'bfloat16')
const bytes = (...tensors: Filled[]) => tensors.reduce((sum, { type }) => sum + byteLength(type), 0)

function count(kernel: string, inputs: Filled[], attributes: Attributes): Record<string, Account> {
  emulator().takeAccounts()
  runCall(executor, kernel, inputs, attributes)
  const counted = emulator().takeAccounts()
  for (const [name, { bytesRead, bytesWritten, sharedPasses, sharedMinimum, conflicts }] of Object.entries(counted))
    console.log(
      `${name} ${inputs.map(({ type }) => `${type.dtype}[${type.shape}]`).join(' ')}: read ${bytesRead}, written ${bytesWritten}, shared passes ${sharedPasses} of ${sharedMinimum} at least ${JSON.stringify(conflicts)}`,
    )
  return counted
}

const same = { strides: [1, 1], dilations: [1, 1], padding: [1, 1, 1, 1] } as const

describe('depthwise 3x3', () => {
  it('reads x with its halo once, writes y once, and has no bank conflicts', () => {
    const [x, filter] = [tensor(1, 32, 32, 64), tensor(3, 3, 64, 1)]
    const { depthwiseConv2d: moved } = count('depthwiseConv2d', [x, filter], same)
    expect(moved!.bytesWritten).toBe(bytes(x))
    // Tiles of 8 x 16 outputs read 10 x 18 inputs at most; the taps come from the caches.
    const blocks = 4 * 2 * 2
    expect(moved!.bytesRead).toBeLessThanOrEqual(blocks * (10 * 18 * 32 + 128 * 9 * 4) * 4)
    expect(moved!.sharedPasses).toBe(moved!.sharedMinimum)
  })
  it.each(['float32', 'bfloat16'] as const)('in %s, the data gradient too: as much, half of it in bfloat16', (dtype) => {
    const store = dtype === 'bfloat16' ? half : (t: Filled) => t
    const [x, filter] = [store(tensor(1, 32, 32, 64)), store(tensor(3, 3, 64, 1))]
    const bytesPer = dtype === 'bfloat16' ? 2 : 4
    const { depthwiseConv2dInputGradient: moved } = count('depthwiseConv2dInputGradient', [x, filter], {
      ...same,
      inputActivation: 'none',
      inputSize: [32, 32],
    })
    expect(moved!.bytesWritten).toBe(bytes(x))
    // Per block 10 x 18 positions of 128 bytes and the taps of 128 threads.
    const blocks = (4 * 2 * 64 * bytesPer) / 128
    expect(moved!.bytesRead).toBeLessThanOrEqual(blocks * (10 * 18 * 128 + 128 * 9 * 4 * bytesPer))
    expect(moved!.sharedPasses).toBe(moved!.sharedMinimum)
  })
  it.each([
    [3, 'float32'],
    [5, 'float32'],
    [3, 'bfloat16'],
    [5, 'bfloat16'],
  ] as const)('filter gradient, window of %i, %s: x with its halo and dy once', (kernel, dtype) => {
    const store = dtype === 'bfloat16' ? half : (t: Filled) => t
    const [x, dy] = [store(tensor(1, 32, 32, 64)), store(tensor(1, 32, 32, 64))]
    const radius = (kernel - 1) / 2
    const attributes = { ...same, padding: [radius, radius, radius, radius], kernelSize: [kernel, kernel], inputActivation: 'none' }
    const moved = count('depthwiseConv2dFilterGradient', [x, dy], attributes).depthwiseConv2dFilterGradient!
    // Tiles of 8 x 16, of which those at the border read less.
    const halo = ((8 + kernel - 1) * (16 + kernel - 1)) / (8 * 16)
    expect(moved.bytesRead).toBeLessThanOrEqual(halo * bytes(x) + bytes(dy))
    expect(moved.sharedPasses).toBe(moved.sharedMinimum)
  })
})

describe('products on tensor cores', () => {
  it.each(['bfloat16', 'tf32'] as const)('%s: no bank conflicts, forward and backward', (precision) => {
    const store = precision === 'bfloat16' ? half : (t: Filled) => t
    const attributes: Attributes = precision === 'tf32' ? { precision } : {}
    const [x, filter, dy] = [store(tensor(256, 64)), store(tensor(64, 128)), store(tensor(256, 128))]
    const accounts = [
      count('pointwiseConv2d', [x, filter], attributes).pointwiseConv2d!,
      count('pointwiseConv2dInputGradient', [dy, filter], { ...attributes, inputActivation: 'none' }).pointwiseConv2dInputGradient!,
      count('pointwiseConv2dFilterGradient', [x, dy], { ...attributes, inputActivation: 'none' }).pointwiseConv2dFilterGradient!,
    ]
    for (const { conflicts } of accounts) expect(conflicts).toEqual({})
    expect(accounts[0]!.bytesWritten).toBe(bytes(dy))
  })
  it('separable: the depthwise result never reaches device memory', () => {
    const inputs = [half(tensor(1, 16, 16, 64)), half(tensor(3, 3, 64, 1)), half(tensor(64, 128))]
    const [y] = inferred('separableConv2d', inputs, same)
    const counted = count('separableConv2d', inputs, same)
    expect(Object.keys(counted)).toEqual(['separableConv2d'])
    expect(counted.separableConv2d!.conflicts).toEqual({})
    expect(counted.separableConv2d!.bytesWritten).toBe(byteLength(y!))
  })
})

/**
 * What a kernel asks of memory over its inputs read once and its outputs written once, all launches together, and the passes of shared
 * memory over the least; 0: it uses none. What is read more than once comes from the caches: a window's overlap, operands once per
 * tile of the other, three passes over a row of softmax; what is written more than once are partial sums.
 */
interface Bound {
  readonly reads: number
  readonly writes: number
  readonly shared: number
}

describe('every other kernel stays within its plan', () => {
  const scalar = (value: number) => filled([], [value])
  const counter: Filled = { type: { shape: [2], dtype: 'int32' }, data: [1, 0] }
  const map = () => tensor(1, 16, 16, 32)
  const pool = { windowSize: [3, 3], strides: [2, 2], padding: [1, 1, 1, 1] }
  const update = { momentum: 0.9, nesterov: false, weightDecay: [1e-4] }
  const cases: [kernel: string, inputs: () => (Filled | null)[], attributes: Attributes, bound: Bound][] = [
    [
      'conv2d',
      () => [tensor(1, 16, 16, 16), tensor(3, 3, 16, 64)],
      { ...same, groups: 1, kernelSize: [3, 3], cout: 64, packed: false },
      { reads: 5.4, writes: 1, shared: 1.03 },
    ],
    ['pointwiseConv2d', () => [tensor(256, 64), tensor(64, 128)], {}, { reads: 2.7, writes: 1, shared: 1.03 }],
    [
      'pointwiseConv2dFilterGradient',
      () => [tensor(256, 64), tensor(256, 128)],
      { inputActivation: 'none' },
      { reads: 1.7, writes: 3, shared: 1 },
    ],
    ['batchNormStatistics', () => [tensor(600, 64)], {}, { reads: 1.01, writes: 4, shared: 1 }],
    ['scaleShift', () => [map(), tensor(32), tensor(32), map()], { activation: 'relu' }, { reads: 2, writes: 1, shared: 0 }],
    ['maxPool2d', () => [map(), tensor(1, 8, 8, 32)], pool, { reads: 1.9, writes: 1, shared: 0 }],
    ['maxPool2dGradient', () => [tensor(1, 8, 8, 32), map()], pool, { reads: 16.5, writes: 1, shared: 0 }],
    ['avgPool2d', () => [map()], { ...pool, countPadding: false }, { reads: 2.1, writes: 1, shared: 0 }],
    ['reduce', () => [map()], { function: 'mean', axes: [1, 2], keepDims: false }, { reads: 1.01, writes: 3, shared: 1 }],
    ['softmax', () => [tensor(40, 1000)], {}, { reads: 3, writes: 1, shared: 0 }],
    ['binary', () => [map(), map()], { function: 'add' }, { reads: 1, writes: 1, shared: 0 }],
    ['unary', () => [map()], { function: 'relu' }, { reads: 1, writes: 1, shared: 0 }],
    ['transpose', () => [tensor(40, 50)], { permutation: [1, 0] }, { reads: 1, writes: 1, shared: 0 }],
    ['concat', () => [map(), map()], { axis: 3 }, { reads: 1, writes: 1, shared: 0 }],
    ['cast', () => [map()], { dtype: 'bfloat16' }, { reads: 1, writes: 1, shared: 0 }],
    ['dropout', () => [map(), counter], { rate: 0.5, seed: 1, stream: 0 }, { reads: 1.5, writes: 1, shared: 0 }],
    ['globalNorm', () => [tensor(5000), tensor(3)], {}, { reads: 1.01, writes: 7, shared: 1 }],
    [
      'sgdUpdate',
      () => [scalar(0.1), scalar(1), scalar(1), tensor(5000), tensor(5000), tensor(5000)],
      update,
      { reads: 1.11, writes: 1, shared: 0 },
    ],
    ['averageUpdate', () => [scalar(0.9), scalar(1), tensor(5000), tensor(5000)], { factor: [1] }, { reads: 1.11, writes: 1, shared: 0 }],
  ]
  it.each(cases)('%s', (kernel, make, attributes, bound) => {
    const inputs = make()
    emulator().takeAccounts()
    const outputs = inferred(kernel, inputs, attributes)
    runCall(executor, kernel, inputs, attributes, outputs)
    const all = Object.values(emulator().takeAccounts())
    const total = (key: 'bytesRead' | 'bytesWritten' | 'sharedPasses' | 'sharedMinimum') =>
      all.reduce((sum, account) => sum + account[key], 0)
    const got = {
      reads: total('bytesRead') / bytes(...inputs.filter((input) => input !== null)),
      writes: total('bytesWritten') / outputs.reduce((sum, type) => sum + byteLength(type), 0),
      shared: total('sharedPasses') / Math.max(1, total('sharedMinimum')),
    }
    console.log(kernel, JSON.stringify(got), JSON.stringify(all.map((a) => a.conflicts)))
    for (const key of ['reads', 'writes', 'shared'] as const) expect(got[key], key).toBeLessThanOrEqual(bound[key])
  })
})
