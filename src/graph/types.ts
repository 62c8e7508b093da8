/** Element types and static shapes: the only types that values in a graph have. */

import { SepconvError } from '../errors.js'

/** `bfloat16` is a storage type: kernels accumulate in float32. */
export type DType = 'float32' | 'bfloat16' | 'int32' | 'uint8'

/** Sizes of the axes, row-major: the last axis is the one whose elements are next to each other. */
export type Shape = readonly number[]

/** What is known of a tensor before anything runs. */
export interface TensorType {
  readonly shape: Shape
  readonly dtype: DType
}

/** Elements in host memory; bfloat16 as its bits in a Uint16Array. */
export type TypedArray = Float32Array | Uint16Array | Int32Array | Uint8Array

const BYTES: Record<DType, number> = { float32: 4, bfloat16: 2, int32: 4, uint8: 1 }

export const bytesPerElement = (dtype: DType): number => BYTES[dtype]
export const elements = (shape: Shape): number => shape.reduce((product, size) => product * size, 1)
export const byteLength = (type: TensorType): number => elements(type.shape) * BYTES[type.dtype]
export const sameShape = (a: Shape, b: Shape): boolean => a.length === b.length && a.every((size, i) => size === b[i])
export const sameType = (a: TensorType, b: TensorType): boolean => a.dtype === b.dtype && sameShape(a.shape, b.shape)
export const formatShape = (shape: Shape): string => `[${shape.join(', ')}]`
export const formatType = (type: TensorType): string => `${type.dtype}${formatShape(type.shape)}`

/** A typed array over `bytes` of `buffer`; bfloat16 is seen as its 16 bits. */
export function typedArray(dtype: DType, buffer: ArrayBufferLike, offset: number, length: number): TypedArray {
  switch (dtype) {
    case 'float32':
      return new Float32Array(buffer, offset, length)
    case 'bfloat16':
      return new Uint16Array(buffer, offset, length)
    case 'int32':
      return new Int32Array(buffer, offset, length)
    case 'uint8':
      return new Uint8Array(buffer, offset, length)
  }
}

/** Throws `ERR_SHAPE` unless every size is a whole number of at least one. */
export function checkShape(subject: string, shape: Shape): void {
  if (!Array.isArray(shape) || shape.some((size) => !Number.isInteger(size) || size < 1))
    throw new SepconvError(
      'ERR_SHAPE',
      `${subject}: a shape is a list of whole numbers of at least 1, got ${Array.isArray(shape) ? formatShape(shape) : String(shape)}`,
      { subject, given: shape },
    )
}

/** The shape that NumPy's broadcasting rule gives, or `undefined` where the two do not fit. */
export function broadcastShapes(a: Shape, b: Shape): Shape | undefined {
  const rank = Math.max(a.length, b.length)
  const out: number[] = []
  for (let i = 0; i < rank; i++) {
    const x = a[a.length - rank + i] ?? 1
    const y = b[b.length - rank + i] ?? 1
    if (x !== y && x !== 1 && y !== 1) return undefined
    out.push(Math.max(x, y))
  }
  return out
}
