import { existsSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { afterEach, describe, expect, it } from 'vitest'
import { imageFolder } from '../../src/data/folder.js'
import { loadImage } from '../../src/data/image.js'
import { drawShape, SHAPE_CLASSES, writeShapes } from '../../src/data/shapes.js'
import { errorOf, temporary } from './pictures.js'

const made: string[] = []
const folder = (): string => {
  const root = temporary()
  made.push(root)
  return root
}
afterEach(() => {
  for (const root of made.splice(0)) rmSync(root, { recursive: true, force: true })
})

describe('drawShape', () => {
  it('is a function of seed and number', () => {
    expect(drawShape(3, 1, 10)).toEqual(drawShape(3, 1, 10))
    expect(drawShape(3, 1, 11).data).not.toEqual(drawShape(3, 1, 10).data)
    expect(drawShape(3, 2, 10).data).not.toEqual(drawShape(3, 1, 10).data)
    expect(drawShape(0, 0, 0, 96)).toMatchObject({ width: 96, height: 96 })
    expect(() => drawShape(SHAPE_CLASSES.length, 0, 0)).toThrow(/label must be from 0 to 7, got 8/)
  })

  it('draws what the names say: the share of ink of each shape of radius r', () => {
    // Same number, so same colours, place and size: shares compare between classes.
    const ink = (label: number, number: number): number => {
      const { data } = drawShape(label, 4, number, 64)
      const ground = [data[0]!, data[1]!, data[2]!]
      let count = 0
      for (let i = 0; i < data.length; i += 3)
        count += Math.hypot(data[i]! - ground[0]!, data[i + 1]! - ground[1]!, data[i + 2]! - ground[2]!) > 60 ? 1 : 0
      return count / 4096
    }
    const mean = (name: string): number =>
      Array.from({ length: 40 }, (_, i) => ink(SHAPE_CLASSES.indexOf(name), i)).reduce((sum, share) => sum + share) / 40
    const [disc, square, triangle, star, ring] = ['disc', 'square', 'triangle', 'star', 'ring'].map(mean) as [
      number,
      number,
      number,
      number,
      number,
    ]
    // Areas in r^2: pi, 2, 1.3, 1.23 (star), pi (1 - 0.36) (ring).
    expect(disc).toBeGreaterThan(square)
    expect(ring).toBeGreaterThan(triangle)
    expect(square).toBeGreaterThan(triangle)
    expect(square).toBeGreaterThan(star)
  })

  it('cannot be told apart by a linear model on its pixels', () => {
    const [side, count, held] = [16, 320, 160]
    const features = Array.from({ length: count + held }, (_, n) => {
      const { data } = drawShape(n % 8, 0, n, 32)
      const row = new Float64Array(side * side * 3 + 1)
      for (let y = 0; y < 32; y++)
        for (let x = 0; x < 32; x++)
          for (let c = 0; c < 3; c++) row[((y >> 1) * side + (x >> 1)) * 3 + c]! += data[(y * 32 + x) * 3 + c]! / 510 - 0.25
      row[side * side * 3] = 1
      return row
    })
    const width = features[0]!.length
    const weights = Array.from({ length: 8 }, () => new Float64Array(width))
    const scores = (row: Float64Array): number[] => weights.map((weight) => weight.reduce((sum, w, i) => sum + w * row[i]!, 0))
    for (let epoch = 0; epoch < 15; epoch++) {
      for (let n = 0; n < count; n++) {
        const logits = scores(features[n]!)
        const most = Math.max(...logits)
        const exps = logits.map((logit) => Math.exp(logit - most))
        const total = exps.reduce((sum, value) => sum + value)
        for (const [k, weight] of weights.entries()) {
          const step = 0.01 * (exps[k]! / total - (k === n % 8 ? 1 : 0))
          for (let i = 0; i < width; i++) weight[i]! -= step * features[n]![i]!
        }
      }
    }
    const right = (from: number, to: number): number => {
      let hits = 0
      for (let n = from; n < to; n++) {
        const logits = scores(features[n]!)
        hits += logits.indexOf(Math.max(...logits)) === n % 8 ? 1 : 0
      }
      return hits / (to - from)
    }
    // It learns the training pictures by heart, and little else (chance: 12.5 %).
    expect(right(0, count)).toBeGreaterThan(0.5)
    expect(right(count, count + held)).toBeLessThan(0.5)
  }, 30_000)
})

describe('writeShapes', () => {
  it('writes class folders that imageFolder takes, the same for the same seed', async () => {
    const [first, second] = [folder(), folder()]
    let last = 0
    const result = await writeShapes(first, {
      train: 24,
      validation: 9,
      size: 32,
      seed: 7,
      onProgress: (written, total) => (last = written === last + 1 && total === 33 ? written : -100),
    })
    expect(result).toEqual({ classes: SHAPE_CLASSES, train: 24, validation: 9 })
    expect(last).toBe(33)
    const data = await imageFolder(first, { strict: true })
    expect(data).toMatchObject({ classes: [...SHAPE_CLASSES], split: 'folders' })
    expect([data.train.length, data.validation.length]).toEqual([24, 9])
    for (const label of SHAPE_CLASSES.keys()) expect(data.train.filter((sample) => sample.label === label)).toHaveLength(3)
    await writeShapes(second, { train: 24, validation: 9, size: 32, seed: 7 })
    for (const { name, path } of [...data.train, ...data.validation])
      expect(Buffer.compare(readFileSync(path), readFileSync(join(second, name)))).toBe(0)
    const sample = data.train.find(({ name }) => name === 'train/disc/00010.png')!
    expect(await loadImage(sample.path)).toEqual(drawShape(SHAPE_CLASSES.indexOf('disc'), 7, 10, 32))
  })

  it('stops on abort and explains bad input', async () => {
    const root = folder()
    const controller = new AbortController()
    const reason = new Error('enough')
    await expect(
      writeShapes(root, {
        train: 5000,
        validation: 8,
        size: 16,
        signal: controller.signal,
        onProgress: (written) => written === 20 && controller.abort(reason),
      }),
    ).rejects.toBe(reason)
    expect(readdirSync(join(root, 'train', 'disc')).length).toBeLessThan(20)
    expect((await errorOf(writeShapes(root, { size: 8 }))).message).toMatch(/size must be a whole number of at least 16, got 8/)
    expect((await errorOf(writeShapes(root, { train: 0 }))).code).toBe('ERR_ARGUMENT')
    expect((await errorOf(writeShapes(root, { seeds: 0 } as never))).message).toMatch(/Did you mean 'seed'/)
    writeFileSync(join(root, 'file'), '')
    const error = await errorOf(writeShapes(join(root, 'file'), { train: 8, validation: 8 }))
    expect(error.code).toBe('ERR_FILE')
    expect(existsSync(join(root, 'file', 'train'))).toBe(false)
  })
})
