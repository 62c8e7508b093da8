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
export const fileVersionRecord = (wallTime: number): Uint8Array => record([...double(1, wallTime), ...text(3, 'brain.Event:2')])

/** One record with the values of a step. @param wallTime seconds since 1970. */
export function eventRecord(wallTime: number, step: number, scalars: Scalars): Uint8Array {
  const values = Object.entries(scalars).flatMap(([tag, value]) => message(1, [...text(1, tag), ...float(2, value)]))
  return record([...double(1, wallTime), ...varint(2 << 3), ...varint(step), ...message(5, values)])
}

/** Wire types of protobuf. */
const FIXED64 = 1
const BYTES = 2
const FIXED32 = 5

/** Base 128, the lowest seven bits first; whole numbers up to 2^53. */
function varint(value: number): number[] {
  const bytes: number[] = []
  for (let rest = value; ; rest = Math.floor(rest / 128)) {
    if (rest < 128) return [...bytes, rest]
    bytes.push((rest % 128) | 128)
  }
}
const message = (field: number, body: readonly number[]): number[] => [...varint((field << 3) | BYTES), ...varint(body.length), ...body]
const text = (field: number, value: string): number[] => message(field, [...Buffer.from(value)])
const double = (field: number, value: number): number[] => [
  ...varint((field << 3) | FIXED64),
  ...new Uint8Array(Float64Array.of(value).buffer),
]
const float = (field: number, value: number): number[] => [
  ...varint((field << 3) | FIXED32),
  ...new Uint8Array(Float32Array.of(value).buffer),
]

function record(data: readonly number[]): Uint8Array {
  const bytes = Buffer.alloc(data.length + 16)
  bytes.writeUInt32LE(data.length, 0)
  bytes.writeUInt32LE(maskedCrc(bytes.subarray(0, 8)), 8)
  bytes.set(data, 12)
  bytes.writeUInt32LE(maskedCrc(bytes.subarray(12, 12 + data.length)), 12 + data.length)
  return bytes
}

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
