/** Kernels and wrappers for compute capability 9.0 on the emulator, in every adversary mode. */

import { describe, expect, it } from 'vitest'
import type { Attributes } from '../../src/graph/graph.js'
import type { TensorType } from '../../src/graph/types.js'
import { byteLength } from '../../src/graph/types.js'
import { NativeDeviceExecutor } from '../../src/runtime/executors/native.js'
import { type Filled, filled, generator, uniform } from '../helpers.js'
import { testHopperWrappers } from './archHopper.js'
import { inferred, runCall } from './calls.js'
import { emulator, hopperNames, MULTIPROCESSORS } from './emulator.js'
import { testWarpgroups } from './hopper.js'
import { testSuite } from './suite.js'

describe.each(hopperNames())('%s', (name) => testHopperWrappers(new NativeDeviceExecutor(name)))

// Every kernel waits for the launch before it; none touches device memory earlier.
testSuite(
  hopperNames().map((name) => new NativeDeviceExecutor(name)),
  6,
)

testWarpgroups({
  modes: new Map(hopperNames().map((name) => [name, emulator().openExecutor(name)])),
  describe: (kernel, inputs, outputs, attributes) =>
    emulator().describeKernel(kernel, inputs, outputs, attributes, MULTIPROCESSORS, 9).description,
})

describe('the choice of tiles on a GPU of compute capability 9.0 with 132 multiprocessors', () => {
  const type = (dtype: TensorType['dtype'], ...shape: number[]): TensorType => ({ dtype, shape })
  const chosen = (major: number, kernel: string, inputs: TensorType[], output: TensorType, attributes: Attributes = {}) =>
    emulator().describeKernel(kernel, inputs, [output], attributes, 132, major).description
  const half = (...shape: number[]) => type('bfloat16', ...shape)

  it.each([
    ['entry flow, 147 x 147', 147 * 147 * 32, 64, 128, 'bfloat16 256x128 wgmma'],
    ['middle flow, 32 images', 19 * 19 * 32, 728, 728, 'bfloat16 192x184 wgmma'],
    ['middle flow, 8 images', 19 * 19 * 8, 728, 728, 'bfloat16 192x96 wgmma'],
    ['middle flow, 1 image', 19 * 19, 728, 728, 'bfloat16 64x64'],
    ['exit flow, 64 images', 100 * 64, 1536, 2048, 'bfloat16 128x256 wgmma'],
  ])('%s', (_, rows, cin, cout, tile) => {
    expect(chosen(9, 'pointwiseConv2d', [half(rows, cin), half(cin, cout)], half(rows, cout))).toBe(tile)
  })
  it('wgmma is for compute capability 9.0 alone', () => {
    for (const major of [8, 10, 12])
      expect(chosen(major, 'pointwiseConv2d', [half(11552, 728), half(728, 728)], half(11552, 728))).toBe('bfloat16 128x128')
  })
  it('filter gradients are split until the device is full', () => {
    const gradient = (rows: number, cin: number, cout: number) =>
      chosen(9, 'pointwiseConv2dFilterGradient', [half(rows, cin), half(rows, cout)], type('float32', cin, cout), {
        inputActivation: 'none',
      })
    expect(gradient(19 * 19 * 64, 728, 728)).toMatch(/^bfloat16 192x184 wgmma, \d+ splits$/)
    expect(gradient(147 * 147 * 64, 64, 128)).toMatch(/splits$/)
  })
  it('separable: fused in the entry flow, two launches where the product takes longer than memory', () => {
    const separable = (size: number, c: number, cout: number) =>
      chosen(9, 'separableConv2d', [half(32, size, size, c), half(3, 3, c, 1), half(c, cout)], half(32, size, size, cout), {
        strides: [1, 1],
        dilations: [1, 1],
        padding: [1, 1, 1, 1],
      })
    expect(separable(147, 64, 128)).toBe('bfloat16 128x128, 3x3 taps')
    expect(separable(19, 728, 728)).toBe('bfloat16 192x184 wgmma, behind tiled3x3 8x16, 4 channels per access, bfloat16 tile')
  })
})

describe('what the wgmma kernels move', () => {
  const executor = emulator().openExecutor('hopper:counting')
  const random = generator(57)
  const half = (...shape: number[]) => filled(shape, uniform(random, shape).data, 'bfloat16')
  const bytes = (...tensors: Filled[]) => tensors.reduce((sum, { type }) => sum + byteLength(type), 0)
  const count = (kernel: string, inputs: Filled[], attributes: Attributes) => {
    emulator().takeAccounts()
    runCall(executor, kernel, inputs, attributes)
    const counted = emulator().takeAccounts()[kernel]!
    console.log(kernel, JSON.stringify(attributes), JSON.stringify(counted))
    return counted
  }
  it.each(['none', 'relu'])('forward, %s in front: no bank conflicts; a cluster reads the filter once', (inputActivation) => {
    const [x, filter] = [half(384, 128), half(128, 184)]
    const moved = count('pointwiseConv2d', [x, filter], { inputActivation, tile: '192x184' })
    expect(moved.conflicts).toEqual({})
    // Two tiles of 192 rows in one cluster, one tile of columns.
    expect(moved.bytesRead).toBe(bytes(x, filter))
    expect(moved.bytesWritten).toBe(384 * 184 * 2)
  })
  it('gradients: no bank conflicts', () => {
    const [x, dy, filter] = [half(384, 192), half(384, 184), half(192, 184)]
    expect(count('pointwiseConv2dInputGradient', [dy, filter], { inputActivation: 'none', tile: '192x184' }).conflicts).toEqual({})
    for (const inputActivation of ['none', 'relu'])
      expect(count('pointwiseConv2dFilterGradient', [x, dy], { inputActivation, tile: '192x184' }).conflicts).toEqual({})
  })
  it('tf32 forward: the turn of the filter through registers costs a second pass, the epilogue none', () => {
    const [x, filter] = [uniform(random, [368, 64]), uniform(random, [64, 192])]
    const { conflicts } = count('pointwiseConv2d', [x, filter], { precision: 'tf32', tile: '184x192' })
    expect(Object.keys(conflicts)).toHaveLength(1)
    expect(inferred('pointwiseConv2d', [x, filter], {})[0]!.shape).toEqual([368, 192])
  })
})
