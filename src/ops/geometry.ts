/**
 * Windows over [n, h, w, c]: strides, dilations and padding as users write them, resolved once into plain integers that shape
 * rules, reference loops and kernels share. Output size per axis: floor((size + before + after - ((k - 1) * dilation + 1)) / stride) + 1.
 * `'same'` is TensorFlow's rule: ceil(size / stride) outputs, and the odd row or column of padding goes last.
 */

import { checkOptions, SepconvError } from '../errors.js'
import type { Attributes } from '../graph/graph.js'
import type { Shape } from '../graph/types.js'

/** One number for both axes, or `[height, width]`. */
export type Pair = number | readonly [number, number]

/**
 * `'same'`: as many outputs as steps of the stride fit into the input, the odd row or column of zeros last (TensorFlow's rule).
 * `'valid'`: no padding. Or rows and columns per side, such as `{ top: 1, bottom: 1, left: 1, right: 1 }` for PyTorch's `padding=1`.
 */
export type Padding = 'same' | 'valid' | { readonly top: number; readonly bottom: number; readonly left: number; readonly right: number }

/** How a window moves over [n, h, w, c]. */
export interface WindowOptions {
  /** Steps between windows. Default: 1 for convolutions, the window's size for pools. */
  readonly strides?: Pair
  /** Distance between the taps of a window. Default 1. */
  readonly dilations?: Pair
  /** Default `'same'`. */
  readonly padding?: Padding
}

/** Resolved; stands in a node's attributes under the same three names. */
export interface Geometry {
  readonly strides: readonly [number, number]
  readonly dilations: readonly [number, number]
  /** Rows and columns: top, bottom, left, right. */
  readonly padding: readonly [number, number, number, number]
}

/** Two whole numbers of at least one. */
export function resolvePair(op: string, name: string, value: Pair): [number, number] {
  const pair = typeof value === 'number' ? [value, value] : value
  if (!Array.isArray(pair) || pair.length !== 2 || pair.some((size) => !Number.isInteger(size) || size < 1))
    throw new SepconvError(
      'ERR_ARGUMENT',
      `${op}: ${name} must be a whole number of at least 1 or [height, width], got ${JSON.stringify(value)}`,
      { subject: op, given: value },
    )
  return [pair[0]!, pair[1]!]
}

/** Extent of a window with gaps between its taps. */
export const dilatedSize = (kernel: number, dilation: number): number => (kernel - 1) * dilation + 1

/** TensorFlow's rule for one axis: padding before and after. */
export function samePadding(size: number, kernel: number, stride: number, dilation: number): [number, number] {
  const outputs = Math.ceil(size / stride)
  const total = Math.max((outputs - 1) * stride + dilatedSize(kernel, dilation) - size, 0)
  const before = Math.floor(total / 2)
  return [before, total - before]
}

/** Turns options into integers, for an input of `size` = [height, width] and a window of `kernel` = [height, width]. */
export function resolveGeometry(
  op: string,
  size: readonly [number, number],
  kernel: readonly [number, number],
  options: WindowOptions,
): Geometry {
  const strides = resolvePair(op, 'strides', options.strides ?? 1)
  const dilations = resolvePair(op, 'dilations', options.dilations ?? 1)
  return { strides, dilations, padding: resolvePadding(op, size, kernel, strides, dilations, options.padding ?? 'same') }
}

function resolvePadding(
  op: string,
  size: readonly [number, number],
  kernel: readonly [number, number],
  strides: readonly [number, number],
  dilations: readonly [number, number],
  padding: Padding,
): [number, number, number, number] {
  checkPadding(op, padding)
  if (padding === 'valid') return [0, 0, 0, 0]
  if (padding === 'same')
    return [...samePadding(size[0], kernel[0], strides[0], dilations[0]), ...samePadding(size[1], kernel[1], strides[1], dilations[1])]
  return [padding.top, padding.bottom, padding.left, padding.right]
}

/** Throws `ERR_ARGUMENT` for anything but a {@link Padding}. */
export function checkPadding(op: string, padding: Padding): void {
  if (padding === 'valid' || padding === 'same') return
  if (typeof padding !== 'object' || padding === null)
    throw new SepconvError(
      'ERR_ARGUMENT',
      `${op}: padding must be 'same', 'valid' or { top, bottom, left, right }, got ${JSON.stringify(padding)}`,
      { subject: op, given: padding },
    )
  checkOptions(`${op}: padding`, padding, ['top', 'bottom', 'left', 'right'])
  const sides = [padding.top, padding.bottom, padding.left, padding.right] as const
  if (sides.some((side) => !Number.isInteger(side) || side < 0))
    throw new SepconvError(
      'ERR_ARGUMENT',
      `${op}: padding must give four whole numbers { top, bottom, left, right } of at least 0, got ${JSON.stringify(padding)}`,
      { subject: op, given: padding },
    )
}

/** The geometry of a node. */
export const geometryOf = (attributes: Attributes): Geometry => ({
  strides: attributes.strides as unknown as [number, number],
  dilations: (attributes.dilations ?? [1, 1]) as unknown as [number, number],
  padding: attributes.padding as unknown as [number, number, number, number],
})

/** Windows that fit into one padded axis; 0 or less where none does. */
export const outputLength = (size: number, kernel: number, stride: number, dilation: number, before: number, after: number): number =>
  Math.floor((size + before + after - dilatedSize(kernel, dilation)) / stride) + 1

/** Output [height, width] for an input of `size` = [height, width]; throws `ERR_SHAPE` where no window fits. */
export function outputSize(
  op: string,
  size: readonly [number, number],
  kernel: readonly [number, number],
  { strides, dilations, padding }: Geometry,
): [number, number] {
  const height = outputLength(size[0], kernel[0], strides[0], dilations[0], padding[0], padding[1])
  const width = outputLength(size[1], kernel[1], strides[1], dilations[1], padding[2], padding[3])
  if (height >= 1 && width >= 1) return [height, width]
  const extent = [dilatedSize(kernel[0], dilations[0]), dilatedSize(kernel[1], dilations[1])]
  const padded = [size[0] + padding[0] + padding[1], size[1] + padding[2] + padding[3]]
  const dilated = dilations[0] > 1 || dilations[1] > 1 ? ` of dilation ${dilations.join(' x ')}` : ''
  throw new SepconvError(
    'ERR_SHAPE',
    `${op}: a window of ${extent.join(' x ')}${dilated} does not fit into the padded input of ${padded.join(' x ')} (input ${size.join(' x ')})`,
    {
      subject: op,
      expected: extent,
      given: padded,
      hint: "Use padding 'same', a smaller kernel or a larger input",
    },
  )
}

/**
 * Every pair of an output pixel and an input pixel under its window, once: the one loop that all reference convolutions and pools share.
 * `visit(o, i, t)`: o = (b * oh + oy) * ow + ox, i = (b * h + iy) * w + ix, t = ky * kw + kx with iy = oy * stride + ky * dilation - top.
 * Taps that fall into the padding are left out; the taps of one output pixel follow one another in row-major order.
 */
export function forEachTap(
  input: Shape,
  kernel: readonly [number, number],
  geometry: Geometry,
  visit: (output: number, input: number, tap: number) => void,
): void {
  const [n, h, w] = [input[0]!, input[1]!, input[2]!]
  const [kh, kw] = kernel
  const [oh, ow] = outputSize('reference', [h, w], kernel, geometry)
  const { strides, dilations, padding } = geometry
  for (let b = 0; b < n; b++)
    for (let oy = 0; oy < oh; oy++)
      for (let ox = 0; ox < ow; ox++)
        for (let ky = 0; ky < kh; ky++) {
          const iy = oy * strides[0] + ky * dilations[0] - padding[0]
          if (iy < 0 || iy >= h) continue
          for (let kx = 0; kx < kw; kx++) {
            const ix = ox * strides[1] + kx * dilations[1] - padding[2]
            if (ix < 0 || ix >= w) continue
            visit((b * oh + oy) * ow + ox, (b * h + iy) * w + ix, ky * kw + kx)
          }
        }
}
