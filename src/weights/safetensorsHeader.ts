/**
 * The header of a safetensors file: JSON text {name: {dtype, shape, data_offsets}} in front of the tensors' bytes.
 *
 * Files from the internet are hostile until proven otherwise. A scanner of its own (the platform's JSON parser lets duplicate
 * names pass) refuses everything that the format does not promise: overlapping, negative, overlong and out-of-file offsets, holes,
 * duplicate names and fields, unknown types. It takes time and memory in proportion to the header, and says which field of which
 * tensor is wrong.
 */

import { SepconvError } from '../errors.js'

/** Element types by their names in the format, with their sizes in bytes. Types of less than a byte are not supported. */
export const SAFETENSORS_BYTES = {
  BOOL: 1,
  U8: 1,
  I8: 1,
  F8_E5M2: 1,
  F8_E4M3: 1,
  F8_E8M0: 1,
  I16: 2,
  U16: 2,
  F16: 2,
  BF16: 2,
  I32: 4,
  U32: 4,
  F32: 4,
  C64: 8,
  F64: 8,
  I64: 8,
  U64: 8,
} as const

export type SafetensorsDType = keyof typeof SAFETENSORS_BYTES

/** One tensor of a file. */
export interface SafetensorsEntry {
  readonly name: string
  readonly dtype: SafetensorsDType
  /** Empty for a scalar; sizes may be 0. */
  readonly shape: readonly number[]
  readonly elements: number
  /** Where its bytes start, from the end of the header, and how many they are. */
  readonly offset: number
  readonly byteLength: number
}

export interface SafetensorsHeader {
  /** In the order of their bytes in the file. */
  readonly tensors: ReadonlyMap<string, SafetensorsEntry>
  readonly metadata: Readonly<Record<string, string>>
}

/** The format's own limit on the header. */
export const MAX_HEADER_BYTES = 100_000_000
const MAX_RANK = 32

/**
 * Parses and checks a header.
 *
 * @param json the header's bytes without the length in front.
 * @param dataBytes how many bytes follow the header in the file.
 * @param subject the file's name, for messages.
 * @throws SepconvError `ERR_FORMAT` naming the field, `ERR_FILE` when the file is shorter than its tensors.
 */
export function parseSafetensorsHeader(json: Uint8Array, dataBytes: number, subject = 'safetensors'): SafetensorsHeader {
  let text: string
  try {
    text = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(json)
  } catch {
    throw new SepconvError('ERR_FORMAT', `${subject}: the header is not UTF-8 text`, { subject })
  }
  const { entries, metadata } = new HeaderScanner(text, subject).header()
  entries.sort((a, b) => a.offset - b.offset || a.byteLength - b.byteLength)
  let end = 0
  let previous: SafetensorsEntry | undefined
  for (const entry of entries) {
    if (entry.offset !== end) {
      const problem =
        entry.offset < end ? `overlaps tensor ${quote(previous!.name)}` : `leaves a hole of ${entry.offset - end} bytes before it`
      throw new SepconvError(
        'ERR_FORMAT',
        `${subject}: data_offsets of tensor ${quote(entry.name)}: [${entry.offset}, ${entry.offset + entry.byteLength}] ${problem}`,
        {
          subject,
          expected: end,
          given: entry.offset,
        },
      )
    }
    end += entry.byteLength
    previous = entry
  }
  if (end > dataBytes) {
    throw new SepconvError(
      'ERR_FILE',
      `${subject}: data_offsets of tensor ${quote(previous!.name)} end at byte ${end} of the data, the file has only ${dataBytes}`,
      {
        subject,
        expected: end,
        given: dataBytes,
        hint: 'The file is truncated: copy or download it again',
      },
    )
  }
  if (end < dataBytes) {
    throw new SepconvError('ERR_FORMAT', `${subject}: ${dataBytes - end} bytes after the last tensor belong to nothing`, {
      subject,
      expected: end,
      given: dataBytes,
    })
  }
  return { tensors: new Map(entries.map((entry) => [entry.name, entry])), metadata }
}

/** Names in messages: quoted, control characters escaped, cut to a readable length. */
export const quote = (name: string): string => JSON.stringify(name.length > 80 ? `${name.slice(0, 77)}...` : name)

/** Where in the header the scanner is; turned into words only when something is wrong there. */
type Place = 'the header' | '__metadata__' | '__metadata__ text' | 'tensor' | 'dtype' | 'shape' | 'data_offsets'

const NUMBER = /[-+.\w]{1,25}/y
// biome-ignore lint/suspicious/noControlCharactersInRegex: JSON forbids exactly these inside a text
const SPECIAL = /[\\\u0000-\u001f]/

/** A JSON reader for this one structure: no recursion, so that no nesting can exhaust the stack. About 5 us per tensor. */
class HeaderScanner {
  private at = 0
  /** The tensor or metadata key being read. */
  private name = ''

  constructor(
    private readonly text: string,
    private readonly subject: string,
  ) {}

  header(): { entries: SafetensorsEntry[]; metadata: Record<string, string> } {
    const entries: SafetensorsEntry[] = []
    const names = new Set<string>()
    let metadata: Record<string, string> = {}
    if (this.text[0] !== '{') this.fail('the header must start with {')
    this.object('the header', (name) => {
      if (names.has(name)) this.fail(`tensor ${quote(name)} is named twice`)
      names.add(name)
      if (name === '__metadata__') metadata = this.metadata()
      else entries.push(this.entry(name))
    })
    this.space()
    if (this.at < this.text.length) this.fail('text after the end of the header')
    return { entries, metadata }
  }

  private metadata(): Record<string, string> {
    const pairs = new Map<string, string>()
    this.object('__metadata__', (key) => {
      if (pairs.has(key)) this.fail(`__metadata__ names ${quote(key)} twice`)
      this.name = key
      pairs.set(key, this.string('__metadata__ text'))
    })
    // Unlike assignment, fromEntries makes '__proto__' a plain entry.
    return Object.fromEntries(pairs)
  }

  private entry(name: string): SafetensorsEntry {
    this.name = name
    let dtype: SafetensorsDType | undefined
    let shape: number[] | undefined
    let offsets: number[] | undefined
    this.object('tensor', (field) => {
      if (field === 'dtype' && dtype === undefined) dtype = this.dtype()
      else if (field === 'shape' && shape === undefined) shape = this.integers('shape', MAX_RANK)
      else if (field === 'data_offsets' && offsets === undefined) offsets = this.integers('data_offsets', 2)
      else
        this.failAt('tensor', `field ${quote(field)} is ${['dtype', 'shape', 'data_offsets'].includes(field) ? 'given twice' : 'unknown'}`)
    })
    if (dtype === undefined) return this.failAt('tensor', 'dtype is missing')
    if (shape === undefined) return this.failAt('tensor', 'shape is missing')
    if (offsets === undefined) return this.failAt('tensor', 'data_offsets is missing')
    const [begin, end] = offsets
    if (begin === undefined || end === undefined) return this.failAt('data_offsets', 'there must be two numbers')
    if (end < begin) return this.failAt('data_offsets', `the end ${end} is before the begin ${begin}`)
    const elements = shape.reduce((product, size) => product * size, 1)
    // A product beyond 2^53 is inexact, but then it is also far beyond any offset that fits.
    const bytes = elements * SAFETENSORS_BYTES[dtype]
    if (bytes !== end - begin)
      return this.failAt('data_offsets', `they span ${end - begin} bytes, ${dtype}[${shape.join(', ')}] has ${bytes}`)
    return { name, dtype, shape, elements, offset: begin, byteLength: bytes }
  }

  private dtype(): SafetensorsDType {
    const name = this.string('dtype')
    if (Object.hasOwn(SAFETENSORS_BYTES, name)) return name as SafetensorsDType
    return this.failAt('dtype', `${quote(name)} is none of ${Object.keys(SAFETENSORS_BYTES).join(', ')}`)
  }

  /** `{ "key": value, ... }`; `value` must consume the value. */
  private object(place: Place, value: (key: string) => void): void {
    this.expect('{', place)
    if (this.accept('}')) return
    do {
      const key = this.string(place)
      this.expect(':', place)
      value(key)
    } while (this.accept(','))
    this.expect('}', place)
  }

  private integers(place: Place, limit: number): number[] {
    const numbers: number[] = []
    this.expect('[', place)
    if (this.accept(']')) return numbers
    do {
      if (numbers.length === limit) this.failAt(place, `more than ${limit} numbers`)
      numbers.push(this.integer(place))
    } while (this.accept(','))
    this.expect(']', place)
    return numbers
  }

  private integer(place: Place): number {
    this.space()
    NUMBER.lastIndex = this.at
    const digits = NUMBER.exec(this.text)?.[0] ?? ''
    // 2^53 has 16 digits, so what fills the match is refused before it is looked at.
    if (digits.length > 24) this.failAt(place, 'a number of more than 24 characters')
    if (!/^(0|[1-9]\d*)$/.test(digits))
      this.failAt(place, digits === '' ? 'a number is missing' : `${quote(digits)} is no whole number of at least 0`)
    const number = Number(digits)
    if (!Number.isSafeInteger(number)) this.failAt(place, `${digits} is beyond 2^53`)
    this.at += digits.length
    return number
  }

  private string(place: Place): string {
    this.expect('"', place)
    const start = this.at
    for (;;) {
      const end = this.text.indexOf('"', this.at)
      if (end < 0) this.failAt(place, 'a text does not end')
      let backslashes = 0
      while (end - 1 - backslashes >= start && this.text[end - 1 - backslashes] === '\\') backslashes++
      this.at = end + 1
      if (backslashes % 2 === 1) continue
      const raw = this.text.slice(start, end)
      if (!SPECIAL.test(raw)) return raw
      try {
        return JSON.parse(`"${raw}"`) as string
      } catch {
        this.failAt(place, `${quote(raw)} is not a JSON text`)
      }
    }
  }

  private space(): void {
    for (;;) {
      const code = this.text.charCodeAt(this.at)
      if (code !== 0x20 && code !== 0x0a && code !== 0x0d && code !== 0x09) return
      this.at++
    }
  }

  private accept(token: string): boolean {
    this.space()
    if (this.text[this.at] !== token) return false
    this.at++
    return true
  }

  private expect(token: string, place: Place): void {
    if (this.accept(token)) return
    const found = this.text[this.at]
    this.failAt(place, `expected ${token} and found ${found === undefined ? 'the end of the header' : quote(found)}`)
  }

  private failAt(place: Place, problem: string): never {
    const name = quote(this.name)
    const words =
      place === '__metadata__ text' ? `__metadata__[${name}]` : place === 'tensor' ? `tensor ${name}` : `${place} of tensor ${name}`
    return this.fail(`${place === 'the header' || place === '__metadata__' ? place : words}: ${problem}`)
  }

  private fail(problem: string): never {
    throw new SepconvError('ERR_FORMAT', `${this.subject}: header, character ${this.at}: ${problem}`, { subject: this.subject })
  }
}
