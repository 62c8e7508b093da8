import { mkdirSync, rmSync, symlinkSync } from 'node:fs'
import { join } from 'node:path'
import { afterEach, describe, expect, it } from 'vitest'
import { dataFingerprint, imageFolder, type Sample, splitByName } from '../../src/data/folder.js'
import { parseLabels, readLabels } from '../../src/data/labels.js'
import { errorOf, tree } from './pictures.js'

const made: string[] = []
afterEach(() => {
  for (const root of made.splice(0)) rmSync(root, { recursive: true, force: true })
})
/** A folder with empty files of the given names; listing opens none of them. */
function files(...names: string[]): string {
  const root = tree(Object.fromEntries(names.map((name) => [name, ''])))
  made.push(root)
  return root
}
const numbered = (folder: string, count: number): string[] =>
  Array.from({ length: count }, (_, i) => `${folder}/${String(i).padStart(4, '0')}.jpg`)
const names = (samples: readonly Sample[]): string[] => samples.map(({ name }) => name)

describe('imageFolder', () => {
  it('takes train/ and val/, classes and samples sorted by code units', async () => {
    const root = files(
      'train/b/2.jpg',
      'train/b/10.png',
      'train/B/x.webp',
      'train/a/deep/er/y.JPEG',
      'val/a/1.jpg',
      'val/b/1.jpg',
      'train/.hidden/1.jpg',
      'train/b/.DS_Store',
      'train/b/Thumbs.db',
    )
    const data = await imageFolder(root)
    expect(data).toMatchObject({ root, classes: ['B', 'a', 'b'], split: 'folders', ignored: { count: 0 } })
    expect(data.train).toEqual([
      { path: join(root, 'train/B/x.webp'), name: 'train/B/x.webp', label: 0 },
      { path: join(root, 'train/a/deep/er/y.JPEG'), name: 'train/a/deep/er/y.JPEG', label: 1 },
      { path: join(root, 'train/b/10.png'), name: 'train/b/10.png', label: 2 },
      { path: join(root, 'train/b/2.jpg'), name: 'train/b/2.jpg', label: 2 },
    ])
    expect(data.validation.map(({ name, label }) => [name, label])).toEqual([
      ['val/a/1.jpg', 1],
      ['val/b/1.jpg', 2],
    ])
  })

  it('takes other names for the second half, and a class called train as a class', async () => {
    expect((await imageFolder(files('train/a/1.jpg', 'validation/a/1.jpg'))).split).toBe('folders')
    const vehicles = await imageFolder(files('bus/1.jpg', 'bus/2.jpg', 'train/1.jpg', 'train/2.jpg'))
    expect(vehicles.classes).toEqual(['bus', 'train'])
    const alone = await imageFolder(files(...numbered('train/a', 10), ...numbered('train/b', 10)), { validation: 0.3 })
    expect([alone.classes, alone.split, alone.train.length, alone.validation.length]).toEqual([['a', 'b'], 'hash', 14, 6])
  })

  it('splits each class by name: same share, same pictures, whatever else there is', async () => {
    const few = await imageFolder(files(...numbered('a', 50), ...numbered('b', 30)))
    expect([few.train.length, few.validation.length]).toEqual([64, 16])
    expect(few.validation.filter(({ label }) => label === 0)).toHaveLength(10)
    const more = await imageFolder(files(...numbered('0', 7), ...numbered('b', 30), ...numbered('a', 50), ...numbered('c', 4)))
    const of = (samples: readonly Sample[], folder: string) => names(samples).filter((name) => name.startsWith(folder))
    for (const folder of ['a/', 'b/']) expect(of(more.validation, folder)).toEqual(of(few.validation, folder))
    expect(new Set([...names(few.train), ...names(few.validation)]).size).toBe(80)
    // Fixed for ever: a change of the hash would silently mix the halves of everyone's runs.
    expect(of(few.validation, 'b/')).toEqual(['b/0000.jpg', 'b/0008.jpg', 'b/0014.jpg', 'b/0018.jpg', 'b/0025.jpg', 'b/0027.jpg'])
  })

  it('moves at most one picture across the line for each one added', () => {
    const sample = (i: number): Sample => ({ path: '', name: `a/picture ${i}.jpg`, label: 0 })
    let before = splitByName(
      Array.from({ length: 40 }, (_, i) => sample(i)),
      0.25,
    )
    for (let count = 41; count <= 80; count++) {
      const after = splitByName(
        Array.from({ length: count }, (_, i) => sample(i)),
        0.25,
      )
      const was = new Set(names(before.validation))
      const left = [...was].filter((name) => !names(after.validation).includes(name))
      const entered = names(after.validation).filter((name) => !was.has(name) && name !== sample(count - 1).name)
      expect(left.length + entered.length).toBeLessThanOrEqual(1)
      before = after
    }
  })

  it('keeps both halves populated where it can', () => {
    const samples = (count: number): Sample[] => Array.from({ length: count }, (_, i) => ({ path: '', name: `${i}.jpg`, label: 0 }))
    expect([1, 2, 3].map((count) => splitByName(samples(count), 0.2).validation.length)).toEqual([0, 1, 1])
    expect(splitByName(samples(2), 0.9).train).toHaveLength(1)
    expect(splitByName(samples(100), 0).validation).toHaveLength(0)
  })

  it('treats composed and decomposed letters as the same name', () => {
    const both = ['é', 'e\u0301'].map((letter) =>
      names(
        splitByName(
          Array.from({ length: 20 }, (_, i) => ({ path: '', name: `a/${letter}${i}.jpg`, label: 0 })),
          0.3,
        ).validation,
      ).map((name) => name.normalize('NFC')),
    )
    expect(both[0]).toEqual(both[1])
  })

  it('follows links, and stops in circles', async () => {
    const elsewhere = files('x.jpg', 'y.jpg')
    const root = files('a/1.jpg', 'a/2.jpg')
    symlinkSync(elsewhere, join(root, 'linked'))
    expect((await imageFolder(root, { validation: 0 })).train.map(({ name }) => name)).toEqual([
      'a/1.jpg',
      'a/2.jpg',
      'linked/x.jpg',
      'linked/y.jpg',
    ])
    symlinkSync(join(root, 'a'), join(root, 'a', 'again'))
    expect((await errorOf(imageFolder(root))).message).toMatch(/nested deeper than 16.*circle/)
  })

  it('counts files that are no pictures, or refuses them under strict', async () => {
    const root = files('a/1.jpg', 'a/readme.txt', 'a/2.gif', 'b/1.png')
    expect((await imageFolder(root)).ignored).toEqual({ count: 2, examples: [join(root, 'a/2.gif'), join(root, 'a/readme.txt')] })
    expect(await errorOf(imageFolder(root, { strict: true }))).toMatchObject({ code: 'ERR_DATA', subject: join(root, 'a/2.gif') })
  })

  it('explains what is missing', async () => {
    const empty = files('a/1.jpg')
    mkdirSync(join(empty, 'b'))
    expect(await errorOf(imageFolder(empty))).toMatchObject({ code: 'ERR_DATA', subject: 'b' })
    expect((await errorOf(imageFolder(empty))).message).toMatch(/class folder .*b has no pictures.*Add pictures or remove the folder/)
    const flat = files('1.jpg', '2.jpg')
    expect((await errorOf(imageFolder(flat))).message).toMatch(/has no class folders.*folder named after it/)
    expect(await errorOf(imageFolder(join(flat, 'missing')))).toMatchObject({ code: 'ERR_FILE', given: 'ENOENT' })
    expect(await errorOf(imageFolder(join(flat, '1.jpg')))).toMatchObject({ code: 'ERR_FILE', given: 'ENOTDIR' })
    expect((await errorOf(imageFolder(files('train/a/1.jpg', 'val/a/1.jpg', 'val/z/1.jpg')))).message).toMatch(
      /class 'z' of .*val is not in .*train/,
    )
    expect((await errorOf(imageFolder(flat, { validation: 1 }))).code).toBe('ERR_ARGUMENT')
    expect((await errorOf(imageFolder(flat, { split: 1 } as never))).message).toMatch(/unknown option 'split'/)
  })

  it('has a fingerprint that changes with every name and label', async () => {
    const data = await imageFolder(files('a/1.jpg', 'a/2.jpg', 'b/1.jpg', 'b/2.jpg'))
    const print = dataFingerprint(data)
    expect(print).toMatch(/^[0-9a-f]{64}$/)
    expect(dataFingerprint({ ...data })).toBe(print)
    expect(dataFingerprint({ ...data, classes: ['a', 'c'] })).not.toBe(print)
    expect(dataFingerprint({ ...data, train: data.train.slice(1) })).not.toBe(print)
    expect(dataFingerprint({ ...data, validation: data.train, train: data.validation })).not.toBe(print)
    expect(dataFingerprint({ ...data, train: data.train.map((sample) => ({ ...sample, label: 1 - sample.label })) })).not.toBe(print)
  })
})

describe('labels', () => {
  it('reads lines, arrays and objects', () => {
    expect(parseLabels('cat\r\ndog \n\n')).toEqual(['cat', 'dog'])
    expect(parseLabels('\uFEFFgrüne Meerkatze')).toEqual(['grüne Meerkatze'])
    expect(parseLabels('["cat", "dog"]')).toEqual(['cat', 'dog'])
    expect(parseLabels('{"1": "dog", "0": "cat"}')).toEqual(['cat', 'dog'])
    expect(parseLabels('{"0": ["n01440764", "tench"], "1": ["n01443537", "goldfish"]}')).toEqual(['tench', 'goldfish'])
    expect(parseLabels('[["n01440764", "tench"]]')).toEqual(['tench'])
  })

  it('refuses what is no list of labels', () => {
    expect(() => parseLabels('')).toThrow(/has no labels/)
    expect(() => parseLabels('[]')).toThrow(/has no labels/)
    expect(() => parseLabels('cat\n\ndog')).toThrow(/label 1 is empty/)
    expect(() => parseLabels('{"0": "cat", "2": "dog"}', 'x.json')).toThrow(/x.json: 2 labels and none for index 1/)
    expect(() => parseLabels('[1]')).toThrow(/label 0 is not a text/)
    expect(() => parseLabels('["cat"')).toThrow(/starts like JSON and is not/)
  })

  it('reads files, and checks their number', async () => {
    const root = tree({ 'labels.txt': 'cat\ndog\n' })
    made.push(root)
    expect(await readLabels(join(root, 'labels.txt'), { count: 2 })).toEqual(['cat', 'dog'])
    expect((await errorOf(readLabels(join(root, 'labels.txt'), { count: 3 }))).message).toMatch(/has 2 labels, the model has 3 classes/)
    expect((await errorOf(readLabels(join(root, 'no.txt')))).code).toBe('ERR_FILE')
  })
})
