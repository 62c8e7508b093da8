import { describe, expect, it } from 'vitest'
import { createModel, listModels, summarize, tensor } from '../../src/index.js'
import { buildXception, type XceptionOptions, xception } from '../../src/models/index.js'
import { trace } from '../../src/graph/trace.js'
import { xceptionBlock } from '../../src/nn/index.js'
import { compile } from '../../src/runtime/function.js'
import { writeState } from '../../src/runtime/state.js'
import { openDevice } from '../../src/runtime/device.js'
import { readMetadata } from '../../src/models/source.js'

const count = (options: XceptionOptions) => summarize(buildXception(options))

describe('Xception as published', () => {
  it('has 22,855,952 trainable and 54,528 other values and 8,357,403,496 multiply-adds at 299', () => {
    const { parameters, macs } = count({})
    expect(parameters).toEqual({ trainable: 22_855_952, nonTrainable: 54_528, total: 22_910_480 })
    expect(macs).toBe(8_357_403_496)
  })

  it.each<[string, XceptionOptions, number]>([
    ['without residuals (Figure 9)', { residual: false }, 21_878_880],
    ['at 17,000 classes', { classes: 17_000 }, 55_639_952],
    ['with two layers of 4096', { classes: 17_000, fullyConnected: true }, 115_629_968],
    ['with biases in the exit flow (Lucid)', { exitBias: true }, 22_862_096],
    ['without a classifier', { classes: 0 }, 20_806_952],
    ['one segment: regular convolution', { segments: 1 }, 183_616_904],
    ['two segments', { segments: 2 }, 103_132_712],
    ['four segments', { segments: 4 }, 62_890_616],
    ['segments of eight channels', { segments: { width: 8 } }, 24_307_976],
  ])('%s', (_name, options, parameters) => {
    expect(count(options).parameters.trainable).toBe(parameters)
  })

  it.each([
    [71, 0.553],
    [96, 0.828],
    [224, 4.553],
    [331, 10.221],
  ])('at %i pixels: %f billion multiply-adds', (size, billions) => {
    expect(summarize(buildXception({ inputSize: size })).macs / 1e9).toBeCloseTo(billions, 3)
  })

  it('has 36 convolutions in 14 modules, and projects exactly where channels or stride change', () => {
    const { layers } = count({})
    const convolutions = layers.filter(({ ops, name }) => /onv2d/.test(ops) && name !== 'predictions')
    const shortcuts = convolutions.filter(({ name }) => name.endsWith('shortcut'))
    expect(convolutions.length - shortcuts.length).toBe(36)
    expect(shortcuts.map(({ name }) => name)).toEqual(['block2.shortcut', 'block3.shortcut', 'block4.shortcut', 'block13.shortcut'])
    expect(new Set(layers.map(({ name }) => name.split('.')[0]).filter((name) => name!.startsWith('block'))).size).toBe(14)
  })

  it('gives the sizes of Figure 5 in both pool paddings', () => {
    for (const poolPadding of ['tf', 'symmetric'] as const) {
      const network = buildXception({ featuresOnly: true, poolPadding })
      let shapes: Record<string, readonly number[]> = {}
      trace((graph) => {
        const result = network.forward(graph.input('x', { shape: [1, 299, 299, 3], dtype: 'float32' })) as Record<
          string,
          { shape: readonly number[] }
        >
        shapes = Object.fromEntries(Object.entries(result).map(([name, { shape }]) => [name, shape]))
      })
      expect(shapes).toEqual({
        stride2: [1, 147, 147, 64],
        stride4: [1, 74, 74, 128],
        stride8: [1, 37, 37, 256],
        stride16: [1, 19, 19, 728],
        stride32: [1, 10, 10, 2048],
      })
    }
  })

  it('cuts 728 channels into three uneven segments', () => {
    expect(count({ segments: 3 }).parameters.trainable).toBeGreaterThan(count({ segments: 4 }).parameters.trainable)
  })
})

describe('blocks', () => {
  it('an identity shortcut keeps negatives: with a silent branch the block returns its input', async () => {
    const block = xceptionBlock({ in: 8, out: 8, reps: 3 })
    const executor = openDevice('reference')
    for (const child of Object.values(block.children))
      for (const [name, variable] of Object.entries(child.variables))
        if (name === 'gamma' || name === 'beta') writeState(variable, new Float32Array(8), executor)
    const data = Float32Array.from({ length: 5 * 5 * 8 }, (_, i) => Math.sin(i) * 3)
    const x = tensor(data, [1, 5, 5, 8], { device: 'reference' })
    const y = await compile(block, { device: 'reference' })(x)
    expect(await y.data()).toEqual(data)
  })
})

describe('models', () => {
  it('are listed and created by name', async () => {
    expect(listModels().map(({ name }) => name)).toContain('xception')
    await expect(createModel('xceptoin')).rejects.toMatchObject({
      code: 'ERR_ARGUMENT',
      message: expect.stringContaining("Did you mean 'xception'"),
    })
    await expect(createModel('xception', { clases: 3 })).rejects.toMatchObject({
      message: expect.stringContaining("Did you mean 'classes'"),
    })
    await expect(createModel('xception', { inputSize: 70 })).rejects.toMatchObject({ code: 'ERR_ARGUMENT' })
  })

  it('gives the same weights for the same seed, others for another', () => {
    const first = (seed: number) => {
      const model = xception({ width: 0.05, middleRepeats: 1, classes: 3, seed, device: 'reference' })
      const variable = model.variables.get('block2.sepconv1.pointwise')!
      const data = new Float32Array(variable.type.shape.reduce((a, b) => a * b, 1))
      variable.initializer.fill(data, variable.type.shape, variable)
      return data
    }
    expect(first(1)).toEqual(first(1))
    expect(first(1)).not.toEqual(first(2))
  })

  it('refuses pictures of the wrong form and use after dispose', async () => {
    const model = xception({ width: 0.05, middleRepeats: 0, classes: 3, device: 'reference' })
    const wrong = tensor(new Float32Array(2 * 75 * 75), [2, 75, 75, 1], { device: 'reference' })
    await expect(model.run(wrong)).rejects.toMatchObject({ code: 'ERR_SHAPE' })
    model.dispose()
    const right = tensor(new Float32Array(75 * 75 * 3), [1, 75, 75, 3], { device: 'reference' })
    await expect(model.run(right)).rejects.toMatchObject({ code: 'ERR_DISPOSED' })
  })

  it('reads its own metadata and refuses what is no JSON', () => {
    expect(readMetadata('f', { format: 'pt' })).toBeUndefined()
    expect(() => readMetadata('f', { format: 'sepconv', architecture: 'xception', options: '{' })).toThrow(/not a JSON object/)
  })
})
