import { describe, expect, it } from 'vitest'
import { adjustColors, applyAugmentation, drawAugmentation, resolveAugment } from '../../src/data/augment.js'
import { SampleRandom, STREAMS } from '../../src/data/random.js'
import { epochOrder, Sampler } from '../../src/data/sampler.js'
import { pattern, plain } from './pictures.js'

describe('epochOrder', () => {
  it('is a permutation, another one for each epoch and seed', () => {
    for (const count of [1, 2, 3, 10, 1000])
      expect([...epochOrder(5, 0, count)].sort((a, b) => a - b)).toEqual(Array.from({ length: count }, (_, i) => i))
    const orders = [epochOrder(0, 0, 50), epochOrder(0, 1, 50), epochOrder(1, 0, 50), epochOrder(2 ** 32, 0, 50)].map(String)
    expect(new Set(orders).size).toBe(4)
  })

  it('never changes: a checkpoint of today resumes tomorrow', () => {
    expect([...epochOrder(0, 0, 8)]).toEqual([7, 5, 1, 4, 2, 0, 6, 3])
    expect([...epochOrder(42, 3, 8)]).toEqual([3, 2, 0, 4, 1, 6, 7, 5])
  })

  it('favours no place', () => {
    const counts = Array.from({ length: 6 }, () => new Float64Array(6))
    const trials = 6000
    for (let epoch = 0; epoch < trials; epoch++) for (const [place, sample] of epochOrder(7, epoch, 6).entries()) counts[place]![sample]!++
    // Chi-square with 25 degrees of freedom: 52.6 at 0.1 %.
    const expected = trials / 6
    expect(counts.reduce((sum, row) => sum + row.reduce((part, n) => part + (n - expected) ** 2 / expected, 0), 0)).toBeLessThan(52.6)
  })
})

describe('Sampler', () => {
  it('visits every sample once per epoch and can start anywhere', () => {
    const sampler = new Sampler({ count: 13, seed: 3 })
    const all = Array.from({ length: 39 }, (_, index) => sampler.at(index))
    for (const epoch of [0, 1, 2]) expect(new Set(all.slice(epoch * 13, epoch * 13 + 13)).size).toBe(13)
    for (const start of [0, 1, 12, 13, 20, 38]) {
      const resumed = new Sampler({ count: 13, seed: 3 })
      expect(Array.from({ length: 39 - start }, (_, i) => resumed.at(start + i))).toEqual(all.slice(start))
    }
    // In any order of asking, too.
    for (let index = 38; index >= 0; index -= 7) expect(sampler.at(index)).toBe(all[index])
  })

  it('keeps the order given without shuffle', () => {
    const sampler = new Sampler({ count: 4, shuffle: false })
    expect(Array.from({ length: 8 }, (_, i) => sampler.at(i))).toEqual([0, 1, 2, 3, 0, 1, 2, 3])
    expect(sampler.locate(6)).toEqual({ epoch: 1, position: 2 })
  })

  it('refuses empty sets and bad seeds', () => {
    expect(() => new Sampler({ count: 0 })).toThrow(/at least one sample/)
    expect(() => new Sampler({ count: 3, seed: -1 })).toThrow(/seed must be a whole number/)
    expect(() => new Sampler({ count: 3, seed: 0.5 })).toThrow(/seed must be a whole number/)
  })
})

describe('SampleRandom', () => {
  it('separates seeds, streams, indices and rows, beyond 32 bits as well', () => {
    const first = (...args: ConstructorParameters<typeof SampleRandom>) => {
      const random = new SampleRandom(...args)
      return [random.word(), random.word(), random.word(), random.word(), random.word()].join()
    }
    const seen = [
      first(0, STREAMS.order, 0),
      first(1, STREAMS.order, 0),
      first(2 ** 32, STREAMS.order, 0),
      first(0, STREAMS.augment, 0),
      first(0, STREAMS.order, 1),
      first(0, STREAMS.order, 2 ** 32),
      first(0, STREAMS.order, 0, 1),
    ]
    expect(new Set(seen).size).toBe(7)
    expect(first(0, STREAMS.order, 0)).toBe(seen[0])
  })

  it('draws below a bound', () => {
    const random = new SampleRandom(1, 2, 3)
    const seen = new Set(Array.from({ length: 500 }, () => random.below(7)))
    expect([...seen].sort()).toEqual([0, 1, 2, 3, 4, 5, 6])
  })
})

const OPTIONS = resolveAugment()

describe('drawAugmentation', () => {
  it('depends on seed and sample alone', () => {
    const drawn = Array.from({ length: 20 }, (_, i) => drawAugmentation(1, i, 80, 60, OPTIONS))
    for (const i of [19, 3, 3, 0]) expect(drawAugmentation(1, i, 80, 60, OPTIONS)).toEqual(drawn[i])
    expect(drawAugmentation(2, 0, 80, 60, OPTIONS)).not.toEqual(drawn[0])
    expect(new Set(drawn.map((one) => JSON.stringify(one))).size).toBe(20)
  })

  it('leaves other kinds as they were when one is switched off', () => {
    const with_ = drawAugmentation(1, 5, 80, 60, OPTIONS)
    const without = drawAugmentation(1, 5, 80, 60, resolveAugment({ scale: [1, 1], flip: 0, brightness: 0 }))
    expect(without).toMatchObject({ contrast: with_.contrast, saturation: with_.saturation, brightness: 1, mirror: false })
  })

  it('stays within the ranges asked for', () => {
    const options = resolveAugment({ scale: [0.2, 0.5], ratio: [0.5, 2], flip: 0.25, brightness: 0.4, contrast: 0, saturation: 1 })
    let mirrored = 0
    for (let i = 0; i < 2000; i++) {
      const { left, top, width, height, mirror, brightness, contrast, saturation } = drawAugmentation(9, i, 200, 100, options)
      for (const value of [left, top, width, height]) expect(Number.isInteger(value)).toBe(true)
      expect(left >= 0 && top >= 0 && left + width <= 200 && top + height <= 100).toBe(true)
      const area = (width * height) / 20_000
      expect(area).toBeGreaterThan(0.19)
      expect(area).toBeLessThan(0.51)
      expect(width / height).toBeGreaterThan(0.48)
      expect(width / height).toBeLessThan(2.05)
      expect(Math.abs(brightness - 1)).toBeLessThanOrEqual(0.4)
      expect(contrast).toBe(1)
      expect(saturation >= 0 && saturation <= 2).toBe(true)
      mirrored += mirror ? 1 : 0
    }
    expect(mirrored).toBeGreaterThan(420)
    expect(mirrored).toBeLessThan(580)
  })

  it('falls back to the largest crop of an allowed ratio', () => {
    expect(drawAugmentation(0, 0, 1000, 10, OPTIONS)).toMatchObject({ width: 13, height: 10, left: 493, top: 0 })
    expect(drawAugmentation(0, 0, 1, 1, OPTIONS)).toMatchObject({ width: 1, height: 1 })
  })

  it('refuses bad options', () => {
    expect(() => resolveAugment({ scale: [0, 1] })).toThrow(/scale must be \[least, most\]/)
    expect(() => resolveAugment({ scale: [0.5, 1.5] })).toThrow(/<= 1, got \[0.5,1.5\]/)
    expect(() => resolveAugment({ ratio: [2, 1] })).toThrow(/ratio must be/)
    expect(() => resolveAugment({ flip: 2 })).toThrow(/flip must be from 0 to 1, got 2/)
    expect(() => resolveAugment({ brightness: Number.NaN })).toThrow(/brightness must be from 0 to 1/)
    expect(() => resolveAugment({ fliip: 1 } as never)).toThrow(/Did you mean 'flip'/)
  })
})

describe('applyAugmentation', () => {
  const neutral = { left: 0, top: 0, width: 30, height: 20, mirror: false, brightness: 1, contrast: 1, saturation: 1 }

  it('crops and mirrors', async () => {
    const image = pattern(30, 20)
    const size = 16
    const crop = await applyAugmentation(image, { ...neutral, left: 3, top: 2, width: size, height: size }, size)
    for (let y = 0; y < size; y++)
      expect(crop.slice(y * 48, y * 48 + 48)).toEqual(image.data.slice(((y + 2) * 30 + 3) * 3, ((y + 2) * 30 + 19) * 3))
    const mirrored = await applyAugmentation(image, { ...neutral, left: 3, top: 2, width: size, height: size, mirror: true }, size)
    for (let x = 0; x < size; x++) expect(mirrored.slice(x * 3, x * 3 + 3)).toEqual(crop.slice((15 - x) * 3, (16 - x) * 3))
  })

  it('changes colours by the textbook formulas', () => {
    const changed = (color: [number, number, number], factors: Partial<Record<'brightness' | 'contrast' | 'saturation', number>>) => {
      const { data } = plain(4, 4, color)
      adjustColors(data, { brightness: 1, contrast: 1, saturation: 1, ...factors })
      return [...data.slice(0, 3)]
    }
    const color: [number, number, number] = [100, 50, 200]
    const grey = 0.299 * 100 + 0.587 * 50 + 0.114 * 200
    expect(changed(color, {})).toEqual(color)
    expect(changed(color, { brightness: 0.5 })).toEqual([50, 25, 100])
    expect(changed(color, { brightness: 2 })).toEqual([200, 100, 255])
    expect(changed(color, { saturation: 0 })).toEqual([Math.round(grey), Math.round(grey), Math.round(grey)])
    expect(changed(color, { saturation: 0.5 })).toEqual([100, 50, 200].map((value) => Math.round((value + grey) / 2)))
    expect(changed(color, { contrast: 0 })).toEqual([Math.round(grey), Math.round(grey), Math.round(grey)])
    const two = Uint8Array.of(50, 50, 50, 150, 150, 150)
    adjustColors(two, { brightness: 1, contrast: 0.5, saturation: 1 })
    expect([...two]).toEqual([75, 75, 75, 125, 125, 125])
  })
})
