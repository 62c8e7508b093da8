/** Commands around weights: embed, convert, train from weights, predictions in ImageNet's names; and what an import does not load. */

import { execFile } from 'node:child_process'
import { existsSync } from 'node:fs'
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { writeShapes } from '../../src/data/shapes.js'
import { createModel, decodePredictions, IMAGENET_LABELS, IMAGENET_SYNSETS, loadModel } from '../../src/index.js'
import { SafetensorsFile } from '../../src/weights/safetensors.js'
import { json, sepconv } from './run.js'

const documentation = await readFile(new URL('../../docs/json.md', import.meta.url), 'utf8')
let folder: string
let weights: string
const at = (name: string) => join(folder, name)

beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'sepconv-weights-'))
  await writeShapes(at('shapes'), { train: 12, validation: 4, size: 71, seed: 3 })
  weights = at('weights.safetensors')
  using model = await createModel('xception', { classes: 3, width: 0.05, middleRepeats: 0, inputSize: 71 })
  await model.saveWeights(weights)
})
afterAll(() => rm(folder, { recursive: true }))

describe('embed', () => {
  test('the same vectors in every format, in the order of the names; unreadable pictures are left out', async () => {
    await writeFile(at('shapes/train/broken.png'), 'no picture')
    const results = []
    for (const out of ['f.npy', 'f.safetensors', 'f.jsonl'])
      results.push(await json('embed', at('shapes'), '--weights', weights, '--out', at(out)))
    const first = results[0] as Record<string, number>
    expect(Object.keys(first)).toEqual(['out', 'images', 'features', 'skipped'])
    for (const name of Object.keys(first)) expect(documentation).toContain(`"${name}"`)
    expect(first).toMatchObject({ images: 16, features: 104, skipped: 1 })

    const npy = await readFile(at('f.npy'))
    expect(npy.subarray(0, 8).toString('latin1')).toBe('\x93NUMPY\x01\x00')
    const start = 10 + npy.readUInt16LE(8)
    expect(start % 64).toBe(0)
    expect(npy.subarray(10, start).toString()).toMatch(/'descr': '<f4', 'fortran_order': False, 'shape': \(16, 104\)/)
    const features = new Float32Array(npy.buffer.slice(npy.byteOffset + start, npy.byteOffset + npy.length))
    const names = (await readFile(at('f.npy.names.txt'), 'utf8')).trim().split('\n')
    expect(names).toEqual([...names].sort())

    await using file = await SafetensorsFile.open(at('f.safetensors'))
    const same = new Float32Array(features.length)
    await file.readInto('features', same)
    expect(same).toEqual(features)
    expect(JSON.parse(file.metadata.names!)).toEqual(names)
    const lines = (await readFile(at('f.jsonl'), 'utf8'))
      .trim()
      .split('\n')
      .map((line) => JSON.parse(line) as { image: string; features: number[] })
    expect(lines.map(({ image }) => image)).toEqual(names)
    expect(Float32Array.from(lines.flatMap((line) => line.features))).toEqual(features)
    await rm(at('shapes/train/broken.png'))
  })

  test('refuses other formats and empty folders before it computes', async () => {
    expect((await sepconv('embed', at('shapes'), '--weights', weights, '--out', at('f.csv'))).stderr).toContain('.npy')
    expect((await sepconv('embed', folder, '--weights', weights, '--out', at('no/f.npy'))).status).toBe(1)
  })
})

describe('convert', () => {
  test.each(['out.h5', 'out.onnx', 'out.safetensors'])('%s', async (out) => {
    const result = (await json('convert', weights, at(out), '--model', 'xception')) as object
    expect(Object.keys(result)).toEqual(['out', 'architecture', 'options', 'parameters'])
    expect(existsSync(at(out))).toBe(true)
  })

  test('names of timm come back', async () => {
    expect((await sepconv('convert', weights, at('t.safetensors'), '--names', 'timm')).status).toBe(0)
    using model = await loadModel(at('t.safetensors'))
    expect(model.network.classes).toBe(3)
    await using file = await SafetensorsFile.open(at('t.safetensors'))
    expect(file.tensors.has('block1.rep.0.conv1.weight')).toBe(true)
  })
})

describe('train --weights', () => {
  test('a new head, frozen layers and layer rates; the saved file predicts names', async () => {
    const args = ['--weights', weights, '--freeze', 'entry', '--layer-rates', 'exit=0.5', '--size', '71', '--batch', '4', '--epochs', '1']
    const { status, stdout, stderr } = await sepconv('train', at('shapes'), '--out', at('run'), ...args)
    expect(stderr).toContain('frozen; batch norms among them run on their stored statistics')
    expect([status, stdout]).toEqual([0, `${at('run')}/best.safetensors\n`])
    using tuned = await loadModel(at('run/best.safetensors'))
    using source = await loadModel(weights)
    const { readState } = await import('../../src/runtime/state.js')
    const value = (model: typeof tuned, name: string) => readState(model.variables.get(name)!)
    expect(await value(tuned, 'block2.sepconv1.pointwise')).toEqual(await value(source, 'block2.sepconv1.pointwise'))
    expect(tuned.labels!.length).toBe(tuned.network.classes)
    const log = await readFile(at('run/log.jsonl'), 'utf8')
    expect(JSON.parse(log.split('\n')[0]!)).toMatchObject({ type: 'start', frozen: expect.any(Number) })
    const again = await sepconv('train', '--resume', at('run'))
    expect(again.status).toBe(0)
  })

  test('complains about lists that are none', async () => {
    expect((await sepconv('train', at('shapes'), '--layer-rates', 'entry')).status).toBe(2)
    expect((await sepconv('train', at('shapes'), '--weights', at('nothing'))).stderr).toContain('no such file')
  })
})

describe("ImageNet's labels", () => {
  test('a thousand, by ascending synset', () => {
    expect([IMAGENET_LABELS.length, new Set(IMAGENET_SYNSETS).size]).toEqual([1000, 1000])
    expect([...IMAGENET_SYNSETS].sort()).toEqual([...IMAGENET_SYNSETS])
    expect(IMAGENET_SYNSETS.every((synset) => /^n\d{8}$/.test(synset))).toBe(true)
    expect([0, 281, 388, 999].map((i) => IMAGENET_LABELS[i])).toEqual(['tench', 'tabby', 'giant panda', 'toilet tissue'])
  })

  test('published weights, which carry none, predict in them', async () => {
    using model = await createModel('xception', { width: 0.05, middleRepeats: 0, inputSize: 71 })
    await model.saveWeights(at('k.h5'))
    using loaded = await createModel('xception', { width: 0.05, middleRepeats: 0, inputSize: 71, weights: at('k.h5') })
    expect(loaded.labels).toEqual(IMAGENET_LABELS)
  })

  test('decodePredictions', () => {
    const scores = new Float32Array(2000)
    scores[388] = 0.9
    scores[1281] = 0.8
    const rows = decodePredictions(scores, { top: 1 })
    expect(rows).toEqual([
      [{ index: 388, label: 'giant panda', synset: 'n02510455', score: Math.fround(0.9) }],
      [{ index: 281, label: 'tabby', synset: 'n02123045', score: Math.fround(0.8) }],
    ])
    expect(decodePredictions(new Float32Array(1000), { top: 1000 })[0]).toHaveLength(1000)
    expect(() => decodePredictions(scores, { top: 1001 })).toThrow(/1000 classes/)
    expect(() => decodePredictions(new Float32Array(7))).toThrow(/rows of 1000/)
    expect(decodePredictions(Float32Array.of(0.1, 0.9), { top: 2, labels: ['a', 'b'] })[0]!.map(({ label }) => label)).toEqual(['b', 'a'])
  })
})

test('HDF5 opens in a program given on the command line, which ends by itself', async () => {
  const path = at('inline.h5')
  using model = await createModel('xception', { classes: 3, width: 0.05, middleRepeats: 0, inputSize: 71 })
  await model.saveWeights(path)
  const entry = new URL('../../dist/index.js', import.meta.url).href
  const script = `const { loadModel } = await import(${JSON.stringify(entry)}); console.log((await loadModel(${JSON.stringify(path)})).network.classes)`
  const { stdout } = await promisify(execFile)(process.execPath, ['--input-type=module', '-e', script], { timeout: 20_000 })
  expect(stdout).toBe('3\n')
})

test('the import loads no heavy library; each comes with the first use', async () => {
  const entry = new URL('../../dist/index.js', import.meta.url).href
  const hook = `export async function resolve(s, c, next) { const r = await next(s, c); if (/node_modules/.test(r.url)) process._rawDebug('LOADED ' + r.url); return r }`
  const script = `import { register } from 'node:module'; register('data:text/javascript,' + encodeURIComponent(${JSON.stringify(hook)})); const m = await import(${JSON.stringify(entry)}); console.log(typeof m.loadModel)`
  const { stdout, stderr } = await promisify(execFile)(process.execPath, ['--input-type=module', '-e', script])
  expect(stdout).toBe('function\n')
  const loaded = stderr.split('\n').filter((line) => line.startsWith('LOADED'))
  expect(loaded.filter((line) => /h5wasm|yauzl|undici|sharp/.test(line))).toEqual([])
})
