/** Single calls on an executor of the addon, emulated or real. Every output starts as NaN, so that nothing passes by not being written. */

import type { Attributes } from '../../src/graph/graph.js'
import { opDefinition } from '../../src/graph/op.js'
import { byteLength, type TensorType } from '../../src/graph/types.js'
import type { NativeExecutor, NativeMemory } from '../../src/runtime/native.js'
import type { Call, Program, ProgramBuffer } from '../../src/runtime/program.js'
import { bfloat16ToFloat32, float32ToBfloat16 } from '../../src/weights/half.js'
import type { Filled } from '../helpers.js'

const bytesOf = (array: { readonly buffer: ArrayBufferLike; readonly byteOffset: number; readonly byteLength: number }) =>
  new Uint8Array(array.buffer, array.byteOffset, array.byteLength)

/** Bytes of values in their dtype. */
export function encode({ type, data }: Filled): Uint8Array {
  const source = Array.from(data)
  if (type.dtype === 'bfloat16') {
    const halves = new Uint16Array(source.length)
    float32ToBfloat16(Float32Array.from(source), halves)
    return bytesOf(halves)
  }
  return bytesOf(
    type.dtype === 'int32' ? Int32Array.from(source) : type.dtype === 'uint8' ? Uint8Array.from(source) : Float32Array.from(source),
  )
}

export function upload(executor: NativeExecutor, tensor: Filled): NativeMemory {
  const bytes = encode(tensor)
  const memory = executor.allocate(bytes.length)
  executor.write(memory, 0, bytes)
  return memory
}

/** Memory whose floats are NaN. */
export function poisoned(executor: NativeExecutor, bytes: number): NativeMemory {
  const memory = executor.allocate(bytes)
  executor.write(memory, 0, new Uint8Array(bytes).fill(0xff))
  return memory
}

export function download(executor: NativeExecutor, memory: NativeMemory, bytes = memory.bytes): Uint8Array {
  const result = new Uint8Array(bytes)
  executor.read(memory, 0, result)
  return result
}

/** Bytes of float32 or bfloat16 as float32. */
export function decode(type: TensorType, bytes: Uint8Array): Float32Array {
  if (type.dtype !== 'bfloat16') return floats(bytes)
  const values = new Float32Array(bytes.length / 2)
  bfloat16ToFloat32(new Uint16Array(bytes.buffer, bytes.byteOffset, values.length), values)
  return values
}

export const floats = (bytes: Uint8Array): Float32Array => new Float32Array(bytes.buffer, bytes.byteOffset, bytes.byteLength / 4)

/** The output types of an op by its own shape rule. */
export const inferred = (kernel: string, inputs: readonly (Filled | null)[], attributes: Attributes): TensorType[] =>
  opDefinition(kernel).infer(
    inputs.map((input) => (input === null ? null : input.type)),
    attributes,
  )

export const buffer = (place: ProgramBuffer['place'], type: TensorType, extra: Partial<ProgramBuffer> = {}): ProgramBuffer => ({
  place,
  dtype: type.dtype,
  shape: type.shape,
  bytes: byteLength(type),
  ...extra,
})

/** A program of one call, from program inputs to program outputs. */
export function singleCall(
  executor: NativeExecutor,
  kernel: string,
  inputs: readonly (TensorType | null)[],
  outputs: readonly TensorType[],
  attributes: Attributes,
): Program {
  const buffers: ProgramBuffer[] = []
  const place = (type: TensorType, where: 'input' | 'output') =>
    buffers.push(buffer(where, type, { name: `${where}${buffers.length}` })) - 1
  const from = inputs.map((type) => type && place(type, 'input'))
  const to = outputs.map((type) => place(type, 'output'))
  const bytes = executor.workspaceBytes(kernel, inputs, outputs, attributes)
  const call: Call = { kernel, inputs: from, outputs: to, attributes, scope: 'test', workspace: { offset: 0, bytes } }
  const present = from.filter((index) => index !== null)
  return {
    format: 'sepconv-program',
    version: 1,
    target: 'cuda',
    buffers,
    calls: [call],
    inputs: present,
    outputs: to,
    arenaBytes: bytes,
    updateStart: 1,
  }
}

/** Runs one call and gives the bytes of its outputs. */
export function runCall(
  executor: NativeExecutor,
  kernel: string,
  inputs: readonly (Filled | null)[],
  attributes: Attributes,
  outputs: readonly TensorType[] = inferred(kernel, inputs, attributes),
): Uint8Array[] {
  const program = executor.load(
    singleCall(
      executor,
      kernel,
      inputs.map((input) => (input === null ? null : input.type)),
      outputs,
      attributes,
    ),
  )
  const from = inputs.filter((input) => input !== null).map((input) => upload(executor, input))
  const to = outputs.map((type) => poisoned(executor, byteLength(type)))
  try {
    program.runSync(
      from,
      from.map(() => 0),
      to,
      to.map(() => 0),
    )
    return to.map((memory) => download(executor, memory))
  } finally {
    for (const memory of [...from, ...to]) memory.dispose()
    program.dispose()
  }
}
