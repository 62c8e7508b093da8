import { createHash } from 'node:crypto'
import { rmSync } from 'node:fs'
import { readFile } from 'node:fs/promises'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { imageFolder, type Sample } from '../../src/data/folder.js'
import { preprocess } from '../../src/data/image.js'
import { type Batch, ImageLoader, type LoaderOptions } from '../../src/data/loader.js'
import { SepconvError } from '../../src/errors.js'
import { asSharp, errorOf, pattern, tree } from './pictures.js'

const SIZE = 24
/** Eleven pictures of different sizes in two classes; three of them cannot be read in `damaged`. */
let samples: readonly Sample[]
let damaged: readonly Sample[]
const roots: string[] = []

beforeAll(async () => {
  const files: Record<string, Uint8Array> = {}
  for (let i = 0; i < 11; i++) {
    const picture = asSharp(pattern(30 + 5 * i, 40 + i))
    const name = `${i < 6 ? 'a' : 'b'}/${String(i).padStart(2, '0')}`
    files[`${name}.${i % 2 ? 'png' : 'jpg'}`] = i % 2 ? await picture.png().toBuffer() : await picture.jpeg().toBuffer()
  }
  roots.push(tree(files))
  samples = (await imageFolder(roots[0]!, { validation: 0 })).train
  const bad = { ...files, 'a/02.jpg': files['a/02.jpg']!.slice(0, 300), 'a/03.png': Buffer.from('no picture'), 'b/09.png': Buffer.alloc(0) }
  roots.push(tree(bad))
  damaged = (await imageFolder(roots[1]!, { validation: 0 })).train
})
afterAll(() => {
  for (const root of roots) rmSync(root, { recursive: true, force: true })
})

async function collect(loader: AsyncIterable<Batch>, most = Number.POSITIVE_INFINITY): Promise<Batch[]> {
  const batches: Batch[] = []
  for await (const batch of loader) if (batches.push(batch) >= most) break
  return batches
}

/** What training depends on: pixels, labels and places, not times. */
const essence = (batches: readonly Batch[]): unknown[] =>
  batches.map(({ images, labels, indices, count, epoch, start, next }) => [
    createHash('sha256').update(images).digest('hex'),
    [...labels],
    [...indices],
    count,
    epoch,
    start,
    next,
  ])

const train = (options: LoaderOptions = {}): LoaderOptions => ({
  size: SIZE,
  batch: 4,
  seed: 5,
  shuffle: true,
  augment: {},
  epochs: 3,
  ...options,
})

describe('evaluation', () => {
  it('gives every picture once, in order, preprocessed, the last batch padded', async () => {
    const loader = new ImageLoader(samples, { size: SIZE, batch: 4 })
    const batches = await collect(loader)
    expect(loader.batchesPerEpoch).toBe(3)
    expect(batches.map(({ count, start, next }) => [count, start, next])).toEqual([
      [4, 0, 4],
      [4, 4, 8],
      [3, 8, 11],
    ])
    expect(batches.flatMap(({ indices }) => [...indices])).toEqual([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, -1])
    expect(batches.flatMap(({ labels }) => [...labels])).toEqual([0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, -1])
    const row = SIZE * SIZE * 3
    // Number 3 is a PNG, so its pixels are known.
    expect(batches[0]!.images.slice(3 * row)).toEqual(await preprocess(pattern(45, 43), { size: SIZE }))
    expect(batches[2]!.images.slice(3 * row).every((value) => value === 0)).toBe(true)
    expect(batches[2]!.images.length).toBe(4 * row)
  })

  it('can be iterated again, from the cache', async () => {
    const loader = new ImageLoader(samples, { size: SIZE, batch: 4, preprocess: { crop: 'squash', interpolation: 'bilinear' } })
    const first = essence(await collect(loader))
    expect(loader.statistics).toMatchObject({ cachedPictures: 11, cachedBytes: 11 * SIZE * SIZE * 3, batches: 3, pictures: 11 })
    const read = async (): Promise<Uint8Array> => expect.unreachable('everything is cached')
    Object.assign((loader as unknown as { options: { read: unknown } }).options, { read })
    expect(essence(await collect(loader))).toEqual(first)
    expect(loader.statistics.pictures).toBe(22)
  })

  it('masks pictures that cannot be read, and says which and why', async () => {
    const loader = new ImageLoader(damaged, { size: SIZE, batch: 4 })
    const batches = await collect(loader)
    expect(batches.flatMap(({ indices }) => [...indices])).toEqual([0, 1, -1, -1, 4, 5, 6, 7, 8, -1, 10, -1])
    expect(batches.map(({ count }) => count)).toEqual([2, 4, 2])
    const { skipped } = loader.statistics
    expect([...skipped.keys()].sort()).toEqual(['a/02.jpg', 'a/03.png', 'b/09.png'])
    expect(skipped.get('a/02.jpg')).toMatch(/a\/02\.jpg: corrupt or truncated JPEG/)
    expect(skipped.get('b/09.png')).toMatch(/is empty/)
    await collect(loader)
    expect(loader.statistics.skipped.size).toBe(3)
  })
})

describe('training', () => {
  it('gives full batches of another order and look each epoch', async () => {
    const batches = await collect(new ImageLoader(samples, train()))
    expect(batches.map(({ epoch, start, next, count }) => [epoch, start, next, count])).toEqual([
      [0, 0, 4, 4],
      [0, 4, 11, 4],
      [1, 11, 15, 4],
      [1, 15, 22, 4],
      [2, 22, 26, 4],
      [2, 26, 33, 4],
    ])
    for (const { indices, labels } of batches) for (const [row, index] of indices.entries()) expect(labels[row]).toBe(samples[index]!.label)
    expect(new Set(batches.map(({ indices }) => String(indices))).size).toBeGreaterThan(3)
    expect(new Set([...batches[0]!.indices, ...batches[1]!.indices]).size).toBe(8)
    const padded = await collect(new ImageLoader(samples, train({ last: 'pad', epochs: 1 })))
    expect(padded.map(({ count, next }) => [count, next])).toEqual([
      [4, 4],
      [4, 8],
      [3, 11],
    ])
    expect(essence(padded).slice(0, 1)).toEqual(essence(batches).slice(0, 1))
  })

  it('does not depend on workers, prefetching or the cache', async () => {
    const expected = essence(await collect(new ImageLoader(samples, train())))
    for (const options of [
      { parallel: 1, prefetch: 0 },
      { parallel: 7, prefetch: 5 },
      { cacheBytes: 0 },
      { cacheBytes: 20_000, parallel: 3 },
    ]) {
      expect(essence(await collect(new ImageLoader(samples, train(options))))).toEqual(expected)
    }
    expect(essence(await collect(new ImageLoader(samples, train({ seed: 6 }))))).not.toEqual(expected)
  })

  it('goes on from any batch as if it had never stopped, also around damaged files', async () => {
    for (const list of [samples, damaged]) {
      const all = await collect(new ImageLoader(list, train()))
      for (const [i, { next }] of all.slice(0, -1).entries()) {
        const rest = await collect(new ImageLoader(list, train({ start: next })))
        expect(essence(rest)).toEqual(essence(all).slice(i + 1))
      }
    }
  })

  it('replaces damaged pictures so that batches stay full', async () => {
    const loader = new ImageLoader(damaged, train())
    for (const { indices, count } of await collect(loader)) {
      expect(count).toBe(4)
      for (const index of indices) expect(['a/02.jpg', 'a/03.png', 'b/09.png']).not.toContain(damaged[index]!.name)
    }
    expect(loader.statistics.skipped.size).toBeGreaterThan(0)
    expect(loader.statistics).toMatchObject({ batches: 6, pictures: 24 })
  })

  it('runs without end when asked', async () => {
    const batches = await collect(new ImageLoader(samples, train({ epochs: Number.POSITIVE_INFINITY })), 9)
    expect(batches.at(-1)).toMatchObject({ epoch: 4, start: 44 })
  })

  it('keeps the cache within its bound', async () => {
    const loader = new ImageLoader(samples, train({ cacheBytes: 20_000 }))
    await collect(loader)
    expect(loader.statistics.cachedBytes).toBeLessThanOrEqual(20_000)
    expect(loader.statistics.cachedPictures).toBeGreaterThan(0)
    expect(loader.statistics.cachedPictures).toBeLessThan(11)
  })

  it('reduces large pictures alike, cached or not', async () => {
    const root = tree({ 'a/1.jpg': await asSharp(pattern(600, 450)).jpeg().toBuffer() })
    roots.push(root)
    const { train: large } = await imageFolder(root, { validation: 0 })
    const loader = new ImageLoader(large, train({ batch: 1 }))
    const cached = essence(await collect(loader))
    expect(loader.statistics.cachedBytes).toBe(48 * 36 * 3)
    expect(essence(await collect(new ImageLoader(large, train({ batch: 1, cacheBytes: 0 }))))).toEqual(cached)
  })

  it('reports times', async () => {
    const loader = new ImageLoader(samples, train())
    const batches = await collect(loader)
    const sum = (pick: (batch: Batch) => number) => batches.reduce((total, batch) => total + pick(batch), 0)
    expect(loader.statistics.waitMs).toBeCloseTo(sum(({ waitMs }) => waitMs))
    expect(loader.statistics.decodeMs).toBeCloseTo(sum(({ decodeMs }) => decodeMs))
    expect(batches[0]!.waitMs).toBeGreaterThan(0)
    expect(batches[0]!.decodeMs).toBeGreaterThan(0)
  })

  it('makes batches while the consumer is busy', async () => {
    let reads = 0
    const read = async ({ path }: Sample): Promise<Uint8Array> => {
      reads++
      return readFile(path)
    }
    const loader = new ImageLoader(samples, train({ prefetch: 1, cacheBytes: 0, read }))
    for await (const batch of loader) {
      await new Promise((resolve) => setTimeout(resolve, 300))
      if (batch.start === 0) expect(reads).toBe(8)
      else break
    }
    // The batch in hand, and one ahead of it.
    expect(reads).toBeLessThanOrEqual(12)
  })
})

describe('trouble', () => {
  it('throws at the batch concerned when strict, after those before it', async () => {
    const loader = new ImageLoader(damaged, { size: SIZE, batch: 2, corrupt: 'throw' })
    const seen: number[] = []
    const error = await errorOf(
      (async () => {
        for await (const { start } of loader) seen.push(start)
      })(),
    )
    expect(error).toMatchObject({ code: 'ERR_DATA', subject: damaged[2]!.path })
    expect(seen).toEqual([0])
  })

  it('gives up when nothing can be read', async () => {
    const gone = samples.map((sample) => ({ ...sample, path: `${sample.path}.gone` }))
    for (const options of [{ size: SIZE, batch: 4 }, train()]) {
      const error = await errorOf(collect(new ImageLoader(gone, options)))
      expect(error.code).toBe('ERR_DATA')
      expect(error.message).toMatch(/none of the 11 pictures could be read; the first: cannot read .*no such file/)
    }
  })

  it('does not blame pictures for what is not their fault', async () => {
    const failures = [
      new SepconvError('ERR_FILE', 'too many open files', { given: 'EMFILE' }),
      new SepconvError('ERR_NATIVE', 'no sharp'),
      new TypeError('a bug'),
    ]
    for (const failure of failures) {
      const loader = new ImageLoader(samples, train({ read: () => Promise.reject(failure) }))
      await expect(collect(loader)).rejects.toBe(failure)
    }
    expect((await errorOf(collect(new ImageLoader(samples, train({ load: { backgrund: 1 } as never }))))).code).toBe('ERR_ARGUMENT')
  })

  it("stops at once on abort, with the signal's reason, and reads nothing more", async () => {
    const reason = new Error('enough')
    await expect(collect(new ImageLoader(samples, train({ signal: AbortSignal.abort(reason) })))).rejects.toBe(reason)
    const controller = new AbortController()
    let reads = 0
    const read = async ({ path }: Sample): Promise<Uint8Array> => {
      if (++reads === 6) controller.abort(reason)
      return readFile(path)
    }
    await expect(collect(new ImageLoader(samples, train({ signal: controller.signal, read, cacheBytes: 0 })))).rejects.toBe(reason)
    const after = reads
    await new Promise((resolve) => setTimeout(resolve, 50))
    expect(reads).toBe(after)
    expect(reads).toBeLessThan(12)
  })

  it('leaves nothing running after a break', async () => {
    let running = 0
    const read = async ({ path }: Sample): Promise<Uint8Array> => {
      running++
      await new Promise((resolve) => setTimeout(resolve, 5))
      running--
      return readFile(path)
    }
    await collect(new ImageLoader(samples, train({ read, cacheBytes: 0, prefetch: 3 })), 1)
    expect(running).toBe(0)
  })

  it('keeps the event loop free', async () => {
    const root = tree({ 'a/1.png': await asSharp(pattern(900, 700)).png().toBuffer() })
    roots.push(root)
    const { train: large } = await imageFolder(root, { validation: 0 })
    let turns = 0
    const timer = setInterval(() => turns++, 1)
    await collect(new ImageLoader(large, { size: 299, batch: 1, epochs: 8, cacheBytes: 0 }))
    clearInterval(timer)
    expect(turns).toBeGreaterThan(20)
  })

  it('explains bad options', () => {
    const make = (options: LoaderOptions) => () => new ImageLoader(samples, options)
    expect(make({ batch: 0 })).toThrow(/batch must be a whole number of at least 1, got 0/)
    expect(make({ size: 1.5 })).toThrow(/size must be a whole number/)
    expect(make({ epochs: -1 })).toThrow(/epochs must be/)
    expect(make({ start: -1 })).toThrow(/start must be a whole number of at least 0, got -1/)
    expect(make({ last: 'keep' as never })).toThrow(/last must be one of drop, pad/)
    expect(make({ corrupt: 'skip' as never })).toThrow(/corrupt must be one of replace, mask, throw/)
    expect(make({ cacheBytes: Number.NaN })).toThrow(/cacheBytes/)
    expect(make({ bacth: 3 } as never)).toThrow(/Did you mean 'batch'/)
    expect(make({ augment: { flip: 3 } })).toThrow(/flip/)
    expect(make({ batch: 12, shuffle: true })).toThrow(/11 samples do not fill one batch of 12.*Choose a smaller batch/)
    expect(make({ batch: 12 })).not.toThrow()
    expect(() => new ImageLoader([], {})).toThrow(/at least one sample/)
  })
})
