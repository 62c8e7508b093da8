import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { multiLabelFolder } from '../../src/data/multiLabel.js'
import { openDataset } from '../../src/data/open.js'

let folder: string
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), 'sepconv-labels-'))
})
afterEach(() => rm(folder, { recursive: true }))
const write = (name: string, ...lines: string[]) => writeFile(join(folder, name), `${lines.join('\n')}\n`)

describe('lists of labels', () => {
  it('JSON lines: classes are the labels of the training list, sorted', async () => {
    await write('train.jsonl', '{"image": "a/1.jpg", "labels": ["tree", "cat"]}', '', '{"image": "2.jpg", "labels": []}')
    await write('val.jsonl', '{"image": "3.jpg", "labels": ["cat"], "source": "web"}')
    const data = await openDataset(folder)
    expect(data).toMatchObject({ classes: ['cat', 'tree'], multiLabel: true, split: 'files' })
    expect(data.train).toEqual([
      { path: join(folder, 'a/1.jpg'), name: 'a/1.jpg', label: -1, labels: [0, 1] },
      { path: join(folder, '2.jpg'), name: '2.jpg', label: -1, labels: [] },
    ])
    expect(data.validation[0]!.labels).toEqual([0])
  })

  it('CSV: columns by name, labels between bars, quotes as in RFC 4180', async () => {
    await write('train.csv', 'id,labels,image', '1,"dog|a ""big"", cat",x.jpg', '2,,y.jpg', '3,dog | dog,z.jpg')
    const data = await multiLabelFolder(join(folder, 'train.csv'), { validation: 0 })
    expect(data.classes).toEqual(['a "big", cat', 'dog'])
    expect(data.train.map(({ name, labels }) => [name, labels])).toEqual([
      ['x.jpg', [0, 1]],
      ['y.jpg', []],
      ['z.jpg', [1]],
    ])
  })

  it('classes.txt gives the order, and labels may be indices', async () => {
    await write('classes.txt', 'zebra', 'ant')
    await write('train.jsonl', '{"image": "1.jpg", "labels": [1]}', '{"image": "2.jpg", "labels": ["zebra", 1]}')
    const { classes, train } = await multiLabelFolder(folder, { validation: 0 })
    expect(classes).toEqual(['zebra', 'ant'])
    expect(train.map(({ labels }) => labels)).toEqual([[1], [0, 1]])
  })

  it('without a held-out list a share is split off by name', async () => {
    await write('train.jsonl', ...Array.from({ length: 20 }, (_, i) => `{"image": "${i}.jpg", "labels": ["x"]}`))
    const data = await multiLabelFolder(folder)
    expect([data.train.length, data.validation.length, data.split]).toEqual([16, 4, 'hash'])
  })

  it('bad lines are refused by file and line', async () => {
    const refused = async (line: string) => {
      await write('train.jsonl', '{"image": "1.jpg", "labels": ["cat"]}', line)
      return expect(multiLabelFolder(folder)).rejects
    }
    await (await refused('{"image": "1.jpg"')).toThrowError(/train\.jsonl, line 2: expected \{"image"/)
    await (await refused('{"image": "1.jpg", "labels": "cat"}')).toThrowError(/line 2/)
    await (await refused('{"labels": ["cat"]}')).toThrowError(/line 2/)
    await write('train.jsonl', '{"image": "1.jpg", "labels": ["cat"]}')
    await write('val.jsonl', '{"image": "2.jpg", "labels": ["cats"]}')
    await expect(multiLabelFolder(folder)).rejects.toThrowError(/val\.jsonl, line 1: 'cats' is no class. Did you mean 'cat'/)
    await write('val.jsonl', '{"image": "2.jpg", "labels": [7]}')
    await expect(multiLabelFolder(folder)).rejects.toThrowError(/'7' is no class/)
    await write('train.jsonl', '')
    await expect(multiLabelFolder(folder)).rejects.toThrowError(/lists no pictures/)
    await write('train.csv', 'picture,labels', 'a,b')
    await expect(multiLabelFolder(join(folder, 'train.csv'))).rejects.toThrowError(/columns 'image' and 'labels'/)
  })
})
