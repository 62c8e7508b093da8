/**
 * A tensor: typed, shaped bytes in a device's memory. The bytes belong to the tensor; `dispose` (or `using`) gives them back
 * at once, garbage collection does so at some later time.
 */

import { checkOptions, SepconvError } from '../errors.js'
import { isTensor, TENSOR } from '../graph/trace.js'
import {
  byteLength,
  checkShape,
  type DType,
  elements,
  formatShape,
  type Shape,
  type TensorType,
  type TypedArray,
  typedArray,
} from '../graph/types.js'
import { type DeviceName, openDevice } from './device.js'
import type { Binding, DeviceMemory, Executor } from './executor.js'

export { isTensor }

const abandoned = new FinalizationRegistry<DeviceMemory>((memory) => memory.dispose())

/** Typed, shaped bytes on a device; {@link tensor} and every op make them. */
export class Tensor {
  readonly [TENSOR] = true
  readonly shape: Shape
  readonly dtype: DType
  readonly #memory: DeviceMemory

  /** Takes over `memory`. Users make tensors with {@link tensor}. */
  constructor(type: TensorType, memory: DeviceMemory) {
    this.shape = type.shape
    this.dtype = type.dtype
    this.#memory = memory
    abandoned.register(this, memory, memory)
  }

  /** Name of the device that holds the bytes, such as `cpu`. */
  get device(): string {
    return this.#memory.executor.name
  }

  get executor(): Executor {
    return this.#memory.executor
  }

  get type(): TensorType {
    return { shape: this.shape, dtype: this.dtype }
  }

  get disposed(): boolean {
    return this.#memory.disposed
  }

  /** For executables: where the bytes are. Throws ERR_DISPOSED after `dispose`. */
  get binding(): Binding {
    if (this.#memory.disposed)
      throw new SepconvError('ERR_DISPOSED', `tensor ${this.dtype}${formatShape(this.shape)} was used after dispose()`)
    return { memory: this.#memory, offset: 0 }
  }

  /**
   * A copy of the elements in host memory, row-major; resolves when every run that writes them is complete.
   * bfloat16 comes as its 16 bits in a Uint16Array.
   */
  async data(): Promise<TypedArray> {
    const { memory, offset } = this.binding
    const bytes = new Uint8Array(byteLength(this.type))
    await memory.executor.read(memory, offset, bytes)
    return typedArray(this.dtype, bytes.buffer, 0, elements(this.shape))
  }

  /** {@link data} on the calling thread. */
  dataSync(): TypedArray {
    const { memory, offset } = this.binding
    const bytes = new Uint8Array(byteLength(this.type))
    memory.executor.readSync(memory, offset, bytes)
    return typedArray(this.dtype, bytes.buffer, 0, elements(this.shape))
  }

  /** Gives the memory back at once. A second call does nothing. */
  dispose(): void {
    if (this.#memory.disposed) return
    abandoned.unregister(this.#memory)
    this.#memory.dispose()
  }

  /** What `using` calls. */
  [Symbol.dispose](): void {
    this.dispose()
  }
}

/** Options of {@link tensor}. */
export interface TensorOptions {
  /** Default: what the data's class says (`number[]`: float32; Uint16Array: bfloat16). */
  dtype?: DType
  /** Default `'auto'`: the best device there is. */
  device?: DeviceName
}

/**
 * Copies data to a device.
 * @param data row-major elements; plain numbers become float32 unless `dtype` says otherwise.
 * @param shape sizes of the axes, activations as [n, h, w, c]. Default: one axis.
 * @throws ERR_SHAPE when the number of elements and the shape disagree; ERR_DTYPE, ERR_DEVICE, ERR_MEMORY; ERR_ARGUMENT for
 *   unknown options.
 * @example const x = tensor(new Float32Array(19 * 19 * 728), [1, 19, 19, 728])
 */
export function tensor(data: TypedArray | readonly number[], shape?: Shape, options: TensorOptions = {}): Tensor {
  checkOptions('tensor', options, ['dtype', 'device'])
  const dtype = options.dtype ?? dtypeOf(data)
  const type = { shape: shape ?? [data.length], dtype }
  checkShape('tensor', type.shape)
  if (data.length !== elements(type.shape))
    throw new SepconvError(
      'ERR_SHAPE',
      `tensor: ${data.length} elements do not fill the shape ${formatShape(type.shape)}, which has ${elements(type.shape)}`,
      { subject: 'tensor', expected: elements(type.shape), given: data.length },
    )
  return upload(openDevice(options.device), type, convert(data, dtype))
}

/** A tensor on `executor` with the bytes of `data`, whose class must match the dtype. */
export function upload(executor: Executor, type: TensorType, data: TypedArray): Tensor {
  const memory = executor.allocate(byteLength(type))
  executor.write(memory, 0, new Uint8Array(data.buffer, data.byteOffset, data.byteLength))
  return new Tensor(type, memory)
}

function dtypeOf(data: unknown): DType {
  if (Array.isArray(data) || data instanceof Float32Array) return 'float32'
  if (data instanceof Int32Array) return 'int32'
  if (data instanceof Uint8Array || data instanceof Uint8ClampedArray) return 'uint8'
  if (data instanceof Uint16Array) return 'bfloat16'
  throw new SepconvError(
    'ERR_DTYPE',
    `tensor: expected numbers or a Float32Array, Int32Array, Uint8Array or Uint16Array (bfloat16 bits), got ${(data as object)?.constructor?.name ?? typeof data}`,
    { subject: 'tensor' },
  )
}

function convert(data: TypedArray | readonly number[], dtype: DType): TypedArray {
  if (!Array.isArray(data) && dtypeOf(data) === dtype) return data as TypedArray
  const odd = (data as readonly unknown[]).find((x) => typeof x !== 'number')
  if (odd !== undefined)
    throw new SepconvError('ERR_DTYPE', `tensor: expected numbers, got an entry of type ${Array.isArray(odd) ? 'array' : typeof odd}`, {
      subject: 'tensor',
      hint: Array.isArray(odd) ? 'Give one flat list and a shape' : undefined,
    })
  switch (dtype) {
    case 'float32':
      return Float32Array.from(data as ArrayLike<number>)
    case 'int32':
      return Int32Array.from(data as ArrayLike<number>)
    case 'uint8':
      return Uint8Array.from(data as ArrayLike<number>)
    case 'bfloat16':
      return Uint16Array.from(data as ArrayLike<number>, toBfloat16)
    default:
      throw new SepconvError('ERR_DTYPE', `tensor: unknown dtype '${String(dtype)}'`, {
        subject: 'dtype',
        expected: ['float32', 'bfloat16', 'int32', 'uint8'],
        given: dtype,
      })
  }
}

const float = new Float32Array(1)
const bits = new Uint32Array(float.buffer)

/** The bits of the bfloat16 nearest to `x`, ties to even. */
export function toBfloat16(x: number): number {
  float[0] = x
  const word = bits[0]!
  if (Number.isNaN(x)) return 0x7fc0
  return ((word + 0x7fff + ((word >>> 16) & 1)) >>> 16) & 0xffff
}

/** The value that 16 bfloat16 bits stand for. */
export function fromBfloat16(half: number): number {
  bits[0] = half << 16
  return float[0]!
}
