import { describe, expect, it } from 'vitest'
import { PhiloxStream, philox4x32 } from '../../src/ops/philox.js'

const hex = (words: Uint32Array) => [...words].map((word) => word.toString(16).padStart(8, '0')).join(' ')

describe('philox4x32', () => {
  // The known answers that Random123 publishes for philox4x32 with 10 rounds.
  it.each([
    [[0, 0, 0, 0], [0, 0], '6627e8d5 e169c58d bc57ac4c 9b00dbd8'],
    [Array(4).fill(0xffffffff), Array(2).fill(0xffffffff), '408f276d 41c83b0e a20bc7c6 6d5451fd'],
    [[0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344], [0xa4093822, 0x299f31d0], 'd16cfe09 94fdcceb 5001e420 24126ea1'],
  ])('counter %j, key %j', (counter, key, expected) => {
    expect(hex(philox4x32(counter, key))).toBe(expected)
  })
  it('writes to the array that it is given', () => {
    const out = new Uint32Array(4)
    expect(philox4x32([1, 2, 3, 4], [5, 6], out)).toBe(out)
    expect(hex(out)).toBe(hex(philox4x32([1, 2, 3, 4], [5, 6])))
  })
})

describe('PhiloxStream', () => {
  it('counts blocks of four words', () => {
    const stream = new PhiloxStream(7, 9)
    const words = Uint32Array.from({ length: 12 }, () => stream.uint32())
    for (const block of [0, 1, 2]) expect(hex(words.subarray(4 * block, 4 * block + 4))).toBe(hex(philox4x32([block, 0, 0, 0], [7, 9])))
  })
  it('folds what exceeds 32 bits of the seed into the stream', () => {
    expect(new PhiloxStream(3 * 2 ** 32 + 7, 8).uint32()).toBe(philox4x32([0, 0, 0, 0], [7, 8 ^ 3])[0])
    expect(new PhiloxStream(7, 8).uint32()).not.toBe(new PhiloxStream(2 ** 32 + 7, 8).uint32())
  })
  it('is uniform on [0, 1)', () => {
    const stream = new PhiloxStream(1, 2)
    const bins = new Float64Array(16)
    const count = 64000
    for (let i = 0; i < count; i++) bins[Math.floor(stream.uniform() * 16)]!++
    // Chi-square with 15 degrees of freedom: above 37.7 once in a thousand seeds.
    const expected = count / 16
    expect(bins.reduce((sum, seen) => sum + (seen - expected) ** 2 / expected, 0)).toBeLessThan(37.7)
  })
  it('is normal: the first four moments', () => {
    const stream = new PhiloxStream(3, 4)
    const count = 100000
    const moments = [0, 0, 0, 0]
    for (let i = 0; i < count; i++) {
      const x = stream.normal()
      for (let k = 0; k < 4; k++) moments[k]! += x ** (k + 1) / count
    }
    // Within four standard errors: sqrt of (1, 2, 15, 96) / count.
    ;[0, 1, 0, 3].forEach((moment, k) => {
      expect(Math.abs(moments[k]! - moment)).toBeLessThan(4 * Math.sqrt([1, 2, 15, 96][k]! / count))
    })
  })
})
