import { mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { writeShapes } from '../../src/data/shapes.js'
import { labelledPictures } from '../../src/data/truth.js'
import { createModel, evaluate, ClassificationMeter, imageFolder, MultiLabelMeter } from '../../src/index.js'
import { ConfusionMatrix, tenCrops } from '../../src/train/protocols.js'
import { json, sepconv } from '../cli/run.js'

let folder: string
let weights: string
let classes: readonly string[]
const at = (name: string) => join(folder, name)
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'sepconv-protocols-'))
  await writeShapes(at('shapes'), { train: 8, validation: 16, size: 71, seed: 3 })
  classes = (await imageFolder(at('shapes'))).classes
  weights = at('w.safetensors')
  using model = await createModel('xception', { classes: classes.length, labels: classes, width: 0.05, middleRepeats: 0, inputSize: 71 })
  await model.saveWeights(weights)
})
afterAll(() => rm(folder, { recursive: true }))

interface Scores {
  images: number
  top1: number
  top5: number
  loss: number
}

describe('label files', () => {
  it('a flat folder with lines or JSON gives what class folders give; several labels can only help', async () => {
    const data = await imageFolder(at('shapes'))
    const expected = (await json('evaluate', at('shapes'), '--weights', weights)) as Scores
    const names = data.validation.map(({ name, label }) => [name.slice('val/'.length), label] as const)
    await writeFile(at('lines.txt'), names.map(([name, label]) => `${name} ${label}`).join('\n'))
    await writeFile(at('names.json'), JSON.stringify(Object.fromEntries(names.map(([name, label]) => [name, classes[label]]))))
    for (const file of ['lines.txt', 'names.json'])
      expect(await json('evaluate', at('shapes/val'), '--truth', at(file), '--weights', weights)).toEqual(expected)
    const all = Object.fromEntries(names.map(([name], i) => [name, i === 0 ? [] : classes.map((_, c) => c)]))
    await writeFile(at('all.json'), JSON.stringify(all))
    const every = (await json('evaluate', at('shapes/val'), '--truth', at('all.json'), '--weights', weights)) as Scores
    expect(every).toEqual({ images: names.length - 1, top1: 1, top5: 1, loss: 0 })
  })

  it('a list in the order of the names, as ReaL; what is missing or unknown is named', async () => {
    const real = at('real.json')
    await writeFile(real, JSON.stringify(Array.from({ length: 16 }, (_, i) => (i % 2 ? [i % 3, 2] : []))))
    const found = await labelledPictures(at('shapes/val'), real, { count: classes.length })
    expect([found.samples.length, found.unlabelled]).toEqual([8, 8])
    expect(found.truth[0]).toEqual([1, 2])
    const refused = async (text: string, message: RegExp) => {
      await writeFile(real, text)
      await expect(labelledPictures(at('shapes/val'), real, { count: classes.length, labels: classes })).rejects.toThrow(message)
    }
    await refused('[[1]]', /1 entries for 16 pictures/)
    await refused('{"a": 1', /starts like JSON/)
    await refused('nobody.png 1', /has no label for/)
    await refused('x', /picture label/)
    await refused(JSON.stringify(Array.from({ length: 16 }, () => 'zebra')), /"zebra" .* none of the/)
    await refused(JSON.stringify(Array.from({ length: 16 }, () => 99)), /none of the/)
  })
})

describe('meters', () => {
  it('several right labels: one hit is enough; the loss is of what they have together', () => {
    const meter = new MultiLabelMeter({ loss: 'softmax' })
    const row = Float32Array.of(0, 9, 3, 1, 2, 4, 5)
    const rows: (number[] | null)[] = [[1, 0], [4], [0, 3, 3], null]
    for (const labels of rows) meter.add(row, [labels])
    const share = (labels: number[]) =>
      [...new Set(labels)].reduce((sum, c) => sum + Math.exp(row[c]!), 0) / row.reduce((sum, score) => sum + Math.exp(score), 0)
    const { loss, ...shares } = meter.result()
    expect(shares).toEqual({ images: 3, top1: 1 / 3, top5: 2 / 3 })
    expect(loss).toBeCloseTo(-rows.flatMap((labels) => (labels ? [Math.log(share(labels))] : [])).reduce((a, b) => a + b) / 3, 12)
    const [one, single] = [new MultiLabelMeter({ loss: 'softmax' }), new ClassificationMeter()]
    one.add(row, [[2]])
    single.add(row, [2])
    expect(one.result().loss).toBeCloseTo(single.result().loss, 12)
    expect(() => new MultiLabelMeter({ loss: 'hinge' as never })).toThrow(/sigmoid, softmax/)
  })

  it('a confusion matrix as CSV, names quoted; it adds up to the accuracy', async () => {
    const matrix = new ConfusionMatrix(2)
    matrix.add(Float32Array.of(1, 2), 0)
    matrix.add(Float32Array.of(1, 2), 1)
    matrix.add(Float32Array.of(3, 2), 0)
    expect(matrix.toCsv(['a, b', 'c"d'])).toBe(',"a, b","c""d"\n"a, b",1,1\n"c""d",0,1\n')

    const { status, stdout } = await sepconv('evaluate', at('shapes'), '--weights', weights, '--confusion', at('c.csv'), '--json')
    expect(status).toBe(0)
    const rows = (await readFile(at('c.csv'), 'utf8'))
      .trim()
      .split('\n')
      .slice(1)
      .map((row) => row.split(',').slice(1).map(Number))
    const scores = JSON.parse(stdout) as Scores
    expect(rows.flat().reduce((a, b) => a + b, 0)).toBe(scores.images)
    expect(rows.reduce((sum, row, i) => sum + row[i]!, 0)).toBe(Math.round(scores.top1 * scores.images))
    expect((await sepconv('evaluate', at('shapes'), '--weights', weights, '--confusion', at('c.svg'))).status).toBe(0)
    expect(await readFile(at('c.svg'), 'utf8')).toMatch(/^<svg[\s\S]*Confusion matrix/)
    expect((await sepconv('evaluate', at('shapes'), '--weights', weights, '--confusion', at('c.png'))).stderr).toContain('.csv or .svg')
  })
})

describe('ten crops', () => {
  it('are corners, centre and their mirror images', async () => {
    const [width, height, size] = [12, 8, 6]
    const data = Uint8Array.from({ length: width * height * 3 }, (_, i) => Math.floor(i / 3) % 256)
    const crops = await tenCrops({ data, width, height }, { size, resize: height, interpolation: 'bilinear' })
    const first = (crop: number, x = 0) => crops[crop * size * size * 3 + x * 3]
    expect([0, 2, 4, 6, 8].map((crop) => first(crop))).toEqual([0, 6, 2 * width, 2 * width + 6, width + 3])
    expect([0, 2, 4, 6, 8].map((crop) => first(crop + 1, size - 1))).toEqual([0, 6, 2 * width, 2 * width + 6, width + 3])
  })

  it('evaluate like the mean of ten single evaluations', async () => {
    const scores = (await json('evaluate', at('shapes'), '--weights', weights, '--crops', 'ten')) as Scores
    expect(scores.images).toBe(16)
    expect(scores.loss).toBeGreaterThan(0)
  })
})

it("ImageNet's folders are matched by synset", async () => {
  await mkdir(at('imagenet/val'), { recursive: true })
  await writeShapes(at('synsets'), { train: 8, validation: 8, size: 71, seed: 4 })
  const { rename } = await import('node:fs/promises')
  const shapes = (await imageFolder(at('synsets'))).classes
  const synsets = ['n01440764', 'n02510455', 'n15075141']
  for (const part of ['train', 'val'])
    for (const [i, name] of shapes.entries()) {
      const to = at(`synsets/${part}/${synsets[i] ?? `n0${2123045 + i}`}`)
      if (i < synsets.length) await rename(at(`synsets/${part}/${name}`), to)
      else await rm(at(`synsets/${part}/${name}`), { recursive: true, force: true })
    }
  using model = await createModel('xception', { width: 0.05, middleRepeats: 0, inputSize: 71 })
  await model.saveWeights(at('k.h5'))
  using keras = await createModel('xception', { width: 0.05, middleRepeats: 0, inputSize: 71, weights: at('k.h5') })
  await keras.saveWeights(at('k.safetensors'))
  const scores = (await json('evaluate', at('synsets'), '--weights', at('k.safetensors'))) as Scores
  expect(scores.images).toBeGreaterThan(0)
  const seen: number[] = []
  const samples = (await imageFolder(at('synsets'))).validation
  await evaluate(keras, samples, { observe: (_, sample) => seen.push(sample) })
  expect(seen).toEqual(samples.map((_, i) => i))
})
