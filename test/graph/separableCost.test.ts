/** Where a GPU fuses depthwise and pointwise, by the arithmetic of src/graph/separableCost.ts. */

import { describe, expect, it } from 'vitest'
import { separableCost, separablePays } from '../../src/graph/separableCost.js'
import type { SeparableShape } from '../../src/graph/target.js'

const shape = (cin: number, cout: number, precision: SeparableShape['precision'], extra: Partial<SeparableShape> = {}): SeparableShape => ({
  precision,
  kernel: [3, 3],
  strides: [1, 1],
  cin,
  multiplier: 1,
  cout,
  height: 37,
  width: 37,
  ...extra,
})

describe('separable convolutions of Xception', () => {
  it.each([
    // in, out, tf32 in inference and training, bfloat16 in inference and training
    [64, 128, true, true, true, false],
    [128, 128, true, true, true, false],
    [128, 256, true, false, false, false],
    [256, 256, true, false, false, false],
    [256, 728, false, false, false, false],
    [728, 728, false, false, false, false],
    [1024, 1536, false, false, false, false],
  ])('%i to %i channels', (cin, cout, tf32, tf32Training, bfloat16, bfloat16Training) => {
    const got = (['tf32', 'bfloat16'] as const).flatMap((precision) =>
      [false, true].map((training) => separablePays(shape(cin, cout, precision), training)),
    )
    expect(got).toEqual([tf32, tf32Training, bfloat16, bfloat16Training])
  })
  it('gains by the bytes of the depthwise result and loses by computing it again', () => {
    // Bound by memory: 8 bytes of x and y instead of 16 with the depthwise result written and read.
    const { fused, apart } = separableCost(shape(128, 128, 'tf32'), false)
    expect(apart / fused).toBeCloseTo(2, 1)
    // Twice the tiles of output columns, twice the windows.
    const [one, two] = [128, 129].map((cout) => separableCost(shape(2048, cout, 'bfloat16'), false).fused)
    expect(two! / one!).toBeGreaterThan(1.7)
    const large = shape(128, 128, 'tf32', { kernel: [7, 7] })
    expect(separablePays(large, false)).toBe(false)
  })
})
