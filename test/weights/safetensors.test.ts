import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { SepconvError } from '../../src/errors.js'
import { parseSafetensorsHeader, SafetensorsFile, type SafetensorsTensor, writeSafetensors } from '../../src/weights/safetensors.js'
import { generator } from '../helpers.js'

let folder: string
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'sepconv-weights-'))
})
afterEach(() => rmSync(folder, { recursive: true, force: true }))

const at = (name: string): string => join(folder, name)

/** A file as the format describes it, by hand. */
function assemble(header: string | object, data: Uint8Array, length?: bigint): Buffer {
  const json = Buffer.from(typeof header === 'string' ? header : JSON.stringify(header))
  const prefix = Buffer.alloc(8)
  prefix.writeBigUInt64LE(length ?? BigInt(json.length))
  return Buffer.concat([prefix, json, data])
}

const errorOf = async (promise: Promise<unknown>): Promise<SepconvError> => {
  const error = await promise.then(
    () => undefined,
    (reason: unknown) => reason,
  )
  expect(error).toBeInstanceOf(SepconvError)
  return error as SepconvError
}

const TENSORS: Record<string, SafetensorsTensor> = {
  'block1/conv1/filter': { dtype: 'F32', shape: [2, 3], data: Float32Array.of(1, -2, 3.5, 0, Number.NaN, Infinity) },
  'a scalar': { dtype: 'F32', shape: [], data: () => Float32Array.of(7) },
  half: { dtype: 'F16', shape: [2], data: Uint16Array.of(0x3c00, 0xc000) },
  brain: { dtype: 'BF16', shape: [2], data: async () => Uint16Array.of(0x3f80, 0xc000) },
  double: { dtype: 'F64', shape: [1, 1], data: Float64Array.of(0.1) },
  steps: { dtype: 'I64', shape: [2], data: BigInt64Array.of(5n, -6n) },
  bytes: { dtype: 'U8', shape: [3], data: Uint8Array.of(1, 2, 255) },
  empty: { dtype: 'F32', shape: [0, 4], data: new Float32Array(0) },
  '__proto__ "quoted" \n ü': { dtype: 'I32', shape: [1], data: Int32Array.of(-1) },
}

describe('round trip', () => {
  it('gives back values, types, shapes and metadata', async () => {
    await writeSafetensors(at('a'), TENSORS, { metadata: { format: 'sepconv', labels: '["a\\"b"]', __proto: 'x' } })
    await using file = await SafetensorsFile.open(at('a'))
    expect(file.metadata).toEqual({ format: 'sepconv', labels: '["a\\"b"]', __proto: 'x' })
    expect([...file.tensors.keys()].sort()).toEqual(Object.keys(TENSORS).sort())
    for (const [name, { dtype, shape }] of Object.entries(TENSORS)) expect(file.tensors.get(name)).toMatchObject({ dtype, shape })
    const read = async <T extends Parameters<typeof file.readInto>[1]>(name: string, target: T): Promise<T> => {
      await file.readInto(name, target)
      return target
    }
    expect([...(await read('block1/conv1/filter', new Float32Array(6)))]).toEqual([1, -2, 3.5, 0, Number.NaN, Infinity])
    expect((await read('a scalar', new Float32Array(1)))[0]).toBe(7)
    expect([...(await read('half', new Float32Array(2)))]).toEqual([1, -2])
    expect([...(await read('half', new Float64Array(2)))]).toEqual([1, -2])
    expect([...(await read('half', new Uint16Array(2)))]).toEqual([0x3c00, 0xc000])
    expect([...(await read('brain', new Float32Array(2)))]).toEqual([1, -2])
    expect((await read('double', new Float32Array(1)))[0]).toBe(Math.fround(0.1))
    expect((await read('double', new Float64Array(1)))[0]).toBe(0.1)
    expect([...(await read('steps', new BigInt64Array(2)))]).toEqual([5n, -6n])
    expect([...(await read('steps', new Int32Array(2)))]).toEqual([5, -6])
    expect([...(await read('bytes', new Uint8Array(3)))]).toEqual([1, 2, 255])
    expect([...(await read('bytes', new Int32Array(3)))]).toEqual([1, 2, 255])
    await read('empty', new Float32Array(0))
    expect((await read('__proto__ "quoted" \n ü', new Int32Array(1)))[0]).toBe(-1)
  })

  it('reads into a part of a larger array, and converts tensors longer than one piece', async () => {
    const values = Float32Array.from({ length: 150_001 }, (_, i) => i % 2048)
    const bits = new Uint16Array(values.length)
    for (let i = 0; i < values.length; i++) bits[i] = new Uint16Array(Float32Array.of(values[i]!).buffer)[1]!
    await writeSafetensors(at('a'), {
      plain: { dtype: 'F32', shape: [150_001], data: values },
      brain: { dtype: 'BF16', shape: [150_001], data: bits },
    })
    await using file = await SafetensorsFile.open(at('a'))
    const arena = new Float32Array(200_000).fill(-1)
    await file.readInto('plain', arena.subarray(100, 150_101))
    expect(arena[99]).toBe(-1)
    expect(arena[150_101]).toBe(-1)
    expect(Buffer.compare(Buffer.from(arena.buffer, 400, values.byteLength), Buffer.from(values.buffer))).toBe(0)
    await file.readInto('brain', arena.subarray(0, 150_001))
    // Whole numbers below 256 have eight significant bits, hence are exact.
    for (const i of [0, 7, 65_535, 65_536, 65_537, 131_072 + 5, 150_000]) if (values[i]! < 256) expect(arena[i]).toBe(values[i])
    expect(arena[147_456 + 200]).toBe(200)
  })

  it('writes the same bytes whatever the order given, data aligned to its elements', async () => {
    await writeSafetensors(at('a'), TENSORS, { metadata: { b: '1', a: '2' } })
    await writeSafetensors(at('b'), new Map(Object.entries(TENSORS).reverse()), { metadata: { a: '2', b: '1' } })
    expect(Buffer.compare(readFileSync(at('a')), readFileSync(at('b')))).toBe(0)
    await using file = await SafetensorsFile.open(at('a'))
    expect(readFileSync(at('a')).readBigUInt64LE() % 8n).toBe(0n)
    for (const { offset, dtype } of file.tensors.values())
      expect(offset % ({ F64: 8, I64: 8, F32: 4, I32: 4, F16: 2, BF16: 2 }[dtype as string] ?? 1)).toBe(0)
  })

  it('is the format that other programs write', async () => {
    const header =
      '{"__metadata__":{"format":"pt"},"weight":{"dtype":"F32","shape":[1,2],"data_offsets":[0,8]},"b":{"dtype":"BF16","shape":[2],"data_offsets":[8,12]}}   '
    const data = Buffer.concat([Buffer.from(Float32Array.of(1.5, -1).buffer), Buffer.from(Uint16Array.of(0x3f80, 0x4000).buffer)])
    writeFileSync(at('a'), assemble(header, data))
    await using file = await SafetensorsFile.open(at('a'))
    const weight = new Float32Array(2)
    await file.readInto('weight', weight)
    expect([...weight]).toEqual([1.5, -1])
    expect(file.metadata.format).toBe('pt')
    await writeSafetensors(at('b'), { weight: { dtype: 'F32', shape: [1, 2], data: weight } })
    const [bytes, size] = [readFileSync(at('b')), Number(readFileSync(at('b')).readBigUInt64LE())]
    expect(JSON.parse(bytes.toString('utf8', 8, 8 + size))).toEqual({ weight: { dtype: 'F32', shape: [1, 2], data_offsets: [0, 8] } })
    expect(bytes.length).toBe(8 + size + 8)
  })

  it('keeps the old file when a tensor fails while saving', async () => {
    await writeSafetensors(at('a'), { x: { dtype: 'F32', shape: [1], data: Float32Array.of(1) } })
    const before = readFileSync(at('a'))
    const failing = {
      x: TENSORS['a scalar']!,
      y: { dtype: 'F32' as const, shape: [1], data: () => Promise.reject(new Error('device lost')) },
    }
    await expect(writeSafetensors(at('a'), failing)).rejects.toThrow('device lost')
    expect(Buffer.compare(readFileSync(at('a')), before)).toBe(0)
  })
})

describe('misuse', () => {
  it('is named when writing', async () => {
    expect(await errorOf(writeSafetensors(at('a'), { x: { dtype: 'F32', shape: [3], data: new Float32Array(2) } }))).toMatchObject({
      code: 'ERR_SHAPE',
      subject: 'x',
      expected: 12,
      given: 8,
    })
    expect((await errorOf(writeSafetensors(at('a'), { x: { dtype: 'F32', shape: [-1], data: new Float32Array(1) } }))).code).toBe(
      'ERR_SHAPE',
    )
    expect((await errorOf(writeSafetensors(at('a'), { __metadata__: { dtype: 'F32', shape: [1], data: new Float32Array(1) } }))).code).toBe(
      'ERR_ARGUMENT',
    )
    expect((await errorOf(writeSafetensors(at('no/a'), {}))).code).toBe('ERR_FILE')
  })

  it('is named when reading', async () => {
    await writeSafetensors(at('a'), { ...TENSORS, large: { dtype: 'I64', shape: [1], data: BigInt64Array.of(2n ** 40n) } })
    const file = await SafetensorsFile.open(at('a'))
    expect(await errorOf(file.readInto('nothing', new Float32Array(1)))).toMatchObject({ code: 'ERR_WEIGHTS', subject: 'nothing' })
    expect(await errorOf(file.readInto('half', new Float32Array(3)))).toMatchObject({ code: 'ERR_SHAPE', expected: 2, given: 3 })
    expect((await errorOf(file.readInto('steps', new Float32Array(2)))).message).toMatch(/is I64, which does not go into a Float32Array/)
    expect((await errorOf(file.readInto('half', new Int32Array(2)))).code).toBe('ERR_DTYPE')
    expect((await errorOf(file.readInto('large', new Int32Array(1)))).message).toMatch(/1099511627776 does not fit/)
    expect((await errorOf(file.readBytes('half', new Uint8Array(3)))).code).toBe('ERR_SHAPE')
    await file.close()
    await file.close()
    expect((await errorOf(file.readInto('half', new Float32Array(2)))).code).toBe('ERR_DISPOSED')
    expect((await errorOf(SafetensorsFile.open(at('missing')))).code).toBe('ERR_FILE')
    expect((await errorOf(SafetensorsFile.open(folder))).code).toBe('ERR_FILE')
  })
})

const parse = (header: string, bytes = 8): ReturnType<typeof parseSafetensorsHeader> =>
  parseSafetensorsHeader(Buffer.from(header), bytes, 'x.safetensors')
const tensor = (offsets: string, shape = '[2]', dtype = 'F32'): string => `{"dtype":"${dtype}","shape":${shape},"data_offsets":${offsets}}`

describe('hostile headers', () => {
  it.each([
    ['negative offset', `{"a":${tensor('[-8,0]')}}`, /data_offsets of tensor "a": "-8" is no whole number/],
    ['end before begin', `{"a":${tensor('[8,0]')}}`, /data_offsets of tensor "a": the end 0 is before the begin 8/],
    ['overlap', `{"a":${tensor('[0,8]')},"b":${tensor('[4,12]')}}`, /data_offsets of tensor "b": \[4, 12\] overlaps tensor "a"/],
    ['same bytes twice', `{"a":${tensor('[0,8]')},"b":${tensor('[0,8]')}}`, /overlaps tensor/],
    ['hole', `{"a":${tensor('[0,8]')},"b":${tensor('[16,24]')}}`, /"b": \[16, 24\] leaves a hole of 8 bytes/],
    ['late start', `{"a":${tensor('[8,16]')}}`, /leaves a hole of 8 bytes before it/],
    ['bytes after the last tensor', `{"a":${tensor('[0,4]', '[1]')}}`, /4 bytes after the last tensor/],
    ['shape that does not fit', `{"a":${tensor('[0,8]', '[3]')}}`, /span 8 bytes, F32\[3\] has 12/],
    ['shape beyond 2^53', `{"a":${tensor('[0,8]', '[9007199254740992]')}}`, /beyond 2\^53/],
    ['product beyond 2^53', `{"a":${tensor('[0,8]', '[4294967296,4294967296,2]')}}`, /span 8 bytes/],
    ['product that wraps to nothing', `{"a":${tensor('[0,0]', `[${Array(30).fill('9007199254740991')},0]`)}}`, /span 0 bytes/],
    ['fraction', `{"a":${tensor('[0,8]', '[2.0]')}}`, /shape of tensor "a": "2.0" is no whole number/],
    ['exponent', `{"a":${tensor('[0,8e0]')}}`, /"8e0" is no whole number/],
    ['leading zero', `{"a":${tensor('[00,8]')}}`, /"00" is no whole number/],
    ['endless number', `{"a":${tensor(`[0,${'9'.repeat(1000)}]`)}}`, /more than 24 characters/],
    ['endless shape', `{"a":${tensor('[0,8]', `[${Array(40).fill('1')}]`)}}`, /more than 32 numbers/],
    ['one offset', `{"a":${tensor('[0]')}}`, /data_offsets of tensor "a": there must be two numbers/],
    ['three offsets', `{"a":${tensor('[0,8,8]')}}`, /more than 2 numbers/],
    ['unknown type', `{"a":${tensor('[0,8]', '[2]', 'F31')}}`, /dtype of tensor "a": "F31" is none of/],
    ['type from the prototype', `{"a":${tensor('[0,8]', '[2]', 'constructor')}}`, /is none of/],
    ['name twice', `{"a":${tensor('[0,8]')},"a":${tensor('[0,8]')}}`, /tensor "a" is named twice/],
    ['name twice, once escaped', `{"a":${tensor('[0,8]')},"\\u0061":${tensor('[0,8]')}}`, /tensor "a" is named twice/],
    ['field twice', `{"a":{"dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8]}}`, /field "dtype" is given twice/],
    ['unknown field', `{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8],"x":1}}`, /tensor "a": field "x" is unknown/],
    ['missing field', '{"a":{"dtype":"F32","shape":[2]}}', /tensor "a": data_offsets is missing/],
    ['metadata that is no text', '{"__metadata__":{"a":1}}', /__metadata__\["a"\]: expected "/],
    ['metadata twice', '{"__metadata__":{"a":"1","a":"2"}}', /names "a" twice/],
    ['tensor that is no object', '{"a":[]}', /tensor "a": expected \{/],
    ['nesting', `{"a":${'['.repeat(100_000)}`, /expected \{/],
    ['text after the end', `{"a":${tensor('[0,8]')}} {}`, /text after the end/],
    ['byte order mark', `\uFEFF{"a":${tensor('[0,8]')}}`, /must start with \{/],
    ['array', '[]', /must start with \{/],
    ['nothing', '', /must start with \{/],
    ['open text', '{"a', /a text does not end/],
    ['open text after backslash', '{"a\\', /a text does not end/],
    ['bad escape', '{"\\x":1}', /not a JSON text/],
    ['control character', '{"\u0001":1}', /not a JSON text/],
    ['trailing comma', `{"a":${tensor('[0,8]')},}`, /expected " and found "}"/],
  ])('%s', (_what, header, message) => {
    expect(() => parse(header)).toThrow(message)
    expect(() => parse(header)).toThrow(SepconvError)
    expect(() => parse(header)).toThrow(/^x\.safetensors/)
  })

  it('out of the file: says truncated', () => {
    try {
      parse(`{"a":${tensor('[0,8]')}}`, 7)
      expect.unreachable()
    } catch (error) {
      expect(error).toMatchObject({ code: 'ERR_FILE', expected: 8, given: 7 })
      expect((error as Error).message).toMatch(/tensor "a" end at byte 8 of the data, the file has only 7.*truncated/)
    }
  })

  it('not UTF-8', () => {
    expect(() => parseSafetensorsHeader(Uint8Array.of(0x7b, 0xff, 0x7d), 0)).toThrow(/not UTF-8/)
  })

  it('keeps messages short and printable whatever the name', () => {
    const name = '\u001b[2J'.repeat(100_000)
    try {
      parse(`{${JSON.stringify(name)}:{}}`)
      expect.unreachable()
    } catch (error) {
      expect((error as Error).message.length).toBeLessThan(1000)
      // biome-ignore lint/suspicious/noControlCharactersInRegex: that none comes through is the point
      expect((error as Error).message).not.toMatch(/[\u0000-\u001f]/)
    }
  })

  it('lengths that lie', async () => {
    const data = new Uint8Array(8)
    const header = `{"a":${tensor('[0,8]')}}`
    const refused = async (bytes: Uint8Array): Promise<SepconvError> => {
      writeFileSync(at('a'), bytes)
      return errorOf(SafetensorsFile.open(at('a')))
    }
    expect((await refused(assemble(header, data, 100_000_001n))).message).toMatch(/limit of 100000000 bytes/)
    expect((await refused(assemble(header, data, 2n ** 64n - 1n))).message).toMatch(/header length 18446744073709551615/)
    expect((await refused(assemble(header, data, 5000n))).message).toMatch(/header length 5000 is beyond the end of the file/)
    expect((await refused(Buffer.alloc(3))).message).toMatch(/3 bytes are too few/)
    expect((await refused(Buffer.alloc(0))).code).toBe('ERR_FORMAT')
    expect((await refused(assemble(header, data.subarray(0, 5)))).code).toBe('ERR_FILE')
    expect((await refused(Buffer.from('<!DOCTYPE html><html>not found</html>'))).message).toMatch(/probably no safetensors file/)
  })

  it('large headers take time in proportion', () => {
    const entries = Array.from({ length: 50_000 }, (_, i) => `"layer.${i}":{"dtype":"U8","shape":[1],"data_offsets":[${i},${i + 1}]}`)
    const since = performance.now()
    expect(parse(`{${entries.join(',')}}`, 50_000).tensors.size).toBe(50_000)
    expect(performance.now() - since).toBeLessThan(10_000)
  }, 30_000)

  it('6,000 mutated headers: an answer or a SepconvError, never anything else', () => {
    const random = generator(20_240_501)
    const seedHeader = Buffer.from(
      `{"__metadata__":{"format":"sepconv","labels":"[\\"a\\"]"},"block1.conv1":${tensor('[0,16]', '[2,2]')},"half":${tensor('[16,20]', '[2]', 'F16')},"e":${tensor('[20,20]', '[0]', 'I64')},"s":${tensor('[20,24]', '[]')}}`,
    )
    const pieces = [
      '"',
      '\\',
      '{',
      '}',
      '[',
      ']',
      ',',
      ':',
      '0',
      '-1',
      '9007199254740993',
      '1e999',
      'null',
      '"dtype"',
      '"shape":',
      '__proto__',
      '\\u0000',
      '\uD83D',
      'F64',
      ' ',
      '\n',
      '\0',
    ]
    const pick = (count: number): number => Math.floor(random() * count)
    let accepted = 0
    for (let i = 0; i < 6000; i++) {
      let bytes = seedHeader
      for (let edits = 1 + pick(4); edits > 0; edits--) {
        const [from, length] = [pick(bytes.length), pick(12)]
        const kind = pick(5)
        if (kind === 0) bytes = Buffer.concat([bytes.subarray(0, from), Buffer.of(pick(256)), bytes.subarray(from + 1)])
        else if (kind === 1) bytes = Buffer.concat([bytes.subarray(0, from), bytes.subarray(from + length)])
        else if (kind === 2)
          bytes = Buffer.concat([bytes.subarray(0, from), Buffer.from(pieces[pick(pieces.length)]!), bytes.subarray(from)])
        else if (kind === 3) bytes = Buffer.concat([bytes.subarray(0, from), bytes.subarray(pick(bytes.length))])
        else bytes = bytes.subarray(0, from)
        if (bytes.length === 0) bytes = Buffer.from('{')
      }
      try {
        const { tensors } = parseSafetensorsHeader(bytes, 24)
        // What is accepted keeps the format's promise: no overlap, no hole, nothing outside.
        let end = 0
        for (const { offset, byteLength } of tensors.values()) {
          expect(offset).toBe(end)
          end += byteLength
        }
        expect(end).toBe(24)
        accepted++
      } catch (error) {
        if (!(error instanceof SepconvError)) throw error
        expect(['ERR_FORMAT', 'ERR_FILE']).toContain(error.code)
      }
    }
    expect(accepted).toBeGreaterThan(10)
    expect(accepted).toBeLessThan(3000)
  }, 30_000)
})
