/**
 * The CUDA executor without a GPU: loads the emulator's addon (built first where it is missing or out of date) and runs single
 * calls on it. Every output starts as NaN, so that nothing passes by not being written.
 */

import { spawnSync } from 'node:child_process'
import { join } from 'node:path'
import type { Attributes } from '../../src/graph/graph.js'
import { opDefinition } from '../../src/graph/op.js'
import { byteLength, type TensorType } from '../../src/graph/types.js'
import {
  type NativeAddon,
  type NativeExecutor,
  type NativeExecutorInfo,
  type NativeMemory,
  packageRoot,
  requireNative,
} from '../../src/runtime/native.js'
import type { Call, Program, ProgramBuffer } from '../../src/runtime/program.js'
import { bfloat16ToFloat32, float32ToBfloat16 } from '../../src/weights/half.js'
import type { Filled } from '../helpers.js'

/** Traffic of all launches of one name. */
export interface Account {
  readonly launches: number
  readonly bytesRead: number
  readonly bytesWritten: number
  /** Passes that shared-memory instructions took, and what they would have taken without bank conflicts. */
  readonly sharedPasses: number
  readonly sharedMinimum: number
  /** Passes beyond the minimum, by place in the source. */
  readonly conflicts: Readonly<Record<string, number>>
}

interface Emulator extends NativeAddon {
  /** The variant and tiles that the CUDA executor chooses on a GPU with that many multiprocessors. */
  describeKernel(
    kernel: string,
    inputs: readonly (TensorType | null)[],
    outputs: readonly TensorType[],
    attributes: Attributes,
    multiprocessors: number,
  ): string
  /** What the executor 'emulator:counting' has counted since the last call, by name of the launch. */
  takeAccounts(): Record<string, Account>
  /** What the real addon says when the runtime reports this; versions as CUDA writes them, 13000 being 13.0. */
  explainNoDevice(error: number, errorText: string, driverVersion: number, runtimeVersion: number): NativeExecutorInfo
}

// At import, which no test's time limit counts: under a minute the first time, half a second when nothing has changed.
// Under AddressSanitizer, some five times slower:
//   LD_PRELOAD=$(g++ -print-file-name=libasan.so) ASAN_OPTIONS=detect_leaks=0 SEPCONV_EMULATOR=--sanitize npx vitest run test/cuda
const flags = process.env.SEPCONV_EMULATOR?.split(' ') ?? []
const { status, stdout, stderr } = spawnSync(process.execPath, [join(packageRoot, 'scripts/build-emulator.mjs'), ...flags], {
  encoding: 'utf8',
})
if (status !== 0) throw new Error(`the emulator was not built:\n${stderr}`)
process.env.SEPCONV_NATIVE = stdout.trim()

/** The addon, which in this process stands for sepconv's own. */
export const emulator = (): Emulator => requireNative() as Emulator

/** Multiprocessors of the emulated device (native/emulator/driver_emulated.cc): few, so that small shapes reach the large tiles. */
export const MULTIPROCESSORS = 2

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
