/**
 * From a picture file to RGB bytes, [h, w, 3], and from those to what a network sees, [size, size, 3].
 *
 * Decoding is sharp's (libvips), loaded on first use. Whatever the file holds comes out as upright 8-bit sRGB: grey is spread over
 * three channels, alpha is laid over a plain background, CMYK and embedded colour profiles are converted, 16 bits are reduced to
 * 8, EXIF rotation is applied, of an animation the first frame counts. Resizing is our own (src/data/resample.ts), equal to that
 * under which the published weights were scored.
 */

import { readFile, stat } from 'node:fs/promises'
import { availableParallelism } from 'node:os'
import { fileURLToPath } from 'node:url'
import type { Sharp, SharpOptions } from 'sharp'
import { checkChoice, checkOptions, SepconvError } from '../errors.js'
import { fileError } from '../files.js'
import { INTERPOLATIONS, type Interpolation, type RgbImage, resample } from './resample.js'

export type { Interpolation, RgbImage }

/** A path, a `file:` URL, or the bytes of an encoded picture. */
export type ImageSource = string | URL | Uint8Array | ArrayBuffer

/** Options of {@link loadImage}. */
export interface LoadImageOptions {
  /** What shows through where a picture is transparent. Default `'white'`, as pictures are seen on a page. */
  background?: 'white' | 'black'
  /** Pictures of more pixels are refused before they are decoded. Default 100,000,000 (300 MB of RGB). */
  maxPixels?: number
  /** Files of more bytes are refused before they are read. Default 256 MiB. */
  maxBytes?: number
  /** `'apply'` (default) converts from an embedded ICC profile to sRGB; `'ignore'` takes the numbers as they are. */
  colorProfile?: 'apply' | 'ignore'
  /** Pictures whose shorter side is longer than this come out reduced to it, proportions kept; fast for JPEG. Default: full size. */
  shorterSide?: number
  /** What messages call the picture; default its path, or `'picture'` for bytes. */
  name?: string
}

const LOAD_OPTIONS = ['background', 'maxPixels', 'maxBytes', 'colorProfile', 'shorterSide', 'name'] as const
const MAX_PIXELS = 100_000_000
const MAX_BYTES = 256 << 20

/**
 * Loads a picture as upright 8-bit RGB.
 *
 * Takes JPEG, PNG, WebP, GIF, TIFF and AVIF, recognised by content.
 * @returns `{ data: Uint8Array [height, width, 3], width, height }`
 * @throws SepconvError `ERR_FILE` when the file cannot be read, `ERR_DATA` when it is no picture, truncated, corrupt or too
 * large, `ERR_ARGUMENT` for bad options.
 */
export async function loadImage(source: ImageSource, options: LoadImageOptions = {}): Promise<RgbImage> {
  checkOptions('loadImage', options, LOAD_OPTIONS)
  const { background = 'white', maxPixels = MAX_PIXELS, maxBytes = MAX_BYTES, colorProfile = 'apply', shorterSide } = options
  checkChoice('loadImage', 'background', background, ['white', 'black'])
  checkChoice('loadImage', 'colorProfile', colorProfile, ['apply', 'ignore'])
  checkWhole('loadImage', 'maxPixels', maxPixels)
  checkWhole('loadImage', 'maxBytes', maxBytes)
  if (shorterSide !== undefined) checkWhole('loadImage', 'shorterSide', shorterSide)
  const name = options.name ?? (typeof source === 'string' ? source : source instanceof URL ? source.href : 'picture')
  const bytes = await readSource(source, name, maxBytes)
  const format = recognise(bytes)
  if (format === undefined) {
    const what = bytes.length === 0 ? 'the file is empty' : `${describeStart(bytes)} is no picture format that is known here`
    throw new SepconvError('ERR_DATA', `${name}: ${what}`, { subject: name, expected: FORMATS, hint: `Known are ${FORMATS.join(', ')}` })
  }
  const sharp = await loadSharp()
  try {
    let pipeline = sharp(bytes, { limitInputPixels: maxPixels, failOn: 'error', ignoreIcc: colorProfile === 'ignore' })
      .autoOrient()
      .flatten({ background })
      .toColourspace('srgb')
    if (shorterSide !== undefined) {
      pipeline = pipeline.resize({ width: shorterSide, height: shorterSide, fit: 'outside', withoutEnlargement: true, kernel: 'cubic' })
    }
    const { data, info } = await pipeline.raw({ depth: 'uchar' }).toBuffer({ resolveWithObject: true })
    return { data: toRgb(data, info.width * info.height, info.channels), width: info.width, height: info.height }
  } catch (error) {
    const reason = firstLine(error)
    const tooLarge = /pixel limit/i.test(reason)
    throw new SepconvError(
      'ERR_DATA',
      `${name}: ${tooLarge ? `the picture has more than ${maxPixels} pixels` : `corrupt or truncated ${format} (${reason})`}`,
      {
        subject: name,
        hint: tooLarge ? 'Raise maxPixels if you trust the file' : undefined,
        cause: error,
      },
    )
  }
}

/** libvips reports one problem per line and the first is the cause; names of its internals in front say nothing to a user. */
const firstLine = (error: unknown): string => (error instanceof Error ? error.message : String(error)).split('\n')[0]!.trim()

async function readSource(source: ImageSource, name: string, maxBytes: number): Promise<Uint8Array> {
  const refuse = (size: number): never => {
    throw new SepconvError('ERR_DATA', `${name}: ${size} bytes are more than the limit of ${maxBytes}`, {
      subject: name,
      expected: maxBytes,
      given: size,
      hint: 'Raise maxBytes if you trust the file',
    })
  }
  if (source instanceof Uint8Array || source instanceof ArrayBuffer) {
    return source.byteLength > maxBytes ? refuse(source.byteLength) : source instanceof ArrayBuffer ? new Uint8Array(source) : source
  }
  if (typeof source !== 'string' && !(source instanceof URL))
    throw new SepconvError('ERR_ARGUMENT', `loadImage: expected a path, a file: URL or bytes, got ${typeof source}`, { subject: 'source' })
  try {
    const path = source instanceof URL ? fileURLToPath(source) : source
    const { size } = await stat(path)
    return size > maxBytes ? refuse(size) : await readFile(path)
  } catch (error) {
    throw fileError(error, name, 'read')
  }
}

const FORMATS = ['JPEG', 'PNG', 'WebP', 'GIF', 'TIFF', 'AVIF'] as const

/** By the first bytes: what the loader's other formats can do (SVG, PDF) has no place in a data set. */
function recognise(bytes: Uint8Array): (typeof FORMATS)[number] | undefined {
  const text = (from: number, to: number): string => String.fromCharCode(...bytes.subarray(from, to))
  if (bytes[0] === 0xff && bytes[1] === 0xd8) return 'JPEG'
  if (text(0, 4) === '\x89PNG') return 'PNG'
  if (text(0, 4) === 'RIFF' && text(8, 12) === 'WEBP') return 'WebP'
  if (text(0, 4) === 'GIF8') return 'GIF'
  if (text(0, 4) === 'II*\0' || text(0, 4) === 'MM\0*') return 'TIFF'
  if (text(4, 8) === 'ftyp' && /avif|avis|mif1|heic/.test(text(8, 32))) return 'AVIF'
  return undefined
}

const describeStart = (bytes: Uint8Array): string =>
  `a file that starts with ${Buffer.from(bytes.subarray(0, 4))
    .toString('hex')
    .replace(/(..)(?=.)/g, '$1 ')}`

function toRgb(data: Uint8Array, pixels: number, channels: number): Uint8Array {
  if (channels === 3) return new Uint8Array(data.buffer, data.byteOffset, data.length)
  const rgb = new Uint8Array(pixels * 3)
  for (let i = 0; i < pixels; i++) rgb.fill(data[i * channels]!, i * 3, i * 3 + 3)
  return rgb
}

type SharpConstructor = (input: Uint8Array, options?: SharpOptions) => Sharp

let sharpModule: Promise<SharpConstructor> | undefined

/** sharp, loaded once on first use, so that importing the package touches no native code. */
export function loadSharp(): Promise<SharpConstructor> {
  sharpModule ??= import('sharp').then(
    (module) => module.default as SharpConstructor,
    (cause) => {
      sharpModule = undefined
      throw new SepconvError('ERR_NATIVE', `the image library sharp could not be loaded (${firstLine(cause)})`, {
        subject: 'sharp',
        hint: 'Run npm install sharp on this machine',
        cause,
      })
    },
  )
  return sharpModule
}

/** How many pictures are worth decoding at a time: libuv's threads do the work, and more than the cores only wait. */
export const decodeParallelism = (): number => Math.max(1, Math.min(Number(process.env.UV_THREADPOOL_SIZE) || 4, availableParallelism()))

/** Evaluation preprocessing; the defaults are those under which the published Xception weights score best. */
export interface PreprocessOptions {
  /** Side of the square result in pixels. Default 299. */
  size?: number
  /** For `crop: 'center'`: the shorter side after resizing, at least `size`. Default round(size * 333 / 299). */
  resize?: number
  /** `'center'` (default) keeps proportions and cuts the centre; `'squash'` resizes the whole picture to the square. */
  crop?: 'center' | 'squash'
  /** Default `'bicubic'`; all but `'nearest'` are antialiased. */
  interpolation?: Interpolation
}

/**
 * Makes of any picture what a network is evaluated on: shorter side to `resize`, centre square of `size`.
 *
 * @param out where to put the result, size * size * 3 bytes; default a new array.
 * @returns Uint8Array [size, size, 3]; the graph normalises it (for Xception to x / 127.5 - 1).
 * @throws SepconvError `ERR_ARGUMENT` for bad options.
 */
export async function preprocess(image: RgbImage, options: PreprocessOptions = {}, out?: Uint8Array): Promise<Uint8Array> {
  const { size, resize, crop, interpolation } = resolvePreprocess(options)
  const target = out ?? new Uint8Array(size * size * 3)
  if (crop === 'squash') {
    await resample(image, { width: size, height: size, interpolation }, target)
    return target
  }
  const shorter = Math.min(image.width, image.height)
  const width = Math.trunc((resize * image.width) / shorter)
  const height = Math.trunc((resize * image.height) / shorter)
  const window = { left: centre(width - size), top: centre(height - size), width: size, height: size }
  await resample(image, { width, height, interpolation, window }, target)
  return target
}

/** Half of an odd margin is rounded to even, as the crop of the reference implementation does. */
function centre(margin: number): number {
  const half = Math.floor(margin / 2)
  return margin % 2 === 0 ? half : half + (half % 2)
}

/** Preprocessing options checked and completed with their defaults. */
export function resolvePreprocess(options: PreprocessOptions): Required<PreprocessOptions> {
  checkOptions('preprocess', options, ['size', 'resize', 'crop', 'interpolation'])
  const { size = 299, crop = 'center', interpolation = 'bicubic' } = options
  checkWhole('preprocess', 'size', size)
  const resize = options.resize ?? Math.round((size * 333) / 299)
  checkWhole('preprocess', 'resize', resize)
  checkChoice('preprocess', 'crop', crop, ['center', 'squash'])
  checkChoice('preprocess', 'interpolation', interpolation, INTERPOLATIONS)
  if (crop === 'center' && resize < size) {
    throw new SepconvError('ERR_ARGUMENT', `preprocess: resize ${resize} is smaller than the crop of ${size}`, {
      subject: 'resize',
      expected: `at least ${size}`,
      given: resize,
    })
  }
  return { size, resize, crop, interpolation }
}

/** Throws `ERR_ARGUMENT` unless `value` is a whole number of at least `least`. */
export function checkWhole(subject: string, name: string, value: unknown, least = 1): void {
  if (Number.isSafeInteger(value) && (value as number) >= least) return
  throw new SepconvError('ERR_ARGUMENT', `${subject}: ${name} must be a whole number of at least ${least}, got ${String(value)}`, {
    subject: name,
    given: value,
  })
}
