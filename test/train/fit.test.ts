import { existsSync } from 'node:fs'
import { mkdtemp, readFile, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { imageFolder, type Dataset, fit, type FitEvent, type FitOptions, loadModel, xception } from '../../src/index.js'
import { writeShapes } from '../../src/data/shapes.js'
import { readState } from '../../src/runtime/state.js'
import { rateAt } from '../../src/train/schedule.js'

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

  it('stops when the loss is not finite, leaving weights and checkpoint as they were', async () => {
    const out = join(folder, 'diverged')
    await expect(train({ out, rate: 1e30, schedule: { kind: 'constant' }, average: 'none' })).rejects.toMatchObject({
      code: 'ERR_DIVERGED',
      message: expect.stringContaining('lower rate'),
    })
    expect(existsSync(join(out, 'config.json'))).toBe(true)
  }, 120_000)

  it('refuses bad settings by name', async () => {
    await expect(train({ batch: 1000 })).rejects.toMatchObject({ code: 'ERR_DATA' })
    await expect(train({ rate: Number.NaN })).rejects.toMatchObject({ code: 'ERR_ARGUMENT', subject: 'rate' })
    await expect(train({ epoch: 3 } as never)).rejects.toMatchObject({ message: expect.stringContaining("Did you mean 'epochs'") })
    await expect(train({ resume: true })).rejects.toMatchObject({ subject: 'out' })
  })
})

describe('schedules', () => {
  it("follows the paper's: ×0.94 every two epochs", () => {
    const rate = (step: number) => rateAt(0.045, { kind: 'exponential' }, { step, stepsPerEpoch: 100, epochs: 200 })
    expect(rate(199)).toBe(0.045)
    expect(rate(200)).toBeCloseTo(0.045 * 0.94, 12)
    expect(rate(100 * 180)).toBeCloseTo(0.045 * 0.94 ** 90, 12)
  })

  it('warms up linearly and never turns negative', () => {
    const rates = Array.from({ length: 100 }, (_, step) =>
      rateAt(1, { kind: 'cosine', warmup: 1 }, { step, stepsPerEpoch: 10, epochs: 10 }),
    )
    expect(rates.slice(0, 10)).toEqual([...rates.slice(0, 10)].sort((a, b) => a - b))
    expect(rates.slice(10)).toEqual([...rates.slice(10)].sort((a, b) => b - a))
    expect(Math.min(...rates)).toBeGreaterThan(0)
  })
})
