/**
 * Augmentation of training pictures: random resized crop, mirror, colour jitter, RandAugment, erasing; RGB [h, w, 3] to [size, size, 3].
 *
 * Two steps that share nothing: parameters are drawn from (seed, global sample index) alone, then applied by integer and double
 * arithmetic. So a sample looks the same whichever worker makes it, in whatever order, on whatever machine, and after any resume.
 * Every kind of change has its own row of random numbers: adding a kind, or switching one off, leaves the others as they were.
 */

import { checkChoice, checkOptions, SepconvError } from '../errors.js'
import {
  applyOperation,
  drawOperations,
  type EraseOptions,
  eraseRandomly,
  type Operation,
  type RandAugmentOptions,
  resolveErase,
  resolveRandAugment,
} from './randAugment.js'
import { SampleRandom, STREAMS } from './random.js'
import { INTERPOLATIONS, type Interpolation, type RgbImage, resample } from './resample.js'

/** A pair is [least, most]. */
export interface AugmentOptions {
  /** Area of the crop as a share of the picture. Default [0.35, 1]; [1, 1] takes the largest crop of the drawn ratio that fits. */
  scale?: readonly [number, number]
  /** Width over height of the crop, drawn evenly on a logarithmic scale. Default [3/4, 4/3]. */
  ratio?: readonly [number, number]
  /** Probability of a mirror image. Default 0.5; set 0 where left and right differ in meaning. */
  flip?: number
  /** Factors on brightness, contrast and saturation are drawn evenly from 1 - x to 1 + x. Default 0.2 each; 0 leaves it. */
  brightness?: number
  contrast?: number
  saturation?: number
  /** Default `'bilinear'`, antialiased. */
  interpolation?: Interpolation
  /** Random operations after the crop (Cubuk et al. 2020). Default none. */
  randAugment?: RandAugmentOptions
  /** A part filled with noise at the end (Zhong et al. 2020). Default none. */
  erase?: EraseOptions
}

/** Options checked and completed. */
export type ResolvedAugment = Required<Omit<AugmentOptions, 'randAugment' | 'erase'>> & {
  readonly randAugment: Required<RandAugmentOptions> | null
  readonly erase: Required<EraseOptions> | null
}

/** What is done to one picture. */
export interface Augmentation {
  /** The crop in pixels of the picture. */
  readonly left: number
  readonly top: number
  readonly width: number
  readonly height: number
  readonly mirror: boolean
  readonly brightness: number
  readonly contrast: number
  readonly saturation: number
  readonly operations?: readonly Operation[]
  /** Of random erasing, which is drawn when it is applied, since it asks for the size. */
  readonly erasing?: { readonly seed: number; readonly sample: number; readonly options: Required<EraseOptions> }
}

/** Rows of random numbers; never renumbered, since that would change every seeded run. Rows 3 to 5 are randAugment.ts's. */
const CROP = 0
const MIRROR = 1
const COLOR = 2

/** Crops tried before the largest that fits the range of ratios is taken from the centre. */
const ATTEMPTS = 10

/** Augmentation options checked and completed with their defaults. @throws SepconvError `ERR_ARGUMENT` */
export function resolveAugment(options: AugmentOptions = {}): ResolvedAugment {
  checkOptions('augment', options, [
    'scale',
    'ratio',
    'flip',
    'brightness',
    'contrast',
    'saturation',
    'interpolation',
    'randAugment',
    'erase',
  ])
  const {
    scale = [0.35, 1],
    ratio = [3 / 4, 4 / 3],
    flip = 0.5,
    brightness = 0.2,
    contrast = 0.2,
    saturation = 0.2,
    interpolation = 'bilinear',
  } = options
  checkPair('scale', scale, 1)
  checkPair('ratio', ratio, Number.MAX_VALUE)
  for (const [name, share] of Object.entries({ flip, brightness, contrast, saturation })) {
    if (!(share >= 0 && share <= 1)) {
      throw new SepconvError('ERR_ARGUMENT', `augment: ${name} must be from 0 to 1, got ${share}`, {
        subject: name,
        expected: '0 to 1',
        given: share,
      })
    }
  }
  checkChoice('augment', 'interpolation', interpolation, INTERPOLATIONS)
  return {
    ...{ scale, ratio, flip, brightness, contrast, saturation, interpolation },
    randAugment: options.randAugment ? resolveRandAugment(options.randAugment) : null,
    erase: options.erase ? resolveErase(options.erase) : null,
  }
}

function checkPair(name: string, pair: readonly [number, number], most: number): void {
  if (Array.isArray(pair) && pair.length === 2 && pair[0] > 0 && pair[0] <= pair[1] && pair[1] <= most) return
  throw new SepconvError(
    'ERR_ARGUMENT',
    `augment: ${name} must be [least, most] with 0 < least <= most${most === 1 ? ' <= 1' : ''}, got ${JSON.stringify(pair)}`,
    {
      subject: name,
      given: pair,
    },
  )
}

/**
 * Draws what is done to a picture of `width` x `height`.
 *
 * @param sample global sample index: epoch * (samples per epoch) + position in the epoch.
 * @param options as {@link resolveAugment} returns them.
 */
export function drawAugmentation(seed: number, sample: number, width: number, height: number, options: ResolvedAugment): Augmentation {
  const mirror = new SampleRandom(seed, STREAMS.augment, sample, MIRROR).uniform() < options.flip
  const color = new SampleRandom(seed, STREAMS.augment, sample, COLOR)
  const factor = (range: number): number => 1 + (2 * color.uniform() - 1) * range
  const [brightness, contrast, saturation] = [factor(options.brightness), factor(options.contrast), factor(options.saturation)]
  return {
    ...drawCrop(new SampleRandom(seed, STREAMS.augment, sample, CROP), width, height, options),
    mirror,
    brightness,
    contrast,
    saturation,
    ...(options.randAugment && { operations: drawOperations(seed, sample, options.randAugment) }),
    ...(options.erase && { erasing: { seed, sample, options: options.erase } }),
  }
}

function drawCrop(
  random: SampleRandom,
  width: number,
  height: number,
  options: ResolvedAugment,
): Pick<Augmentation, 'left' | 'top' | 'width' | 'height'> {
  const [least, most] = options.scale
  const [narrow, wide] = [Math.log(options.ratio[0]), Math.log(options.ratio[1])]
  for (let attempt = 0; attempt < ATTEMPTS; attempt++) {
    const area = width * height * (least + (most - least) * random.uniform())
    const ratio = Math.exp(narrow + (wide - narrow) * random.uniform())
    const across = Math.round(Math.sqrt(area * ratio))
    const down = Math.round(Math.sqrt(area / ratio))
    const [x, y] = [random.uniform(), random.uniform()]
    if (across < 1 || down < 1 || across > width || down > height) continue
    return { left: Math.floor(x * (width - across + 1)), top: Math.floor(y * (height - down + 1)), width: across, height: down }
  }
  const ratio = Math.min(Math.max(width / height, options.ratio[0]), options.ratio[1])
  const across = Math.max(1, Math.min(width, Math.round(height * ratio)))
  const down = Math.max(1, Math.min(height, Math.round(width / ratio)))
  return { left: (width - across) >> 1, top: (height - down) >> 1, width: across, height: down }
}

/**
 * Applies an augmentation.
 * @param out size * size * 3 bytes; default a new array.
 * @returns Uint8Array [size, size, 3]
 */
export async function applyAugmentation(
  image: RgbImage,
  augmentation: Augmentation,
  size: number,
  interpolation: Interpolation = 'bilinear',
  out: Uint8Array = new Uint8Array(size * size * 3),
): Promise<Uint8Array> {
  await resample(image, { width: size, height: size, interpolation, box: augmentation, mirror: augmentation.mirror }, out)
  adjustColors(out, augmentation)
  for (const operation of augmentation.operations ?? []) applyOperation(out, size, operation)
  const { erasing } = augmentation
  if (erasing) eraseRandomly(out, size, erasing.seed, erasing.sample, erasing.options)
  return out
}

/**
 * Brightness scales, contrast moves away from the picture's mean grey, saturation away from each pixel's own grey. The three are
 * linear, so they make one 3 x 3 matrix and an offset, with a single rounding and clipping at the end. In place.
 */
export function adjustColors(
  pixels: Uint8Array,
  { brightness, contrast, saturation }: Pick<Augmentation, 'brightness' | 'contrast' | 'saturation'>,
): void {
  if (brightness === 1 && contrast === 1 && saturation === 1) return
  let [reds, greens, blues] = [0, 0, 0]
  if (contrast !== 1) {
    for (let i = 0; i < pixels.length; i += 3) {
      reds += pixels[i]!
      greens += pixels[i + 1]!
      blues += pixels[i + 2]!
    }
  }
  const mean = ((RED * reds + GREEN * greens + BLUE * blues) * brightness) / (pixels.length / 3)
  const offset = mean * (1 - contrast)
  const own = brightness * contrast * saturation
  const grey = brightness * contrast * (1 - saturation)
  const clamped = new Uint8ClampedArray(pixels.buffer, pixels.byteOffset, pixels.length)
  for (let i = 0; i < clamped.length; i += 3) {
    const [red, green, blue] = [clamped[i]!, clamped[i + 1]!, clamped[i + 2]!]
    const shared = grey * (RED * red + GREEN * green + BLUE * blue) + offset
    clamped[i] = own * red + shared
    clamped[i + 1] = own * green + shared
    clamped[i + 2] = own * blue + shared
  }
}

/** Weights of luma (ITU-R BT.601). */
const RED = 0.299
const GREEN = 0.587
const BLUE = 0.114
