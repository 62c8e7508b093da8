import { execFileSync } from 'node:child_process'
import { readFileSync, truncateSync, writeFileSync } from 'node:fs'
import { rm } from 'node:fs/promises'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { ImageLoader } from '../../src/data/loader.js'
import { openDataset } from '../../src/data/open.js'
import { findShards, shardOrder, webDataset } from '../../src/data/shards.js'
import { indexTar } from '../../src/data/tar.js'
import { asSharp, pattern, temporary, tree } from './pictures.js'

let folder: string
const LONG = `${'deep/'.repeat(30)}${'n'.repeat(120)}.txt`
beforeAll(() => {
  folder = tree({ 'a.txt': 'first', [LONG]: 'x'.repeat(1000), 'empty.txt': '', 'b.bin': new Uint8Array(5000).fill(7) })
})
afterAll(() => rm(folder, { recursive: true }))

const pack = (name: string, cwd: string, files: readonly string[], ...options: string[]) =>
  execFileSync('tar', ['-c', '-f', name, ...options, '-C', cwd, ...files])

describe('indexTar', () => {
  it.each(['gnu', 'pax', 'v7', 'ustar'])('finds every file of a %s archive', async (format) => {
    const names = format === 'gnu' || format === 'pax' ? ['a.txt', LONG, 'empty.txt', 'b.bin'] : ['a.txt', 'empty.txt', 'b.bin']
    const archive = join(folder, `${format}.tar`)
    pack(archive, folder, names, `--format=${format}`)
    const { entries, problem } = await indexTar(archive)
    expect(problem).toBeUndefined()
    expect(entries.map(({ name }) => name)).toEqual(names)
    const bytes = readFileSync(archive)
    for (const { name, offset, size } of entries) expect(bytes.subarray(offset, offset + size)).toEqual(readFileSync(join(folder, name)))
  })

  it('says where an archive breaks, and lists what stands before', async () => {
    const archive = join(folder, 'whole.tar')
    pack(archive, folder, ['a.txt', 'b.bin', 'empty.txt'])
    const bytes = readFileSync(archive)
    const broken = join(folder, 'broken.tar')
    const first = (await indexTar(archive)).entries
    writeFileSync(broken, bytes.subarray(0, first[1]!.offset + 1000))
    expect(await indexTar(broken)).toMatchObject({ entries: [{ name: 'a.txt' }], problem: expect.stringContaining('cut off') })
    bytes[first[1]!.offset - 400]! ^= 1
    writeFileSync(broken, bytes)
    expect(await indexTar(broken)).toMatchObject({ entries: [{ name: 'a.txt' }], problem: expect.stringContaining('corrupt') })
    writeFileSync(broken, 'not an archive at all'.repeat(100))
    expect(await indexTar(broken)).toMatchObject({ entries: [], problem: expect.stringContaining('corrupt') })
    await expect(indexTar(join(folder, 'none.tar'))).rejects.toMatchObject({ code: 'ERR_FILE' })
  })
})

/** Shards of eight samples each with classes 0 … 3. */
async function shards(count: number, labels: (i: number) => string = (i) => String(i % 4), kind = 'cls'): Promise<string> {
  const root = temporary()
  for (let shard = 0; shard < count; shard++) {
    const files: Record<string, Uint8Array | string> = {}
    for (let i = 0; i < 8; i++) {
      const id = `part/${String(shard * 8 + i).padStart(4, '0')}`
      files[`${id}.jpg`] = await asSharp(pattern(40 + i, 36 + shard))
        .jpeg()
        .toBuffer()
      files[`${id}.${kind}`] = labels(shard * 8 + i)
    }
    const content = tree(files)
    pack(join(root, `train-${String(shard).padStart(3, '0')}.tar`), content, ['part'], '--sort=name')
    await rm(content, { recursive: true })
  }
  return root
}

describe('webDataset', () => {
  let root: string
  beforeAll(async () => {
    root = await shards(4)
  })
  afterAll(() => rm(root, { recursive: true }))

  it('groups files by name, reads classes, and gives pictures by position', async () => {
    const data = await openDataset(root)
    expect(data.classes).toEqual(['0', '1', '2', '3'])
    expect(data.train.length + data.validation.length).toBe(32)
    expect(data.train[0]!.name).toMatch(/^train-000.tar.part.000[01].jpg$/)
    const loader = new ImageLoader(data.train, { size: 16, batch: 5 })
    let count = 0
    for await (const batch of loader) count += batch.count
    expect(count).toBe(data.train.length)
    expect(findShards(join(root, 'train-{001..003}.tar')).map((path) => path.slice(-7))).toEqual(['001.tar', '002.tar', '003.tar'])
  })

  it('shuffles by shard and buffer: every sample once, another order each epoch, neighbours close together', async () => {
    const { train, order } = await webDataset(root, { validation: 0, buffer: 4 })
    const epochs = [0, 1].map((epoch) => order!(5, epoch))
    for (const epoch of epochs) expect([...epoch].sort((a, b) => a - b)).toEqual(train.map((_, i) => i))
    expect(epochs[0]).not.toEqual(epochs[1])
    expect(order!(5, 0)).toEqual(epochs[0])
    // A buffer of four never has samples of more than two shards among neighbours.
    const shardOf = [...epochs[0]!].map((i) => train[i]!.path)
    for (let i = 0; i + 4 <= shardOf.length; i++) expect(new Set(shardOf.slice(i, i + 4)).size).toBeLessThanOrEqual(2)
    expect([...shardOrder(train, 5, 0, 1)].every((i, at, all) => at % 8 === 0 || i === all[at - 1]! + 1)).toBe(true)
  })

  it('resumes at the exact sample, whatever the number of workers', async () => {
    const data = await webDataset(root, { validation: 0, buffer: 8 })
    const batches = async (parallel: number, start = 0, prefetch = 2) => {
      const loader = new ImageLoader(data.train, {
        ...{ size: 24, batch: 4, shuffle: true, seed: 3, epochs: 2, start, parallel, prefetch },
        order: (seed, epoch) => data.order!(seed, epoch),
        augment: { randAugment: { magnitude: 9, deviation: 0.5 }, erase: { probability: 0.5 } },
      })
      const all: { images: Uint8Array; labels: Int32Array; next: number }[] = []
      for await (const { images, labels, next } of loader) all.push({ images, labels, next })
      return all
    }
    const whole = await batches(1)
    expect(whole).toHaveLength(16)
    expect(await batches(4, 0, 5)).toEqual(whole)
    for (const from of [3, 8, 13]) expect(await batches(3, whole[from - 1]!.next)).toEqual(whole.slice(from))
  })

  it('a corrupt shard in the middle is used as far as it goes and counted, or refused when strict', async () => {
    const broken = await shards(3)
    truncateSync(join(broken, 'train-001.tar'), 6000)
    const data = await webDataset(broken, { validation: 0 })
    expect(data.train.length).toBeLessThan(24)
    expect(data.train.length).toBeGreaterThanOrEqual(16)
    expect(data.ignored).toMatchObject({ examples: [expect.stringContaining('train-001.tar')] })
    await expect(webDataset(broken, { strict: true })).rejects.toMatchObject({
      code: 'ERR_DATA',
      message: expect.stringContaining('train-001.tar'),
    })
    await rm(broken, { recursive: true })
  })

  it('classes by name, several labels, held-out shards, and labels out of range', async () => {
    const named = await shards(1, (i) => ['owl', 'cat'][i % 2]!)
    expect((await webDataset(named)).classes).toEqual(['cat', 'owl'])
    writeFileSync(join(named, 'classes.txt'), 'owl\nbat\n')
    await expect(webDataset(named)).rejects.toThrowError(/has label 'cat', and there are 2 classes/)
    const several = await shards(2, (i) => JSON.stringify({ labels: i % 2 ? [0, 2] : [] }), 'json')
    execFileSync('mv', [join(several, 'train-001.tar'), join(several, 'val-000.tar')])
    const data = await webDataset(several)
    expect(data).toMatchObject({ multiLabel: true, split: 'files', classes: ['0', '1', '2'] })
    expect([data.train.length, data.validation.length]).toEqual([8, 8])
    expect(data.train[1]!.labels).toEqual([0, 2])
    for (const made of [named, several]) await rm(made, { recursive: true })
  })
})
