import { describe, expect, it } from 'vitest'
import { xception } from '../../src/models/index.js'
import { xceptionNames } from '../../src/models/xceptionNames.js'
import { type Convention, kerasShape, namedTensors, pytorchShape } from '../../src/weights/conventions.js'
import { publishedLayers } from '../weights/keras.js'

const published = publishedLayers()
const rows = xceptionNames()
const plain = (name: string) => name.replace(/#0$/, '').replace('#', '_')

describe('the name map', () => {
  it('has the 81 layers of the published table', () => {
    expect(published).toHaveLength(81)
    expect(rows).toHaveLength(81)
  })

  it.each(published.map((layer, i) => [layer.keras, i] as const))('%s', (_name, i) => {
    const [layer, row] = [published[i]!, rows[i]!]
    expect(plain(row.keras!)).toBe(layer.keras)
    expect(row.keras1).toBe(layer.keras1 === 'dense_2' ? 'dense#0' : layer.keras1)
    const names = (convention: Convention) => namedTensors([row], convention).filter(({ optional }) => !optional || convention === 'lucid')
    expect(new Set(names('timm').map(({ name }) => name))).toEqual(new Set(layer.timm))
    // Of lucid 1 and 2, only the exit flow's separable convolutions have biases.
    const lucid = names('lucid').filter(({ name, optional }) => !optional || layer.lucid.includes(name))
    expect(new Set(lucid.map(({ name }) => name))).toEqual(new Set(layer.lucid))
  })

  it('has every shape, in Keras order and in PyTorch order', () => {
    const model = xception({ device: 'reference' })
    const seen = new Set<string>()
    for (const { own, name, optional } of namedTensors(rows, 'keras')) {
      if (optional) continue
      const { shape } = model.variables.get(own)!.type
      const [layer, role] = name.split('/') as [string, string]
      expect(kerasShape(own, shape), name).toEqual(published.find(({ keras }) => keras === plain(layer))!.shapes[role])
      expect(pytorchShape(own, shape).reduce((a, b) => a * b)).toBe(shape.reduce((a, b) => a * b))
      seen.add(own)
    }
    expect([...model.variables.keys()].filter((own) => !seen.has(own))).toEqual([])
    expect(seen.size).toBe(236)
    const first = model.variables.get('block2.sepconv1.depthwise')!
    expect(pytorchShape('block2.sepconv1.depthwise', first.type.shape)).toEqual([64, 1, 3, 3])
    expect(pytorchShape('block2.sepconv1.pointwise', [64, 128])).toEqual([128, 64, 1, 1])
    model.dispose()
  })

  it('numbers a shortcut first in Keras 1 and last in Keras 3', () => {
    const row = (own: string) => rows.find((entry) => entry.own === own)!
    expect([row('block13.shortcut_bn').keras1, row('block13.sepconv2_bn').keras1]).toEqual([
      'batchnormalization_36',
      'batchnormalization_38',
    ])
    const block2 = ['block2.sepconv1_bn', 'block2.sepconv2_bn', 'block2.shortcut_bn', 'block3.sepconv1_bn']
    expect(block2.map((own) => row(own).keras3)).toEqual([2, 3, 4, 5].map((n) => `batch_normalization#${n}`))
    expect(row('block2.shortcut').keras3).toBe('conv2d#2')
  })

  it('follows other depths, and models without shortcuts or head', () => {
    expect(xceptionNames({ middleRepeats: 1, residual: false, classes: 0 }).map(({ own }) => own)).not.toContain('block2.shortcut')
    expect(xceptionNames({ middleRepeats: 1 }).find(({ own }) => own === 'block6.shortcut')!.timm).toBe('block5.skip')
  })
})
