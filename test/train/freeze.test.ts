import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { writeShapes } from '../../src/data/shapes.js'
import {
  createModel,
  type Dataset,
  type FitEvent,
  type FitOptions,
  fit,
  imageFolder,
  loadModel,
  type Model,
  xception,
} from '../../src/index.js'
import { readState } from '../../src/runtime/state.js'
import { fixture } from '../weights/keras.js'

let folder: string
let data: Dataset
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'sepconv-freeze-'))
  await writeShapes(join(folder, 'shapes'), { train: 24, validation: 8, size: 71, seed: 3 })
  data = await imageFolder(join(folder, 'shapes'))
})
afterAll(() => rm(folder, { recursive: true, force: true }))

const small = () => xception({ classes: data.classes.length, inputSize: 71, width: 0.04, middleRepeats: 1, seed: 5 })
const content = async (model: Model) =>
  new Map(await Promise.all([...model.variables].map(async ([name, v]) => [name, await readState(v)] as const)))

async function train(model: Model, options: Partial<FitOptions>, onEvent: (event: FitEvent) => void = () => {}) {
  const before = await content(model)
  const events: FitEvent[] = []
  for await (const event of fit({ model, data, epochs: 1, batch: 8, size: 71, rate: 0.05, seed: 1, ...options })) {
    events.push(event)
    onEvent(event)
  }
  const after = await content(model)
  const changed = [...after].filter(
    ([name, values]) => Buffer.compare(Buffer.from(values.buffer), Buffer.from(before.get(name)!.buffer)) !== 0,
  )
  return { events, changed: changed.map(([name]) => name), after, before }
}

describe('freezing', () => {
  it.each([
    ['entry', /^block[1-4]\./],
    ['middle', /^block[1-5]\./],
    ['all-but-head', /^block/],
    ['block3.*', /^block3\./],
  ])('%s: neither weights nor running statistics of frozen layers change, all others do', async (freeze, frozen) => {
    using model = small()
    const { changed, events } = await train(model, { freeze })
    expect(changed.filter((name) => frozen.test(name))).toEqual([])
    const rest = [...model.variables.keys()].filter((name) => !frozen.test(name))
    // A bias in front of nothing but zeros may stay; nearly everything moves.
    expect(changed.length).toBeGreaterThan(0.9 * rest.length)
    const start = events[0] as FitEvent & { type: 'start' }
    const size = [...model.variables.values()]
      .filter((v) => v.trainable && frozen.test(v.name))
      .reduce((sum, v) => sum + v.type.shape.reduce((a, b) => a * b, 1), 0)
    expect(start.frozen).toBe(size)
    expect(model.parameters.length).toBeGreaterThan(start.parameters)
  })

  it('refuses names of nothing, and to freeze everything', async () => {
    using model = small()
    await expect(train(model, { freeze: 'middel' })).rejects.toMatchObject({
      code: 'ERR_ARGUMENT',
      hint: expect.stringContaining('all-but-head'),
    })
    await expect(train(model, { freeze: '*' })).rejects.toMatchObject({ code: 'ERR_ARGUMENT' })
    await expect(train(model, { rates: { entry: 0 } })).rejects.toMatchObject({ code: 'ERR_ARGUMENT' })
    await expect(train(model, { unfreezeEvery: 0.5 })).rejects.toMatchObject({ code: 'ERR_ARGUMENT' })
  })

  it('layer-wise rates: one step of plain SGD moves a layer by its factor', async () => {
    const steps = { optimizer: { momentum: 0, weightDecay: 0 }, batch: 24 } as const
    const delta = async (rates?: Record<string, number>) => {
      using model = small()
      const { before, after } = await train(model, { ...steps, ...(rates && { rates }), augment: false })
      const of = (name: string) => (after.get(name) as Float32Array).map((x, i) => x - (before.get(name) as Float32Array)[i]!)
      return { entry: of('block2.sepconv1.pointwise'), head: of('predictions.weight') }
    }
    const [plain, scaled] = [await delta(), await delta({ entry: 0.25 })]
    expect(scaled.head).toEqual(plain.head)
    const largest = plain.entry.reduce((a, b) => Math.max(a, Math.abs(b)), 0)
    expect(largest).toBeGreaterThan(0)
    plain.entry.forEach((x, i) => expect(Math.abs(scaled.entry[i]! - 0.25 * x)).toBeLessThan(1e-3 * largest))
  })

  it('gradual unfreezing: head, exit, middle, entry; stopped and resumed it ends with the same bits', async () => {
    const options = { epochs: 3, unfreezeEvery: 1, freeze: 'block1.*' } as const
    using whole = small()
    const run = await train(whole, { ...options, out: join(folder, 'whole') })
    expect(run.events.flatMap((event) => (event.type === 'unfrozen' ? [[event.epoch, event.stages]] : []))).toEqual([
      [2, ['head', 'exit']],
      [3, ['head', 'exit', 'middle']],
    ])
    expect(run.changed.some((name) => name.startsWith('block5.'))).toBe(true)
    expect(run.changed.some((name) => /^block[1-4]\./.test(name))).toBe(false)
    const steps = run.events.filter(({ type }) => type === 'step').length
    for (const at of [steps / 3, steps / 3 + 1]) {
      const out = join(folder, `halves${at}`)
      const stop = new AbortController()
      using first = small()
      await train(first, { ...options, out, signal: stop.signal }, (event) => event.type === 'step' && event.step === at && stop.abort())
      using second = small()
      const resumed = await train(second, { ...options, out, resume: true })
      expect(resumed.events[0]).toMatchObject({ type: 'start', step: at })
      for (const [name, values] of run.after)
        expect(Buffer.compare(Buffer.from(values.buffer), Buffer.from(resumed.after.get(name)!.buffer)), name).toBe(0)
    }
  })

  it("fine-tunes PyTorch's weights under a new head; the saved file carries the names", async () => {
    using model = await createModel('xception', {
      ...{ width: 0.05, middleRepeats: 1, inputSize: 71, classes: data.classes.length },
      ...{ weights: fixture('timm.pth'), head: 'new' },
    })
    await train(model, { freeze: 'all-but-head', out: join(folder, 'tuned') })
    using best = await loadModel(join(folder, 'tuned', 'best.safetensors'))
    expect(best.labels).toEqual(data.classes)
    expect(best.config.options).toMatchObject({ poolPadding: 'symmetric', epsilon: 1e-5 })
  })
})
