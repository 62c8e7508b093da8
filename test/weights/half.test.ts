import { describe, expect, it } from 'vitest'
import { bfloat16ToFloat32, float16ToFloat32, float32ToBfloat16, float32ToFloat16 } from '../../src/weights/half.js'

const all = Uint16Array.from({ length: 65536 }, (_, i) => i)
const halfToFloat = (...bits: number[]): number[] => {
  const out = new Float32Array(bits.length)
  float16ToFloat32(Uint16Array.from(bits), out)
  return [...out]
}
const floatToHalf = (...values: number[]): number[] => {
  const out = new Uint16Array(values.length)
  float32ToFloat16(Float32Array.from(values), out)
  return [...out]
}
const floatToBfloat = (...values: number[]): number[] => {
  const out = new Uint16Array(values.length)
  float32ToBfloat16(Float32Array.from(values), out)
  return [...out]
}

describe('float16', () => {
  it('has the values of IEEE 754', () => {
    expect(halfToFloat(0x3c00, 0xc000, 0x7bff, 0x0400, 0x0001, 0x7c00, 0xfc00, 0x3555)).toEqual([
      1,
      -2,
      65504,
      2 ** -14,
      2 ** -24,
      Infinity,
      -Infinity,
      0.333251953125,
    ])
    expect(Object.is(halfToFloat(0x8000)[0], -0)).toBe(true)
    expect(halfToFloat(0x7e01)[0]).toBeNaN()
  })
  it('takes all 65,536 values there and back', () => {
    const wide = new Float32Array(65536)
    const back = new Uint16Array(65536)
    float16ToFloat32(all, wide)
    float32ToFloat16(wide, back)
    for (let i = 0; i < 65536; i++) {
      if (Number.isNaN(wide[i]!)) expect((back[i]! & 0x7fff) > 0x7c00).toBe(true)
      else if (back[i] !== i) throw new Error(`${i} came back as ${back[i]}`)
    }
  })
  it('rounds to nearest even, down to the smallest and up to infinity', () => {
    const ulp = 2 ** -10
    expect(floatToHalf(1 + ulp / 2, 1 + 1.5 * ulp, 1 + 0.51 * ulp)).toEqual([0x3c00, 0x3c02, 0x3c01])
    expect(floatToHalf(65519, 65520, -1e30)).toEqual([0x7bff, 0x7c00, 0xfc00])
    expect(floatToHalf(2 ** -25, 1.5 * 2 ** -24, 2 ** -26, 2 ** -14 - 2 ** -26)).toEqual([0, 2, 0, 0x400])
  })
})

describe('bfloat16', () => {
  it('takes all values there and back', () => {
    const wide = new Float32Array(65536)
    const back = new Uint16Array(65536)
    bfloat16ToFloat32(all, wide)
    float32ToBfloat16(wide, back)
    for (let i = 0; i < 65536; i++) {
      if (Number.isNaN(wide[i]!)) expect((back[i]! & 0x7fff) > 0x7f80).toBe(true)
      else if (back[i] !== i) throw new Error(`${i} came back as ${back[i]}`)
    }
  })
  it('rounds to nearest even', () => {
    expect(floatToBfloat(1, 1 + 2 ** -8, 1 + 3 * 2 ** -8, 3.4e38, Infinity)).toEqual([0x3f80, 0x3f80, 0x3f82, 0x7f80, 0x7f80])
  })
})
