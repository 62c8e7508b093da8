/** What every wrapper of native/cuda/arch for compute capability 9.0 must do, in plain loops: for the emulator and for hardware. */

import { expect, it } from 'vitest'
import type { Executor } from '../../src/runtime/executor.js'
import { runCall } from '../../src/runtime/verify.js'
import { generator } from '../helpers.js'
import { bfloat16, tf32 } from './arch.js'

const random = generator(43)
const numbers = Float32Array.from({ length: 20480 }, () => 2 * random() - 1)
const at = (i: number): number => numbers[i]!
/** NaN: an element that the group leaves alone. */
const untouched = () => new Float32Array(16384).fill(Number.NaN)

/** Element of the matrix [48, 40] at the start of x; zero outside. */
const matrix = (row: number, column: number): number => (row >= 0 && row < 48 && column >= 0 && column < 40 ? at(row * 40 + column) : 0)

/** A value per element of a box of 32 x 32. */
function box(y: Float32Array, to: number, value: (row: number, column: number) => number): void {
  for (let i = 0; i < 1024; i++) y[to + i] = value(Math.floor(i / 32), i % 32)
}

/** y[64, n] = start + A . B^T, A[64, depth] from 0, B[n, depth] from 4096. */
function product(n: number, depth: number, round: (x: number) => number): Float32Array {
  const y = untouched()
  const rounded = numbers.map(round)
  for (let i = 0; i < 64 * n; i++) {
    const [row, column] = [Math.floor(i / n), i % n]
    let sum = (column % 2) + (row % 16 < 8 ? 0 : 2)
    for (let k = 0; k < depth; k++) sum += rounded[row * depth + k]! * rounded[4096 + column * depth + k]!
    y[i] = sum
  }
  return y
}

const EXPECTED: Readonly<Record<string, () => Float32Array>> = {
  roles() {
    const y = untouched()
    y.fill(1, 0, 8)
    for (let i = 0; i < 256; i++) y[64 + i] = bfloat16(at(i))
    for (let i = 0; i < 128; i++) y[512 + i] = at((i + 1) % 128)
    return y
  },
  tma() {
    const y = untouched()
    box(y, 4096, (row, column) => matrix(row + 8, column + 4))
    box(y, 5120, (row, column) => matrix(row + 24, column + 16))
    box(y, 6144, (row, column) => matrix(row - 4, column - 8))
    box(y, 7168, (row, column) => tf32(matrix(row, column)))
    for (let row = 50; row < 64; row++) for (let column = 40; column < 64; column++) y[row * 64 + column] = -matrix(row - 42, column - 36)
    return y
  },
  cluster() {
    const y = untouched()
    for (const rank of [0, 1]) {
      box(y, rank * 2048, matrix)
      for (let i = 0; i < 256; i++) {
        y[rank * 2048 + 1024 + i] = (1 - rank) * 1000 + i
        y[rank * 2048 + 1280 + i] = i * 2 + (1 - rank)
      }
    }
    return y
  },
  'bfloat16 96': () => product(96, 64, bfloat16),
  'bfloat16 128': () => product(128, 64, bfloat16),
  'bfloat16 184': () => product(184, 64, bfloat16),
  'bfloat16 256': () => product(256, 64, bfloat16),
  'bfloat16 184, A in registers': () => product(184, 64, bfloat16),
  'bfloat16 96, A in registers': () => product(96, 64, bfloat16),
  'tf32 184': () => product(184, 32, tf32),
  'tf32 256, A in registers': () => product(256, 32, tf32),
}

/** One test per group of wrappers. */
export function testHopperWrappers(executor: Executor): void {
  it.each(Object.keys(EXPECTED))('%s', (group) => {
    const expected = EXPECTED[group]!()
    const call = { kernel: 'archCheckHopper', inputs: [], outputs: [], attributes: { group }, scope: group }
    const [y] = runCall(executor, call, [{ shape: [20480], data: numbers }], [{ shape: [16384], data: untouched() }])
    // Sums of up to 64 products in another order; the rest is exact.
    const tolerance = /^(bfloat16|tf32)/.test(group) ? 2e-5 : 0
    const wrong = expected.findIndex((value, i) => !Number.isNaN(value) && !(Math.abs(y![i]! - value) <= tolerance))
    expect(wrong, `element ${wrong}: ${y![wrong]}, expected ${expected[wrong]}`).toBe(-1)
  })
}
