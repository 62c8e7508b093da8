/**
 * PyTorch files (`torch.save`) as weights: the zip container of version 1.6 and later, and the pickles in a row before it. The
 * pickles are read by src/weights/pickle.ts, which executes nothing; storages are read from the file tensor by tensor.
 */

import { type FileHandle, open } from 'node:fs/promises'
import { SepconvError } from '../errors.js'
import { fileError } from '../files.js'
import { checkTarget, tensorOf, type WeightsFile } from './file.js'
import { bfloat16ToFloat32, float16ToFloat32 } from './half.js'
import { isTensor, type Pickled, readPickle, STORAGE_BYTES, type StorageType, type TensorView, type Unpickled } from './pickle.js'

/** Where a storage's bytes are in the file. */
export interface Extent {
  readonly offset: number
  readonly byteLength: number
}

/** Keys under which training scripts keep the weights, beside optimizers and epochs. */
const WRAPPERS = ['state_dict', 'model_state_dict', 'model_state', 'model', 'net', 'weights']
const MAX_TENSORS = 100_000
/** Of the pickles before the storages; those of real models have a few kilobytes. */
const MAX_PICKLE_BYTES = 64 << 20

interface Entry {
  readonly shape: readonly number[]
  readonly elements: number
  readonly view: TensorView
}

/** The tensors of an unpickled file. @throws ERR_FORMAT when there are none. */
function stateDict(value: Pickled, subject: string): Map<string, Entry> {
  let dictionary = value
  for (let depth = 0; depth < 3 && dictionary instanceof Map; depth++) {
    const inner: Pickled | undefined = WRAPPERS.map((key) => (dictionary as Map<Pickled, Pickled>).get(key)).find(
      (entry) => entry instanceof Map,
    )
    if (inner === undefined) break
    dictionary = inner
  }
  const tensors = new Map<string, Entry>()
  if (dictionary instanceof Map)
    for (const [name, view] of dictionary) {
      if (typeof name !== 'string' || !isTensor(view)) continue
      tensors.set(name, { shape: view.shape, elements: view.shape.reduce((product, size) => product * size, 1), view })
      if (tensors.size > MAX_TENSORS) throw new SepconvError('ERR_FORMAT', `${subject}: more than ${MAX_TENSORS} tensors`, { subject })
    }
  if (tensors.size === 0)
    throw new SepconvError('ERR_FORMAT', `${subject} holds no dictionary of tensors`, {
      subject,
      hint: 'Save the state_dict() of the model',
    })
  return tensors
}

/**
 * Weights out of an unpickled value and the places of its storages.
 * @throws ERR_FORMAT when a tensor's storage is missing or shorter than it claims.
 */
export function pytorchFile(path: string, handle: FileHandle, value: Pickled, extents: ReadonlyMap<string, Extent>): WeightsFile {
  const tensors = stateDict(value, path)
  for (const [name, { view }] of tensors) {
    const { key, dtype, elements } = view.storage
    const extent = extents.get(key)
    if (!extent || extent.byteLength < elements * STORAGE_BYTES[dtype])
      throw new SepconvError(
        'ERR_FORMAT',
        `${path}: storage '${key.slice(0, 80)}' of tensor '${name.slice(0, 80)}' ${extent ? `has ${extent.byteLength} bytes instead of ${elements * STORAGE_BYTES[dtype]}` : 'is missing'}`,
        { subject: name },
      )
  }
  const close = () => handle.close()
  return {
    path,
    format: 'pytorch',
    tensors,
    metadata: {},
    async readInto(name, target) {
      const { view, elements } = tensorOf({ path, tensors }, name)
      checkTarget(name, elements, target)
      if (elements > 0) await readView(path, handle, view, extents.get(view.storage.key)!.offset, target)
    },
    close,
    [Symbol.asyncDispose]: close,
  }
}

async function readView(path: string, handle: FileHandle, view: TensorView, base: number, target: Float32Array): Promise<void> {
  const { shape, strides, offset, storage } = view
  const span = 1 + shape.reduce((sum, size, axis) => sum + (size - 1) * strides[axis]!, 0)
  const size = STORAGE_BYTES[storage.dtype]
  const contiguous = shape.reduceRight<number | false>(
    (step, extent, axis) => (step !== false && (extent === 1 || strides[axis] === step) ? step * extent : false),
    1,
  )
  const direct = contiguous !== false && storage.dtype === 'F32'
  const bytes = direct ? new Uint8Array(target.buffer, target.byteOffset, target.byteLength) : new Uint8Array(span * size)
  await readExactly(handle, bytes, base + offset * size, path)
  if (direct) return
  const values = contiguous === false ? new Float32Array(span) : target
  widen(storage.dtype, bytes.buffer as ArrayBuffer, span, values)
  if (contiguous === false) gather(values, shape, strides, target)
}

function gather(source: Float32Array, shape: readonly number[], strides: readonly number[], target: Float32Array): void {
  const index = new Array<number>(shape.length).fill(0)
  let at = 0
  for (let i = 0; i < target.length; i++) {
    target[i] = source[at]!
    for (let axis = shape.length - 1; axis >= 0; axis--) {
      at += strides[axis]!
      if (++index[axis]! < shape[axis]!) break
      at -= shape[axis]! * strides[axis]!
      index[axis] = 0
    }
  }
}

function widen(dtype: StorageType, buffer: ArrayBuffer, count: number, target: Float32Array): void {
  if (dtype === 'F16') float16ToFloat32(new Uint16Array(buffer, 0, count), target)
  else if (dtype === 'BF16') bfloat16ToFloat32(new Uint16Array(buffer, 0, count), target)
  else if (dtype === 'I64') target.set(Float32Array.from(Array.from(new BigInt64Array(buffer, 0, count), Number)))
  else target.set(new VIEWS[dtype](buffer, 0, count))
}

const VIEWS = { F64: Float64Array, F32: Float32Array, I32: Int32Array, I16: Int16Array, I8: Int8Array, U8: Uint8Array, BOOL: Uint8Array }

async function readExactly(handle: FileHandle, target: Uint8Array, position: number, path: string): Promise<void> {
  try {
    for (let at = 0; at < target.length; ) {
      const { bytesRead } = await handle.read(target, at, target.length - at, position + at)
      if (bytesRead === 0) throw new SepconvError('ERR_FILE', `${path} ends at byte ${position + at}: it is truncated`, { subject: path })
      at += bytesRead
    }
  } catch (error) {
    throw fileError(error, path, 'read')
  }
}

/** What the first pickle of the older format holds. */
const MAGIC = 0x1950a86a20f9469cfc6cn
const PROTOCOL = 1001

/**
 * The format before 1.6: five pickles in a row (magic number, protocol, machine, value, keys of the storages), then for each
 * storage its count of elements (8 bytes) and its content.
 */
export async function openLegacyPytorch(path: string): Promise<WeightsFile> {
  let handle: FileHandle | undefined
  try {
    handle = await open(path, 'r')
    const { size } = await handle.stat()
    const bytes = new Uint8Array(Math.min(size, MAX_PICKLE_BYTES))
    await readExactly(handle, bytes, 0, path)
    const magic = readPickle(bytes, path)
    if (magic.value !== MAGIC)
      throw new SepconvError('ERR_FORMAT', `${path} is a pickle, but none that torch.save wrote`, {
        subject: path,
        hint: 'Save weights with torch.save(model.state_dict(), …) or as safetensors',
      })
    const protocol = readPickle(bytes, path, magic.end)
    if (protocol.value !== PROTOCOL)
      throw new SepconvError('ERR_FORMAT', `${path}: protocol ${String(protocol.value)} of torch.save is not known`, { subject: path })
    const machine = readPickle(bytes, path, protocol.end)
    if (machine.value instanceof Map && machine.value.get('little_endian') === false)
      throw new SepconvError('ERR_FORMAT', `${path} was written on a big-endian machine`, { subject: path })
    const { value, end, storages } = readPickle(bytes, path, machine.end)
    const keys = readPickle(bytes, path, end)
    if (!Array.isArray(keys.value)) throw new SepconvError('ERR_FORMAT', `${path}: the list of storages is no list`, { subject: path })
    return pytorchFile(path, handle, value, await legacyExtents(path, handle, keys, size, storages))
  } catch (error) {
    await handle?.close().catch(() => {})
    throw fileError(error, path, 'read')
  }
}

async function legacyExtents(
  path: string,
  handle: FileHandle,
  keys: Unpickled,
  size: number,
  storages: Unpickled['storages'],
): Promise<Map<string, Extent>> {
  const extents = new Map<string, Extent>()
  const head = new Uint8Array(8)
  let at = keys.end
  for (const key of keys.value as Pickled[]) {
    const storage = typeof key === 'string' ? storages.get(key) : undefined
    if (!storage) throw new SepconvError('ERR_FORMAT', `${path}: the list of storages names one that no tensor has`, { subject: path })
    if (size - at < 8) throw new SepconvError('ERR_FILE', `${path} ends before storage '${storage.key.slice(0, 80)}'`, { subject: path })
    await readExactly(handle, head, at, path)
    const elements = Number(new DataView(head.buffer).getBigInt64(0, true))
    const byteLength = elements * STORAGE_BYTES[storage.dtype]
    if (!(elements >= 0 && at + 8 + byteLength <= size))
      throw new SepconvError(
        'ERR_FILE',
        `${path}: storage '${storage.key.slice(0, 80)}' of ${elements} elements reaches beyond the end of the file`,
        { subject: path, hint: 'The file is truncated: copy or download it again' },
      )
    extents.set(storage.key, { offset: at + 8, byteLength })
    at += 8 + byteLength
  }
  return extents
}
