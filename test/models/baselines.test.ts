/** The paper's baselines: exact counts, names, and the same outputs and training steps on every executor that is here. */

import { describe, expect, it } from 'vitest'
import { createModel, devices, summarize, tensor, type Tensor } from '../../src/index.js'
import type { Value } from '../../src/graph/graph.js'
import { architecture } from '../../src/models/registry.js'
import '../../src/models/index.js'
import { nameVariables, variablesOf } from '../../src/nn/index.js'
import { compile } from '../../src/runtime/function.js'
import { lossOf } from '../../src/train/batch.js'
import { sgd } from '../../src/train/optimizer.js'
import { elements } from '../../src/graph/types.js'
import { verifyModel } from '../../src/runtime/verify.js'

const build = (name: string, options: object = {}) => architecture(name).build(options as never)
/** Trainable values, auxiliary towers included. */
const trainable = (name: string, options: object = {}) =>
  variablesOf(build(name, options).root).reduce((sum, { trainable: own, type }) => sum + (own ? elements(type.shape) : 0), 0)

describe('parameters as published', () => {
  it.each([
    ['inception_v3', {}, 23_817_352],
    ['inception_v3', { variant: 'torchvision' }, 23_834_568],
    ['inception_v3', { variant: 'torchvision', aux: true }, 27_161_264],
    ['vgg16', {}, 138_357_544],
    ['vgg16', { batchNorm: true }, 138_365_992],
    ['resnet50', {}, 25_557_032],
    ['resnet101', {}, 44_549_160],
    ['resnet152', {}, 60_192_808],
    ['resnet152', { variant: 'keras' }, 60_268_520],
    ['separable_stack', {}, 22_887_096],
  ] as const)('%s %o: %i', (name, options, count) => {
    expect(trainable(name, options)).toBe(count)
    if (!('aux' in options)) expect(summarize(build(name, options)).parameters.trainable).toBe(count)
  })

  it.each([
    ['inception_v3', {}, 34_432, 23_851_784],
    ['resnet50', { variant: 'keras' }, 53_120, 25_636_712],
    ['resnet101', { variant: 'keras' }, 105_344, 44_707_176],
    ['resnet152', { variant: 'keras' }, 151_424, 60_419_944],
  ] as const)('%s %o: %i running statistics, %i in all, as Keras counts', (name, options, nonTrainable, total) => {
    expect(summarize(build(name, options)).parameters).toMatchObject({ nonTrainable, total })
  })
})

describe('multiply-adds as published', () => {
  it.each([
    ['inception_v3', {}, 5_713_216_096],
    ['resnet152', {}, 11_513_626_624],
    ['resnet152', { variant: 'keras' }, 11_282_415_616],
    ['vgg16', {}, 15_470_264_320],
  ] as const)('%s %o', (name, options, macs) => expect(summarize(build(name, options)).macs).toBe(macs))
})

describe('names and shapes', () => {
  const shapes = (name: string, options: object) => {
    const { root } = build(name, options)
    nameVariables(root)
    return new Map(variablesOf(root).map((variable) => [variable.name, variable.type.shape]))
  }

  it("Inception V3's are torchvision's", () => {
    const names = shapes('inception_v3', { variant: 'torchvision', aux: true })
    // 96 convolutions with five tensors each, two classifiers.
    expect(names.size).toBe(96 * 5 + 2 * 2)
    expect(names.get('Conv2d_1a_3x3.conv.filter')).toEqual([3, 3, 3, 32])
    expect(names.get('Mixed_6b.branch7x7_2.conv.filter')).toEqual([1, 7, 128, 128])
    expect(names.get('Mixed_7c.branch3x3dbl_3b.bn.gamma')).toEqual([384])
    expect(names.get('Mixed_7b.branch_pool.conv.filter')).toEqual([1, 1, 1280, 192])
    expect(names.get('AuxLogits.conv1.conv.filter')).toEqual([5, 5, 128, 768])
    expect(names.get('fc.weight')).toEqual([2048, 1000])
  })

  it("ResNet's and VGG's too", () => {
    const resnet = shapes('resnet50', {})
    expect(resnet.get('layer1.0.downsample.0.filter')).toEqual([1, 1, 64, 256])
    expect(resnet.get('layer4.2.conv3.filter')).toEqual([1, 1, 512, 2048])
    expect(resnet.get('layer2.0.bn2.movingVariance')).toEqual([128])
    const vgg = shapes('vgg16', {})
    expect([...vgg.keys()].filter((name) => name.endsWith('filter')).map((name) => Number(name.split('.')[1]))).toEqual([
      0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28,
    ])
    expect(vgg.get('classifier.0.weight')).toEqual([25_088, 4096])
    expect(vgg.get('classifier.6.bias')).toEqual([1000])
  })

  it('Inception V3 has the sizes of its paper', () => {
    const { layers } = summarize(build('inception_v3'))
    const last = (prefix: string) => layers.findLast(({ name }) => name.startsWith(prefix))!.shape
    expect(last('maxpool2')).toEqual([1, 35, 35, 192])
    expect(last('Mixed_6a')[1]).toBe(17)
    expect(last('Mixed_7c')[1]).toBe(8)
  })

  it('Inception V3, padded: the same layers on larger maps', () => {
    const [valid, same] = (['valid', 'same'] as const).map((padding) => summarize(build('inception_v3', { inputSize: 75, padding })))
    const side = ({ layers }: ReturnType<typeof summarize>, prefix: string) =>
      layers.findLast(({ name }) => name.startsWith(prefix))!.shape[1]
    expect([valid!, same!].map((summary) => side(summary, 'Mixed_6e'))).toEqual([3, 5])
    expect([valid!, same!].map((summary) => side(summary, 'Mixed_7c'))).toEqual([1, 3])
    expect(same!.parameters).toEqual(valid!.parameters)
    expect(() => build('inception_v3', { padding: 'full' })).toThrowError(/padding must be one of valid, same/)
  })
})

const REDUCED = [
  ['inception_v3', { inputSize: 75, blocks: [1, 1, 1], aux: true }],
  ['inception_v3', { inputSize: 75, blocks: [2, 2, 1], variant: 'torchvision' }],
  ['inception_v3', { inputSize: 75, blocks: [1, 1, 1], padding: 'same', aux: true }],
  ['vgg16', { inputSize: 32, blocks: [1, 1, 1, 1, 1], dropout: 0.5 }],
  ['resnet50', { inputSize: 33, blocks: [1, 2, 1, 1] }],
  ['resnet152', { inputSize: 32, blocks: [1, 1, 1, 1], variant: 'keras' }],
  ['separable_stack', { inputSize: 64, blocks: [1, 1, 1, 1, 1] }],
  ['separable_stack', { inputSize: 64, blocks: [1, 1, 1, 1, 1], order: 'inception', segments: { width: 4 } }],
  ['xception', { inputSize: 71, middleRepeats: 1, order: 'inception' }],
  ['xception', { inputSize: 71, middleRepeats: 1, segments: 3 }],
] as const

describe.each(
  devices()
    .filter(({ name, available }) => available && name !== 'cuda')
    .map(({ name }) => name),
)('on %s', (device) => {
  it.each(REDUCED)(
    '%s %o trains',
    async (name, options) => {
      const model = await createModel(name, { ...options, classes: 4, width: 0.06, device, seed: 2 } as never)
      const size = model.network.inputSize
      const settings = { loss: 'softmax', labelSmoothing: 0 } as never
      const step = compile(({ images, labels }: { images: Value; labels: Value }) => lossOf(model(images), labels, settings), {
        device,
        train: sgd({ rate: 0.01 }),
      })
      const images = tensor(
        Uint8Array.from({ length: 4 * size * size * 3 }, (_, i) => (i * 37 + (i >> 5) * 11) % 256),
        [4, size, size, 3],
        { device },
      )
      const labels = tensor(Int32Array.of(0, 1, 2, 3), [4], { device })
      const losses: number[] = []
      for (let i = 0; i < (device === 'reference' ? 1 : 4); i++) {
        const { loss, finite } = (await step.run({ images, labels })) as { loss: Tensor; finite: Tensor }
        losses.push((await loss.data())[0]!)
        expect((await finite.data())[0]).toBe(1)
      }
      for (const value of losses) expect(value).toBeLessThan(10)
      // Every parameter is in the loss, the auxiliary tower's too.
      expect(step.parameters.length).toBe(model.parameters.length)
      step.dispose()
      model.dispose()
    },
    60_000,
  )
})

describe.skipIf(!devices().some(({ name, available }) => name === 'cpu' && available))('every call of a training step', () => {
  it.each(REDUCED)('%s %o agrees with the reference', async (model, options) => {
    const rows = await verifyModel({
      model,
      options: { ...options, width: 0.06, dropout: 0 },
      size: options.inputSize,
      task: 'train',
      device: 'cpu',
      batch: 2,
    })
    expect(rows.filter(({ ok }) => !ok)).toEqual([])
  })
})

describe('bad options', () => {
  it('are refused by name', () => {
    expect(() => build('resnet50', { blocks: [1, 2, 3] })).toThrowError(/resnet50: blocks must be 4 whole numbers/)
    expect(() => build('inception_v3', { inputSize: 64 })).toThrowError(/inputSize must be a whole number of at least 75/)
    expect(() => build('inception_v3', { variant: 'timm' })).toThrowError(/variant must be one of keras, torchvision, got timm/)
    expect(() => build('vgg16', { middleRepeats: 2 })).toThrowError(/vgg16: unknown option 'middleRepeats'/)
    expect(() => build('xception', { order: 'pointwise-first' })).toThrowError(/order must be one of depthwise-first, inception/)
  })
})
