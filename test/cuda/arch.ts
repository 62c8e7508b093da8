/** What every wrapper of native/cuda/arch must do, in plain loops: the same cases for the emulator and for hardware. */

import { expect, it } from 'vitest'
import type { Executor } from '../../src/runtime/executor.js'
import { runCall } from '../../src/runtime/verify.js'
import { generator } from '../helpers.js'

const bitsOf = (x: number): number => new Uint32Array(Float32Array.of(x).buffer)[0]!
const floatOf = (bits: number): number => new Float32Array(Uint32Array.of(bits).buffer)[0]!
const isFinite32 = (x: number): boolean => Math.abs(x) < Infinity
export const bfloat16 = (x: number): number =>
  Number.isNaN(x) ? x : floatOf((((bitsOf(x) + 0x7fff + ((bitsOf(x) >>> 16) & 1)) >>> 16) << 16) >>> 0)
export const tf32 = (x: number): number => (isFinite32(x) ? floatOf(((bitsOf(x) + 0x1000) & 0xffffe000) >>> 0) : x)
const saturated = (x: number): number => {
  if (Number.isNaN(x)) return 0
  const floor = Math.floor(x)
  const even = x - floor > 0.5 || (x - floor === 0.5 && floor % 2 !== 0) ? floor + 1 : floor
  return Math.min(2 ** 31 - 1, Math.max(-(2 ** 31), even))
}

const random = generator(41)
const numbers = Float32Array.from({ length: 512 }, () => 2 * random() - 1)
const special = [
  0,
  -0,
  1,
  -1,
  0.5,
  1.5,
  2.5,
  -2.5,
  NaN,
  Infinity,
  -Infinity,
  3e9,
  -3e9,
  1e-40,
  1.00390625,
  1.01171875,
  1.00048828125,
  65535.5,
]
const scalars = Float32Array.from({ length: 512 }, (_, i) => special[i] ?? numbers[i]! * 1000)

const at = (i: number) => numbers[i]!
const zeros = () => new Float32Array(512)

const EXPECTED: Readonly<Record<string, () => Float32Array>> = {
  scalar() {
    const y = zeros()
    for (let i = 0; i < 32; i++) {
      const x = scalars[i]!
      const half = bfloat16(x)
      y.set(
        [
          half,
          tf32(x),
          Number.isNaN(x) ? x : Math.max(x, 0),
          saturated(x) >> 16,
          saturated(x) & 0xffff,
          Number((BigInt(bitsOf(x)) * 0xd2511f53n) >> 48n),
          Number.isNaN(half) ? half : Math.max(half, 0),
          0, // the pair's upper half is -1
        ],
        i * 8,
      )
    }
    return y
  },
  copies() {
    const y = zeros()
    for (let lane = 0; lane < 32; lane++) {
      const other = 31 - lane
      for (let e = 0; e < 4; e++) y[lane * 4 + e] = other % 3 ? at(other * 4 + e) : 0
      y[128 + lane] = other % 5 ? at(128 + other) : 0
    }
    return y
  },
  warp() {
    const y = zeros()
    for (let lane = 0; lane < 32; lane++) {
      y[lane] = at((lane + 1) % 32)
      for (let i = 0; i < 5; i++) y[32 + i * 32 + lane] = at(lane ^ (1 << i))
    }
    return y
  },
  bfloat16: () => product(16, 256, bfloat16),
  transposed: () => product(16, 256, bfloat16),
  tf32: () => product(8, 128, tf32),
}

/** D[16, 8] = start + A[16, depth] . B[depth, 8] of rounded operands, B from `b` on. */
function product(depth: number, b: number, round: (x: number) => number): Float32Array {
  const y = zeros()
  for (let row = 0; row < 16; row++)
    for (let column = 0; column < 8; column++) {
      let sum = (row < 8 ? 1 : 3) + (column % 2)
      for (let k = 0; k < depth; k++) sum += round(at(row * depth + k)) * round(at(b + k * 8 + column))
      y[row * 8 + column] = sum
    }
  return y
}

/** One test per group of wrappers. */
export function testWrappers(executor: Executor): void {
  it.each(Object.keys(EXPECTED))('%s', (group) => {
    const x = { shape: [512], data: group === 'scalar' ? scalars : numbers }
    const expected = EXPECTED[group]!()
    const call = { kernel: 'archCheck', inputs: [], outputs: [], attributes: { group }, scope: group }
    const [y] = runCall(executor, call, [x], [{ shape: [512], data: zeros() }])
    const exact = !['bfloat16', 'transposed', 'tf32'].includes(group)
    expected.forEach((value, i) => {
      if (exact) expect(Object.is(y![i], value) || y![i] === value, `element ${i}: ${y![i]}, expected ${value}`).toBe(true)
      else expect(Math.abs(y![i]! - value), `element ${i}`).toBeLessThan(2e-6)
    })
  })
}
