/** The table of occupancy in docs/cuda-kernels.md: its arithmetic, and the launches that it speaks of, as the emulator sees them. */

import { describe, expect, it } from 'vitest'
import type { Attributes } from '../../src/graph/graph.js'
import type { NativeExecutor } from '../../src/runtime/native.js'
import { type Filled, filled, generator, uniform } from '../helpers.js'
import { inferred, runCall } from './calls.js'
import { emulator } from './emulator.js'

// A plain script: no types.
const { FAST, occupancy, occupancyTable, withTable } = await import(new URL('../../scripts/occupancy.mjs', import.meta.url).href)

describe('occupancy on compute capability 9.0', () => {
  it.each([
    [{ registers: 128, threads: 256, shared: 0 }, 2, 'registers', 0.25],
    [{ registers: 32, threads: 256, shared: 0 }, 8, 'registers', 1],
    [{ registers: 24, threads: 1024, shared: 0 }, 2, 'registers', 1],
    [{ registers: 32, threads: 128, shared: 100 << 10 }, 2, 'shared memory', 0.125],
    [{ registers: 16, threads: 32, shared: 0 }, 32, 'blocks', 0.5],
  ])('%o', (kernel, blocks, by, share) => {
    const found = occupancy(kernel)
    expect([found.blocks, found.share]).toEqual([blocks, share])
    if (by !== 'registers' || found.by !== 'threads') expect(found.by).toBe(by)
  })
  it('is written into the document between its marks', () => {
    const table = occupancyTable([{ kernel: `${FAST[0].kernel}`, architecture: 'sm_90a', registers: 112 }])
    expect(table).toContain('| depthwise 3x3, float32 | 112 | 128 | 22.5 | 4 | 25 % | registers |')
    expect(withTable('a <!-- occupancy: npm run build:cuda-check -- --write --> old <!-- /occupancy --> b', 'new')).toMatch(
      /-->\n\nnew\n\n<!--/,
    )
    expect(withTable('nothing', 'new')).toBeUndefined()
  })
})

describe('threads and shared memory of the launches', () => {
  const random = generator(5)
  const [executor, hopper] = ['emulator', 'hopper'].map((name) => emulator().openExecutor(`${name}:counting`)) as [
    NativeExecutor,
    NativeExecutor,
  ]
  const window = (kernel: number) => ({ strides: [1, 1], dilations: [1, 1], padding: Array.from({ length: 4 }, () => (kernel - 1) / 2) })
  const calls: Record<string, (title: string) => [string, number[][], Attributes]> = {
    depthwise: (title) => {
      const k = title.includes('5x5') ? 5 : 3
      return [
        'depthwiseConv2d',
        [
          [1, 16, 16, 64],
          [k, k, 64, 1],
        ],
        window(k),
      ]
    },
    'its filter gradient 3x3': () => [
      'depthwiseConv2dFilterGradient',
      [
        [1, 16, 16, 64],
        [1, 16, 16, 64],
      ],
      { ...window(3), kernelSize: [3, 3] },
    ],
    'its filter gradient 5x5': () => [
      'depthwiseConv2dFilterGradient',
      [
        [1, 16, 16, 64],
        [1, 16, 16, 64],
      ],
      { ...window(5), kernelSize: [5, 5] },
    ],
    'both gradients of 3x3': () => [
      'depthwiseConv2dGradients',
      [
        [1, 16, 16, 64],
        [1, 16, 16, 64],
        [3, 3, 64, 1],
      ],
      { ...window(3), masked: 'none' },
    ],
    'pointwise gradient of separable': () => [
      'separableConv2dPointwiseGradient',
      [
        [1, 16, 16, 128],
        [3, 3, 128, 1],
        [1, 16, 16, 128],
      ],
      window(3),
    ],
    pointwise: () => [
      'pointwiseConv2d',
      [
        [512, 32],
        [32, 128],
      ],
      {},
    ],
    'its data gradient': () => [
      'pointwiseConv2dInputGradient',
      [
        [512, 128],
        [128, 128],
      ],
      { inputActivation: 'none' },
    ],
    'its filter gradient,': () => [
      'pointwiseConv2dFilterGradient',
      [
        [256, 128],
        [256, 128],
      ],
      { inputActivation: 'none' },
    ],
    convolution: () => [
      'conv2d',
      [
        [1, 32, 16, 16],
        [3, 3, 16, 128],
      ],
      { ...window(3), groups: 1, kernelSize: [3, 3], cout: 128, packed: false },
    ],
    separable: () => [
      'separableConv2d',
      [
        [1, 32, 16, 32],
        [3, 3, 32, 1],
        [32, 128],
      ],
      window(3),
    ],
  }
  it.each((FAST as { title: string; threads: number; shared: number }[]).map((row) => [row.title, row] as const))('%s', (title, row) => {
    const [, make] = Object.entries(calls).find(([start]) => title.startsWith(start))!
    const [kernel, shapes, attributes] = make(title)
    const tensors = shapes.map((shape): Filled => {
      const made = uniform(random, shape)
      return title.endsWith('bfloat16') ? filled(shape, made.data, 'bfloat16') : made
    })
    const tile = /(\d+x\d+) by wgmma/.exec(title)?.[1]
    const all: Attributes = { ...attributes, ...(title.endsWith('tf32') && { precision: 'tf32' }), ...(tile && { tile }) }
    emulator().takeAccounts()
    runCall(tile ? hopper : executor, kernel, tensors, all, inferred(kernel, tensors, all))
    const { threads, sharedBytes } = emulator().takeAccounts()[kernel]!
    expect({ threads, shared: sharedBytes }).toEqual({ threads: row.threads, shared: row.shared })
  })
})
