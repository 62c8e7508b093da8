import { describe, expect, it } from 'vitest'
import { checkMix, drawMixing, mixImages, mixTargets } from '../../src/data/mix.js'
import {
  applyOperation,
  drawOperations,
  eraseRandomly,
  OPERATION_NAMES,
  resolveErase,
  resolveRandAugment,
} from '../../src/data/randAugment.js'
import { pattern } from './pictures.js'

const SIZE = 12
const rows = (count: number) => Uint8Array.from({ length: count * SIZE * SIZE * 3 }, (_, i) => (i * 53 + (i >> 6) * 17) % 256)

describe('mixup and cutmix', () => {
  it('are functions of seed and place', () => {
    const options = { mixup: 0.2, cutmix: 1 }
    expect(drawMixing(1, 640, SIZE, options)).toEqual(drawMixing(1, 640, SIZE, options))
    const kinds = Array.from({ length: 200 }, (_, i) => (drawMixing(1, i * 32, SIZE, options)!.box ? 'cut' : 'mix'))
    expect(kinds.filter((kind) => kind === 'cut').length).toBeGreaterThan(70)
    expect(kinds.filter((kind) => kind === 'mix').length).toBeGreaterThan(70)
    expect(
      Array.from({ length: 200 }, (_, i) => drawMixing(1, i, SIZE, { mixup: 1, probability: 0.5 })).filter(Boolean).length,
    ).toBeLessThan(140)
  })

  it("mixup's shares follow Beta(α, α): mean ½, variance 1 / (4(2α + 1))", () => {
    for (const alpha of [0.2, 1, 4]) {
      const shares = Array.from({ length: 4000 }, (_, i) => drawMixing(7, i, SIZE, { mixup: alpha })!.share)
      const mean = shares.reduce((a, b) => a + b) / shares.length
      const variance = shares.reduce((sum, x) => sum + (x - mean) ** 2, 0) / shares.length
      expect(mean).toBeCloseTo(0.5, 1)
      expect(variance / (1 / (4 * (2 * alpha + 1)))).toBeCloseTo(1, 0)
    }
  })

  it('mix pixels and targets in the same share, mirrored rows with each other', () => {
    for (const mixing of [{ share: 0.75 }, { share: 0.75, box: { left: 2, top: 3, right: 8, bottom: 9 } }]) {
      const [before, images] = [rows(3), rows(3)]
      mixImages(images, 3, SIZE, mixing)
      const bytes = SIZE * SIZE * 3
      expect(images.subarray(bytes, 2 * bytes)).toEqual(before.subarray(bytes, 2 * bytes))
      for (let i = 0; i < bytes; i++) {
        const [own, other] = [before[i]!, before[2 * bytes + i]!]
        const [x, y] = [Math.floor(i / 3) % SIZE, Math.floor(i / 3 / SIZE)]
        const { box } = mixing
        const expected = box
          ? x >= box.left && x < box.right && y >= box.top && y < box.bottom
            ? other
            : own
          : Math.floor((own * 192 + other * 64 + 128) / 256)
        expect(images[i]).toBe(expected)
      }
    }
    const targets = Float32Array.of(1, 0, 0, 1, 0, 1)
    mixTargets(targets, 3, { share: 0.75 })
    expect([...targets]).toEqual([0.75, 0.25, 0, 1, 0.25, 0.75])
  })

  it("cutmix's labels follow what is seen where the box reaches over the edge", () => {
    for (let i = 0; i < 100; i++) {
      const { share, box } = drawMixing(3, i, SIZE, { cutmix: 1 })!
      expect(share).toBeCloseTo(1 - ((box!.right - box!.left) * (box!.bottom - box!.top)) / SIZE ** 2, 12)
    }
  })

  it('bad options are refused by name', () => {
    expect(() => checkMix({ mixup: -1 })).toThrowError(/mixup must be at least 0/)
    expect(() => checkMix({ cutmx: 1 } as never)).toThrowError(/Did you mean 'cutmix'/)
    expect(() => checkMix({ probability: 2 })).toThrowError(/probability must be from 0 to 1/)
  })
})

describe('RandAugment', () => {
  const WIDE = 24
  const picture = () => pattern(WIDE, WIDE).data.slice()
  it('knows fifteen operations; none but those of strength 0 leave a picture alone', () => {
    expect(OPERATION_NAMES).toHaveLength(15)
    for (const name of OPERATION_NAMES) {
      const pixels = picture()
      applyOperation(pixels, WIDE, { name, magnitude: 8, sign: 1 })
      if (name !== 'autoContrast') expect(pixels, name).not.toEqual(picture())
      const neutral = picture()
      applyOperation(neutral, WIDE, { name, magnitude: 0, sign: 1 })
      if (!['invert', 'equalize', 'posterize', 'autoContrast'].includes(name)) expect(neutral, name).toEqual(picture())
    }
  })

  it('hand-computed values', () => {
    const apply = (name: (typeof OPERATION_NAMES)[number], magnitude: number, pixels: number[], sign: 1 | -1 = 1) => {
      const data = Uint8Array.from(pixels)
      applyOperation(data, Math.sqrt(pixels.length / 3), { name, magnitude, sign })
      return [...data]
    }
    const grey = (...values: number[]) => values.flatMap((value) => [value, value, value])
    expect(apply('invert', 0, grey(0, 100, 200, 255))).toEqual(grey(255, 155, 55, 0))
    expect(apply('autoContrast', 0, grey(50, 100, 75, 150))).toEqual(grey(0, 128, 64, 255))
    expect(apply('solarize', 5, grey(0, 127, 128, 255))).toEqual(grey(0, 127, 127, 0))
    expect(apply('solarizeAdd', 10, grey(0, 127, 128, 255))).toEqual(grey(110, 237, 128, 255))
    expect(apply('posterize', 0, grey(0, 17, 130, 255))).toEqual(grey(0, 16, 128, 240))
    expect(apply('brightness', 10, grey(0, 100, 50, 200), -1)).toEqual(grey(0, 10, 5, 20))
    expect(apply('contrast', 10, grey(100, 100, 100, 200))).toEqual(grey(78, 78, 78, 255))
    // 45 % of two pixels to the left: the right column is mixed with the grey from outside.
    expect(apply('translateX', 10, grey(10, 20, 30, 40))).toEqual(
      grey(
        Math.round(0.1 * 10 + 0.9 * 20),
        Math.round(0.1 * 20 + 0.9 * 128),
        Math.round(0.1 * 30 + 0.9 * 40),
        Math.round(0.1 * 40 + 0.9 * 128),
      ),
    )
  })

  it('rotating a quarter of the strongest turn and back returns near the picture', () => {
    const smooth = Uint8Array.from(
      { length: 48 * 48 * 3 },
      (_, i) => 128 + Math.round(60 * Math.sin(Math.floor(i / 3) / 300) * Math.cos((Math.floor(i / 3) % 48) / 9)),
    )
    const turned = smooth.slice()
    applyOperation(turned, 48, { name: 'rotate', magnitude: 3, sign: 1 })
    applyOperation(turned, 48, { name: 'rotate', magnitude: 3, sign: -1 })
    let worst = 0
    for (let y = 14; y < 34; y++)
      for (let x = 14; x < 34; x++) worst = Math.max(worst, Math.abs(turned[(y * 48 + x) * 3]! - smooth[(y * 48 + x) * 3]!))
    expect(worst).toBeLessThan(12)
  })

  it('draws depend on seed and sample alone, magnitudes scatter within bounds', () => {
    const options = resolveRandAugment({ operations: 3, magnitude: 9, deviation: 2, probability: 1 })
    expect(drawOperations(2, 99, options)).toEqual(drawOperations(2, 99, options))
    const all = Array.from({ length: 300 }, (_, i) => drawOperations(2, i, options)).flat()
    expect(new Set(all.map(({ name }) => name)).size).toBe(15)
    for (const { magnitude } of all) expect(magnitude >= 0 && magnitude <= 10).toBe(true)
    expect(() => resolveRandAugment({ magnitude: 11 })).toThrowError(/magnitude must be from 0 to 10/)
    expect(() => resolveErase({ area: [0.5, 0.1] })).toThrowError(/area must be/)
  })

  it('erasing fills one box of the asked area', () => {
    const options = resolveErase({ probability: 1, area: [0.1, 0.1], ratio: [1, 1] })
    const size = 40
    const pixels = new Uint8Array(size * size * 3).fill(3)
    eraseRandomly(pixels, size, 1, 5, options)
    const changed = Array.from({ length: size * size }, (_, i) => pixels.subarray(3 * i, 3 * i + 3).some((x) => x !== 3))
    expect(changed.filter(Boolean).length / size ** 2).toBeCloseTo(0.1, 1)
    const again = new Uint8Array(size * size * 3).fill(3)
    eraseRandomly(again, size, 1, 5, options)
    expect(again).toEqual(pixels)
  })
})
