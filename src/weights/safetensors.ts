/**
 * Safetensors files: eight bytes with the header's length, a JSON header (src/weights/safetensorsHeader.ts), then the tensors'
 * bytes without holes, little-endian, row-major.
 *
 * Reading parses the header alone and then reads each tensor, on demand, from the file straight into an array of the caller, so
 * that weights never exist twice in memory. Writing is atomic and gives the same bytes for the same content.
 */

import type { FileHandle } from 'node:fs/promises'
import { open } from 'node:fs/promises'
import { endianness } from 'node:os'
import { SepconvError } from '../errors.js'
import { fileError, type WriteOptions, writeAtomic } from '../files.js'
import type { WeightsFile } from './file.js'
import { bfloat16ToFloat32, float16ToFloat32 } from './half.js'
import {
  MAX_HEADER_BYTES,
  parseSafetensorsHeader,
  quote,
  SAFETENSORS_BYTES,
  type SafetensorsDType,
  type SafetensorsEntry,
  type SafetensorsHeader,
} from './safetensorsHeader.js'

export { parseSafetensorsHeader, SAFETENSORS_BYTES, type SafetensorsDType, type SafetensorsEntry, type SafetensorsHeader }

const PIECE = 64 << 20
/** Elements converted at a time where a file's type is not the caller's: small enough to stay in the cache. */
const CONVERT = 1 << 16

/** Arrays that {@link SafetensorsFile.readInto} fills. */
export type ReadTarget = Float32Array | Float64Array | Int32Array | BigInt64Array | Uint16Array | Uint8Array

/**
 * An open safetensors file: header in memory, tensors on the disk until asked for.
 *
 *     await using file = await SafetensorsFile.open('weights.safetensors')
 *     for (const { name, elements } of file.tensors.values()) await file.readInto(name, new Float32Array(elements))
 */
export class SafetensorsFile implements SafetensorsHeader, WeightsFile {
  readonly format = 'safetensors'
  readonly tensors: ReadonlyMap<string, SafetensorsEntry>
  readonly metadata: Readonly<Record<string, string>>

  private constructor(
    readonly path: string,
    private handle: FileHandle | undefined,
    private readonly dataStart: number,
    header: SafetensorsHeader,
  ) {
    this.tensors = header.tensors
    this.metadata = header.metadata
  }

  /**
   * Opens a file and reads its header.
   * @throws SepconvError `ERR_FILE` when it is missing, unreadable or truncated, `ERR_FORMAT` when it is no safetensors file.
   */
  static async open(path: string): Promise<SafetensorsFile> {
    let handle: FileHandle | undefined
    try {
      handle = await open(path, 'r')
      const { size } = await handle.stat()
      const prefix = new Uint8Array(8)
      if (size < 8) throw new SepconvError('ERR_FORMAT', `${path}: ${size} bytes are too few for a safetensors file`, { subject: path })
      await readFully(handle, prefix, 0, path)
      const length = new DataView(prefix.buffer).getBigUint64(0, true)
      if (length > BigInt(MAX_HEADER_BYTES)) {
        throw new SepconvError('ERR_FORMAT', `${path}: header length ${length} is beyond the format's limit of ${MAX_HEADER_BYTES} bytes`, {
          subject: path,
          expected: MAX_HEADER_BYTES,
          given: length.toString(),
          hint: 'This is probably no safetensors file',
        })
      }
      const dataStart = 8 + Number(length)
      if (dataStart > size) {
        throw new SepconvError('ERR_FORMAT', `${path}: header length ${length} is beyond the end of the file (${size} bytes)`, {
          subject: path,
          given: Number(length),
          hint: 'The file is truncated or no safetensors file',
        })
      }
      const json = new Uint8Array(Number(length))
      await readFully(handle, json, 8, path)
      return new SafetensorsFile(path, handle, dataStart, parseSafetensorsHeader(json, size - dataStart, path))
    } catch (error) {
      await handle?.close().catch(() => {})
      throw fileError(error, path, 'read')
    }
  }

  /** The entry of a tensor. @throws SepconvError `ERR_WEIGHTS` when the file has none of that name. */
  entry(name: string): SafetensorsEntry {
    const entry = this.tensors.get(name)
    if (!entry) throw new SepconvError('ERR_WEIGHTS', `${this.path} has no tensor ${quote(name)}`, { subject: name })
    return entry
  }

  /**
   * Reads a tensor into an array of exactly its number of elements.
   *
   * A Float32Array or Float64Array takes F32, F64, F16 and BF16 (converted); an Int32Array I32, U8, I8, I16, U16 and, where the
   * values fit, I64; a BigInt64Array I64; a Uint16Array the bits of F16, BF16, U16 and I16; a Uint8Array all types of one byte.
   * @throws SepconvError `ERR_WEIGHTS` for an unknown name, `ERR_SHAPE` for another length, `ERR_DTYPE` for a type that does not
   * convert, `ERR_FILE` when reading fails, `ERR_DISPOSED` after close().
   */
  async readInto(name: string, target: ReadTarget): Promise<void> {
    const entry = this.entry(name)
    if (target.length !== entry.elements) {
      throw new SepconvError('ERR_SHAPE', `tensor ${quote(name)} has ${entry.elements} elements, the array ${target.length}`, {
        subject: name,
        expected: entry.elements,
        given: target.length,
      })
    }
    if (isDirect(entry.dtype, target)) return this.readBytes(name, new Uint8Array(target.buffer, target.byteOffset, target.byteLength))
    const convert = converter(entry.dtype, target)
    if (!convert) {
      throw new SepconvError(
        'ERR_DTYPE',
        `tensor ${quote(name)} of ${this.path} is ${entry.dtype}, which does not go into a ${target.constructor.name}`,
        {
          subject: name,
          given: entry.dtype,
        },
      )
    }
    const size = SAFETENSORS_BYTES[entry.dtype]
    const piece = new ArrayBuffer(Math.min(CONVERT, entry.elements) * size)
    for (let at = 0; at < entry.elements; at += CONVERT) {
      const count = Math.min(CONVERT, entry.elements - at)
      await this.read(new Uint8Array(piece, 0, count * size), entry.offset + at * size)
      convert(piece, count, at, name)
    }
  }

  /** Reads a tensor's bytes as they are in the file; `target` must have its byteLength. Throws as readInto does. */
  async readBytes(name: string, target: Uint8Array): Promise<void> {
    const entry = this.entry(name)
    if (target.byteLength !== entry.byteLength) {
      throw new SepconvError('ERR_SHAPE', `tensor ${quote(name)} has ${entry.byteLength} bytes, the array ${target.byteLength}`, {
        subject: name,
        expected: entry.byteLength,
        given: target.byteLength,
      })
    }
    await this.read(target, entry.offset)
  }

  private async read(target: Uint8Array, offset: number): Promise<void> {
    if (!this.handle) throw new SepconvError('ERR_DISPOSED', `${this.path} was closed`, { subject: this.path })
    try {
      await readFully(this.handle, target, this.dataStart + offset, this.path)
    } catch (error) {
      throw fileError(error, this.path, 'read')
    }
  }

  /** Closes the file. May be called twice; the header stays readable. */
  async close(): Promise<void> {
    const { handle } = this
    this.handle = undefined
    await handle?.close()
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close()
  }
}

async function readFully(handle: FileHandle, target: Uint8Array, position: number, path: string): Promise<void> {
  for (let at = 0; at < target.byteLength; ) {
    const { bytesRead } = await handle.read(target, at, Math.min(PIECE, target.byteLength - at), position + at)
    if (bytesRead === 0) {
      throw new SepconvError('ERR_FILE', `${path} ended at byte ${position + at} while it was read`, {
        subject: path,
        hint: 'Another program seems to be writing it',
      })
    }
    at += bytesRead
  }
}

/** Whether the file's bytes are the array's bytes. */
function isDirect(dtype: SafetensorsDType, target: ReadTarget): boolean {
  if (target instanceof Float32Array) return dtype === 'F32'
  if (target instanceof Float64Array) return dtype === 'F64'
  if (target instanceof Int32Array) return dtype === 'I32'
  if (target instanceof BigInt64Array) return dtype === 'I64'
  if (target instanceof Uint16Array) return ['F16', 'BF16', 'U16', 'I16'].includes(dtype)
  return SAFETENSORS_BYTES[dtype] === 1
}

type Convert = (buffer: ArrayBuffer, count: number, at: number, name: string) => void

function converter(dtype: SafetensorsDType, target: ReadTarget): Convert | undefined {
  if (target instanceof Float32Array) {
    if (dtype === 'F16') return (buffer, count, at) => float16ToFloat32(new Uint16Array(buffer, 0, count), target, at)
    if (dtype === 'BF16') return (buffer, count, at) => bfloat16ToFloat32(new Uint16Array(buffer, 0, count), target, at)
    if (dtype === 'F64') return (buffer, count, at) => target.set(new Float64Array(buffer, 0, count), at)
  }
  if (target instanceof Float64Array) {
    const narrow = new Float32Array(CONVERT)
    if (dtype === 'F32') return (buffer, count, at) => target.set(new Float32Array(buffer, 0, count), at)
    const widen = dtype === 'F16' ? float16ToFloat32 : dtype === 'BF16' ? bfloat16ToFloat32 : undefined
    if (widen) {
      return (buffer, count, at) => {
        widen(new Uint16Array(buffer, 0, count), narrow)
        target.set(narrow.subarray(0, count), at)
      }
    }
  }
  if (target instanceof Int32Array) {
    const views = { U8: Uint8Array, I8: Int8Array, U16: Uint16Array, I16: Int16Array }
    if (dtype in views) return (buffer, count, at) => target.set(new views[dtype as keyof typeof views](buffer, 0, count), at)
    if (dtype === 'I64') {
      return (buffer, count, at, name) => {
        const wide = new BigInt64Array(buffer, 0, count)
        for (let i = 0; i < count; i++) {
          const value = Number(wide[i])
          if (value !== (value | 0))
            throw new SepconvError('ERR_DTYPE', `tensor ${quote(name)}: value ${value} does not fit into 32 bits`, {
              subject: name,
              given: value,
            })
          target[at + i] = value
        }
      }
    }
  }
  return undefined
}

/** A tensor to be written. */
export interface SafetensorsTensor {
  dtype: SafetensorsDType
  shape: readonly number[]
  /** The elements, row-major; or a function called when it is their turn, so that only one tensor need be in host memory. */
  data: ArrayBufferView | (() => ArrayBufferView | Promise<ArrayBufferView>)
}

export interface SafetensorsWriteOptions extends WriteOptions {
  /** Texts that travel with the weights. */
  metadata?: Readonly<Record<string, string>>
}

/**
 * Writes a safetensors file atomically: an interrupted save leaves the old file. The bytes depend on names, types, shapes, values
 * and metadata alone, not on the order given: tensors are stored by falling element size, then by name; metadata by key.
 *
 * @param tensors name to tensor.
 * @throws SepconvError `ERR_SHAPE` when data and shape differ in size, `ERR_ARGUMENT` for a bad name, `ERR_FILE` when the disk is
 * full or the folder read-only.
 */
export async function writeSafetensors(
  path: string,
  tensors: ReadonlyMap<string, SafetensorsTensor> | Readonly<Record<string, SafetensorsTensor>>,
  options: SafetensorsWriteOptions = {},
): Promise<void> {
  if (endianness() !== 'LE') throw new SepconvError('ERR_FILE', 'writing safetensors needs a little-endian machine', { subject: path })
  const list: [string, SafetensorsTensor][] = tensors instanceof Map ? [...tensors] : Object.entries(tensors)
  const compare = (a: string, b: string): number => (a < b ? -1 : a > b ? 1 : 0)
  list.sort(([a, x], [b, y]) => SAFETENSORS_BYTES[y.dtype] - SAFETENSORS_BYTES[x.dtype] || compare(a, b))
  const metadata = Object.entries(options.metadata ?? {}).sort(([a], [b]) => compare(a, b))
  const fields: string[] = []
  if (metadata.length > 0)
    fields.push(`"__metadata__":{${metadata.map(([key, text]) => `${JSON.stringify(key)}:${JSON.stringify(`${text}`)}`).join(',')}}`)
  let offset = 0
  const sizes: number[] = []
  for (const [name, { dtype, shape }] of list) {
    if (name === '__metadata__') throw new SepconvError('ERR_ARGUMENT', "a tensor cannot be named '__metadata__'", { subject: name })
    const bytes = SAFETENSORS_BYTES[dtype] * shape.reduce((product, size) => product * size, 1)
    if (!Number.isSafeInteger(bytes) || shape.some((size) => !Number.isInteger(size) || size < 0)) {
      throw new SepconvError('ERR_SHAPE', `tensor ${quote(name)}: ${dtype}[${shape.join(', ')}] is no valid shape`, {
        subject: name,
        given: shape,
      })
    }
    fields.push(`${JSON.stringify(name)}:{"dtype":"${dtype}","shape":[${shape.join(',')}],"data_offsets":[${offset},${offset + bytes}]}`)
    sizes.push(bytes)
    offset += bytes
  }
  let header = Buffer.from(`{${fields.join(',')}}`)
  if (header.length > MAX_HEADER_BYTES)
    throw new SepconvError('ERR_ARGUMENT', `a header of ${header.length} bytes is beyond the format's limit`, { subject: path })
  // Padded with spaces so that the data starts at a multiple of eight and can be mapped as it is.
  header = Buffer.concat([header, Buffer.alloc((8 - (header.length % 8)) % 8, ' ')])
  const prefix = Buffer.alloc(8)
  prefix.writeBigUInt64LE(BigInt(header.length))
  await writeAtomic(
    path,
    async (file) => {
      await file.write(Buffer.concat([prefix, header]))
      for (const [i, [name, tensor]] of list.entries()) {
        const data = typeof tensor.data === 'function' ? await tensor.data() : tensor.data
        if (data.byteLength !== sizes[i]) {
          throw new SepconvError(
            'ERR_SHAPE',
            `tensor ${quote(name)}: ${tensor.dtype}[${tensor.shape.join(', ')}] has ${sizes[i]} bytes, its data ${data.byteLength}`,
            {
              subject: name,
              expected: sizes[i],
              given: data.byteLength,
            },
          )
        }
        await file.write(new Uint8Array(data.buffer, data.byteOffset, data.byteLength))
      }
    },
    options,
  )
}
