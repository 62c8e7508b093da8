import { describe, expect, it } from 'vitest'
import { type Geometry, outputSize, resolveGeometry, samePadding } from '../../src/ops/geometry.js'

describe("padding 'same' follows TensorFlow's rule", () => {
  // The four 3 x 3 pools of stride 2 in Xception: input size, sizes that enter the pools, padding before and after.
  const pools: [number, number[], [number, number][]][] = [
    [
      224,
      [109, 55, 28, 14],
      [
        [1, 1],
        [1, 1],
        [0, 1],
        [0, 1],
      ],
    ],
    [
      256,
      [125, 63, 32, 16],
      [
        [1, 1],
        [1, 1],
        [0, 1],
        [0, 1],
      ],
    ],
    [
      299,
      [147, 74, 37, 19],
      [
        [1, 1],
        [0, 1],
        [1, 1],
        [1, 1],
      ],
    ],
    [
      331,
      [163, 82, 41, 21],
      [
        [1, 1],
        [0, 1],
        [1, 1],
        [1, 1],
      ],
    ],
    [
      384,
      [189, 95, 48, 24],
      [
        [1, 1],
        [1, 1],
        [0, 1],
        [0, 1],
      ],
    ],
  ]
  it.each(pools)('at %i', (_, sizes, pads) => {
    expect(sizes.map((size) => samePadding(size, 3, 2, 1))).toEqual(pads)
  })

  it('needs none for a 1 x 1 window with stride 2', () => {
    expect(samePadding(147, 1, 2, 1)).toEqual([0, 0])
    expect(outputSize('test', [147, 74], [1, 1], resolveGeometry('test', [147, 74], [1, 1], { strides: 2 }))).toEqual([74, 37])
  })

  it('gives ceil(size / stride) outputs for every kernel, stride and dilation', () => {
    for (let size = 1; size <= 12; size++)
      for (let kernel = 1; kernel <= 5; kernel++)
        for (let stride = 1; stride <= 4; stride++)
          for (let dilation = 1; dilation <= 3; dilation++) {
            const geometry = resolveGeometry('test', [size, size], [kernel, kernel], { strides: stride, dilations: dilation })
            expect(outputSize('test', [size, size], [kernel, kernel], geometry)).toEqual([
              Math.ceil(size / stride),
              Math.ceil(size / stride),
            ])
            const [top, bottom] = geometry.padding
            expect(bottom - top === 0 || bottom - top === 1).toBe(true)
          }
  })
})

describe('resolveGeometry', () => {
  it('takes one number or two per axis, and sides in the order top, bottom, left, right', () => {
    const expected: Geometry = { strides: [2, 1], dilations: [3, 3], padding: [1, 2, 3, 4] }
    expect(
      resolveGeometry('test', [9, 9], [3, 3], { strides: [2, 1], dilations: 3, padding: { top: 1, bottom: 2, left: 3, right: 4 } }),
    ).toEqual(expected)
  })

  it('pads nothing for valid', () => {
    expect(resolveGeometry('test', [9, 9], [3, 3], { padding: 'valid' }).padding).toEqual([0, 0, 0, 0])
  })

  it.each([
    [{ strides: 0 }, /strides must be a whole number of at least 1/],
    [{ strides: [1, 2, 3] as unknown as [number, number] }, /strides must be/],
    [{ dilations: 1.5 }, /dilations must be/],
    [{ padding: 'SAME' as 'same' }, /padding must be 'same', 'valid' or/],
    [{ padding: { top: 1, bottom: 1, left: 1 } as never }, /four whole numbers/],
    [{ padding: { top: -1, bottom: 1, left: 1, right: 1 } }, /four whole numbers/],
    [{ padding: { top: 1, botom: 1, left: 1, right: 1 } as never }, /unknown option 'botom'. Did you mean 'bottom'\?/],
  ])('refuses %j', (options, message) => {
    expect(() => resolveGeometry('conv2d', [9, 9], [3, 3], options)).toThrowError(message)
    expect(() => resolveGeometry('conv2d', [9, 9], [3, 3], options)).toThrowError(expect.objectContaining({ code: 'ERR_ARGUMENT' }))
  })

  it('refuses a window that does not fit, naming both sizes', () => {
    const geometry = resolveGeometry('conv2d', [6, 20], [3, 3], { dilations: [3, 1], padding: 'valid' })
    expect(() => outputSize('conv2d', [6, 20], [3, 3], geometry)).toThrowError(
      /conv2d: a window of 7 x 3 of dilation 3 x 1 does not fit into the padded input of 6 x 20/,
    )
    expect(() => outputSize('conv2d', [6, 20], [3, 3], geometry)).toThrowError(expect.objectContaining({ code: 'ERR_SHAPE' }))
  })
})
