/**
 * A prepared data set: every picture decoded once, as RGB bytes that a training run maps into memory, since no decoder keeps up with a
 * fast device.
 *
 *     sepconv-pictures.json     classes, and for each picture name, labels, size and place
 *     pictures-000.bin …        RGB bytes, picture after picture, at most 1 GiB each
 *
 * Training pictures are reduced to the shorter side that the loader would reduce them to, held-out ones are kept whole: a run on them
 * sees the same bits as a run on the files they come from.
 */

import { existsSync } from 'node:fs'
import { mkdir, open, readFile, rm } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { checkOptions, SepconvError } from '../errors.js'
import { fileError, lockFolder, writeAtomic } from '../files.js'
import { loadNative } from '../runtime/native.js'
import { type Dataset, dataFingerprint, type Sample } from './folder.js'
import { checkWhole, decodeParallelism, loadImage } from './image.js'
import { CACHE_SCALE, isBadPicture, readSample } from './loader.js'
import type { RgbImage } from './resample.js'

const INDEX = 'sepconv-pictures.json'
const FORMAT = 1
const FILE_BYTES = 1 << 30

interface Entry {
  readonly name: string
  readonly label: number
  readonly labels?: readonly number[]
  readonly width: number
  readonly height: number
  readonly file: number
  readonly offset: number
}

interface Index {
  readonly format: number
  readonly size: number
  readonly classes: readonly string[]
  readonly multiLabel?: boolean
  readonly split: Dataset['split']
  /** Fingerprint of the data set that it was made from. */
  readonly source: string
  readonly train: readonly Entry[]
  readonly validation: readonly Entry[]
  /** Pictures that could not be read. */
  readonly skipped: readonly string[]
}

/** Whether a folder holds a prepared data set. */
export const isPrepared = (path: string): boolean => existsSync(join(path, INDEX))

/** Options of {@link prepareDataset}. */
export interface PrepareOptions {
  /** Side of the training pictures that it is meant for; training pictures are kept at 1.5 times that. Default 299. */
  size?: number
  /** Pictures that cannot be read end it instead of being left out. Default false. */
  strict?: boolean
  signal?: AbortSignal
  /** Called after each picture. */
  onProgress?: (done: number, total: number) => void
}

/** What {@link prepareDataset} wrote. */
export interface Prepared {
  readonly train: number
  readonly validation: number
  readonly bytes: number
  /** Pictures that could not be read, with the reason. */
  readonly skipped: readonly string[]
}

/**
 * Decodes every picture of a data set into `folder`. The index is written last: a folder without one is an unfinished one.
 * @throws ERR_FILE when the folder is not empty of a prepared set or cannot be written, ERR_DATA when no picture could be read; `signal.reason`.
 */
export async function prepareDataset(data: Dataset, folder: string, options: PrepareOptions = {}): Promise<Prepared> {
  checkOptions('prepare', options, ['size', 'strict', 'signal', 'onProgress'])
  const { size = 299, strict = false, signal, onProgress } = options
  checkWhole('prepare', 'size', size)
  if (isPrepared(folder))
    throw new SepconvError('ERR_FILE', `${folder} holds prepared pictures already`, {
      subject: folder,
      hint: 'Remove the folder, or choose another one',
    })
  try {
    await mkdir(folder, { recursive: true })
  } catch (error) {
    throw fileError(error, folder, 'write')
  }
  await using lock = await lockFolder(folder)
  void lock
  const writer = new PictureWriter(folder)
  const total = data.train.length + data.validation.length
  const skipped: string[] = []
  let done = 0
  const half = async (samples: readonly Sample[], shorterSide: number | undefined): Promise<Entry[]> => {
    const entries: Entry[] = []
    // Decoded side by side, written in order: the files of two runs are equal.
    const width = decodeParallelism()
    const ahead: Promise<RgbImage | string>[] = []
    for (let i = 0, next = 0; i < samples.length; i++) {
      while (next < samples.length && ahead.length < 2 * width) {
        const picture = decode(samples[next++]!, shorterSide, strict)
        // A failure is reported when its turn comes, and must not count as unhandled until then.
        picture.catch(() => {})
        ahead.push(picture)
      }
      signal?.throwIfAborted()
      const picture = await ahead.shift()!
      const { name, label, labels } = samples[i]!
      if (typeof picture === 'string') skipped.push(`${name}: ${picture}`)
      else {
        const place = await writer.add(picture.data)
        entries.push({ name, label, ...(labels && { labels }), width: picture.width, height: picture.height, ...place })
      }
      onProgress?.(++done, total)
    }
    return entries
  }
  try {
    const train = await half(data.train, Math.round(size * CACHE_SCALE))
    const validation = await half(data.validation, undefined)
    if (train.length === 0)
      throw new SepconvError('ERR_DATA', `none of the ${data.train.length} training pictures could be read; the first: ${skipped[0]}`, {
        subject: data.root,
      })
    const bytes = await writer.finish()
    const { classes, multiLabel, split } = data
    const index: Index = {
      ...{ format: FORMAT, size, classes, split, source: dataFingerprint(data), train, validation, skipped },
      ...(multiLabel && { multiLabel }),
    }
    await writeAtomic(join(folder, INDEX), `${JSON.stringify(index)}\n`)
    return { train: train.length, validation: validation.length, bytes, skipped }
  } catch (error) {
    await writer.abandon()
    throw error
  }
}

async function decode(sample: Sample, shorterSide: number | undefined, strict: boolean): Promise<RgbImage | string> {
  try {
    if (sample.load) return await sample.load()
    return await loadImage(await readSample(sample), { shorterSide, name: sample.path })
  } catch (error) {
    if (strict || !isBadPicture(error)) throw error
    return error.message
  }
}

/** Appends pictures to files of bounded size. */
class PictureWriter {
  #file = -1
  #handle: Awaited<ReturnType<typeof open>> | undefined
  #position = 0
  #total = 0

  constructor(private readonly folder: string) {}

  async add(bytes: Uint8Array): Promise<{ file: number; offset: number }> {
    try {
      if (!this.#handle || this.#position + bytes.length > FILE_BYTES) await this.#next()
      const offset = this.#position
      for (let at = 0; at < bytes.length; ) at += (await this.#handle!.write(bytes, at, bytes.length - at, offset + at)).bytesWritten
      this.#position += bytes.length
      this.#total += bytes.length
      return { file: this.#file, offset }
    } catch (error) {
      throw fileError(error, this.folder, 'write')
    }
  }

  async finish(): Promise<number> {
    await this.#handle?.sync()
    await this.#handle?.close()
    this.#handle = undefined
    return this.#total
  }

  async abandon(): Promise<void> {
    await this.#handle?.close().catch(() => {})
    for (let file = 0; file <= this.#file; file++) await rm(join(this.folder, dataFile(file)), { force: true })
  }

  async #next(): Promise<void> {
    await this.finish()
    this.#handle = await open(join(this.folder, dataFile(++this.#file)), 'w')
    this.#position = 0
  }
}

const dataFile = (file: number): string => `pictures-${String(file).padStart(3, '0')}.bin`

/**
 * Opens a prepared data set; its pictures are views of mapped files (read by position where the native addon is missing).
 * @throws ERR_FORMAT for an index of another version, ERR_FILE for files that are missing or shorter than the index says.
 */
export async function preparedDataset(folder: string): Promise<Dataset> {
  const path = join(folder, INDEX)
  let index: Index
  try {
    index = JSON.parse(await readFile(path, 'utf8')) as Index
  } catch (cause) {
    if (cause instanceof SyntaxError) throw new SepconvError('ERR_FORMAT', `${path} is not valid JSON`, { subject: path, cause })
    throw fileError(cause, path, 'read')
  }
  if (index.format !== FORMAT)
    throw new SepconvError('ERR_FORMAT', `${path} is of format ${index.format}, this version reads ${FORMAT}`, {
      subject: path,
      hint: 'Prepare the pictures again',
    })
  const files = await openFiles(folder, [...index.train, ...index.validation])
  const sample = ({ name, label, labels, width, height, file, offset }: Entry): Sample => ({
    ...{ path: join(folder, dataFile(file)), name, label },
    ...(labels && { labels }),
    load: async () => ({ data: await files[file]!(offset, width * height * 3), width, height }),
  })
  return {
    ...{ root: folder, classes: index.classes, split: index.split },
    ...(index.multiLabel && { multiLabel: true }),
    train: index.train.map(sample),
    validation: index.validation.map(sample),
    ignored: { count: index.skipped.length, examples: index.skipped.slice(0, 5) },
  }
}

type Reader = (offset: number, size: number) => Uint8Array | Promise<Uint8Array>

/** A reader per data file, once it is certain that it holds all that the index promises. */
async function openFiles(folder: string, entries: readonly Entry[]): Promise<Reader[]> {
  const ends: number[] = []
  for (const { file, offset, width, height } of entries) ends[file] = Math.max(ends[file] ?? 0, offset + width * height * 3)
  const { addon } = loadNative()
  return Promise.all(
    ends.map(async (end, file): Promise<Reader> => {
      const path = join(folder, dataFile(file))
      const handle = await open(path, 'r').catch((error: unknown) => {
        throw fileError(error, path, 'read')
      })
      const { size } = await handle.stat()
      await handle.close()
      if (size < end)
        throw new SepconvError('ERR_FILE', `${path} has ${size} bytes, the index says ${end}: it was cut off`, {
          subject: path,
          hint: `Prepare the pictures again: remove ${dirname(path)} first`,
        })
      if (addon && process.platform !== 'win32') {
        const bytes = new Uint8Array(addon.mapFile(path))
        return (offset, length) => bytes.subarray(offset, offset + length)
      }
      return (offset, length) => readPart(path, offset, length)
    }),
  )
}

async function readPart(path: string, offset: number, size: number): Promise<Uint8Array> {
  try {
    const file = await open(path, 'r')
    try {
      const bytes = new Uint8Array(size)
      await file.read(bytes, 0, size, offset)
      return bytes
    } finally {
      await file.close()
    }
  } catch (error) {
    throw fileError(error, path, 'read')
  }
}
