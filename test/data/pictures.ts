/** Pictures for the data tests: patterned pixels, files of every kind, folders of classes. */

import { mkdirSync, mkdtempSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import sharp, { type Sharp } from 'sharp'
import { expect } from 'vitest'
import type { RgbImage } from '../../src/data/resample.js'
import { SepconvError } from '../../src/errors.js'

export const temporary = (): string => mkdtempSync(join(tmpdir(), 'sepconv-data-'))

/** A pattern with fine and coarse detail, from whole numbers alone. */
export function pattern(width: number, height: number): RgbImage {
  const data = new Uint8Array(width * height * 3)
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      for (let c = 0; c < 3; c++) {
        const value = ((x * 7 + y * 13 + c * 31) ^ Math.floor((x * y) / (5 + c))) & 255
        data[(y * width + x) * 3 + c] = (Math.floor(x / 9) + Math.floor(y / 7)) % 2 === 0 ? value : 255 - (value >> 1)
      }
    }
  }
  return { data, width, height }
}

/** One colour all over. */
export function plain(width: number, height: number, color: readonly [number, number, number]): RgbImage {
  const data = new Uint8Array(width * height * 3)
  for (let i = 0; i < data.length; i++) data[i] = color[i % 3]!
  return { data, width, height }
}

export const asSharp = ({ data, width, height }: RgbImage): Sharp => sharp(data, { raw: { width, height, channels: 3 } })

/** Writes `files` (path below the folder: content) and returns the folder. */
export function tree(files: Readonly<Record<string, Uint8Array | string>>, root = temporary()): string {
  for (const [name, content] of Object.entries(files)) {
    mkdirSync(dirname(join(root, name)), { recursive: true })
    writeFileSync(join(root, name), content)
  }
  return root
}

export async function errorOf(promise: Promise<unknown>): Promise<SepconvError> {
  const error = await promise.then(
    () => undefined,
    (reason: unknown) => reason,
  )
  expect(error).toBeInstanceOf(SepconvError)
  return error as SepconvError
}
