import { readFileSync, truncateSync, writeFileSync } from 'node:fs'
import { rm } from 'node:fs/promises'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { imageFolder } from '../../src/data/folder.js'
import { ImageLoader, type LoaderOptions } from '../../src/data/loader.js'
import { openDataset } from '../../src/data/open.js'
import { prepareDataset } from '../../src/data/prepared.js'
import { loadNative } from '../../src/runtime/native.js'
import { asSharp, pattern, temporary, tree } from './pictures.js'

let root: string
let out: string
beforeAll(async () => {
  const files: Record<string, Uint8Array | string> = {}
  for (const half of ['train', 'val'])
    for (let i = 0; i < 8; i++)
      files[`${half}/${'ab'[i % 2]}/${i}.jpg`] = await asSharp(pattern(90 + 7 * i, 80))
        .jpeg()
        .toBuffer()
  files['train/b/broken.jpg'] = (files['train/b/1.jpg'] as Uint8Array).subarray(0, 300)
  root = tree(files)
  out = join(temporary(), 'prepared')
  const done: number[] = []
  const data = await imageFolder(root)
  const prepared = await prepareDataset(data, out, { size: 32, onProgress: (n) => done.push(n) })
  expect(prepared).toMatchObject({ train: 8, validation: 8, skipped: [expect.stringContaining('broken.jpg')] })
  expect(done.at(-1)).toBe(17)
})
afterAll(async () => {
  for (const folder of [root, out]) await rm(folder, { recursive: true, force: true })
})

async function batches(samples: Parameters<typeof collect>[0], options: LoaderOptions) {
  return collect(samples, options)
}
async function collect(samples: ConstructorParameters<typeof ImageLoader>[0], options: LoaderOptions) {
  const all: Uint8Array[] = []
  for await (const { images } of new ImageLoader(samples, { size: 32, batch: 4, ...options })) all.push(images)
  return all
}

describe('prepared pictures', () => {
  it('give the bits that the files give, in training and in evaluation', async () => {
    const [files, mapped] = [await imageFolder(root), await openDataset(out)]
    const readable = files.train.filter(({ name }) => !name.includes('broken'))
    expect(mapped.train.map(({ name, label }) => [name, label])).toEqual(readable.map(({ name, label }) => [name, label]))
    const training: LoaderOptions = { shuffle: true, epochs: 2, augment: {}, seed: 4 }
    expect(await batches(mapped.train, training)).toEqual(await batches(readable, training))
    expect(await batches(mapped.validation, {})).toEqual(await batches(files.validation, {}))
  })

  it.skipIf(!loadNative().addon)('are views of a mapping: nothing that is done to them reaches the file', async () => {
    const data = await openDataset(out)
    const before = readFileSync(join(out, 'pictures-000.bin'))
    const { data: pixels } = await data.train[0]!.load!()
    pixels.fill(0)
    expect(readFileSync(join(out, 'pictures-000.bin'))).toEqual(before)
    expect(new Uint8Array(loadNative().addon!.mapFile(join(out, 'pictures-000.bin')))).toEqual(new Uint8Array(before))
    expect(() => loadNative().addon!.mapFile(join(out, 'none'))).toThrowError(/cannot map .*none: No such file/)
  })

  it('are not overwritten, and refused when cut off or of another format', async () => {
    await expect(prepareDataset(await imageFolder(root), out)).rejects.toMatchObject({ code: 'ERR_FILE' })
    const index = join(out, 'sepconv-pictures.json')
    const text = readFileSync(index, 'utf8')
    writeFileSync(index, text.replace('"format":1', '"format":9'))
    await expect(openDataset(out)).rejects.toMatchObject({ code: 'ERR_FORMAT' })
    writeFileSync(index, text)
    const bytes = readFileSync(join(out, 'pictures-000.bin'))
    truncateSync(join(out, 'pictures-000.bin'), 1000)
    await expect(openDataset(out)).rejects.toMatchObject({ code: 'ERR_FILE', message: expect.stringContaining('cut off') })
    writeFileSync(join(out, 'pictures-000.bin'), bytes)
  })

  it('unreadable pictures end it when strict, and an abort leaves nothing that looks finished', async () => {
    const other = join(temporary(), 'strict')
    await expect(prepareDataset(await imageFolder(root), other, { strict: true, size: 32 })).rejects.toMatchObject({ code: 'ERR_DATA' })
    const stop = new AbortController()
    const aborted = prepareDataset(await imageFolder(root), other, {
      size: 32,
      signal: stop.signal,
      onProgress: (n) => n === 3 && stop.abort(),
    })
    await expect(aborted).rejects.toMatchObject({ name: 'AbortError' })
    await expect(openDataset(other)).rejects.toMatchObject({ code: 'ERR_DATA' })
  })
})
