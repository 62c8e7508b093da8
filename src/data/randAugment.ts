/**
 * RandAugment (Cubuk et al. 2020) with the operations and increasing strengths that timm trains with, and random erasing (Zhong et al.
 * 2020), on pictures [size, size, 3] of uint8, in place. What is drawn is a function of (seed, global sample index) alone.
 */

import { checkOptions, SepconvError } from '../errors.js'
import { SampleRandom, STREAMS } from './random.js'

/** Of random operations on training pictures (Cubuk et al. 2020). */
export interface RandAugmentOptions {
  /** Operations drawn per picture, with repetition. Default 2. */
  operations?: number
  /** Strength from 0 to 10. Default 9. */
  magnitude?: number
  /** Standard deviation of the strength, which is cut to 0 … 10. Default 0. */
  deviation?: number
  /** Probability that a drawn operation is applied. Default 0.5. */
  probability?: number
}

/** Of parts of training pictures filled with noise (Zhong et al. 2020). */
export interface EraseOptions {
  /** Share of the pictures of which a part is filled with noise. Default 0.25. */
  probability?: number
  /** Area of the part as a share of the picture, [least, most]. Default [0.02, 1/3]. */
  area?: readonly [number, number]
  /** Its height over width, drawn evenly on a logarithmic scale. Default [0.3, 1/0.3]. */
  ratio?: readonly [number, number]
}

/** @throws ERR_ARGUMENT for unknown options and values out of range. */
export function resolveRandAugment(options: RandAugmentOptions): Required<RandAugmentOptions> {
  checkOptions('randAugment', options, ['operations', 'magnitude', 'deviation', 'probability'])
  const { operations = 2, magnitude = 9, deviation = 0, probability = 0.5 } = options
  range('operations', operations, Number.isInteger(operations) && operations >= 0, 'a whole number of at least 0')
  range('magnitude', magnitude, magnitude >= 0 && magnitude <= 10, 'from 0 to 10')
  range('deviation', deviation, deviation >= 0, 'at least 0')
  range('probability', probability, probability >= 0 && probability <= 1, 'from 0 to 1')
  return { operations, magnitude, deviation, probability }
}

/** @throws ERR_ARGUMENT for unknown options and values out of range. */
export function resolveErase(options: EraseOptions): Required<EraseOptions> {
  checkOptions('erase', options, ['probability', 'area', 'ratio'])
  const { probability = 0.25, area = [0.02, 1 / 3], ratio = [0.3, 1 / 0.3] } = options
  range('probability', probability, probability >= 0 && probability <= 1, 'from 0 to 1')
  range('area', area, area[0] > 0 && area[0] <= area[1] && area[1] <= 1, '[least, most] with 0 < least <= most <= 1')
  range('ratio', ratio, ratio[0] > 0 && ratio[0] <= ratio[1], '[least, most] with 0 < least <= most')
  return { probability, area, ratio }
}

function range(name: string, value: unknown, ok: boolean, expected: string): void {
  if (!ok)
    throw new SepconvError('ERR_ARGUMENT', `augment: ${name} must be ${expected}, got ${JSON.stringify(value)}`, {
      subject: name,
      expected,
      given: value,
    })
}

export interface Operation {
  readonly name: OperationName
  /** Strength from 0 to 10, and the direction of operations that have one. */
  readonly magnitude: number
  readonly sign: 1 | -1
}

/** Rows of random numbers, after those of augment.ts. */
const OPERATIONS_ROW = 3
const ERASE_ROW = 4
const NOISE_ROW = 5

/** Draws what is done to one picture. */
export function drawOperations(seed: number, sample: number, options: Required<RandAugmentOptions>): Operation[] {
  const random = new SampleRandom(seed, STREAMS.augment, sample, OPERATIONS_ROW)
  const operations: Operation[] = []
  for (let i = 0; i < options.operations; i++) {
    const name = OPERATION_NAMES[random.below(OPERATION_NAMES.length)]!
    const applied = random.uniform() < options.probability
    const normal = Math.sqrt(-2 * Math.log(1 - random.uniform())) * Math.cos(2 * Math.PI * random.uniform())
    const sign = random.uniform() < 0.5 ? 1 : -1
    const magnitude = Math.min(10, Math.max(0, options.magnitude + options.deviation * normal))
    if (applied) operations.push({ name, magnitude, sign })
  }
  return operations
}

/** Applies one operation to [size, size, 3], in place. */
export function applyOperation(pixels: Uint8Array, size: number, { name, magnitude, sign }: Operation): void {
  OPERATIONS[name](pixels, size, magnitude / 10, sign)
}

/** Fills a random part with noise, or does nothing, as (seed, sample) say. */
export function eraseRandomly(pixels: Uint8Array, size: number, seed: number, sample: number, options: Required<EraseOptions>): void {
  const random = new SampleRandom(seed, STREAMS.augment, sample, ERASE_ROW)
  if (random.uniform() >= options.probability) return
  for (let attempt = 0; attempt < 10; attempt++) {
    const area = size * size * (options.area[0] + (options.area[1] - options.area[0]) * random.uniform())
    const [low, high] = [Math.log(options.ratio[0]), Math.log(options.ratio[1])]
    const ratio = Math.exp(low + (high - low) * random.uniform())
    const [height, width] = [Math.round(Math.sqrt(area * ratio)), Math.round(Math.sqrt(area / ratio))]
    const [x, y] = [random.uniform(), random.uniform()]
    if (height < 1 || width < 1 || height > size || width > size) continue
    const [left, top] = [Math.floor(x * (size - width + 1)), Math.floor(y * (size - height + 1))]
    const noise = new SampleRandom(seed, STREAMS.augment, sample, NOISE_ROW)
    for (let row = top; row < top + height; row++)
      for (let i = (row * size + left) * 3; i < (row * size + left + width) * 3; i++) pixels[i] = noise.word() & 255
    return
  }
}

type Apply = (pixels: Uint8Array, size: number, strength: number, sign: 1 | -1) => void

/** Greys that geometric operations bring in from outside. */
const OUTSIDE = 128

/** Per channel through a table of 256 values. */
function throughTable(pixels: Uint8Array, table: (channel: number) => ArrayLike<number>): void {
  for (let channel = 0; channel < 3; channel++) {
    const values = table(channel)
    for (let i = channel; i < pixels.length; i += 3) pixels[i] = values[pixels[i]!]!
  }
}
const table = (value: (x: number) => number): Uint8ClampedArray => Uint8ClampedArray.from({ length: 256 }, (_, x) => value(x))

function histogram(pixels: Uint8Array, channel: number): Uint32Array {
  const counts = new Uint32Array(256)
  for (let i = channel; i < pixels.length; i += 3) counts[pixels[i]!]!++
  return counts
}

/** pixel ← other + factor · (pixel − other): a factor over 1 moves away from `other`. */
function blend(pixels: Uint8Array, other: ArrayLike<number>, factor: number): void {
  const clamped = new Uint8ClampedArray(pixels.buffer, pixels.byteOffset, pixels.length)
  for (let i = 0; i < pixels.length; i++) clamped[i] = other[i]! + factor * (pixels[i]! - other[i]!)
}

const grey = (pixels: Uint8Array, i: number): number => 0.299 * pixels[i]! + 0.587 * pixels[i + 1]! + 0.114 * pixels[i + 2]!
const enhancement = (strength: number, sign: number): number => Math.max(0.1, 1 + 0.9 * strength * sign)

/** Bilinear: output (x, y) shows input (a·x + b·y + c, d·x + e·y + f), coordinates from the picture's centre. */
function affine(pixels: Uint8Array, size: number, [a, b, c, d, e, f]: readonly [number, number, number, number, number, number]): void {
  const source = pixels.slice()
  const middle = (size - 1) / 2
  const at = (x: number, y: number, channel: number) =>
    x < 0 || y < 0 || x >= size || y >= size ? OUTSIDE : source[(y * size + x) * 3 + channel]!
  for (let row = 0, i = 0; row < size; row++)
    for (let column = 0; column < size; column++, i += 3) {
      const x = a * (column - middle) + b * (row - middle) + c + middle
      const y = d * (column - middle) + e * (row - middle) + f + middle
      const [x0, y0] = [Math.floor(x), Math.floor(y)]
      const [fx, fy] = [x - x0, y - y0]
      for (let channel = 0; channel < 3; channel++) {
        const upper = at(x0, y0, channel) * (1 - fx) + at(x0 + 1, y0, channel) * fx
        const lower = at(x0, y0 + 1, channel) * (1 - fx) + at(x0 + 1, y0 + 1, channel) * fx
        pixels[i + channel] = Math.round(upper * (1 - fy) + lower * fy)
      }
    }
}

const OPERATIONS = {
  autoContrast: (pixels) =>
    throughTable(pixels, (channel) => {
      const counts = histogram(pixels, channel)
      const [least, most] = [counts.findIndex((n) => n > 0), counts.findLastIndex((n) => n > 0)]
      return table((x) => (most > least ? ((x - least) * 255) / (most - least) : x))
    }),
  equalize: (pixels) =>
    throughTable(pixels, (channel) => {
      const counts = histogram(pixels, channel)
      const last = counts[counts.findLastIndex((n) => n > 0)]!
      const step = Math.floor((pixels.length / 3 - last) / 255)
      if (step === 0) return table((x) => x)
      let before = step >> 1
      return Uint8ClampedArray.from(counts, (n) => {
        const value = Math.floor(before / step)
        before += n
        return value
      })
    }),
  invert: (pixels) => throughTable(pixels, () => table((x) => 255 - x)),
  rotate: (pixels, size, strength, sign) => {
    const angle = (sign * strength * Math.PI) / 6
    const [cos, sin] = [Math.cos(angle), Math.sin(angle)]
    affine(pixels, size, [cos, sin, 0, -sin, cos, 0])
  },
  posterize: (pixels, _size, strength) => {
    const mask = 0xff << (4 + Math.floor(4 * strength))
    throughTable(pixels, () => table((x) => x & mask))
  },
  solarize: (pixels, _size, strength) => throughTable(pixels, () => table((x) => (x < 256 - Math.floor(256 * strength) ? x : 255 - x))),
  solarizeAdd: (pixels, _size, strength) => throughTable(pixels, () => table((x) => (x < 128 ? x + Math.floor(110 * strength) : x))),
  color: (pixels, _size, strength, sign) => {
    const greys = new Float32Array(pixels.length)
    for (let i = 0; i < pixels.length; i += 3) greys.fill(grey(pixels, i), i, i + 3)
    blend(pixels, greys, enhancement(strength, sign))
  },
  contrast: (pixels, _size, strength, sign) => {
    let sum = 0
    for (let i = 0; i < pixels.length; i += 3) sum += grey(pixels, i)
    const mean = Math.round((3 * sum) / pixels.length)
    const factor = enhancement(strength, sign)
    throughTable(pixels, () => table((x) => mean + factor * (x - mean)))
  },
  brightness: (pixels, _size, strength, sign) => throughTable(pixels, () => table((x) => x * enhancement(strength, sign))),
  sharpness: (pixels, size, strength, sign) => {
    // Against a smoothed copy, 1 1 1 / 1 5 1 / 1 1 1 over 13; the border stays.
    const smooth = Float32Array.from(pixels)
    for (let y = 1; y < size - 1; y++)
      for (let x = 1; x < size - 1; x++)
        for (let channel = 0; channel < 3; channel++) {
          const i = (y * size + x) * 3 + channel
          let sum = 4 * pixels[i]!
          for (let dy = -1; dy <= 1; dy++) for (let dx = -1; dx <= 1; dx++) sum += pixels[i + (dy * size + dx) * 3]!
          smooth[i] = sum / 13
        }
    blend(pixels, smooth, enhancement(strength, sign))
  },
  shearX: (pixels, size, strength, sign) => affine(pixels, size, [1, sign * 0.3 * strength, 0, 0, 1, 0]),
  shearY: (pixels, size, strength, sign) => affine(pixels, size, [1, 0, 0, sign * 0.3 * strength, 1, 0]),
  translateX: (pixels, size, strength, sign) => affine(pixels, size, [1, 0, sign * 0.45 * strength * size, 0, 1, 0]),
  translateY: (pixels, size, strength, sign) => affine(pixels, size, [1, 0, 0, 0, 1, sign * 0.45 * strength * size]),
} satisfies Record<string, Apply>

export type OperationName = keyof typeof OPERATIONS
export const OPERATION_NAMES = Object.keys(OPERATIONS) as OperationName[]
