import { createHash } from 'node:crypto'
import { readFileSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { pathToFileURL } from 'node:url'
import { crc32 } from 'node:zlib'
import sharp from 'sharp'
import { afterAll, describe, expect, it } from 'vitest'
import { type LoadImageOptions, loadImage, preprocess } from '../../src/data/image.js'
import { resample, resampleSync } from '../../src/data/resample.js'
import { asSharp, errorOf, pattern, plain, temporary } from './pictures.js'

const folder = temporary()
afterAll(() => rmSync(folder, { recursive: true, force: true }))

const COLOR = [200, 100, 50] as const
const base = () => asSharp(plain(40, 30, COLOR))

/** Every pixel within `tolerance` of `color`. */
async function expectColor(bytes: Uint8Array, color: readonly number[], tolerance: number, options: LoadImageOptions = {}): Promise<void> {
  const image = await loadImage(bytes, options)
  expect([image.width, image.height]).toEqual([40, 30])
  expect(image.data.length).toBe(40 * 30 * 3)
  const worst = image.data.reduce((most, value, i) => Math.max(most, Math.abs(value - color[i % 3]!)), 0)
  expect(worst).toBeLessThanOrEqual(tolerance)
}

describe('loadImage', () => {
  it.each([
    ['PNG', () => base().png(), 0],
    ['PNG with a palette', () => base().png({ palette: true }), 0],
    ['JPEG', () => base().jpeg({ quality: 100 }), 1],
    ['WebP', () => base().webp({ lossless: true }), 0],
    ['GIF', () => base().gif(), 2],
    ['TIFF', () => base().tiff({ compression: 'lzw' }), 0],
    ['AVIF', () => base().avif({ lossless: true }), 2],
  ] as const)('%s', async (_name, make, tolerance) => expectColor(await make().toBuffer(), COLOR, tolerance))

  it('spreads grey over three channels, of 8 and 16 bits', async () => {
    const pixels = pattern(40, 30)
    const reference = await asSharp(pixels).toColourspace('b-w').raw().toBuffer()
    const eight = await asSharp(pixels).toColourspace('b-w').png().toBuffer()
    const sixteen = await asSharp(pixels).toColourspace('grey16').png().toBuffer()
    expect(await sharp(eight).metadata()).toMatchObject({ channels: 1, depth: 'uchar' })
    expect(await sharp(sixteen).metadata()).toMatchObject({ channels: 1, depth: 'ushort' })
    for (const bytes of [eight, sixteen]) {
      const { data } = await loadImage(bytes)
      const worst = reference.reduce((most, value, i) => Math.max(most, ...[0, 1, 2].map((c) => Math.abs(data[3 * i + c]! - value))), 0)
      expect(worst).toBeLessThanOrEqual(1)
      expect(data.length).toBe(40 * 30 * 3)
    }
    const jpeg = await base().toColourspace('b-w').jpeg({ quality: 100 }).toBuffer()
    expect((await sharp(jpeg).metadata()).channels).toBe(1)
    await expectColor(jpeg, [128, 128, 128], 1)
  })

  it('reduces 16 bits to 8', async () => {
    const bytes = await base().toColourspace('rgb16').png().toBuffer()
    expect((await sharp(bytes).metadata()).depth).toBe('ushort')
    await expectColor(bytes, COLOR, 0)
  })

  it('lays transparency over white, or black when asked', async () => {
    const bytes = await base().ensureAlpha(0.5).png().toBuffer()
    await expectColor(bytes, [227, 177, 152], 2)
    await expectColor(bytes, [100, 50, 25], 2, { background: 'black' })
    await expectColor(await base().greyscale().ensureAlpha(0.5).png().toBuffer(), [191, 191, 191], 2)
    await expectColor(await base().ensureAlpha(0).webp({ lossless: true }).toBuffer(), [255, 255, 255], 0)
  })

  it('converts CMYK', async () => {
    const bytes = await base().toColourspace('cmyk').jpeg({ quality: 100 }).toBuffer()
    expect((await sharp(bytes).metadata()).space).toBe('cmyk')
    // The profiles' gamut does not hold this orange exactly.
    await expectColor(bytes, COLOR, 32)
  })

  it('applies colour profiles, or ignores them when asked', async () => {
    const bytes = await base().withIccProfile('p3').png().toBuffer()
    await expectColor(bytes, COLOR, 3)
    const { data } = await loadImage(bytes, { colorProfile: 'ignore' })
    expect(Math.abs(data[0]! - COLOR[0])).toBeGreaterThan(6)
  })

  it.each([1, 2, 3, 4, 5, 6, 7, 8])('turns EXIF orientation %i upright', async (orientation) => {
    // Brighter to the right, redder to the bottom: stored so that a viewer sees just that.
    const upright = { data: new Uint8Array(48 * 24 * 3), width: 48, height: 24 }
    for (let i = 0; i < 48 * 24; i++) upright.data.set([Math.floor(i / 48) * 10, 40, (i % 48) * 5], i * 3)
    let stored = asSharp(upright)
    if ([2, 4, 5, 7].includes(orientation)) stored = asSharp({ ...upright, data: await asSharp(upright).flop().raw().toBuffer() })
    const angle = { 1: 0, 2: 0, 3: 180, 4: 180, 5: 270, 6: 270, 7: 90, 8: 90 }[orientation]!
    const bytes = await stored.rotate(angle).withMetadata({ orientation }).png().toBuffer()
    const image = await loadImage(bytes)
    expect([image.width, image.height]).toEqual([48, 24])
    expect(Buffer.compare(Buffer.from(image.data), Buffer.from(upright.data))).toBe(0)
  })

  it('takes paths, URLs, buffers and array buffers', async () => {
    const path = join(folder, 'ä picture.png')
    const bytes = await asSharp(pattern(40, 30)).png().toBuffer()
    writeFileSync(path, bytes)
    const expected = pattern(40, 30)
    for (const source of [path, pathToFileURL(path), bytes, new Uint8Array(bytes), new Uint8Array(bytes).buffer]) {
      expect(await loadImage(source)).toEqual(expected)
    }
  })

  it('bounds the shorter side, never enlarging', async () => {
    const bytes = await asSharp(pattern(400, 300)).jpeg().toBuffer()
    const image = await loadImage(bytes, { shorterSide: 60 })
    expect([image.width, image.height]).toEqual([80, 60])
    expect((await loadImage(bytes, { shorterSide: 500 })).width).toBe(400)
  })

  it('takes a JPEG with bytes after its end, as cameras write them', async () => {
    const bytes = Buffer.concat([await base().jpeg({ quality: 100 }).toBuffer(), Buffer.from('trailing')])
    await expectColor(bytes, COLOR, 1)
  })

  it('names truncated and corrupt files', async () => {
    const noisy = pattern(200, 200)
    for (const [format, bytes] of [
      ['JPEG', await asSharp(noisy).jpeg().toBuffer()],
      ['PNG', await asSharp(noisy).png().toBuffer()],
      ['WebP', await asSharp(noisy).webp().toBuffer()],
    ] as const) {
      for (const share of [0.1, 0.5, 0.95]) {
        const path = join(folder, `cut.${format}`)
        writeFileSync(path, bytes.subarray(0, Math.floor(bytes.length * share)))
        const error = await errorOf(loadImage(path))
        expect(error).toMatchObject({ code: 'ERR_DATA', subject: path })
        expect(error.message).toMatch(new RegExp(`^${path}: corrupt or truncated ${format}`))
      }
    }
    const flipped = await asSharp(noisy).png().toBuffer()
    flipped[flipped.length >> 1]! ^= 0xff
    expect((await errorOf(loadImage(flipped, { name: 'mine' }))).message).toMatch(/^mine: corrupt/)
  })

  it('refuses what is no picture', async () => {
    expect((await errorOf(loadImage(new Uint8Array(0)))).message).toMatch(/the file is empty/)
    expect((await errorOf(loadImage(Buffer.from('hello')))).message).toMatch(/starts with 68 65 6c 6c is no picture format/)
    const svg = '<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>'
    expect((await errorOf(loadImage(Buffer.from(svg)))).code).toBe('ERR_DATA')
    expect((await errorOf(loadImage(join(folder, 'missing.jpg')))).message).toMatch(/cannot read .*missing\.jpg: no such file/)
    expect((await errorOf(loadImage(folder))).code).toBe('ERR_FILE')
  })

  it('refuses decompression bombs before they unfold', async () => {
    // The size in a PNG's header, with its checksum, says 12,000 x 12,000.
    const bomb = await base().png().toBuffer()
    bomb.writeUInt32BE(12_000, 16)
    bomb.writeUInt32BE(12_000, 20)
    bomb.writeUInt32BE(crc32(bomb.subarray(12, 29)), 29)
    const error = await errorOf(loadImage(bomb))
    expect(error.code).toBe('ERR_DATA')
    expect(error.message).toMatch(/more than 100000000 pixels.*maxPixels/)
    expect((await errorOf(loadImage(bomb, { maxBytes: 50 }))).message).toMatch(/more than the limit of 50.*maxBytes/)
    writeFileSync(join(folder, 'bomb.png'), bomb)
    expect((await errorOf(loadImage(join(folder, 'bomb.png'), { maxBytes: 50 }))).code).toBe('ERR_DATA')
  })

  it('explains bad options', async () => {
    const bytes = await base().png().toBuffer()
    expect((await errorOf(loadImage(bytes, { backgroud: 'white' } as never))).message).toMatch(/Did you mean 'background'/)
    expect((await errorOf(loadImage(bytes, { background: 'pink' as never }))).message).toMatch(/must be one of white, black/)
    expect((await errorOf(loadImage(bytes, { maxPixels: 0 }))).code).toBe('ERR_ARGUMENT')
  })

  it('needs no library at import: only types of sharp, the rest on first use', () => {
    for (const name of ['image', 'loader', 'shapes', 'augment', 'folder', 'resample']) {
      const source = readFileSync(new URL(`../../src/data/${name}.ts`, import.meta.url), 'utf8')
      expect(source).not.toMatch(/^(import (?!type )|export )[^\n]*from 'sharp'/m)
    }
  })
})

/** SHA-256 (first 16 digits) of what Pillow 12.3.0 makes of `pattern(width, height)`: resized and cut, and squashed. */
const PILLOW = [
  [500, 375, 299, 333, 'bicubic', '26184da988214a6f', '675ae2e06ae24be2'],
  [500, 375, 299, 333, 'bilinear', 'b23edbc2b0d220b6', 'f5c0e911d57fc206'],
  [123, 457, 64, 71, 'bicubic', 'de723d385b60fd49', '86c86fde6244d7ca'],
  [123, 457, 64, 71, 'bilinear', 'e7ba20f1832060ca', '812b380d38d4efc0'],
  [40, 30, 64, 71, 'bicubic', '5e0d97744b7bfd11', 'e1c5738fda6d7305'],
  [40, 30, 64, 71, 'bilinear', 'f9899e9a7941de12', 'f1ec74e716523fb3'],
  [1600, 1203, 299, 333, 'bicubic', 'b9abcb768e07f4db', '6fc2550724b217e6'],
  [1600, 1203, 299, 333, 'bilinear', '281fe152774c0bbf', '9372450ae76b0fe7'],
  [299, 299, 299, 299, 'bicubic', '5331a84577bdc8a3', '5331a84577bdc8a3'],
] as const

const digest = (data: Uint8Array): string => createHash('sha256').update(data).digest('hex').slice(0, 16)

describe('preprocess', () => {
  it.each(PILLOW)(
    '%i x %i to %i over %i, %s: equal to Pillow, bit for bit',
    async (width, height, size, resize, interpolation, cut, squashed) => {
      const image = pattern(width, height)
      expect(digest(await preprocess(image, { size, resize, interpolation }))).toBe(cut)
      expect(digest(await preprocess(image, { size, crop: 'squash', interpolation }))).toBe(squashed)
    },
  )

  it('defaults to 299 cut from 333, in the same proportion at other sizes', async () => {
    expect(digest(await preprocess(pattern(500, 375)))).toBe(PILLOW[0][5])
    expect(digest(await preprocess(pattern(123, 457), { size: 64 }))).toBe(PILLOW[2][5])
  })

  it('writes into a given array, and leaves a picture of the right size as it is', async () => {
    const out = new Uint8Array(299 * 299 * 3)
    expect(await preprocess(pattern(299, 299), { resize: 299 }, out)).toBe(out)
    expect(Buffer.compare(Buffer.from(out), Buffer.from(pattern(299, 299).data))).toBe(0)
  })

  it('keeps extreme proportions working', async () => {
    for (const [width, height] of [
      [1, 1],
      [1, 500],
      [3000, 2],
    ] as const) {
      expect((await preprocess(plain(width, height, COLOR), { size: 32 })).every((value, i) => value === COLOR[i % 3])).toBe(true)
    }
  })

  it('explains bad options', async () => {
    const image = pattern(40, 30)
    expect((await errorOf(preprocess(image, { size: 0 }))).message).toMatch(/size must be a whole number of at least 1, got 0/)
    expect((await errorOf(preprocess(image, { size: 64, resize: 32 }))).message).toMatch(/resize 32 is smaller than the crop of 64/)
    expect((await errorOf(preprocess(image, { crop: 'middle' as never }))).message).toMatch(/crop must be one of center, squash/)
    expect((await errorOf(preprocess(image, { interpolation: 'cubic' as never }))).code).toBe('ERR_ARGUMENT')
    expect((await errorOf(preprocess(image, { sise: 64 } as never))).message).toMatch(/Did you mean 'size'/)
    expect((await errorOf(preprocess({ ...image, width: 41 }))).message).toMatch(/a picture of 41 x 30 has 3690 bytes/)
    expect((await errorOf(preprocess(image, { size: 64 }, new Uint8Array(5)))).code).toBe('ERR_ARGUMENT')
  })
})

describe('resample', () => {
  const box = { left: 4, top: 3, width: 20, height: 24 }

  it('mirrors the same picture, and computes a window as part of the whole', () => {
    const image = pattern(60, 40)
    for (const interpolation of ['nearest', 'bilinear', 'bicubic'] as const) {
      const whole = new Uint8Array(33 * 17 * 3)
      const mirrored = whole.slice()
      const part = new Uint8Array(10 * 5 * 3)
      resampleSync(image, { width: 33, height: 17, interpolation, box }, whole)
      resampleSync(image, { width: 33, height: 17, interpolation, box, mirror: true }, mirrored)
      resampleSync(image, { width: 33, height: 17, interpolation, box, window: { left: 21, top: 12, width: 10, height: 5 } }, part)
      for (let y = 0; y < 17; y++) {
        for (let x = 0; x < 33; x++) {
          const at = (y * 33 + x) * 3
          expect(mirrored.slice(at, at + 3)).toEqual(whole.slice((y * 33 + 32 - x) * 3, (y * 33 + 33 - x) * 3))
          if (x >= 21 && x < 31 && y >= 12)
            expect(part.slice(((y - 12) * 10 + x - 21) * 3, ((y - 12) * 10 + x - 20) * 3)).toEqual(whole.slice(at, at + 3))
        }
      }
    }
  })

  it('copies a box of the output size', () => {
    const image = pattern(60, 40)
    const out = new Uint8Array(20 * 24 * 3)
    for (const interpolation of ['nearest', 'bilinear', 'bicubic'] as const) {
      resampleSync(image, { width: 20, height: 24, interpolation, box }, out)
      for (let y = 0; y < 24; y++)
        expect(out.slice(y * 60, y * 60 + 60)).toEqual(image.data.slice(((y + 3) * 60 + 4) * 3, ((y + 3) * 60 + 24) * 3))
    }
  })

  it('gives the event loop its turn within a large picture', async () => {
    const image = plain(4000, 3000, COLOR)
    const out = new Uint8Array(299 * 299 * 3)
    let turns = 0
    const timer = setInterval(() => turns++, 1)
    await resample(image, { width: 299, height: 299, interpolation: 'bicubic' }, out)
    clearInterval(timer)
    expect(turns).toBeGreaterThan(5)
    expect(out.every((value, i) => value === COLOR[i % 3])).toBe(true)
  })

  it('refuses boxes and windows that do not fit', () => {
    const image = pattern(60, 40)
    const options = { width: 20, height: 20, interpolation: 'bilinear' as const }
    const out = new Uint8Array(1200)
    expect(() => resampleSync(image, { ...options, box: { ...box, left: 41 } }, out)).toThrow(/box does not lie inside/)
    expect(() => resampleSync(image, { ...options, box: { ...box, width: 0 } }, out)).toThrow(/box does not lie inside/)
    expect(() => resampleSync(image, { ...options, window: { left: 1, top: 0, width: 20, height: 20 } }, out)).toThrow(
      /window does not lie inside/,
    )
    expect(() => resampleSync(image, { ...options, width: 2.5 }, out)).toThrow(/width must be a whole number/)
  })
})
