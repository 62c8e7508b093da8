/**
 * The index of a tar archive: which files are in it and where, from its 512-byte headers alone, which are read by position. ustar, GNU
 * long names and base-256 sizes, and pax extended headers (path, size).
 */

import { type FileHandle, open } from 'node:fs/promises'
import { SepconvError } from '../errors.js'
import { fileError } from '../files.js'

export interface TarEntry {
  readonly name: string
  /** Where its content begins, in bytes. */
  readonly offset: number
  readonly size: number
}

export interface TarIndex {
  readonly entries: readonly TarEntry[]
  /** What is wrong with the archive after the last entry that is listed; `undefined` for a whole one. */
  readonly problem?: string
}

const BLOCK = 512
/** Headers and small files behind one another come with one read. */
const WINDOW = 64 << 10
/** Metadata is no longer than this in any sane archive. */
const MAX_METADATA = 1 << 20

/**
 * Lists the files of an archive up to where it ends or breaks.
 * @throws SepconvError `ERR_FILE` when it cannot be read.
 */
export async function indexTar(path: string): Promise<TarIndex> {
  try {
    const file = await open(path, 'r')
    try {
      return await scan(file, (await file.stat()).size)
    } finally {
      await file.close()
    }
  } catch (error) {
    throw fileError(error, path, 'read')
  }
}

async function scan(file: FileHandle, length: number): Promise<TarIndex> {
  const reader = new WindowReader(file, length)
  const entries: TarEntry[] = []
  let metadata: { path?: string; size?: number } = {}
  for (let at = 0; ; ) {
    if (at === length && entries.length > 0) return { entries, problem: 'it ends without an end mark' }
    if (at + BLOCK > length) return { entries, problem: `it is cut off in the header at ${at}` }
    const header = await reader.read(at, BLOCK)
    if (header.every((byte) => byte === 0)) return { entries }
    if (!checksumHolds(header)) return { entries, problem: `the header at ${at} is corrupt` }
    const size = metadata.size ?? number(header, 124, 12)
    const [offset, type] = [at + BLOCK, String.fromCharCode(header[156]!)]
    if (!(size >= 0) || offset + size > length) return { entries, problem: `the file at ${at} is cut off` }
    if ('xLK'.includes(type)) {
      if (size > MAX_METADATA) return { entries, problem: `the metadata at ${at} is ${size} bytes long` }
      const content = Buffer.from(await reader.read(offset, size))
      if (type === 'x') metadata = { ...metadata, ...pax(content) }
      else if (type === 'L') metadata = { ...metadata, path: text(content, 0, size) }
    } else if (type !== 'g') {
      const prefix = text(header, 257, 5) === 'ustar' ? text(header, 345, 155) : ''
      const name = metadata.path ?? [prefix, text(header, 0, 100)].filter(Boolean).join('/')
      // '0' and NUL are plain files, '7' is one that some systems kept contiguous; folders, links and devices hold no data.
      if (type === '0' || type === '\0' || type === '7') entries.push({ name, offset, size })
      metadata = {}
    }
    at = offset + Math.ceil(size / BLOCK) * BLOCK
  }
}

/** Text up to the first NUL. */
function text(bytes: Uint8Array, at: number, length: number): string {
  const field = bytes.subarray(at, at + length)
  const end = field.indexOf(0)
  return Buffer.from(end < 0 ? field : field.subarray(0, end)).toString('utf8')
}

/** Octal text, or big-endian base 256 behind a set top bit. */
function number(bytes: Uint8Array, at: number, length: number): number {
  if (bytes[at]! & 0x80) return bytes.subarray(at + 1, at + length).reduce((value, byte) => value * 256 + byte, bytes[at]! & 0x7f)
  const digits = text(bytes, at, length).trim()
  return /^[0-7]+$/.test(digits) ? Number.parseInt(digits, 8) : Number.NaN
}

/** The sum of the header's bytes, its own field read as spaces; old archives sum signed bytes. */
function checksumHolds(header: Uint8Array): boolean {
  let [unsigned, signed] = [0, 0]
  header.forEach((byte, i) => {
    const value = i >= 148 && i < 156 ? 32 : byte
    unsigned += value
    signed += value > 127 ? value - 256 : value
  })
  const stored = number(header, 148, 8)
  return stored === unsigned || stored === signed
}

/** Records `LENGTH KEY=VALUE\n`. */
function pax(content: Buffer): { path?: string; size?: number } {
  const found: { path?: string; size?: number } = {}
  for (let at = 0; at < content.length; ) {
    const space = content.indexOf(32, at)
    const length = Number(content.toString('utf8', at, space))
    if (space < 0 || !(length > 0)) break
    const [key, value] = content.toString('utf8', space + 1, at + length - 1).split(/=(.*)/s)
    if (key === 'path') found.path = value!
    if (key === 'size') found.size = Number(value)
    at += length
  }
  return found
}

/** Positional reads through one window, which serve neighbouring headers and small files together. */
class WindowReader {
  #window = Buffer.alloc(0)
  #from = 0

  constructor(
    private readonly file: FileHandle,
    private readonly length: number,
  ) {}

  async read(at: number, size: number): Promise<Uint8Array> {
    if (at < this.#from || at + size > this.#from + this.#window.length) {
      const bytes = Buffer.alloc(Math.min(Math.max(WINDOW, size), this.length - at))
      const { bytesRead } = await this.file.read(bytes, 0, bytes.length, at)
      this.#window = bytes.subarray(0, bytesRead)
      this.#from = at
      if (bytesRead < size) throw new SepconvError('ERR_FILE', `the file shrank while it was read`)
    }
    return this.#window.subarray(at - this.#from, at - this.#from + size)
  }
}
