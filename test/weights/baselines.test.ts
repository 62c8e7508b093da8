// The baselines' weights under torchvision's and Keras' names: outputs that PyTorch computed, every row of the tables, both ways.

import { readFileSync } from 'node:fs'
import { mkdtemp, readFile, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { createModel, loadModel, type Model, tensor } from '../../src/index.js'
import { elements } from '../../src/graph/types.js'
import { architecture } from '../../src/models/registry.js'
import { identify } from '../../src/models/source.js'
import { nameVariables, variablesOf } from '../../src/nn/index.js'
import { readState } from '../../src/runtime/state.js'
import { type Convention, namedTensors, pytorchShape } from '../../src/weights/conventions.js'
import { openWeightsFile, type WeightsFile } from '../../src/weights/file.js'
import { fixture, writeLegacy } from './keras.js'

let folder: string
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'sepconv-'))
})
afterAll(() => rm(folder, { recursive: true }))

const reference = async () =>
  JSON.parse(await readFile(fixture('baselines/baselines.json'), 'utf8')) as Record<string, { size: number; outputs: number[] }>
const WIDTH = { width: 0.04 }
const REDUCED = {
  inception_v3: { ...WIDTH, blocks: [1, 2, 1], inputSize: 139 },
  resnet50: { ...WIDTH, blocks: [1, 2, 1, 1], inputSize: 64 },
  vgg16: { ...WIDTH, blocks: [1, 1, 1, 1, 1], inputSize: 64 },
} as const
type Name = keyof typeof REDUCED

async function logits(model: Model, size: number): Promise<number[]> {
  const pixels = Uint8Array.from({ length: 2 * size * size * 3 }, (_, i) => (i * 37 + Math.floor(i / 32) * 11) % 256)
  return [...((await (await model.run(tensor(pixels, [2, size, size, 3], { device: model.device }))).data()) as Float32Array)]
}

async function expectOutputs(model: Model, label: string) {
  const { size, outputs } = (await reference())[label]!
  const actual = await logits(model, size)
  expect(actual).toHaveLength(outputs.length)
  const scale = Math.max(...outputs.map(Math.abs))
  expect(Math.max(...actual.map((x, i) => Math.abs(x - outputs[i]!)))).toBeLessThan(1e-4 * scale)
}

/** The fixture's tensors, which have Keras' layouts, in an HDF5 file as Keras writes it. */
async function kerasFile(name: Name): Promise<string> {
  await using source = await openWeightsFile(fixture(`baselines/${name}-keras.pth`))
  const layers = new Map<string, { name: string; shape: readonly number[]; data: Float32Array }[]>()
  for (const [path, { shape, elements: count }] of source.tensors) {
    const [layer, role] = path.split('/') as [string, string]
    const data = new Float32Array(count)
    await source.readInto(path, data)
    layers.set(layer, [...(layers.get(layer) ?? []), { name: role, shape, data }])
  }
  const path = join(folder, `${name}.h5`)
  await writeLegacy(
    path,
    [...layers].map(([layer, weights]) => ({ name: layer, weights })),
  )
  return path
}

const content = async (model: Model) =>
  Object.fromEntries(
    await Promise.all([...model.variables].map(async ([name, v]) => [name, Buffer.from((await readState(v)).buffer).toString('base64')])),
  )

describe('outputs that PyTorch computed', () => {
  it.each([
    ['inception_v3', 'inception_v3', {}],
    ['inception_v3', 'inception_v3', { aux: true }],
    ['resnet50', 'resnet50', {}],
    ['vgg16', 'vgg16', {}],
    ['vgg16', 'vgg16_bn', {}],
  ] as const)("torchvision's %s (%s, %o)", async (name, file, options) => {
    using model = await createModel(name, { ...REDUCED[name], ...options, weights: fixture(`baselines/${file}.pth`) })
    expect(model.network.classes).toBe(5)
    await expectOutputs(model, file)
  })

  it.each(['inception_v3', 'resnet50', 'vgg16'] as const)("Keras' %s, its pictures prepared as Keras does", async (name) => {
    using model = await createModel(name, { ...REDUCED[name], weights: await kerasFile(name) })
    await expectOutputs(model, `${name}-keras`)
  })

  it('a model that exists becomes the variant of the file', async () => {
    using model = await createModel('inception_v3', { ...REDUCED.inception_v3, classes: 5 })
    const report = await model.loadWeights(fixture('baselines/inception_v3.pth'))
    expect(report.convention).toBe('torchvision')
    expect(report.ignored.filter((tensor) => tensor.startsWith('AuxLogits.') && !tensor.endsWith('tracked'))).toHaveLength(2 * 5 + 2)
    expect(model.config).toMatchObject({ options: { variant: 'torchvision' }, preprocessing: { resize: 159, interpolation: 'bilinear' } })
    await expectOutputs(model, 'inception_v3')
    await model.loadWeights(await kerasFile('inception_v3')).then(
      () => expect.unreachable(),
      // The variant is the model's own by now, and Keras' file has no scales for it.
      (error) => expect(error).toMatchObject({ code: 'ERR_WEIGHTS', message: expect.stringMatching(/51 missing .*gamma/) }),
    )
    using resnet = await createModel('resnet50', { ...REDUCED.resnet50, classes: 5 })
    await resnet.loadWeights(await kerasFile('resnet50'))
    await expectOutputs(resnet, 'resnet50-keras')
  })

  it('the auxiliary tower is loaded where the model has one', async () => {
    using model = await createModel('inception_v3', { ...REDUCED.inception_v3, aux: true, weights: fixture('baselines/inception_v3.pth') })
    await using file = await openWeightsFile(fixture('baselines/inception_v3.pth'))
    const bias = new Float32Array(5)
    await file.readInto('AuxLogits.fc.bias', bias)
    expect([...(await readState(model.variables.get('AuxLogits.fc.bias')!))]).toEqual([...bias])
    // Another number of classes replaces both classifiers.
    using other = await createModel('inception_v3', { ...REDUCED.inception_v3, aux: true, classes: 7 })
    const report = await other.loadWeights(fixture('baselines/inception_v3.pth'), { head: 'new' })
    expect(report.newHead).toBe(true)
  })

  it('a bias that no batch norm makes up for may not be missing', async () => {
    using model = await createModel('vgg16', { ...REDUCED.vgg16, classes: 5 })
    await using file = await openWeightsFile(fixture('baselines/vgg16.pth'))
    const { loadVariables } = await import('../../src/models/loading.js')
    const tensors = new Map([...file.tensors].filter(([name]) => name !== 'features.0.bias'))
    const source = identify(file, 'vgg16', model.config.options)
    const target = {
      name: 'vgg16',
      options: model.config.options,
      variables: model.variables,
      head: 'classifier.6',
      executor: model.executor,
    }
    await expect(loadVariables({ ...file, tensors } as WeightsFile, source, target)).rejects.toMatchObject({
      code: 'ERR_WEIGHTS',
      message: expect.stringContaining('1 missing (features.0.bias)'),
    })
  })
})

describe('both ways', () => {
  it.each(['inception_v3', 'resnet50', 'vgg16'] as const)('%s', async (name) => {
    using torchvision = await createModel(name, { ...REDUCED[name], weights: fixture(`baselines/${name}.pth`) })
    const path = join(folder, `${name}.safetensors`)
    await torchvision.saveWeights(path, { names: 'torchvision' })
    await using written = await openWeightsFile(path)
    await using original = await openWeightsFile(fixture(`baselines/${name}.pth`))
    for (const [tensorName, { shape, elements: count }] of written.tensors) {
      expect(original.tensors.get(tensorName)?.shape, tensorName).toEqual(shape)
      const [a, b] = [new Float32Array(count), new Float32Array(count)]
      await written.readInto(tensorName, a)
      await original.readInto(tensorName, b)
      expect(Buffer.from(a.buffer).equals(Buffer.from(b.buffer)), tensorName).toBe(true)
    }
    using again = await loadModel(path)
    expect(await content(again)).toEqual(await content(torchvision))

    using keras = await createModel(name, { ...REDUCED[name], weights: await kerasFile(name) })
    const h5 = join(folder, `${name}-saved.h5`)
    await keras.saveWeights(h5)
    using loaded = await createModel(name, { ...REDUCED[name], weights: h5 })
    expect(await content(loaded)).toEqual(await content(keras))
    await expectOutputs(loaded, `${name}-keras`)
  })
})

interface Row {
  readonly model: string
  readonly torchvision: string
  readonly keras: string
  readonly shape: number[]
}
const rows: Row[] = readFileSync(fixture('baselines/baseline-names.tsv'), 'utf8')
  .trim()
  .split('\n')
  .map((line) => line.split('\t') as [string, string, string, string])
  .map(([model, torchvision, keras, shape]) => ({ model, torchvision, keras, shape: shape.split('x').map(Number) }))

describe('the tables, row by row', () => {
  it.each([
    ['inception_v3', { variant: 'torchvision', aux: true }, 27_161_264],
    ['inception_v3', { variant: 'torchvision' }, 23_834_568],
    ['inception_v3', { variant: 'keras' }, 23_817_352],
    ['resnet50', {}, 25_557_032],
    ['resnet101', {}, 44_549_160],
    ['resnet152', {}, 60_192_808],
    ['vgg16', {}, 138_357_544],
    ['vgg16', { batchNorm: true }, 138_365_992],
  ] as const)('%s %o: every variable has a row, %i parameters', (name, options, parameters) => {
    const { root } = architecture(name).build(options)
    nameVariables(root)
    const variables = variablesOf(root)
    const table = namedTensors(architecture(name).layerNames!(options), 'torchvision')
    const known = new Set(table.map(({ own }) => own))
    expect(variables.filter((variable) => !known.has(variable.name))).toEqual([])
    const counted = variables.filter(({ trainable }) => trainable).reduce((sum, { type }) => sum + elements(type.shape), 0)
    expect(counted).toBe(parameters)
  })

  it.each(['inception_v3', 'resnet50', 'resnet152', 'vgg16'])('%s as published', (name) => {
    const options = name === 'inception_v3' ? { variant: 'torchvision', aux: true } : {}
    const { root } = architecture(name).build(options)
    nameVariables(root)
    const shapes = new Map(variablesOf(root).map((variable) => [variable.name, variable.type.shape]))
    const table = new Map(architecture(name).layerNames!(options).map((row) => [row.torchvision, row]))
    const published = rows.filter(({ model }) => model === name)
    expect(published.length).toBe(table.size)
    const variable = { conv: 'filter', batchNorm: 'gamma', dense: 'weight' } as Record<string, string>
    for (const { torchvision, keras, shape } of published) {
      const row = table.get(torchvision)!
      const own = `${row.own}.${variable[row.kind]}`
      expect(pytorchShape(own, shapes.get(own)!), torchvision).toEqual(shape)
      // Keras counts its unnamed layers from none: conv2d, conv2d_1, …
      expect((row.keras ?? '').replace(/#0$/, '').replace('#', '_'), torchvision).toBe(keras)
    }
  })

  it.each([
    ['resnet50', 'torchvision', {}],
    ['resnet101', 'torchvision', {}],
    ['resnet152', 'torchvision', {}],
    ['resnet101', 'keras', {}],
    ['vgg16', 'torchvision', {}],
    ['vgg16', 'torchvision', { batchNorm: true }],
    ['vgg16', 'keras', {}],
    ['inception_v3', 'torchvision', { aux: true }],
    ['inception_v3', 'keras', {}],
  ] as const)('a file of %s with names of %s, %o, is known without being told', (name, convention, options) => {
    const names = namedTensors(architecture(name).layerNames!(options), convention as Convention).map((entry) => entry.name)
    const tensors = new Map(names.map((entry) => [entry, { shape: [1, 1], elements: 1 }]))
    const format = convention === 'keras' ? 'hdf5' : 'pytorch'
    const source = identify({ path: 'x', format, tensors, metadata: {} } as unknown as WeightsFile)
    expect(source).toMatchObject({ architecture: name, convention })
    if ('batchNorm' in options) expect(source.options).toMatchObject({ batchNorm: true })
  })
})
