import { describe, expect, it } from 'vitest'
import { checkRates, checkSchedule, rateAt, type Schedule } from '../../src/train/schedule.js'

const whole = { stepsPerEpoch: 100, epochs: 200, batch: 32 }

describe('exponential', () => {
  it("follows the paper's for ImageNet: × 0.94 every two epochs, in stairs", () => {
    const rate = (step: number) => rateAt(0.045, { kind: 'exponential' }, { ...whole, step })
    expect(rate(199)).toBe(0.045)
    expect(rate(200)).toBeCloseTo(0.045 * 0.94, 12)
    expect(rate(100 * 180)).toBeCloseTo(0.045 * 0.94 ** 90, 12)
  })

  it("follows the paper's for JFT in any unit: × 0.9 every 3,000,000 samples", () => {
    const jft = { stepsPerEpoch: 350e6 / 1000, epochs: 1, batch: 1000 }
    const rate = (step: number, every: Schedule['every']) => rateAt(0.001, { kind: 'exponential', factor: 0.9, every }, { ...jft, step })
    expect(rate(2999, { samples: 3e6 })).toBe(0.001)
    for (const stairs of [1, 2, 7, 116]) expect(rate(3000 * stairs, { samples: 3e6 })).toBeCloseTo(0.001 * 0.9 ** stairs, 15)
    expect(rate(3000 * 7, { steps: 3000 })).toBeCloseTo(0.001 * 0.9 ** 7, 15)
    expect(rate(3000 * 7, { epochs: 3 / 350 })).toBeCloseTo(0.001 * 0.9 ** 7, 15)
  })

  it('continuous: meets the stairs at their edges and falls in between', () => {
    const schedule: Schedule = { kind: 'exponential', staircase: false }
    expect(rateAt(1, schedule, { ...whole, step: 200 })).toBeCloseTo(0.94, 12)
    expect(rateAt(1, schedule, { ...whole, step: 100 })).toBeCloseTo(Math.sqrt(0.94), 12)
  })

  it('every edge of a long staircase is where it belongs', () => {
    for (const every of [2.4, 0.1, 3])
      for (let stair = 1; stair < 60; stair++) {
        const step = Math.round(stair * every * 1000)
        const rate = rateAt(1, { kind: 'exponential', factor: 0.5, every }, { stepsPerEpoch: 1000, epochs: 300, batch: 1, step })
        expect(rate, `${every} × ${stair}`).toBeCloseTo(0.5 ** stair, 15)
      }
  })
})

describe('cosine', () => {
  it('warms up linearly and never turns negative', () => {
    const rates = Array.from({ length: 100 }, (_, step) =>
      rateAt(1, { kind: 'cosine', warmup: 1 }, { step, stepsPerEpoch: 10, epochs: 10, batch: 1 }),
    )
    expect(rates.slice(0, 10)).toEqual([...rates.slice(0, 10)].sort((a, b) => a - b))
    expect(rates.slice(10)).toEqual([...rates.slice(10)].sort((a, b) => b - a))
    expect(Math.min(...rates)).toBeGreaterThan(0)
  })

  it('ends at its floor', () => {
    expect(rateAt(2, { kind: 'cosine', floor: 0.1 }, { ...whole, step: 20_000 })).toBeCloseTo(0.2, 12)
    expect(rateAt(2, { kind: 'cosine' }, { ...whole, step: 10_000 })).toBeCloseTo(1, 12)
  })
})

describe('bad schedules', () => {
  it('are refused by name', () => {
    const check = (schedule: unknown) => () => checkSchedule(schedule as Schedule)
    expect(check({ kind: 'cosine', warmups: 1 })).toThrowError(/Did you mean 'warmup'/)
    expect(check({ kind: 'linear' })).toThrowError(/kind must be constant, cosine or exponential/)
    expect(check({ kind: 'exponential', factor: -1 })).toThrowError(/factor must be a finite number, in \(0, 1\]/)
    expect(check({ kind: 'exponential', every: { sample: 3 } })).toThrowError(/Did you mean 'samples'/)
    expect(check({ kind: 'exponential', every: { samples: 3, steps: 1 } })).toThrowError(/one unit/)
    expect(check({ kind: 'exponential', every: 0 })).toThrowError(/every must be a finite number, positive/)
  })

  it('of one’s own that turn negative are found before the run begins', () => {
    expect(() => checkRates(1, ({ step }) => 1 - step / 10_000, whole)).toThrowError(
      /rate of step \d+ must be a finite number, at least 0, got -/,
    )
    expect(() => checkRates(1, ({ step }) => 1 / (step + 1), whole)).not.toThrow()
  })
})
