// Weights of other programs: outputs that PyTorch computed, every layout of Keras, whole round trips, and what does not fit.

import { existsSync } from 'node:fs'
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { createModel, loadModel, type Model, tensor } from '../../src/index.js'
import { xceptionNames } from '../../src/models/xceptionNames.js'
import { readState } from '../../src/runtime/state.js'
import { kerasShape, namedTensors } from '../../src/weights/conventions.js'
import { openWeightsFile } from '../../src/weights/file.js'
import { SafetensorsFile, writeSafetensors } from '../../src/weights/safetensors.js'
import { generator } from '../helpers.js'
import { fixture, type KerasLayer, publishedLayers, writeByClass, writeLegacy, writeZip } from './keras.js'

let folder: string
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'sepconv-'))
})
afterAll(() => rm(folder, { recursive: true }))
const at = (name: string) => join(folder, name)

/** Of the fixtures: a network of width 0.05 with one middle block. */
const TINY = { width: 0.05, middleRepeats: 1 } as const

interface Outputs {
  size: number
  images: string
  timm: number[]
  lucid: number[]
  keras: number[]
}
const outputs = async () => JSON.parse(await readFile(fixture('outputs.json'), 'utf8')) as Outputs

async function logits(model: Model): Promise<number[]> {
  const { size, images } = await outputs()
  const x = tensor(new Uint8Array(Buffer.from(images, 'base64')), [2, size, size, 3], { device: model.device })
  return [...((await (await model.run(x)).data()) as Float32Array)]
}

function expectNear(actual: readonly number[], expected: readonly number[], tolerance = 1e-4) {
  expect(actual).toHaveLength(expected.length)
  const scale = Math.max(...expected.map(Math.abs))
  expect(Math.max(...actual.map((x, i) => Math.abs(x - expected[i]!)))).toBeLessThan(tolerance * scale)
}

const content = async (model: Model) =>
  new Map(await Promise.all([...model.variables].map(async ([name, v]) => [name, await readState(v)] as const)))

/** Byte by byte, since `toEqual` takes seconds on millions of numbers. */
async function expectSameContent(actual: Model, expected: Model) {
  const [a, b] = [await content(actual), await content(expected)]
  expect([...a.keys()]).toEqual([...b.keys()])
  const bytes = (data: ArrayBufferView) => Buffer.from(data.buffer, data.byteOffset, data.byteLength)
  for (const [name, data] of b) expect(bytes(data).equals(bytes(a.get(name)!)), name).toBe(true)
}

/** A model whose every variable differs from that of any other. */
async function scrambled(options: Record<string, unknown> = TINY, seed = 1): Promise<Model> {
  const model = await createModel('xception', { ...options, seed })
  const { writeState } = await import('../../src/runtime/state.js')
  const random = generator(seed)
  for (const [name, variable] of model.variables)
    if (variable.type.shape.length === 1)
      writeState(
        variable,
        Float32Array.from({ length: variable.type.shape[0]! }, () => random() + (name.endsWith('Variance') ? 0.5 : 0)),
        model.executor,
      )
  return model
}

describe('PyTorch', () => {
  it.each([
    ['timm.pth', 'timm', 'epoch, prefix module., bfloat16'],
    ['squeezed.pth', 'timm', "the old pickles with Cadene's squeezed filters"],
    ['lucid.pth', 'lucid', 'biases folded into batch norm'],
  ] as const)('%s: the outputs that PyTorch computed (%s names: %s)', async (file, names, _what) => {
    using model = await createModel('xception', { ...TINY, weights: fixture(file) })
    expect(model.config.options).toMatchObject({ poolPadding: 'symmetric', epsilon: 1e-5, classes: 5 })
    expectNear(await logits(model), (await outputs())[names])
  })

  it('the same with biases of their own, as lucid has them', async () => {
    using model = await createModel('xception', { ...TINY, exitBias: true, weights: fixture('lucid.pth') })
    expectNear(await logits(model), (await outputs()).lucid)
  })

  it("Keras' pool padding and epsilon where the caller says so", async () => {
    using model = await createModel('xception', { ...TINY, poolPadding: 'tf', epsilon: 1e-3, weights: fixture('timm.pth') })
    expectNear(await logits(model), (await outputs()).keras)
  })

  it('an existing model takes over pool padding and epsilon', async () => {
    using model = await createModel('xception', { ...TINY, classes: 5 })
    const report = await model.loadWeights(fixture('timm.pth'))
    expect(report).toMatchObject({ format: 'pytorch', convention: 'timm', loaded: 110, newHead: false, foldedBiases: [] })
    expect(report.ignored.every((name) => name.endsWith('num_batches_tracked'))).toBe(true)
    expectNear(await logits(model), (await outputs()).timm)
    const folded = await model.loadWeights(fixture('lucid.pth'))
    expect(folded.foldedBiases).toEqual(['block7.sepconv1', 'block7.sepconv2'])
    expectNear(await logits(model), (await outputs()).lucid)
  })

  it.each(['kinds.pt', 'kinds-legacy.pt'])('%s: every type, views and transposes', async (name) => {
    const kinds = JSON.parse(await readFile(fixture('kinds.json'), 'utf8')) as Record<string, [number[], number[]]>
    await using file = await openWeightsFile(fixture(name))
    expect([...file.tensors.keys()].sort()).toEqual(Object.keys(kinds).sort())
    for (const [key, [shape, values]] of Object.entries(kinds)) {
      const target = new Float32Array(values.length)
      await file.readInto(key, target)
      expect(file.tensors.get(key)!.shape).toEqual(shape)
      expect([...target], key).toEqual(values)
    }
  })

  it('a pickle that calls something is refused by the name of what it calls, and nothing happens', async () => {
    await expect(openWeightsFile(fixture('evil.pt'))).rejects.toMatchObject({
      code: 'ERR_FORMAT',
      message: expect.stringContaining('posix.system'),
    })
    expect(existsSync('owned')).toBe(false)
  })
})

describe('our own .h5', () => {
  it('says which model it holds, labels included, whatever its depth and width', async () => {
    using model = await createModel('xception', { ...TINY, weights: fixture('timm.pth'), labels: ['a', 'b', 'c', 'd', 'é'] })
    await model.saveWeights(at('own.h5'))
    using again = await loadModel(at('own.h5'))
    expect(again.config).toEqual(model.config)
    await expectSameContent(again, model)
    const many = Array.from({ length: 5 }, (_, i) => `${i}${'x'.repeat(20_000)}`)
    model.labels = many
    await model.saveWeights(at('own.h5'))
    using bare = await loadModel(at('own.h5'))
    expect(bare.config.options).toEqual(model.config.options)
    expect(bare.labels).toBeUndefined()
  })
})

describe('metadata of unknown origin', () => {
  it.each([
    [{ options: { middleRepeats: 1e9 } }, /middleRepeats must be a whole number from 0 to 1000/],
    [{ options: { fullyConnected: new Array(1001).fill(8) } }, /fullyConnected/],
    [{ options: { width: 1e9 } }, /width/],
    [{ options: { surprise: 1 } }, /surprise/],
    [{ architecture: 'resnet50', options: { blocks: [1e9, 1, 1, 1] } }, /blocks/],
    [{ architecture: 'vgg1600' }, /no model 'vgg1600'/],
    [{ preprocessing: { size: 1e6 } }, /size must be a whole number from 1 to 4096/],
    [{ preprocessing: { resize: 1e9 } }, /resize/],
    [{ preprocessing: { crop: 'none' } }, /crop must be one of/],
    [{ preprocessing: { mean: [1] } }, /mean must be 3/],
    [{ preprocessing: { deviation: [0, 1, 1] } }, /deviation/],
    [{ options: { classes: 1e8 } }, /missing/],
    [{ options: null }, /options in its metadata is not a JSON object/],
    [{ preprocessing: [1] }, /preprocessing in its metadata is not a JSON object/],
    [{ labels: { length: 1000 } }, /labels in its metadata is not a JSON list of texts/],
    [{ options: { poolPadding: 7 } }, /poolPadding/],
    [{ options: { epsilon: 'x' } }, /epsilon/],
    [{ options: { momentum: 7 } }, /momentum/],
    [{ options: { inputChannels: 'three' } }, /inputChannels/],
    [{ options: { segments: 'many' } }, /segments/],
    [{ options: { dropout: 2 } }, /dropout/],
    [{ options: { initializer: 'constructor' } }, /initializer/],
    [{ preprocessing: { mean: 'abc' } }, /mean must be 3/],
  ] as const)('%j is refused by name, at once', async (part: Record<string, unknown>, message) => {
    const { architecture = 'xception', ...rest } = part
    const metadata: Record<string, string> = { format: 'sepconv', architecture: architecture as string }
    for (const [key, value] of Object.entries(rest)) metadata[key] = JSON.stringify(value)
    await writeSafetensors(at('hostile.safetensors'), new Map([['a', { dtype: 'F32', shape: [1], data: new Float32Array(1) }]]), {
      metadata,
    })
    const since = performance.now()
    await expect(loadModel(at('hostile.safetensors'))).rejects.toThrow(message)
    expect(performance.now() - since).toBeLessThan(5000)
  })
})

describe('safetensors', () => {
  it.each([
    ['last_linear', 'F32'],
    ['classifier.1', 'BF16'],
    ['fc', 'F16'],
  ] as const)('a head called %s, %s', async (head, dtype) => {
    using source = await createModel('xception', { ...TINY, weights: fixture('timm.pth') })
    await source.saveWeights(at('timm.safetensors'), { names: 'timm' })
    await using file = await SafetensorsFile.open(at('timm.safetensors'))
    const { float32ToBfloat16, float32ToFloat16 } = await import('../../src/weights/half.js')
    const tensors = new Map()
    for (const [name, { shape, elements }] of file.tensors) {
      const data = new Float32Array(elements)
      await file.readInto(name, data)
      const half = new Uint16Array(elements)
      if (dtype === 'BF16') float32ToBfloat16(data, half)
      if (dtype === 'F16') float32ToFloat16(data, half)
      tensors.set(name.replace(/^fc\./, `${head}.`), { dtype, shape, data: dtype === 'F32' ? data : half })
    }
    await writeSafetensors(at('other.safetensors'), tensors)
    using model = await loadModel(at('other.safetensors')).catch(async () =>
      createModel('xception', { ...TINY, weights: at('other.safetensors') }),
    )
    expectNear(await logits(model), (await outputs()).timm, dtype === 'F16' ? 1e-2 : 1e-4)
  })

  it('an index of shards; one that leaves the folder is refused', async () => {
    using source = await scrambled()
    const all = await content(source)
    const map: Record<string, string> = {}
    for (const part of [0, 1]) {
      const tensors = [...all].filter((_, i) => i % 2 === part)
      const name = `model-${part}.safetensors`
      for (const [key] of tensors) map[key] = name
      await writeSafetensors(
        at(name),
        new Map(tensors.map(([key, data]) => [key, { dtype: 'F32' as const, shape: source.variables.get(key)!.type.shape, data }])),
      )
    }
    await writeFile(at('index.json'), JSON.stringify({ metadata: {}, weight_map: map }))
    await using file = await openWeightsFile(at('index.json'))
    for (const [name, expected] of all) {
      const data = new Float32Array(expected.length)
      await file.readInto(name, data)
      expect(data).toEqual(expected)
    }
    await writeFile(at('bad.json'), JSON.stringify({ weight_map: { a: '../model-0.safetensors' } }))
    await expect(openWeightsFile(at('bad.json'))).rejects.toMatchObject({
      code: 'ERR_FORMAT',
      message: expect.stringContaining("weight_map['a']"),
    })
    await writeFile(at('bad.json'), JSON.stringify({ weight_map: { nothing: 'model-0.safetensors' } }))
    await expect(openWeightsFile(at('bad.json'))).rejects.toMatchObject({ code: 'ERR_WEIGHTS' })
  })
})

describe('Keras', () => {
  const ROLES: Record<string, string> = { W: 'kernel', b: 'bias', running_mean: 'moving_mean', running_std: 'moving_variance' }
  const KERAS1 = Object.fromEntries(Object.entries(ROLES).map(([old, now]) => [now, old]))

  /** The model's layers in the order of the table, with Keras' weight names. */
  async function layersOf(model: Model, name: 'keras' | 'keras1' | 'keras3'): Promise<(KerasLayer & { kind: string })[]> {
    const all = await content(model)
    return xceptionNames(model.config.options).map((row) => ({
      name: row[name]!,
      kind: row[name]!.replace(/#\d+$/, ''),
      weights: namedTensors([row], name).flatMap((entry) => {
        const data = all.get(entry.own) as Float32Array | undefined
        return data
          ? [{ name: entry.name.split('/')[1]!, shape: kerasShape(entry.own, model.variables.get(entry.own)!.type.shape), data }]
          : []
      }),
    }))
  }
  const automatic = (offset: number) => (name: string) =>
    name.replace(/#(\d+)$/, (_, n: string) => (Number(n) + offset === 0 ? '' : `_${Number(n) + offset}`))
  const renamed = (layers: KerasLayer[], rename: (name: string) => string) =>
    layers.map((layer) => ({ ...layer, name: rename(layer.name) }))

  async function expectSame(path: string, source: Model) {
    using model = await createModel('xception', { ...TINY, weights: path })
    expect(model.config.options).toMatchObject({ poolPadding: 'tf', epsilon: 1e-3, classes: source.network.classes })
    await expectSameContent(model, source)
  }

  it.each([
    [
      'Keras 1: numbered groups at the root',
      'keras1',
      { nameOf: (layer: string, weight: string) => `${layer}_${KERAS1[weight] ?? weight}:0` },
    ],
    ['Keras 2: names twice', 'keras', {}],
    ['Keras 3: no :0', 'keras', { nameOf: (layer: string, weight: string) => `${layer}/${weight}` }],
    ['a whole model', 'keras', { root: 'model_weights' }],
    ['lists in parts', 'keras', { parts: 3 }],
  ] as const)('%s', async (_name, convention, options) => {
    using model = await scrambled({ ...TINY, classes: 7 })
    const rename = convention === 'keras1' ? (name: string) => name.replace('dense#0', 'dense_2') : automatic(0)
    const layers = renamed(await layersOf(model, convention), rename)
    layers.splice(3, 0, { name: 'activation_1', weights: [] })
    await writeLegacy(at('k.h5'), layers, options)
    await expectSame(at('k.h5'), model)
  })

  it('counters that went on in one process, a head called dense, and a model inside a model', async () => {
    using model = await scrambled({ ...TINY, classes: 7 })
    const layers = renamed(await layersOf(model, 'keras'), (name) => automatic(4)(name).replace('predictions', 'dense_3'))
    await writeLegacy(at('k.h5'), layers)
    await expectSame(at('k.h5'), model)
    const head = layers.at(-1)!
    const inner = {
      name: 'xception',
      weights: layers.slice(0, -1).flatMap(({ name, weights }) => weights.map((w) => ({ ...w, name: `${name}/${w.name}` }))),
    }
    await writeLegacy(at('k.h5'), [inner, head], {
      root: 'model_weights',
      nameOf: (layer, weight) => (weight.includes('/') ? `${weight}:0` : `${layer}/${weight}:0`),
    })
    await expectSame(at('k.h5'), model)
  })

  it('.weights.h5 and .keras: by class and number', async () => {
    using model = await scrambled({ ...TINY, classes: 7 })
    const layers = (await layersOf(model, 'keras3')).sort((a, b) => Number(a.name.split('#')[1]) - Number(b.name.split('#')[1]))
    await writeByClass(at('m.weights.h5'), layers)
    await expectSame(at('m.weights.h5'), model)
    await writeZip(at('m.keras'), {
      'metadata.json': Buffer.from('{}'),
      'config.json': Buffer.from('{}'),
      'model.weights.h5': await readFile(at('m.weights.h5')),
    })
    await expectSame(at('m.keras'), model)
  })

  it('the published layout, group by group of the table; batch norms 36 and 38 stay apart', async () => {
    using model = await scrambled({ seed: 2 })
    const all = await layersOf(model, 'keras1')
    const layers = publishedLayers().map(({ keras1, shapes }, i) => {
      for (const { name, shape } of all[i]!.weights) expect(shape).toEqual(shapes[name])
      return { ...all[i]!, name: keras1 }
    })
    await writeLegacy(at('published.h5'), layers, { nameOf: (layer, weight) => `${layer}_${KERAS1[weight] ?? weight}:0` })
    using loaded = await loadModel(at('published.h5'))
    expect(loaded.config.options).toEqual({ poolPadding: 'tf', epsilon: 1e-3, classes: 1000 })
    await expectSameContent(loaded, model)
  })

  it('without a head: an embedding, or a new head when asked', async () => {
    using model = await scrambled({ ...TINY, classes: 0 })
    await model.saveWeights(at('notop.h5'))
    using embedding = await createModel('xception', { ...TINY, weights: at('notop.h5') })
    expect(embedding.network.classes).toBe(0)
    await expect(createModel('xception', { ...TINY, classes: 3, weights: at('notop.h5') })).rejects.toMatchObject({ code: 'ERR_WEIGHTS' })
    using fresh = await createModel('xception', { ...TINY, classes: 3, head: 'new', weights: at('notop.h5') })
    expect(fresh.network.classes).toBe(3)
  })
})

describe('saving', () => {
  it.each([
    ['own safetensors', 'x.safetensors', {}],
    ['timm safetensors', 't.safetensors', { names: 'timm' }],
    ['Keras 2', 'x.h5', {}],
  ] as const)('%s: a whole Xception comes back bit by bit', async (_name, file, options) => {
    using model = await scrambled({ labels: undefined }, 3)
    await model.saveWeights(at(file), options)
    using loaded = await loadModel(at(file))
    expect(loaded.summary().parameters.trainable).toBe(22_855_952)
    await expectSameContent(loaded, model)
  })

  it('metadata, labels included, travels in both names', async () => {
    using model = await createModel('xception', {
      ...TINY,
      classes: 2,
      labels: ['cat', 'dog'],
      preprocessing: { resize: 320, crop: 'squash' },
    })
    for (const names of ['own', 'timm'] as const) {
      await model.saveWeights(at('meta.safetensors'), { names })
      using loaded = await loadModel(at('meta.safetensors'))
      expect(loaded.config).toEqual(model.config)
    }
  })

  it('refuses what a format has no names for', async () => {
    using model = await createModel('xception', { ...TINY, classes: 2, intermediateBatchNorm: true })
    await expect(model.saveWeights(at('no.h5'))).rejects.toMatchObject({
      code: 'ERR_ARGUMENT',
      message: expect.stringContaining('intermediateBatchNorm'),
    })
    await expect(model.saveWeights(at('no.safetensors'), { name: 'timm' } as never)).rejects.toMatchObject({ code: 'ERR_ARGUMENT' })
    expect(existsSync(at('no.h5'))).toBe(false)
  })
})

describe('what does not fit', () => {
  it('lists everything, says when only the head differs, and changes nothing', async () => {
    using model = await createModel('xception', { ...TINY, classes: 3 })
    const before = await content(model)
    await expect(model.loadWeights(fixture('timm.pth'))).rejects.toMatchObject({
      code: 'ERR_WEIGHTS',
      given: { missing: [], unexpected: [], reshaped: [expect.stringContaining('fc.weight'), expect.stringContaining('fc.bias')] },
      hint: expect.stringContaining("head: 'new'"),
    })
    expect(await content(model)).toEqual(before)
    const report = await model.loadWeights(fixture('timm.pth'), { head: 'new' })
    expect(report.newHead).toBe(true)
    const after = await content(model)
    expect(after.get('predictions.weight')).toEqual(before.get('predictions.weight'))
    expect(after.get('block1.conv1.filter')).not.toEqual(before.get('block1.conv1.filter'))
  })

  it('missing, unexpected and reshaped tensors by name', async () => {
    using source = await scrambled({ ...TINY, classes: 3 })
    await source.saveWeights(at('t.safetensors'), { names: 'timm' })
    await using file = await SafetensorsFile.open(at('t.safetensors'))
    const tensors = new Map()
    for (const [name, { shape, elements }] of file.tensors) tensors.set(name, { dtype: 'F32', shape, data: new Float32Array(elements) })
    tensors.delete('bn1.bias')
    tensors.set('extra.weight', { dtype: 'F32', shape: [1], data: new Float32Array(1) })
    tensors.set('conv1.weight', { dtype: 'F32', shape: [8, 3, 5, 5], data: new Float32Array(600) })
    await writeSafetensors(at('bad.safetensors'), tensors)
    await expect(createModel('xception', { ...TINY, weights: at('bad.safetensors') })).rejects.toMatchObject({
      code: 'ERR_WEIGHTS',
      given: {
        missing: ['bn1.bias'],
        unexpected: ['extra.weight'],
        reshaped: ['conv1.weight [8, 3, 5, 5] for block1.conv1.filter [3, 3, 3, 8]'],
      },
    })
  })

  it.each([
    ['an empty file', '', /it is empty/],
    ['a web page', '<!DOCTYPE html><html>', /web page/],
    ['a git-lfs pointer', 'version https://git-lfs.github.com/spec/v1\noid sha256:0', /git-lfs pointer/],
    ['JSON that is no index', '{"a": 1}', /no index of weights/],
    ['text', 'just some text here', /starts with 6a757374/],
    ['a zip of nothing', 'PK\x03\x04nothing', /damaged zip/],
    ['HDF5 of nothing', '\x89HDF\r\n\x1a\nnothing', /damaged HDF5/],
  ])('%s', async (_name, text, message) => {
    await writeFile(at('weights'), Buffer.from(text, 'latin1'))
    await expect(loadModel(at('weights'))).rejects.toMatchObject({ code: 'ERR_FORMAT', message: expect.stringMatching(message) })
  })

  it('tensors of no known model, and a missing file', async () => {
    await writeSafetensors(at('w'), { a: { dtype: 'F32', shape: [1], data: new Float32Array(1) } })
    await expect(loadModel(at('w'))).rejects.toMatchObject({ code: 'ERR_WEIGHTS', message: expect.stringContaining('called a') })
    await expect(loadModel(at('nowhere'))).rejects.toMatchObject({ code: 'ERR_FILE' })
  })
})
