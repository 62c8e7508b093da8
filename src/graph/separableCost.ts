/**
 * When one kernel for depthwise and pointwise is faster than two on a GPU. The fused kernel (native/cuda/kernels/separable*) saves
 * the depthwise result's way through memory and pays by computing it once per tile of output columns. Both ways in clocks of a
 * multiprocessor per element of the depthwise result, each the largest of what its units need:
 *
 *     apart      max(memory of depthwise, window) + max(memory of product, product)
 *     fused      max(memory of x and y, product, tiles · window + product / 2)
 *     training   the same, and the gradient of the pointwise filter, which reads the depthwise result or computes it again
 *
 * Half of the product stands beside the window because half of the warps multiply while the others compute windows; in exact float32
 * both are work for the same units, so all of it does. Figures of the H100 and H200 (arithmetic from the vendor's data; not
 * measured on hardware yet). What matters is the balance of the units to each other, which other GPUs of compute capability 8.0 and
 * up share within a factor of two.
 */

import type { SeparableShape } from './target.js'

/** Bytes of device memory per clock and multiprocessor: 4.3 TB/s over 132 multiprocessors at 1.755 GHz. */
const MEMORY = 18.5
/** Thread instructions that a multiprocessor issues per clock. */
const ISSUE = 128
/** Multiply-adds per clock: on tensor cores by mma.sync, half of the peak of wgmma, or one per instruction. */
const PRODUCT = { bfloat16: 1024, tf32: 512, float32: ISSUE } as const
/** Columns of y that one tile holds; each tile computes the depthwise result of its rows. */
const TILE_COLUMNS = 128
/**
 * Instructions per tap and element where neighbouring outputs share a 3x3 window of stride 1 in registers: a row of taps of a strip,
 * counted in PTX (docs/cuda-kernels.md, instruction mix) less the zeroing of padding and the second step of widening, which machine
 * code does not need. `normalised`: with the scale and shift that training has in front.
 */
const SHARED_WINDOW = {
  float32: { plain: 3.7, normalised: 4.7 },
  bfloat16: { plain: 4.5, normalised: 5.5 },
} as const
/** Where each output reads a window of its own. */
const OWN_WINDOW = 8
/** In the depthwise kernel, whose prologue runs once per element of x. */
const DEPTHWISE = 3

/** Whether `fused` costs less than `apart`. */
export function separablePays(shape: SeparableShape, training: boolean): boolean {
  const { fused, apart } = separableCost(shape, training)
  return fused < apart
}

/** Clocks of a multiprocessor per element of the depthwise result. */
export function separableCost(
  { precision, kernel, strides, cin, multiplier, cout }: SeparableShape,
  training: boolean,
): { fused: number; apart: number } {
  const bytes = precision === 'bfloat16' ? 2 : 4
  const depth = cin * multiplier
  // Elements of x and of y per element of the depthwise result.
  const [x, y] = [(strides[0] * strides[1]) / multiplier, cout / depth]
  const product = cout / PRODUCT[precision]
  const exact = precision === 'float32'
  const shares = !exact && kernel[0] === 3 && kernel[1] === 3 && strides[1] === 1
  const shared = SHARED_WINDOW[precision === 'bfloat16' ? 'bfloat16' : 'float32'][training ? 'normalised' : 'plain']
  const clocksPerInstruction = (kernel[0] * kernel[1]) / ISSUE
  const window = clocksPerInstruction * (shares ? shared : OWN_WINDOW)
  const tiles = Math.ceil(cout / TILE_COLUMNS)
  const beside = exact ? product : product / 2
  const fused = Math.max((bytes * (x + y)) / MEMORY, product, tiles * window + beside)
  const depthwise = Math.max((bytes * (x + 1)) / MEMORY, clocksPerInstruction * DEPTHWISE)
  const pointwise = Math.max((bytes * (1 + y)) / MEMORY, product)
  return training ? { fused: 2 * fused, apart: depthwise + 2 * pointwise } : { fused, apart: depthwise + pointwise }
}
