/** Pictures with several labels each, from lists to MAP@100. */

import { mkdtemp, readdir, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { writeShapes } from '../../src/data/shapes.js'
import { json, sepconv, TINY } from './run.js'

let folder: string
let weights: string
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'sepconv-several-'))
  await writeShapes(folder, { train: 16, validation: 12, size: 71 })
  for (const half of ['train', 'val']) {
    const names = (await readdir(join(folder, half), { recursive: true })).filter((name) => name.endsWith('.png')).sort()
    const lines = names.map((name, i) => JSON.stringify({ image: `${half}/${name}`, labels: [name.split('/')[0], i % 2 ? 'odd' : 'even'] }))
    await writeFile(join(folder, `${half}.jsonl`), lines.join('\n'))
  }
  const training = await sepconv('train', folder, '--out', join(folder, 'run'), ...TINY, '--recipe', 'paper-jft', '--batch', '8', '--json')
  expect(training.status, training.stderr).toBe(0)
  const events = training.stdout
    .trimEnd()
    .split('\n')
    .map((line) => JSON.parse(line) as Record<string, unknown>)
  expect(events.at(-1)).toMatchObject({ type: 'done', best: { metric: 'map', epoch: 1 } })
  weights = join(folder, 'run', 'best.safetensors')
}, 120_000)
afterAll(() => rm(folder, { recursive: true }))

type Scores = { map: { map: number; images: number; classes: number; labelsPerImage: number } }

test('evaluate scores by MAP@100, with weights, a subset of the classes and both averages', async () => {
  const plain = (await json('evaluate', folder, '--weights', weights)) as Scores
  expect(plain.map).toMatchObject({ images: 12, classes: 10, labelsPerImage: 2 })
  expect(plain.map.map).toBeGreaterThan(0)
  const weightsFile = join(folder, 'weights.json')
  await writeFile(weightsFile, JSON.stringify({ even: 1, odd: 1 }))
  const classes = join(folder, 'classes-that-count')
  await writeFile(classes, 'even\nodd\n')
  const options = ['--weights', weights, '--metric', 'map@100']
  const weighted = (await json('evaluate', folder, ...options, '--class-weights', weightsFile)) as Scores
  const subset = (await json('evaluate', folder, ...options, '--eval-classes', classes)) as Scores
  expect(subset.map).toMatchObject({ images: 12, classes: 2, labelsPerImage: 1 })
  // Of two classes the right one is first or second.
  expect(subset.map.map).toBeGreaterThanOrEqual(0.5)
  expect(weighted.map.map).toBeLessThanOrEqual(subset.map.map)
  const byClass = (await json('evaluate', folder, ...options, '--map-average', 'class', '--map-divisor', 'min')) as Scores
  expect(byClass.map.map).toBeGreaterThan(0)
  const text = await sepconv('evaluate', folder, ...options)
  expect(text.stdout).toMatch(/MAP@100 \d+\.\d %/)
})

test('files and flags that do not fit are refused by name', async () => {
  const wrong = join(folder, 'wrong.txt')
  await writeFile(wrong, '1\n2\n')
  const refused = async (...flags: string[]) => (await sepconv('evaluate', folder, '--weights', weights, ...flags)).stderr
  expect(await refused('--metric', 'map@100', '--class-weights', wrong)).toContain('expected 10 class weights, got 2')
  expect(await refused('--metric', 'map@100', '--eval-classes', wrong)).toContain("'1' is no class")
  expect(await refused('--class-weights', wrong)).toContain('--class-weights needs --metric map@100')
  expect(await refused('--metric', 'map')).toContain('map@100')
})
