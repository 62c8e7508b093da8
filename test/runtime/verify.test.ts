import { describe, expect, it } from 'vitest'
import { devices, verifyModel } from '../../src/index.js'
import { relativeError } from '../../src/runtime/verify.js'

const options = { width: 0.05, middleRepeats: 1, classes: 3, dropout: 0.5 }
const native = devices().some(({ name, available }) => name === 'cpu' && available)

describe('verifyModel', () => {
  it.runIf(native)("runs the whole training step: dropout, update and averages on the reference's own inputs", async () => {
    const rows = await verifyModel({ options, task: 'train', device: 'cpu', size: 71, batch: 4 })
    const names = rows.map(({ op }) => op)
    for (const op of ['dropout', 'batchNormGradient', 'conv2dFilterGradient', 'globalNorm', 'allFinite', 'sgdUpdate', 'averageUpdate'])
      expect(names).toContain(op)
    expect(rows.filter(({ ok }) => !ok)).toEqual([])
    expect(Math.max(...rows.map(({ maxError }) => maxError))).toBeGreaterThan(0)
  })

  it.runIf(native)('compares any two devices, features included', async () => {
    const task = { options: { ...options, featuresOnly: true }, size: 71, device: 'reference', against: 'cpu' } as const
    const rows = await verifyModel(task)
    expect(rows.filter(({ ok }) => !ok)).toEqual([])
    const same = await verifyModel({ ...task, against: 'reference' })
    expect(same.every(({ maxError }) => maxError === 0)).toBe(true)
  })

  it('refuses what has no training step', async () => {
    const nothing = verifyModel({ options: { ...options, classes: 0 }, task: 'train', device: 'reference', size: 71 })
    await expect(nothing).rejects.toMatchObject({ code: 'ERR_ARGUMENT', message: expect.stringContaining('no training step') })
  })

  it('a NaN on one side only is a disagreement', () => {
    expect(relativeError([1, Number.NaN], [1, Number.NaN])).toBe(0)
    expect(relativeError([1, Number.NaN], [1, 2])).toBeNaN()
    expect(relativeError([1, 2.5], [1, 2])).toBe(0.25)
  })
})
