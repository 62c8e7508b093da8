/** Limits of a device other than the host, measured through its own programs and clock: copies and multiply-adds. */

import type { Attributes } from '../graph/graph.js'
import type { Executor } from '../runtime/executor.js'
import type { Program, ProgramBuffer } from '../runtime/program.js'

/** Shortest of several runs of one call on memory of its own; milliseconds of the device's clock (CUDA events). */
function shortest(executor: Executor, kernel: string, input: number, output: number, attributes: Attributes, runs: number): number {
  const buffer = (place: 'input' | 'output', length: number): ProgramBuffer => ({
    place,
    dtype: 'float32',
    shape: [length],
    bytes: length * 4,
    name: place,
  })
  const program: Program = {
    format: 'sepconv-program',
    version: 1,
    target: executor.target.name,
    buffers: [buffer('input', input), buffer('output', output)],
    calls: [{ kernel, inputs: [0], outputs: [1], attributes, scope: 'bench' }],
    inputs: [0],
    outputs: [1],
    arenaBytes: 0,
    updateStart: 1,
  }
  const loaded = executor.load(program)
  const [from, to] = [executor.allocate(input * 4), executor.allocate(output * 4)]
  try {
    executor.write(from, 0, new Uint8Array(input * 4))
    const times = Array.from({ length: runs }, () => loaded.profile([{ memory: from, offset: 0 }], [{ memory: to, offset: 0 }])[0]!)
    return Math.min(...times) / 1e6
  } finally {
    loaded.dispose()
    from.dispose()
    to.dispose()
  }
}

/** Billions of bytes read and written per second by a copy that touches `bytes` in all. */
export function deviceCopyGbps(executor: Executor, bytes: number): number {
  const length = Math.max(1, Math.floor(bytes / 8))
  return (8 * length) / (shortest(executor, 'copy', length, length, {}, 8) * 1e6)
}

/** Operands of a product: float32 on the SIMT units, the others on tensor cores. */
export type Precision = 'float32' | 'tf32' | 'bfloat16'

/** Multiply-adds per thread and step of `multiplyAddPeak`: eight chains of one, or a warp's eight products of 16 x 8 x (8, 16). */
const PER_STEP: Record<Precision, number> = { float32: 8, tf32: 8 * 32, bfloat16: 8 * 64 }

/** Billions of multiplications and additions per second, eight chains per thread or warp in registers, of at least a few milliseconds. */
export function devicePeakGflops(executor: Executor, multiprocessors: number, precision: Precision = 'float32'): number {
  const threads = multiprocessors * 2048 // as many as one of them holds
  const time = (steps: number, runs: number) => shortest(executor, 'multiplyAddPeak', 1, threads, { steps, precision }, runs)
  let steps = 8
  while (steps < 1 << 16 && time(steps, 1) < 3) steps *= 8
  return (threads * 2 * PER_STEP[precision] * steps) / (time(steps, 4) * 1e6)
}
