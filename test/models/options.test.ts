/** Every option of Xception through a whole training step: against the reference call by call, then for real on the CPU. */

import { afterAll, describe, expect, it } from 'vitest'
import {
  compile,
  devices,
  sgd,
  softmaxCrossEntropy,
  type Tensor,
  tensor,
  type Value,
  verifyModel,
  xception,
  type XceptionOptions,
} from '../../src/index.js'
import { readState } from '../../src/runtime/state.js'

const native = devices().some(({ name, available }) => name === 'cpu' && available)
const TINY = { width: 0.04, middleRepeats: 1, classes: 4, inputSize: 71 } as const
const size = 71
const batch = 4

describe.runIf(native)('a training step on cpu with', () => {
  const images = tensor(
    Uint8Array.from({ length: batch * size * size * 3 }, (_, i) => (i * 2654435761) >>> 24),
    [batch, size, size, 3],
    { device: 'cpu' },
  )
  const labels = tensor(Int32Array.of(0, 1, 2, 3), [batch], { device: 'cpu' })
  afterAll(() => [images, labels].forEach((x) => x.dispose()))

  it.each<[string, XceptionOptions]>([
    ['defaults', {}],
    ['five classes', { classes: 5 }],
    ['an input of 80 pixels', { inputSize: 80 }],
    ['no middle flow', { middleRepeats: 0 }],
    ['dropout', { dropout: 0.5 }],
    ['max pooling', { pooling: 'max' }],
    ['no residuals', { residual: false }],
    ['intermediate relu', { intermediateActivation: 'relu' }],
    ['intermediate elu and batch norm', { intermediateActivation: 'elu', intermediateBatchNorm: true }],
    ['one segment', { segments: 1 }],
    ['three uneven segments', { segments: 3 }],
    ['segments of four channels', { segments: { width: 4 } }],
    ['fully connected layers', { fullyConnected: [12, 9] }],
    ['biases in the exit flow', { exitBias: true }],
    ['symmetric pools', { poolPadding: 'symmetric' }],
    ['epsilon, momentum and initialiser', { epsilon: 1e-5, momentum: 0.9, initializer: 'heNormal' }],
  ])('%s', async (_, options) => {
    const { inputSize, ...architecture } = { ...TINY, ...options }
    const rows = await verifyModel({ options: architecture, task: 'train', device: 'cpu', size: inputSize, batch: 2 })
    expect(rows.filter(({ ok }) => !ok)).toEqual([])

    using model = xception({ ...TINY, ...options, inputSize: size, device: 'cpu' })
    const before = new Map<string, unknown>()
    for (const variable of model.variables.values()) before.set(variable.name, await readState(variable))
    const step = compile((x: { images: Value; labels: Value }) => softmaxCrossEntropy(model(x.images), x.labels, { labelSmoothing: 0.1 }), {
      device: 'cpu',
      train: sgd({ rate: 0.05 }),
    })
    const results = [await step.run({ images, labels }), await step.run({ images, labels }), await step.run({ images, labels })]
    const losses = await Promise.all(results.map(async ({ loss }) => (await loss.data())[0]!))
    for (const { finite } of results) expect((await finite.data())[0]).toBe(1)
    for (const loss of losses) expect(loss).toBeGreaterThan(0)
    expect(new Set(losses).size).toBe(3)
    // The gradient reaches every parameter, and every running statistic follows.
    for (const variable of model.variables.values()) expect(await readState(variable), variable.name).not.toEqual(before.get(variable.name))
    for (const { loss, finite } of results) for (const x of [loss, finite]) x.dispose()
    step.dispose()
  })

  it.each<[string, XceptionOptions, Record<string, readonly number[]>]>([
    ['an embedding', { classes: 0 }, { value: [1, 80] }],
    [
      'the feature pyramid',
      { featuresOnly: true },
      { stride2: [1, 33, 33, 8], stride4: [1, 17, 17, 8], stride8: [1, 9, 9, 8], stride16: [1, 5, 5, 32], stride32: [1, 3, 3, 80] },
    ],
  ])('inference: %s', async (_, options, shapes) => {
    const rows = await verifyModel({ options: { ...TINY, ...options }, device: 'cpu', size, batch: 1 })
    expect(rows.filter(({ ok }) => !ok)).toEqual([])
    using model = xception({ ...TINY, ...options, device: 'cpu' })
    using x = tensor(new Uint8Array(size * size * 3).fill(99), [1, size, size, 3], { device: 'cpu' })
    const result = await model.run<Tensor & Record<string, Tensor>>(x)
    const found = result.shape ? { value: result.shape } : Object.fromEntries(Object.entries(result).map(([name, y]) => [name, y.shape]))
    expect(found).toEqual(shapes)
  })

  it('other input channels than three, given as floats', async () => {
    using model = xception({ ...TINY, inputChannels: 5, device: 'cpu' })
    using x = tensor(new Float32Array(size * size * 5).fill(0.5), [1, size, size, 5], { device: 'cpu' })
    expect((await model.run(x)).shape).toEqual([1, 4])
    using pixels = tensor(new Uint8Array(size * size * 5).fill(200), [1, size, size, 5], { device: 'cpu' })
    expect((await model.run(pixels)).shape).toEqual([1, 4])
  })
})
