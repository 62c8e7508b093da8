/** The aligned Xceptions: exact counts, the outputs that PyTorch computed from the same weights, files in timm's names, what sets them apart. */

import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { createModel, devices, loadModel, type Model, summarize, tensor, type Tensor } from '../../src/index.js'
import { architecture } from '../../src/models/registry.js'
import { readSource } from '../../src/models/source.js'
import { xceptionAlignedNames, type XceptionAlignedVariant } from '../../src/models/xceptionAligned.js'
import { verifyModel } from '../../src/runtime/verify.js'
import { readState } from '../../src/runtime/state.js'
import { pytorchShape, namedTensors } from '../../src/weights/conventions.js'
import { writeSafetensors } from '../../src/weights/safetensors.js'
import { fixture } from '../weights/keras.js'

let folder: string
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'sepconv-'))
})
afterAll(() => rm(folder, { recursive: true }))
const at = (name: string) => join(folder, name)

const VARIANTS = ['xception41', 'xception65', 'xception71', 'xception41p', 'xception65p'] as const
const build = (name: string, options: object = {}) => architecture(name).build(options as never)

describe('counts', () => {
  it.each([
    ['xception41', 26_969_560, 9.204],
    ['xception65', 39_916_312, 13.853],
    ['xception71', 42_338_736, 17.947],
    ['xception41p', 26_907_752, 9.204],
    ['xception65p', 39_819_560, 13.853],
  ] as const)('%s: %i parameters and %f thousand million multiply-adds, as published', (name, parameters, macs) => {
    const summary = summarize(build(name))
    expect(summary.parameters.trainable).toBe(parameters)
    expect(Number((summary.macs / 1e9).toFixed(3))).toBe(macs)
    expect(summarize(build(name, { classes: 0 })).parameters.trainable).toBe(parameters - 2_049_000)
  })
})

interface Outputs {
  size: number
  images: string
  [variant: string]: unknown
}
const outputs = async () => JSON.parse(await readFile(fixture('aligned.json'), 'utf8')) as Outputs
/** What the fixtures are: width 0.02, and this many middle modules. */
const TINY = { xception41: 1, xception71: 0, xception41p: 1, xception65p: 2 } as const
const tiny = (name: keyof typeof TINY) => ({ width: 0.02, middleRepeats: TINY[name] })

async function images(model: Model): Promise<Tensor> {
  const { size, images: base64 } = await outputs()
  return tensor(new Uint8Array(Buffer.from(base64, 'base64')), [2, size, size, 3], { device: model.device })
}

describe.each(Object.keys(TINY) as (keyof typeof TINY)[])('%s', (name) => {
  const expected = async () => (await outputs())[name] as { logits: number[]; maps: [number[], number, number][] }

  it('gives the logits that PyTorch computed', async () => {
    using model = await createModel(name, { ...tiny(name), weights: fixture(`${name}.pth`) })
    expect(model.network.classes).toBe(5)
    const { logits } = await expected()
    const actual = (await (await model.run(await images(model))).data()) as Float32Array
    const scale = Math.max(...logits.map(Math.abs))
    expect(actual).toHaveLength(logits.length)
    expect(Math.max(...logits.map((x, i) => Math.abs(x - actual[i]!)))).toBeLessThan(1e-4 * scale)
  })

  it('gives the feature maps that PyTorch computed, by stride', async () => {
    using model = await createModel(name, { ...tiny(name), featuresOnly: true, weights: fixture(`${name}.pth`) })
    const maps = await model.run<Record<string, Tensor>>(await images(model))
    expect(Object.keys(maps)).toEqual(['stride2', 'stride4', 'stride8', 'stride16', 'stride32'])
    for (const [i, [shape, mean, last]] of (await expected()).maps.entries()) {
      const map = Object.values(maps)[i]!
      const data = (await map.data()) as Float32Array
      expect(map.shape).toEqual(shape)
      expect(Math.abs(data.reduce((sum, x) => sum + Math.abs(x), 0) / data.length - mean)).toBeLessThan(1e-4 * mean)
      expect(Math.abs(data.at(-1)! - last)).toBeLessThan(1e-4 * Math.max(mean, Math.abs(last)))
    }
  })

  it("goes out under timm's names and under ours, and comes back bit for bit", async () => {
    using model = await createModel(name, { ...tiny(name), weights: fixture(`${name}.pth`) })
    for (const names of ['timm', 'own'] as const) {
      await model.saveWeights(at(`${names}.safetensors`), { names })
      using again = await loadModel(at(`${names}.safetensors`))
      expect(again.config).toEqual(model.config)
      for (const [own, variable] of model.variables)
        expect(await readState(again.variables.get(own)!), own).toEqual(await readState(variable))
    }
    await expect(model.saveWeights(at('a.h5'))).rejects.toMatchObject({
      code: 'ERR_ARGUMENT',
      message: expect.stringContaining('keras has no name'),
    })
  })

  it.skipIf(!devices().some((device) => device.name === 'cpu' && device.available))(
    'every call of a training step agrees with the reference',
    async () => {
      const rows = await verifyModel({ model: name, options: tiny(name), size: 75, task: 'train', device: 'cpu' })
      expect(rows.filter(({ ok }) => !ok)).toEqual([])
    },
  )
})

describe('names', () => {
  it.each(VARIANTS)('%s: every variable has one of its own in timm', (name) => {
    const network = build(name)
    const tensors = namedTensors(xceptionAlignedNames(name), 'timm').filter(({ optional }) => !optional)
    expect(new Set(tensors.map((entry) => entry.name)).size).toBe(tensors.length)
    expect(tensors.length).toBe(new Set(tensors.map(({ own }) => own)).size)
    expect(network.classes).toBe(1000)
  })

  it.each([
    ['xception41', 'blocks.11.stack.conv3.conv_dw.weight', 'block12.sepconv3.depthwise', [1024, 1, 3, 3]],
    ['xception41', 'blocks.12.stack.conv3.bn_pw.running_var', 'block13.sepconv3_bn.movingVariance', [2048]],
    ['xception65', 'blocks.19.shortcut.conv.weight', 'block20.shortcut.filter', [1024, 728, 1, 1]],
    ['xception71', 'blocks.3.shortcut.bn.weight', 'block4.shortcut_bn.gamma', [728]],
    ['xception71', 'blocks.22.stack.conv1.bn_dw.bias', 'block23.sepconv1.intermediateBatchNorm.beta', [1024]],
    ['xception41p', 'stem.1.weight', 'stem.conv2.filter', [64, 32, 3, 3]],
    ['xception41p', 'blocks.2.shortcut.weight', 'block3.shortcut.filter', [728, 256, 1, 1]],
    ['xception65p', 'blocks.20.norm.running_mean', 'block21.sepconv1_bn.movingMean', [1024]],
    ['xception65p', 'blocks.20.stack.conv3.norm.weight', 'block21.sepconv3_bn.gamma', [1536]],
    ['xception65p', 'head.fc.weight', 'predictions.weight', [1000, 2048]],
  ] as const)('%s: %s is %s', async (name, timm, own, shape) => {
    expect(namedTensors(xceptionAlignedNames(name), 'timm').find((entry) => entry.name === timm)).toMatchObject({ own })
    using model = await createModel(name, { device: 'reference' })
    expect(pytorchShape(own, model.variables.get(own)!.type.shape)).toEqual(shape)
  })

  it.each(VARIANTS)("%s: a whole file in timm's names is known by them alone, with its crop", async (name: XceptionAlignedVariant) => {
    const sizes = new Map<string, number[]>(
      namedTensors(xceptionAlignedNames(name), 'timm')
        .filter(({ optional }) => !optional)
        .map((entry) => [entry.name, [1]]),
    )
    sizes.set('head.fc.weight', [7, 1])
    const tensors = new Map([...sizes].map(([key, shape]) => [key, { dtype: 'F32' as const, shape, data: new Float32Array(shape[0]!) }]))
    await writeSafetensors(at('names.safetensors'), tensors)
    expect(await readSource(at('names.safetensors'))).toMatchObject({
      architecture: name,
      convention: 'timm',
      options: { classes: 7 },
      head: 'head.fc',
    })
    using model = await createModel(name, { classes: 7, width: 0.02, middleRepeats: 0 })
    expect(model.config.preprocessing).toMatchObject({
      size: 299,
      resize: name.endsWith('p') ? 318 : 331,
      interpolation: 'bicubic',
      mean: [0.5, 0.5, 0.5],
    })
  })

  it("timm's config.json beside the file says how pictures are prepared", async () => {
    using model = await createModel('xception41p', { ...tiny('xception41p'), weights: fixture('xception41p.pth') })
    await model.saveWeights(at('model.safetensors'), { names: 'timm' })
    const bytes = await readFile(fixture('xception41p.pth'))
    await writeFile(at('weights.pth'), bytes)
    const config = {
      input_size: [3, 96, 96],
      crop_pct: 0.75,
      interpolation: 'bilinear',
      crop_mode: 'squash',
      mean: [0.1, 0.2, 0.3],
      std: [1, 2, 3],
    }
    await writeFile(at('config.json'), JSON.stringify({ architecture: 'xception41p', pretrained_cfg: config }))
    using told = await createModel('xception41p', { ...tiny('xception41p'), weights: at('weights.pth') })
    expect(told.config.preprocessing).toEqual({
      ...{ size: 96, resize: 128, crop: 'squash', interpolation: 'bilinear' },
      ...{ mean: [0.1, 0.2, 0.3], deviation: [1, 2, 3] },
    })
    // Our own metadata goes before it, and so does what the caller says.
    using own = await loadModel(at('model.safetensors'))
    expect(own.config.preprocessing.size).toBe(299)
    using given = await createModel('xception41p', {
      ...tiny('xception41p'),
      weights: at('weights.pth'),
      preprocessing: { crop: 'center' },
    })
    expect(given.config.preprocessing.crop).toBe('center')
    for (const text of ['{', '[]', '{"pretrained_cfg":{"crop_pct":"wide","mean":[1e400],"input_size":7}}']) {
      await writeFile(at('config.json'), text)
      using plain = await createModel('xception41p', { ...tiny('xception41p'), weights: at('weights.pth') })
      expect(plain.config.preprocessing).toMatchObject({ size: 299, resize: 318, crop: 'center' })
    }
  })
})

describe('options', () => {
  it.each([
    [{ classes: -1 }, 'classes'],
    [{ width: 0 }, 'width'],
    [{ inputSize: 32 }, 'inputSize'],
    [{ featuresOnly: 'yes' }, 'featuresOnly'],
    [{ poolPadding: 'tf' }, 'poolPadding'],
  ])('%o is refused by name', (options, subject) => {
    expect(() => build('xception65', options)).toThrow(
      expect.objectContaining({ code: 'ERR_ARGUMENT', message: expect.stringContaining(subject) }),
    )
  })

  it('other sizes, channels and dropout', async () => {
    using model = await createModel('xception41', {
      width: 0.02,
      middleRepeats: 0,
      classes: 0,
      inputChannels: 1,
      inputSize: 33,
      dropout: 0.5,
      preprocessing: { mean: [0], deviation: [1] },
    })
    const y = await model.run(tensor(new Float32Array(2 * 33 * 33), [2, 33, 33, 1], { device: model.device }))
    expect(y.shape).toEqual([2, 40])
  })
})
