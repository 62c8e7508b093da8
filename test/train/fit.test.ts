import { existsSync } from 'node:fs'
import { mkdtemp, readFile, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import {
  compile,
  dataset,
  type Dataset,
  fit,
  type FitEvent,
  type FitOptions,
  imageFolder,
  loadModel,
  mean,
  sgd,
  square,
  tensor,
  type Value,
  xception,
} from '../../src/index.js'
import { writeShapes } from '../../src/data/shapes.js'
import { multiply, softmaxCrossEntropy } from '../../src/ops/index.js'
import { readState } from '../../src/runtime/state.js'
import { recipeNames } from '../../src/train/recipe.js'

let folder: string
let data: Dataset

beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'sepconv-fit-'))
  await writeShapes(join(folder, 'shapes'), { train: 40, validation: 16, size: 71, seed: 3 })
  data = await imageFolder(join(folder, 'shapes'))
}, 60_000)
afterAll(() => rm(folder, { recursive: true, force: true }))

const small = () => xception({ classes: data.classes.length, inputSize: 71, width: 0.04, middleRepeats: 1, dropout: 0.3, seed: 5 })

async function train(options: Partial<FitOptions>, onEvent: (event: FitEvent) => void = () => {}) {
  const model = small()
  const events: FitEvent[] = []
  for await (const event of fit({ model, data, epochs: 2, batch: 8, size: 71, rate: 0.05, seed: 1, ...options })) {
    events.push(event)
    onEvent(event)
  }
  const weights = new Map<string, unknown>()
  for (const [name, variable] of model.variables) weights.set(name, await readState(variable))
  model.dispose()
  return { events, weights }
}

describe('fit', () => {
  it('stopped and resumed ends with the bits of an uninterrupted run, best weights included', async () => {
    const whole = await train({ out: join(folder, 'whole') })
    expect(whole.events.map(({ type }) => type).filter((type) => type !== 'step')).toEqual([
      'start',
      'evaluating',
      'epoch',
      'checkpoint',
      'evaluating',
      'epoch',
      'checkpoint',
      'done',
    ])

    const out = join(folder, 'halves')
    const stop = new AbortController()
    const first = await train({ out, signal: stop.signal }, (event) => event.type === 'step' && event.step === 3 && stop.abort())
    expect(first.events.at(-1)).toMatchObject({ type: 'stopped', step: 3, out })
    const second = await train({ out, resume: true })
    expect(second.events[0]).toMatchObject({ type: 'start', step: 3 })
    expect(second.weights).toEqual(whole.weights)
    expect(await readFile(join(out, 'best.safetensors'))).toEqual(await readFile(join(folder, 'whole', 'best.safetensors')))
    const epochs = (events: FitEvent[]) =>
      events.flatMap((event) => (event.type === 'epoch' ? [{ epoch: event.epoch, loss: event.loss, validation: event.validation }] : []))
    expect(epochs(second.events)).toEqual(epochs(whole.events))
  }, 240_000)

  it('writes weights that say which model and classes they belong to', async () => {
    const out = join(folder, 'labels')
    await train({ out, epochs: 1 })
    const model = await loadModel(join(out, 'best.safetensors'))
    expect(model.labels).toEqual(data.classes)
    expect(model.config.options).toMatchObject({ width: 0.04, inputSize: 71 })
    model.dispose()
    const checkpoint = await loadModel(join(out, 'last.safetensors'))
    expect(checkpoint.labels).toEqual(data.classes)
    checkpoint.dispose()
    const log = (await readFile(join(out, 'log.jsonl'), 'utf8'))
      .trim()
      .split('\n')
      .map((line) => JSON.parse(line) as FitEvent)
    expect(log.at(-1)!.type).toBe('done')
    await expect(train({ out })).rejects.toMatchObject({ code: 'ERR_FILE' })
    await expect(train({ out, resume: true, rate: 0.01 })).rejects.toMatchObject({
      code: 'ERR_ARGUMENT',
      message: expect.stringContaining('rate was 0.05, is 0.01'),
    })
  }, 240_000)

  it('does not go on with other data, another model or another recipe, and names what differs', async () => {
    const out = join(folder, 'other')
    const stop = (event: FitEvent, run: { stop(): void }) => void (event.type === 'step' && run.stop())
    await train({ out, recipe: 'modern', batch: 8, callbacks: [stop] })
    const refused = (options: Partial<FitOptions>, difference: RegExp) =>
      expect(train({ out, resume: true, recipe: 'modern', batch: 8, ...options })).rejects.toThrowError(difference)
    await refused({ recipe: 'slim-inception' }, /settings\.optimizer\.kind was "lamb", is "rmsprop"/)
    await refused({ data: { ...data, train: data.train.slice(1) } }, /data\.train was 40, is 39; data\.fingerprint was/)
    const renamed = data.train.map((sample, i) => (i === 3 ? { ...sample, label: (sample.label + 1) % 8 } : sample))
    await refused({ data: { ...data, train: renamed } }, /data\.fingerprint was/)
    const model = xception({ classes: 8, inputSize: 71, width: 0.04, middleRepeats: 1, dropout: 0.1 })
    await refused({ model }, /model\.options\.dropout was 0\.3, is 0\.1/)
  }, 60_000)

  it('stops when the loss is not finite, leaving weights and checkpoint as they were', async () => {
    const out = join(folder, 'diverged')
    await expect(train({ out, rate: 1e30, schedule: { kind: 'constant' }, average: 'none' })).rejects.toMatchObject({
      code: 'ERR_DIVERGED',
      message: expect.stringContaining('lower rate'),
    })
    expect(existsSync(join(out, 'config.json'))).toBe(true)
  }, 120_000)

  it('weights that an update made infinite are neither scored nor saved over good ones', async () => {
    const out = join(folder, 'overflown')
    const settings = { out, epochs: 2, batch: data.train.length, schedule: { kind: 'constant' }, average: 'none' } as const
    const loss = (logits: Value, labels: Value) => multiply(softmaxCrossEntropy(logits, labels), 1e3)
    await expect(train({ ...settings, loss, optimizer: { kind: 'sgd' }, rate: 3e38 })).rejects.toMatchObject({
      code: 'ERR_DIVERGED',
      message: expect.stringMatching(/at step 1: weights are not finite after it\. No checkpoint had been written/),
    })
    expect([existsSync(join(out, 'last.safetensors')), existsSync(join(out, 'best.safetensors'))]).toEqual([false, false])
  }, 120_000)

  it('dropout follows the seed: other runs, other masks', async () => {
    const model = () => xception({ classes: 8, inputSize: 71, width: 0.04, middleRepeats: 1, dropout: 0.5 })
    const lossOf = async (seed: number) => {
      // Weights and order of the pictures are the same; the first step's loss differs by the masks alone.
      using built = model()
      const step = compile((x: Value) => mean(square(built(x))), { train: sgd({ rate: 1e-9 }), seed })
      using x = tensor(
        Float32Array.from({ length: 2 * 71 * 71 * 3 }, (_, i) => Math.sin(i)),
        [2, 71, 71, 3],
      )
      const { loss } = await step.run(x as never)
      return (await loss.data())[0]
    }
    expect(await lossOf(1)).toBe(await lossOf(1))
    expect(await lossOf(1)).not.toBe(await lossOf(2))
    await expect(lossOf(-1)).rejects.toThrowError(/compile: seed must be a whole number/)
  })

  it('cuts batches into parts, stops early, keeps snapshots, calls back', async () => {
    const out = join(folder, 'more')
    const seen: string[] = []
    const { events } = await train({
      ...{ out, epochs: 6, accumulate: 2, patience: 1, snapshots: 1, rate: 1e-9, average: 'none' },
      callbacks: [({ type }) => void seen.push(type)],
    })
    expect(events.at(-1)).toMatchObject({ type: 'done', early: true, best: { metric: 'top1', epoch: 1 } })
    expect(events.filter(({ type }) => type === 'epoch')).toHaveLength(2)
    expect(existsSync(join(out, 'epoch-0002.safetensors'))).toBe(true)
    expect(seen).toEqual(events.map(({ type }) => type))
    // A resumed run knows that it had ended.
    const again = await train({
      ...{ out, epochs: 6, accumulate: 2, patience: 1, snapshots: 1, rate: 1e-9, average: 'none' },
      resume: true,
    })
    expect(again.events.map(({ type }) => type)).toEqual(['start', 'done'])
  }, 120_000)

  it('stops where a callback says so, and goes on with another optimizer’s state', async () => {
    for (const optimizer of [
      { kind: 'rmsprop', momentum: 0.9 },
      { kind: 'lamb', weightDecay: 0.02 },
    ] as const) {
      const settings: Partial<FitOptions> = {
        optimizer,
        rate: 1e-3,
        average: 'polyak',
        epochs: 1,
        mix: { mixup: 0.2, cutmix: 1 },
        loss: 'sigmoid',
      }
      const whole = await train(settings)
      const out = join(folder, `stopped-${optimizer.kind}`)
      const stop = await train({
        ...settings,
        out,
        callbacks: [(event, run) => void (event.type === 'step' && event.step === 2 && run.stop())],
      })
      expect(stop.events.at(-1)).toMatchObject({ type: 'stopped', step: 2 })
      expect((await train({ ...settings, out, resume: true })).weights).toEqual(whole.weights)
    }
  }, 120_000)

  it.each(recipeNames())(
    'runs %s in reduced form',
    async (recipe) => {
      const { events } = await train({ recipe, epochs: 1, batch: 8, rate: undefined, seed: undefined })
      const done = events.at(-1)!
      expect(done.type).toBe('done')
      const [step] = events.filter((event) => event.type === 'step')
      expect(step!.loss).toBeLessThan(4)
    },
    120_000,
  )

  it('a loss, a schedule and data of one’s own', async () => {
    const pixels = (value: number) => ({ data: new Uint8Array(71 * 71 * 3).fill(value), width: 71, height: 71 })
    const grey = dataset({
      classes: data.classes,
      train: 16,
      validation: 8,
      label: (i) => i % 8,
      load: (i) => pixels(20 + 30 * (i % 8)),
    })
    const rates: number[] = []
    const { events } = await train({
      ...{ data: grey, epochs: 1, augment: false },
      loss: (logits, targets) => multiply(softmaxCrossEntropy(logits, targets), 2),
      schedule: ({ step }) => 0.01 / (step + 1),
      callbacks: [(event) => void (event.type === 'step' && rates.push(event.rate))],
    })
    expect(rates).toEqual([0.01, 0.005])
    expect(events.find((event) => event.type === 'step')!.loss).toBeGreaterThan(2)
    await expect(train({ schedule: ({ step }) => 1 - step })).rejects.toMatchObject({ subject: 'rate of step 3' })
  }, 60_000)

  it('refuses bad settings by name', async () => {
    await expect(train({ batch: 1000 })).rejects.toMatchObject({ code: 'ERR_DATA' })
    await expect(train({ rate: Number.NaN })).rejects.toMatchObject({ code: 'ERR_ARGUMENT', subject: 'rate' })
    await expect(train({ epoch: 3 } as never)).rejects.toMatchObject({ message: expect.stringContaining("Did you mean 'epochs'") })
    await expect(train({ accumulate: 3 })).rejects.toMatchObject({ subject: 'accumulate' })
    await expect(train({ precision: 'bfloat16' })).rejects.toMatchObject({ code: 'ERR_DEVICE' })
    await expect(train({ metric: 'map' })).rejects.toMatchObject({ subject: 'metric' })
    await expect(train({ recipe: 'modem' })).rejects.toMatchObject({ message: expect.stringContaining("Did you mean 'modern'") })
    const wrong = { ...data, train: [{ ...data.train[0]!, label: 8 }, ...data.train.slice(1)] }
    await expect(train({ data: wrong })).rejects.toMatchObject({ code: 'ERR_DATA', given: 8 })
    await expect(train({ resume: true })).rejects.toMatchObject({ subject: 'out' })
  })
})
