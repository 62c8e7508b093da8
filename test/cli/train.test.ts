/** train, evaluate and predict on a few drawn pictures, from class folders to answers. */

import { appendFile, copyFile, mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { SHAPE_CLASSES, writeShapes } from '../../src/data/shapes.js'
import { json, type Outcome, sepconv, TINY } from './run.js'

let folder: string
let pictures: string
let weights: string
let training: Outcome
let images: string[]

beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'sepconv-train-'))
  pictures = join(folder, 'shapes')
  await writeShapes(pictures, { train: 16, validation: 11, size: 71 })
  training = await sepconv(
    'train',
    pictures,
    '--out',
    join(folder, 'run'),
    ...TINY,
    '--epochs',
    '2',
    '--batch',
    '8',
    '--seed',
    '3',
    '--json',
  )
  weights = join(folder, 'run', 'best.safetensors')
  const first = async (name: string) => join(pictures, 'val', name, (await readdir(join(pictures, 'val', name)))[0]!)
  images = await Promise.all(SHAPE_CLASSES.slice(0, 3).map(first))
}, 120_000)
afterAll(() => rm(folder, { recursive: true }))

describe('train', () => {
  test('--json: one documented event per line', async () => {
    expect(training.status, training.stderr).toBe(0)
    const events = training.stdout
      .trimEnd()
      .split('\n')
      .map((line) => JSON.parse(line) as Record<string, unknown>)
    const epoch = ['step', 'step', 'evaluating', 'epoch', 'checkpoint']
    expect(events.map(({ type }) => type)).toEqual(['start', ...epoch, ...epoch, 'done'])
    const documentation = await readFile(new URL('../../docs/json.md', import.meta.url), 'utf8')
    for (const event of events) for (const key of Object.keys(event)) expect(documentation).toContain(`"${key}":`)
    expect(events[0]).toMatchObject({ steps: 4, epochs: 2, images: 16, validationImages: 11, classes: 8 })
  })

  test.each(['paper-imagenet', 'paper-jft', 'slim-inception', 'modern'])('--recipe %s, in reduced form', async (recipe) => {
    const out = join(folder, recipe)
    const run = await sepconv('train', pictures, '--out', out, ...TINY, '--recipe', recipe, '--epochs', '1', '--batch', '8', '--json')
    expect(run.status, run.stderr).toBe(0)
    const config = JSON.parse(await readFile(join(out, 'config.json'), 'utf8')) as {
      model: { options: object }
      settings: { rate: number }
    }
    const [dropout, rate] = {
      'paper-imagenet': [0.5, 0.045 / 4],
      'paper-jft': [undefined, 0.00025],
      'slim-inception': [0.2, 0.045 / 4],
      modern: [undefined, 0.002 / 32],
    }[recipe]!
    expect((config.model.options as { dropout?: number }).dropout).toBe(dropout)
    expect(config.settings.rate).toBeCloseTo(rate!, 12)
  })

  test('an unknown recipe is refused with the nearest one', async () => {
    const { status, stderr } = await sepconv('train', pictures, '--recipe', 'slim-inceptoin')
    expect(status).toBe(2)
    expect(stderr).toContain("Did you mean 'slim-inception'?")
  })

  test('a second run does not overwrite the first', async () => {
    const { status, stderr } = await sepconv('train', pictures, '--out', join(folder, 'run'), ...TINY, '--batch', '8')
    expect(status).toBe(1)
    expect(stderr).toContain('holds a training run already')
  })

  test('a resumed run keeps its settings, and refuses others by name', async () => {
    const { status, stderr } = await sepconv('train', '--resume', join(folder, 'run'), '--batch', '4', '--seed', '9')
    expect(status).toBe(2)
    expect(stderr).toMatch(/settings\.batch was 8, is 4.*settings\.seed was 3, is 9/)
    const again = await sepconv('train', '--resume', join(folder, 'run'))
    expect(again.status, again.stderr).toBe(0)
    expect(again.stdout).toBe(`${weights}\n`)
  })
})

describe('evaluate', () => {
  test('every picture counts once, whatever the batch', async () => {
    const whole = (await json('evaluate', pictures, '--weights', weights)) as Record<string, number>
    expect(Object.keys(whole)).toEqual(['images', 'top1', 'top5', 'loss'])
    expect(whole.images).toBe(11)
    const padded = (await json('evaluate', pictures, '--weights', weights, '--batch', '4')) as Record<string, number>
    expect(padded).toMatchObject({ images: 11, top1: whole.top1, top5: whole.top5 })
    expect(padded.loss).toBeCloseTo(whole.loss!, 5)
  })

  test('agrees with the predictions', async () => {
    const all = (await readdir(join(pictures, 'val'), { recursive: true })).filter((name) => name.endsWith('.png'))
    const rows = (await json('predict', ...all.map((name) => join(pictures, 'val', name)), '--weights', weights, '--top', '8')) as {
      predictions: { label: string; score: number }[]
    }[]
    const score = (label: string, i: number) => rows[i]!.predictions.find((prediction) => prediction.label === label)!.score
    const labels = all.map((name) => name.split('/')[0]!)
    const { top1, loss } = (await json('evaluate', pictures, '--weights', weights)) as { top1: number; loss: number }
    expect(labels.filter((label, i) => rows[i]!.predictions[0]!.label === label).length / 11).toBeCloseTo(top1, 10)
    expect(labels.reduce((sum, label, i) => sum - Math.log(score(label, i)), 0) / 11).toBeCloseTo(loss, 3)
  })

  test('folders that the weights do not know are refused', async () => {
    const other = join(folder, 'other')
    await writeShapes(other, { train: 8, validation: 8, size: 32 })
    await rm(join(other, 'train', 'star'), { recursive: true })
    await rm(join(other, 'val', 'star'), { recursive: true })
    expect(await json('evaluate', other, '--weights', weights)).toMatchObject({ images: 7 })
    const renamed = join(folder, 'renamed')
    await writeShapes(renamed, { train: 8, validation: 8, size: 32 })
    const { rename } = await import('node:fs/promises')
    for (const half of ['train', 'val']) await rename(join(renamed, half, 'star'), join(renamed, half, 'comet'))
    const { status, stderr } = await sepconv('evaluate', renamed, '--weights', weights)
    expect(status).toBe(1)
    expect(stderr).toContain('comet')
  })
})

describe('predict', () => {
  test('--json: probabilities that fall', async () => {
    const rows = (await json('predict', ...images, '--weights', weights, '--top', '8')) as {
      image: string
      predictions: { index: number; label: string; score: number }[]
    }[]
    expect(rows.map(({ image }) => image)).toEqual(images)
    for (const { predictions } of rows) {
      expect(Object.keys(predictions[0]!)).toEqual(['index', 'label', 'score'])
      expect(predictions.map(({ label }) => label).sort()).toEqual([...SHAPE_CLASSES])
      for (const { index, label } of predictions) expect(SHAPE_CLASSES[index]).toBe(label)
      const scores = predictions.map(({ score }) => score)
      expect(scores.reduce((sum, score) => sum + score)).toBeCloseTo(1, 5)
      expect(scores).toEqual([...scores].sort((a, b) => b - a))
    }
  })

  test('as text: a line per picture on stdout, the time on stderr', async () => {
    const { stdout, stderr } = await sepconv('predict', ...images, '--weights', weights, '--top', '2')
    expect(stdout.trimEnd().split('\n')).toHaveLength(3)
    expect(stdout).toMatch(/^\S+\.png {3}\w+ \d+\.\d % {3}\w+ \d+\.\d %$/m)
    expect(stderr).toMatch(/ms per picture on /)
  })

  test('labels from a file; too few are refused', async () => {
    const labels = join(folder, 'labels.txt')
    await writeFile(labels, SHAPE_CLASSES.map((name) => `a ${name}`).join('\n'))
    const [row] = (await json('predict', images[0]!, '--weights', weights, '--labels', labels)) as [{ predictions: { label: string }[] }]
    expect(row.predictions[0]!.label).toMatch(/^a /)
    await writeFile(labels, 'one\ntwo')
    const { status, stderr } = await sepconv('predict', images[0]!, '--weights', weights, '--labels', labels)
    expect(status).toBe(1)
    expect(stderr).toContain('has 2 labels, the model has 8 classes')
  })

  test('unreadable pictures are skipped by name and counted, or an error under --strict', async () => {
    const broken = join(folder, 'broken.png')
    await copyFile(images[0]!, broken)
    const bytes = await readFile(broken)
    await writeFile(broken, bytes.subarray(0, bytes.length / 2))
    const text = join(folder, 'text.jpg')
    await appendFile(text, 'not a picture')
    const args = ['predict', broken, images[1]!, text, 'absent.png', '--weights', weights]
    const { status, stdout, stderr } = await sepconv(...args, '--json')
    expect(status).toBe(0)
    expect((JSON.parse(stdout) as { image: string }[]).map(({ image }) => image)).toEqual([images[1]])
    for (const name of [broken, text, 'absent.png']) expect(stderr).toContain(name)
    expect(stderr).toContain('3 of 4 pictures skipped')
    const strict = await sepconv(...args, '--strict', '--json')
    expect([strict.status, strict.stdout]).toEqual([1, ''])
    const none = await sepconv('predict', text, '--weights', weights)
    expect([none.status, none.stdout]).toEqual([1, ''])
    expect(none.stderr).toContain('none of the 1 pictures could be read')
  })

  test('weights of another architecture option are refused', async () => {
    const { status, stderr } = await sepconv('predict', images[0]!, '--weights', images[0]!)
    expect(status).toBe(1)
    expect(stderr).toMatch(/ERR_FORMAT|ERR_WEIGHTS/)
  })
})
