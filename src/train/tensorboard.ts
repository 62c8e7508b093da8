/**
 * TensorBoard's event files. A file is a row of TFRecords (length as uint64, its masked CRC-32C, data, its masked CRC-32C, all little
 * endian), each an `Event` message of tensorflow/core/util/event.proto in protobuf's wire format:
 *
 *     Event    1 wall_time double · 2 step int64 · 3 file_version string · 5 summary Summary
 *     Summary  1 value Value, repeated        Value  1 tag string · 2 simple_value float
 */

/** Values by tag; a `/` groups tags on the page. */
export type Scalars = Readonly<Record<string, number>>

/** The record that every file begins with. @param wallTime seconds since 1970. */
export function fileVersionRecord(wallTime: number): Uint8Array {
  const version = Buffer.from('brain.Event:2')
  const record = new RecordWriter(9 + 2 + version.length)
  record.double(1, wallTime)
  record.key(3, BYTES)
  record.varint(version.length)
  record.bytes(version)
  return record.finish()
}

/** One record with the values of a step. @param wallTime seconds since 1970. */
export function eventRecord(wallTime: number, step: number, scalars: Scalars): Uint8Array {
  const tags = Object.keys(scalars).map(tagField)
  const inner = tags.map((tag) => tag.length + 5)
  const summary = inner.reduce((sum, length) => sum + 1 + varintLength(length) + length, 0)
  const record = new RecordWriter(9 + 1 + varintLength(step) + 1 + varintLength(summary) + summary)
  record.double(1, wallTime)
  record.key(2, VARINT)
  record.varint(step)
  record.key(5, BYTES)
  record.varint(summary)
  Object.values(scalars).forEach((value, i) => {
    record.key(1, BYTES)
    record.varint(inner[i]!)
    record.bytes(tags[i]!)
    record.float(2, value)
  })
  return record.finish()
}

/** Wire types of protobuf. */
const VARINT = 0
const FIXED64 = 1
const BYTES = 2
const FIXED32 = 5

const tagFields = new Map<string, Buffer>()

/** Field 1 of a Value, kept: a run writes the same few tags at every step. */
function tagField(tag: string): Buffer {
  let field = tagFields.get(tag)
  if (!field) {
    const text = Buffer.from(tag)
    const writer = new RecordWriter(1 + varintLength(text.length) + text.length)
    writer.key(1, BYTES)
    writer.varint(text.length)
    writer.bytes(text)
    field = writer.data()
    tagFields.set(tag, field)
  }
  return field
}

/** Bytes in base 128 of a whole number up to 2^53. */
function varintLength(value: number): number {
  let length = 1
  for (let rest = value; rest >= 128; rest = Math.floor(rest / 128)) length++
  return length
}

/** A message of known length inside a TFRecord. */
class RecordWriter {
  readonly #buffer: Buffer
  #at = HEAD

  constructor(private readonly length: number) {
    this.#buffer = Buffer.alloc(HEAD + length + 4)
  }
  key(field: number, wire: number): void {
    this.#buffer[this.#at++] = (field << 3) | wire
  }
  varint(value: number): void {
    let rest = value
    for (; rest >= 128; rest = Math.floor(rest / 128)) this.#buffer[this.#at++] = (rest % 128) | 128
    this.#buffer[this.#at++] = rest
  }
  bytes(bytes: Uint8Array): void {
    this.#buffer.set(bytes, this.#at)
    this.#at += bytes.length
  }
  double(field: number, value: number): void {
    this.key(field, FIXED64)
    this.#at = this.#buffer.writeDoubleLE(value, this.#at)
  }
  float(field: number, value: number): void {
    this.key(field, FIXED32)
    this.#at = this.#buffer.writeFloatLE(value, this.#at)
  }
  data(): Buffer {
    return this.#buffer.subarray(HEAD, HEAD + this.length)
  }
  finish(): Uint8Array {
    this.#buffer.writeUInt32LE(this.length, 0)
    this.#buffer.writeUInt32LE(maskedCrc(this.#buffer.subarray(0, 8)), 8)
    this.#buffer.writeUInt32LE(maskedCrc(this.data()), HEAD + this.length)
    return this.#buffer
  }
}

/** Length and its checksum stand before the data of a record. */
const HEAD = 12

/** TFRecord's mask: sums of data that holds sums of its own are bad sums. */
const maskedCrc = (bytes: Uint8Array): number => {
  const crc = crc32c(bytes)
  return (((crc >>> 15) | (crc << 17)) + 0xa282ead8) >>> 0
}

const TABLE = Uint32Array.from({ length: 256 }, (_, byte) => {
  let crc = byte
  for (let bit = 0; bit < 8; bit++) crc = crc & 1 ? (crc >>> 1) ^ 0x82f63b78 : crc >>> 1
  return crc >>> 0
})

/** CRC-32C (Castagnoli), as in RFC 3720. */
export function crc32c(bytes: Uint8Array): number {
  let crc = 0xffffffff
  for (const byte of bytes) crc = TABLE[(crc ^ byte) & 255]! ^ (crc >>> 8)
  return ~crc >>> 0
}
