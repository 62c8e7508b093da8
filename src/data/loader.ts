/**
 * From samples to batches of uint8 pictures, [n, size, size, 3], with the next batches being made while the current one is used.
 *
 * Reading and decoding run on libuv's threads, several pictures at a time; resampling and colours run here in pieces of a few
 * milliseconds. What a batch holds is a function of (samples, seed, global sample index) and the options: the number of workers,
 * the cache and prefetching change times, never pixels. For that, training pictures are always reduced to a bounded size first
 * (which also makes decoding large JPEGs cheap), whether they are then cached or not; evaluation always starts from full size.
 */

import { readFile } from 'node:fs/promises'
import { totalmem } from 'node:os'
import { checkChoice, checkOptions, SepconvError } from '../errors.js'
import { fileError } from '../files.js'
import { type AugmentOptions, applyAugmentation, drawAugmentation, type ResolvedAugment, resolveAugment } from './augment.js'
import type { Sample } from './folder.js'
import {
  checkWhole,
  decodeParallelism,
  type LoadImageOptions,
  loadImage,
  type PreprocessOptions,
  preprocess,
  resolvePreprocess,
} from './image.js'
import { breathe, type RgbImage } from './resample.js'
import { Sampler } from './sampler.js'

/** One batch; its arrays belong to the receiver. */
export interface Batch {
  /** [n, size, size, 3], n the rows of the batch that are made here; rows without a sample are zero. */
  readonly images: Uint8Array
  /** [n]; -1 for rows without a sample, which losses and metrics leave out. */
  readonly labels: Int32Array
  /** [n]: the number of each row's sample in the list given, -1 for rows without one. */
  readonly indices: Int32Array
  /** Rows with a sample. */
  readonly count: number
  readonly epoch: number
  /** Global sample index of the first row; row i stands at start + i. */
  readonly start: number
  /** Where to go on after this batch: the `start` option of a loader that continues from here. */
  readonly next: number
  /** Milliseconds that the consumer waited for it. */
  readonly waitMs: number
  /** Milliseconds that reading, decoding and augmenting took, summed over its pictures. */
  readonly decodeMs: number
}

export interface LoaderOptions {
  /** Side of the pictures in pixels. Default 299. */
  size?: number
  /** Rows per batch. Default 32. */
  batch?: number
  /** Decides order and augmentation. Default 0. */
  seed?: number
  /** A new order for each epoch. Default false. */
  shuffle?: boolean
  /** The order of an epoch when shuffling; default a shuffle of all samples. */
  order?: (seed: number, epoch: number) => Uint32Array
  /** Random crops, mirroring and colours; `false` (default) preprocesses as for evaluation. */
  augment?: AugmentOptions | false
  /** Evaluation preprocessing, where `augment` is false. */
  preprocess?: Omit<PreprocessOptions, 'size'>
  /** Passes over the samples, counted from epoch 0; Infinity is allowed. Default 1. */
  epochs?: number
  /** Global sample index to begin with: epoch * samples + position. Default 0. */
  start?: number
  /** The incomplete batch at the end of an epoch: left out, or filled with rows of label -1. Default 'drop' with shuffle, else 'pad'. */
  last?: 'drop' | 'pad'
  /**
   * A picture that cannot be read: `'replace'` it by the next one in the epoch's order (default with shuffle, so that training batches
   * stay full), `'mask'` its row with label -1 (default without, so that evaluation counts what is there), or `'throw'`.
   */
  corrupt?: 'replace' | 'mask' | 'throw'
  /**
   * One of several loaders that share each batch: it makes rows `index` · batch / `count` up to the next one's, and with `mirror` the rows
   * at the same distance from the batch's end behind them (unless they are the same), for mixing. Default: all rows.
   */
  share?: { readonly index: number; readonly count: number; readonly mirror?: boolean }
  /** Batches made ahead of the consumer. Default 2. */
  prefetch?: number
  /** Pictures in the works at a time. Default: libuv's threads (UV_THREADPOOL_SIZE, 4), at most the cores. */
  parallel?: number
  /** Most bytes of decoded pictures kept for later epochs; 0 keeps none. Default 512 MiB, at most an eighth of the memory. */
  cacheBytes?: number
  /** How files are decoded. */
  load?: Pick<LoadImageOptions, 'background' | 'maxPixels' | 'maxBytes' | 'colorProfile'>
  /** Where a sample's encoded bytes come from; default its file. */
  read?: (sample: Sample) => Promise<Uint8Array>
  /** Ends the iteration, which then throws `signal.reason`. */
  signal?: AbortSignal
}

export interface LoaderStatistics {
  readonly batches: number
  readonly pictures: number
  readonly waitMs: number
  readonly decodeMs: number
  readonly cachedPictures: number
  readonly cachedBytes: number
  /** Pictures that could not be read, each counted once: name to reason. */
  readonly skipped: ReadonlyMap<string, string>
}

const OPTIONS: readonly (keyof LoaderOptions)[] = [
  ...(['size', 'batch', 'seed', 'shuffle', 'order', 'augment', 'preprocess', 'epochs', 'start', 'last', 'corrupt', 'share'] as const),
  ...(['prefetch', 'parallel', 'cacheBytes', 'load', 'read', 'signal'] as const),
]

/** Cached training pictures have a shorter side of at most this times `size`, so that crops of under half the area still shrink. */
export const CACHE_SCALE = 1.5
const CACHE_BYTES = 512 << 20

interface Planned {
  readonly epoch: number
  readonly start: number
  readonly rows: number
  readonly next: number
  readonly endsEpoch: boolean
}

/** What the pictures in the works of one iteration share. */
interface Run {
  readonly gate: Gate
  stopped: boolean
  usable: number
}

function rowsOf(batch: number, { index, count, mirror = false }: NonNullable<LoaderOptions['share']> = { index: 0, count: 1 }): number[] {
  if (!Number.isSafeInteger(count) || count < 1 || batch % count !== 0 || !Number.isSafeInteger(index) || index < 0 || index >= count)
    throw new SepconvError('ERR_ARGUMENT', `loader: share ${index} of ${count} does not fit a batch of ${batch}`, {
      subject: 'share',
      expected: 'a number that divides the batch, and an index below it',
      given: count,
    })
  const own = batch / count
  const from = (first: number) => Array.from({ length: own }, (_, row) => first + row)
  const [first, opposite] = [index * own, batch - (index + 1) * own]
  return mirror && first !== opposite ? [...from(first), ...from(opposite)] : from(first)
}

/**
 * An AsyncIterable of {@link Batch}es. May be iterated more than once (each evaluation, for instance); the cache and the statistics
 * carry over.
 *
 *     const loader = new ImageLoader(dataset.train, { size: 64, batch: 32, shuffle: true, augment: {}, epochs: Infinity })
 *     for await (const { images, labels, next } of loader) ...
 */
export class ImageLoader implements AsyncIterable<Batch> {
  readonly size: number
  readonly batch: number
  /** Batches of one full epoch. */
  readonly batchesPerEpoch: number
  /** Places in the batch of the rows that are made here. */
  private readonly rows: readonly number[]
  private readonly shared: boolean
  private readonly sampler: Sampler
  private readonly options: Required<Omit<LoaderOptions, 'augment' | 'preprocess' | 'signal' | 'order' | 'share'>> &
    Pick<LoaderOptions, 'signal'>
  private readonly augment: ResolvedAugment | undefined
  private readonly evaluation: Required<PreprocessOptions>
  private readonly cache = new Map<number, RgbImage>()
  private readonly skipped = new Map<number, string>()
  private readonly totals = { batches: 0, pictures: 0, waitMs: 0, decodeMs: 0, cachedBytes: 0 }

  /**
   * @throws SepconvError `ERR_DATA` for an empty list, or one smaller than a batch where the last one is dropped; `ERR_ARGUMENT` for
   * bad options.
   */
  constructor(
    readonly samples: readonly Sample[],
    options: LoaderOptions = {},
  ) {
    checkOptions('loader', options, OPTIONS)
    const shuffle = options.shuffle ?? false
    const resolved = {
      size: options.size ?? 299,
      batch: options.batch ?? 32,
      seed: options.seed ?? 0,
      shuffle,
      epochs: options.epochs ?? 1,
      start: options.start ?? 0,
      last: options.last ?? (shuffle ? 'drop' : 'pad'),
      corrupt: options.corrupt ?? (shuffle ? 'replace' : 'mask'),
      prefetch: options.prefetch ?? 2,
      parallel: options.parallel ?? decodeParallelism(),
      cacheBytes: options.cacheBytes ?? Math.min(CACHE_BYTES, totalmem() / 8),
      load: options.load ?? {},
      read: options.read ?? readSample,
      signal: options.signal,
    }
    for (const name of ['size', 'batch', 'parallel'] as const) checkWhole('loader', name, resolved[name])
    for (const name of ['start', 'prefetch'] as const) checkWhole('loader', name, resolved[name], 0)
    if (resolved.epochs !== Infinity) checkWhole('loader', 'epochs', resolved.epochs)
    if (!(resolved.cacheBytes >= 0)) checkWhole('loader', 'cacheBytes', resolved.cacheBytes, 0)
    checkChoice('loader', 'last', resolved.last, ['drop', 'pad'])
    checkChoice('loader', 'corrupt', resolved.corrupt, ['replace', 'mask', 'throw'])
    this.options = resolved
    this.size = resolved.size
    this.batch = resolved.batch
    this.rows = rowsOf(resolved.batch, options.share)
    this.shared = (options.share?.count ?? 1) > 1
    this.sampler = new Sampler({ count: samples.length, seed: resolved.seed, shuffle, ...(options.order && { order: options.order }) })
    this.augment = options.augment ? resolveAugment(options.augment) : undefined
    this.evaluation = resolvePreprocess({ ...options.preprocess, size: resolved.size })
    const batches = samples.length / this.batch
    this.batchesPerEpoch = resolved.last === 'drop' ? Math.floor(batches) : Math.ceil(batches)
    if (this.batchesPerEpoch === 0) {
      throw new SepconvError('ERR_DATA', `${samples.length} samples do not fill one batch of ${this.batch}`, {
        subject: 'batch',
        expected: `at most ${samples.length}`,
        given: this.batch,
        hint: "Choose a smaller batch, add pictures, or set last: 'pad'",
      })
    }
  }

  get statistics(): LoaderStatistics {
    const skipped = new Map([...this.skipped].map(([index, reason]) => [this.samples[index]!.name, reason]))
    return { ...this.totals, cachedPictures: this.cache.size, skipped }
  }

  async *[Symbol.asyncIterator](): AsyncGenerator<Batch, void, void> {
    const { signal, prefetch, parallel } = this.options
    const run: Run = { gate: new Gate(parallel), stopped: false, usable: 0 }
    const plan = this.plan()
    const queue: { planned: Planned; promise: Promise<Omit<Batch, 'waitMs'>> }[] = []
    try {
      for (;;) {
        signal?.throwIfAborted()
        while (queue.length <= prefetch) {
          const { value: planned, done } = plan.next()
          if (done) break
          const promise = this.assemble(planned, run)
          // A failure is reported when its batch is due, and must not count as unhandled until then.
          promise.catch(() => {})
          queue.push({ planned, promise })
        }
        const head = queue[0]
        if (!head) return
        const since = performance.now()
        const batch = await abortable(head.promise, signal)
        queue.shift()
        const waitMs = performance.now() - since
        run.usable += batch.count
        if (head.planned.endsEpoch) {
          // Another loader may have had all the rows of a small set.
          if (run.usable === 0 && !this.shared) throw this.unusable()
          run.usable = 0
        }
        this.totals.batches++
        this.totals.pictures += batch.count
        this.totals.waitMs += waitMs
        this.totals.decodeMs += batch.decodeMs
        yield { ...batch, waitMs }
      }
    } finally {
      run.stopped = true
      await Promise.allSettled(queue.map(({ promise }) => promise))
    }
  }

  /** The batches to come, as ranges of global sample indices; none crosses the end of an epoch. */
  private *plan(): Generator<Planned, void, void> {
    const { start: from, epochs, last } = this.options
    const { count } = this.sampler
    for (let start = from; start < epochs * count; ) {
      const { epoch, position } = this.sampler.locate(start)
      const rows = Math.min(this.batch, count - position)
      const end = start + rows
      // The remainder that is dropped belongs to the batch before it: a run that stops there resumes in the next epoch.
      const endsEpoch = count - position - rows < (last === 'drop' ? this.batch : 1)
      const next = endsEpoch ? (epoch + 1) * count : end
      if (rows === this.batch || last === 'pad') yield { epoch, start, rows, next, endsEpoch }
      start = next
    }
  }

  private async assemble({ epoch, start, rows, next }: Planned, run: Run): Promise<Omit<Batch, 'waitMs'>> {
    const bytes = this.size * this.size * 3
    const images = new Uint8Array(this.rows.length * bytes)
    const labels = new Int32Array(this.rows.length).fill(-1)
    const indices = new Int32Array(this.rows.length).fill(-1)
    let decodeMs = 0
    let failed = false
    const results = await Promise.allSettled(
      this.rows.map((place, row) =>
        run.gate.enter(async () => {
          if (place >= rows || run.stopped || failed) return
          const since = performance.now()
          try {
            const index = await this.fill(start + place, images.subarray(row * bytes, (row + 1) * bytes), run)
            if (index === undefined) return
            indices[row] = index
            labels[row] = this.samples[index]!.label
          } catch (error) {
            // Spares the rest of this batch; batches before it are still wanted.
            failed = true
            throw error
          } finally {
            decodeMs += performance.now() - since
          }
        }),
      ),
    )
    for (const result of results) if (result.status === 'rejected') throw result.reason
    const count = indices.reduce((sum, index) => sum + (index >= 0 ? 1 : 0), 0)
    return { images, labels, indices, count, epoch, start, next, decodeMs }
  }

  /** Puts the picture for a global sample index into `out`; returns which sample it is, `undefined` where the row stays empty. */
  private async fill(global: number, out: Uint8Array, run: Run): Promise<number | undefined> {
    const { epoch, position } = this.sampler.locate(global)
    const { count } = this.sampler
    for (let step = 0; step < count && !run.stopped; step++) {
      // The replacement depends only on the order and on which files are bad, so a resumed run finds the same one.
      const index = this.sampler.at(epoch * count + ((position + step) % count))
      if (!this.skipped.has(index)) {
        try {
          await this.render(index, global, out)
          return index
        } catch (error) {
          if (this.options.corrupt === 'throw' || !isBadPicture(error)) throw error
          this.skipped.set(index, error.message)
        }
      }
      if (this.options.corrupt === 'mask') return undefined
    }
    if (run.stopped) return undefined
    throw this.unusable()
  }

  private async render(index: number, global: number, out: Uint8Array): Promise<void> {
    const { augment, size } = this
    const known = this.cache.get(index)
    if (augment) {
      const image = known ?? (await this.decode(index, Math.round(size * CACHE_SCALE)))
      if (!known) this.keep(index, image)
      const drawn = drawAugmentation(this.options.seed, global, image.width, image.height, augment)
      await applyAugmentation(image, drawn, size, augment.interpolation, out)
    } else if (known) {
      out.set(known.data)
    } else {
      await preprocess(await this.decode(index), this.evaluation, out)
      this.keep(index, { data: out.slice(), width: size, height: size })
    }
    await breathe()
  }

  private async decode(index: number, shorterSide?: number): Promise<RgbImage> {
    const sample = this.samples[index]!
    if (sample.load) return sample.load()
    return loadImage(await this.options.read(sample), { ...this.options.load, shorterSide, name: sample.path })
  }

  /** First come, first kept: with every sample visited once per epoch, nothing that is thrown out would serve better. */
  private keep(index: number, image: RgbImage): void {
    if (this.cache.has(index) || this.totals.cachedBytes + image.data.length > this.options.cacheBytes) return
    this.cache.set(index, image)
    this.totals.cachedBytes += image.data.length
  }

  private unusable(): SepconvError {
    const [first] = this.skipped.values()
    return new SepconvError('ERR_DATA', `none of the ${this.samples.length} pictures could be read; the first: ${first}`, {
      subject: 'samples',
      given: this.skipped.size,
    })
  }
}

export async function readSample(sample: Sample): Promise<Uint8Array> {
  if (sample.read) return sample.read()
  try {
    return await readFile(sample.path)
  } catch (error) {
    throw fileError(error, sample.path, 'read')
  }
}

/** Problems of one file; a lack of file handles or a missing image library concerns them all. */
export const isBadPicture = (error: unknown): error is SepconvError =>
  error instanceof SepconvError &&
  (error.code === 'ERR_DATA' || (error.code === 'ERR_FILE' && !['EMFILE', 'ENFILE', 'EIO'].includes(String(error.given))))

/** Lets at most `width` tasks run at a time, in the order of their coming. */
class Gate {
  private readonly waiting: (() => void)[] = []

  constructor(private free: number) {}

  async enter<T>(task: () => Promise<T>): Promise<T> {
    if (this.free > 0) this.free--
    else await new Promise<void>((resolve) => this.waiting.push(resolve))
    try {
      return await task()
    } finally {
      const next = this.waiting.shift()
      if (next) next()
      else this.free++
    }
  }
}

/** The promise's outcome, or `signal.reason` as an error as soon as the signal says so. */
async function abortable<T>(promise: Promise<T>, signal: AbortSignal | undefined): Promise<T> {
  if (!signal) return promise
  let stop = (): void => {}
  const aborted = new Promise<never>((_, reject) => {
    stop = () => reject(signal.reason)
    signal.addEventListener('abort', stop, { once: true })
  })
  try {
    return await Promise.race([promise, aborted])
  } finally {
    signal.removeEventListener('abort', stop)
  }
}
