/**
 * Event files, read back by a decoder of their own: TFRecord framing with masked CRC-32C (computed bit by bit here, by table there), then
 * protobuf's wire format against the field numbers of tensorflow/core/util/event.proto and summary.proto.
 */

import { describe, expect, it } from 'vitest'
import { crc32c, eventRecord, fileVersionRecord } from '../../src/train/tensorboard.js'

/** CRC-32C as RFC 3720 defines it: polynomial 0x1EDC6F41, reflected, bit by bit. */
function slowCrc(bytes: Uint8Array): number {
  let crc = 0xffffffffn
  for (const byte of bytes)
    for (let bit = 0; bit < 8; bit++) {
      const carry = (crc ^ BigInt((byte >> bit) & 1)) & 1n
      crc = (crc >> 1n) ^ (carry ? 0x82f63b78n : 0n)
    }
  return Number(crc ^ 0xffffffffn)
}

interface Field {
  readonly field: number
  readonly wire: number
  readonly value: bigint | Buffer
}

function* records(file: Buffer): Generator<Buffer> {
  const mask = (crc: number) => Number((BigInt(((crc >>> 15) | (crc << 17)) >>> 0) + 0xa282ead8n) & 0xffffffffn)
  for (let at = 0; at < file.length; ) {
    const length = Number(file.readBigUInt64LE(at))
    expect(file.readUInt32LE(at + 8)).toBe(mask(slowCrc(file.subarray(at, at + 8))))
    const data = file.subarray(at + 12, at + 12 + length)
    expect(file.readUInt32LE(at + 12 + length)).toBe(mask(slowCrc(data)))
    yield data
    at += length + 16
  }
}

function fields(message: Buffer): Field[] {
  const found: Field[] = []
  let at = 0
  const varint = () => {
    let [value, shift] = [0n, 0n]
    for (;;) {
      const byte = BigInt(message[at++]!)
      value |= (byte & 127n) << shift
      if (byte < 128n) return value
      shift += 7n
    }
  }
  while (at < message.length) {
    const key = Number(varint())
    const wire = key & 7
    if (wire === 0) found.push({ field: key >> 3, wire, value: varint() })
    else {
      const size = wire === 1 ? 8 : wire === 5 ? 4 : Number(varint())
      found.push({ field: key >> 3, wire, value: message.subarray(at, at + size) })
      at += size
    }
  }
  expect(at).toBe(message.length)
  return found
}

function scalars(event: Buffer): { wallTime: number; step: bigint; values: Record<string, number> } {
  const top = fields(event)
  const one = (field: number) => top.find((entry) => entry.field === field)?.value
  const values = fields(one(5) as Buffer).map(({ field, value }) => {
    expect(field).toBe(1)
    const [tag, simple] = fields(value as Buffer)
    expect([tag!.field, tag!.wire, simple!.field, simple!.wire]).toEqual([1, 2, 2, 5])
    return [(tag!.value as Buffer).toString('utf8'), (simple!.value as Buffer).readFloatLE(0)] as const
  })
  return { wallTime: (one(1) as Buffer).readDoubleLE(0), step: one(2) as bigint, values: Object.fromEntries(values) }
}

describe('crc32c', () => {
  it('has the published check values (RFC 3720, B.4)', () => {
    expect(crc32c(Buffer.from('123456789'))).toBe(0xe3069283)
    expect(crc32c(new Uint8Array(32))).toBe(0x8a9136aa)
    expect(crc32c(new Uint8Array(32).fill(255))).toBe(0x62a8ab43)
    expect(crc32c(Uint8Array.from({ length: 32 }, (_, i) => i))).toBe(0x46dd794e)
  })
})

describe('event files', () => {
  it('begin with their version', () => {
    const [record] = [...records(Buffer.from(fileVersionRecord(1_700_000_000.5)))]
    const [time, version] = fields(record!)
    expect([time!.field, time!.wire, (time!.value as Buffer).readDoubleLE(0)]).toEqual([1, 1, 1_700_000_000.5])
    expect([version!.field, version!.wire, String(version!.value)]).toEqual([3, 2, 'brain.Event:2'])
  })

  it('hold scalars by tag and step, steps beyond 32 bits too', () => {
    const steps = [0, 1, 127, 128, 30_000_000, 2 ** 40 + 5]
    const file = Buffer.concat(steps.map((step) => eventRecord(1.25 + step, step, { 'train/loss': step / 3, 'größe/µ': -0.5 })))
    const read = [...records(file)].map(scalars)
    expect(read.map(({ step }) => Number(step))).toEqual(steps)
    expect(read.map(({ wallTime }) => wallTime)).toEqual(steps.map((step) => 1.25 + step))
    expect(read.map(({ values }) => values)).toEqual(steps.map((step) => ({ 'train/loss': Math.fround(step / 3), 'größe/µ': -0.5 })))
  })
})
