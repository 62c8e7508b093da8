/** bfloat16 against float32 on a trained model, and training in bfloat16: the accuracy that docs/kernels.md states. */

import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { writeShapes } from '../../src/data/shapes.js'
import { type Dataset, devices, evaluate, fit, imageFolder, loadModel, type Model, verifyModel, xception } from '../../src/index.js'
import { readState } from '../../src/runtime/state.js'

const native = devices().some(({ name, available }) => name === 'cpu' && available)
const OPTIONS = { inputSize: 71, width: 0.25, middleRepeats: 1, seed: 5 }

let folder: string
let data: Dataset

beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'sepconv-precision-'))
  await writeShapes(join(folder, 'shapes'), { train: 960, validation: 400, size: 71, seed: 3 })
  data = await imageFolder(join(folder, 'shapes'))
}, 60_000)
afterAll(() => rm(folder, { recursive: true, force: true }))

async function train(out: string, precision: 'float32' | 'bfloat16', epochs: number): Promise<number> {
  using model = await xception({ ...OPTIONS, classes: data.classes.length })
  let top1 = 0
  for await (const event of fit({ model, data, out, epochs, batch: 16, rate: 0.045, seed: 1, averageDecay: 0.95, precision }))
    if (event.type === 'epoch') top1 = event.validation?.top1 ?? 0
  return top1
}

const logitsOf = async (model: Model): Promise<Map<string, Float32Array>> => {
  const rows = new Map<string, Float32Array>()
  const observe = (logits: Float32Array, i: number) => void rows.set(data.validation[i]!.name, logits.slice())
  await evaluate(model, data.validation, { batch: 32, observe })
  return rows
}
const largest = (row: Float32Array): number => row.indexOf(Math.max(...row))

describe.runIf(native)('bfloat16 on a trained model', () => {
  it('predicts what float32 predicts, and trains to the same accuracy', async () => {
    const out = join(folder, 'float32')
    const accuracy = { float32: await train(out, 'float32', 8), bfloat16: await train(join(folder, 'bfloat16'), 'bfloat16', 8) }
    expect(accuracy.float32).toBeGreaterThan(0.8)
    expect(accuracy.bfloat16).toBeGreaterThan(accuracy.float32 - 0.1)

    const [plain, half] = [
      await loadModel(join(out, 'best.safetensors')),
      await loadModel(join(out, 'best.safetensors'), { precision: 'bfloat16' }),
    ]
    const [expected, actual] = [await logitsOf(plain), await logitsOf(half)]
    let [agree, difference, spread] = [0, 0, 0]
    for (const [name, row] of expected) {
      const other = actual.get(name)!
      if (largest(row) === largest(other)) agree++
      row.forEach((x, i) => (difference = Math.max(difference, Math.abs(x - other[i]!))))
      spread = Math.max(spread, Math.max(...row) - Math.min(...row))
    }
    expect(agree / expected.size).toBeGreaterThanOrEqual(0.99)
    expect(difference).toBeLessThan(0.01 * spread)
    plain.dispose()
    half.dispose()
  }, 240_000)

  it('ends, stopped and resumed, with the bits of an uninterrupted run', async () => {
    const weights = async (name: string, stopAt?: number) => {
      const stop = new AbortController()
      for (const resume of stopAt === undefined ? [false] : [false, true]) {
        using model = await xception({ ...OPTIONS, width: 0.04, classes: data.classes.length })
        const small = { ...data, train: data.train.slice(0, 48), validation: [] }
        const options = {
          model,
          data: small,
          out: join(folder, name),
          epochs: 2,
          batch: 16,
          seed: 1,
          precision: 'bfloat16' as const,
          resume,
        }
        for await (const event of fit({ ...options, ...(!resume && { signal: stop.signal }) }))
          if (event.type === 'step' && event.step === stopAt) stop.abort()
        if (resume || stopAt === undefined) return await Promise.all([...model.variables.values()].map((variable) => readState(variable)))
      }
      throw new Error('unreachable')
    }
    expect(await weights('halves', 2)).toEqual(await weights('whole'))
  }, 120_000)

  it("agrees with the reference call by call, the training step's gradients and updates included", async () => {
    const options = { width: 0.05, middleRepeats: 1, classes: 3, dropout: 0.5 }
    for (const task of ['inference', 'train'] as const) {
      const rows = await verifyModel({ options, task, device: 'cpu', precision: 'bfloat16', size: 71, batch: 4 })
      expect(rows.filter(({ ok }) => !ok)).toEqual([])
      expect(rows.map(({ op }) => op)).toContain('cast')
    }
  }, 60_000)
})
