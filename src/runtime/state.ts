/**
 * The device memory behind variables: allocated and initialised on first use, shared by every executable on the device. Weights
 * that programs read in packed form only are kept in that form alone (`keepPacked`): packing moves values and changes none, so the
 * variable's own content comes back from it whenever somebody asks. An inference program of Xception so keeps 91 MB, not 182.
 */

import { SepconvError } from '../errors.js'
import { byteLength, elements, formatType, type TypedArray, typedArray } from '../graph/types.js'
import type { Variable } from '../graph/variable.js'
import { unpackFilter } from '../ops/packFilter.js'
import type { DeviceMemory, Executor } from './executor.js'

const memoryOf = (variable: Variable): DeviceMemory | undefined => variable.storage as DeviceMemory | undefined

/**
 * The variable's memory on `executor`, allocated and initialised when it has none yet.
 * @throws ERR_DEVICE when the variable lives on another device.
 */
export function stateMemory(variable: Variable, executor: Executor): DeviceMemory {
  const memory = memoryOf(variable)
  if (memory && memory.executor !== executor)
    throw new SepconvError(
      'ERR_DEVICE',
      `'${variable.name}' is on device '${memory.executor.name}', the program runs on '${executor.name}'`,
      {
        subject: variable.name,
        expected: executor.name,
        given: memory.executor.name,
        hint: 'Create the model on the device that it shall run on',
      },
    )
  return memory ?? place(variable, executor, initialContent(variable))
}

/** What the variable holds before anything has been written: a function of its seed and name alone. */
export function initialContent(variable: Variable): TypedArray {
  const data = new Float32Array(elements(variable.type.shape))
  variable.initializer.fill(data, variable.type.shape, { seed: variable.seed, name: variable.name })
  return variable.type.dtype === 'int32' ? Int32Array.from(data) : data
}

/** Sets a variable's content. `data` must have its element count; the device is the one it is on, or `executor`. */
export function writeState(variable: Variable, data: TypedArray, executor: Executor): void {
  forgetPacked(variable)
  if (data.length !== elements(variable.type.shape))
    throw new SepconvError('ERR_SHAPE', `'${variable.name}' is ${formatType(variable.type)}, got ${data.length} elements`, {
      subject: variable.name,
      expected: variable.type.shape,
      given: data.length,
    })
  const memory = memoryOf(variable)
  if (memory) memory.executor.write(memory, 0, new Uint8Array(data.buffer, data.byteOffset, data.byteLength))
  else place(variable, executor, data)
  variable.touch()
}

/**
 * Sets a float32 variable to what `fill` puts into an array. On its first content that array is the variable's own memory, where the
 * host can see it: weights then go from the file to their place without a copy. What is in use is only written when it is complete.
 */
export async function fillState(variable: Variable, executor: Executor, fill: (data: Float32Array) => Promise<void>): Promise<void> {
  const count = elements(variable.type.shape)
  if (memoryOf(variable) || !executor.buffer) {
    const data = new Float32Array(count)
    await fill(data)
    writeState(variable, data, executor)
    return
  }
  const memory = executor.allocate(byteLength(variable.type))
  try {
    const data = new Float32Array(executor.buffer(memory), 0, count)
    await fill(data)
    if (memoryOf(variable)) {
      // A run began meanwhile, with the initial content.
      writeState(variable, data, executor)
      memory.dispose()
    } else variable.storage = memory
  } catch (error) {
    memory.dispose()
    throw error
  }
  variable.touch()
}

/** A copy of a variable's content, once every run that writes it is complete. */
export async function readState(variable: Variable): Promise<TypedArray> {
  const memory = memoryOf(variable)
  if (!memory) return initialContent(variable)
  const packed = packedOf.get(variable)
  if (packed) return unpacked(variable, packed)
  const bytes = new Uint8Array(byteLength(variable.type))
  await memory.executor.read(memory, 0, bytes)
  return typedArray(variable.type.dtype, bytes.buffer, 0, elements(variable.type.shape))
}

/** Gives the memory back; the next use starts from the initial content again. */
export function releaseState(variable: Variable): void {
  forgetPacked(variable)
  memoryOf(variable)?.dispose()
  variable.storage = undefined
}

function place(variable: Variable, executor: Executor, data: TypedArray): DeviceMemory {
  const memory = executor.allocate(byteLength(variable.type))
  executor.write(memory, 0, new Uint8Array(data.buffer, data.byteOffset, data.byteLength))
  variable.storage = memory
  variable.touch()
  return memory
}

/** Where the content of variables is that lost their own pages. */
const packedOf = new Map<Variable, DeviceMemory>()
/** Packed memory that nobody but `packedOf` keeps. */
const orphans = new Set<DeviceMemory>()

/** Notes that the variable's own pages are given back, and that `packed` (by packFilter) holds what they held. */
export function keepPacked(variable: Variable, packed: DeviceMemory): void {
  packedOf.set(variable, packed)
}

/** Puts the content back into the variables' own memory, for programs that read it. */
export function restoreState(variables: Iterable<Variable>): void {
  if (packedOf.size === 0) return
  for (const variable of variables) {
    const packed = packedOf.get(variable)
    if (!packed) continue
    const content = unpacked(variable, packed)
    const memory = memoryOf(variable)!
    memory.executor.write(memory, 0, new Uint8Array(content.buffer))
    forgetPacked(variable)
  }
}

/** Disposes packed weights, unless they are all that is left of a variable: then with it. */
export function disposePacked(memory: DeviceMemory): void {
  if (Array.from(packedOf.values()).includes(memory)) orphans.add(memory)
  else memory.dispose()
}

/** The variable's content is in its own memory. With `memory` only where it was said to be there. */
export function forgetPacked(variable: Variable, memory?: DeviceMemory): void {
  const packed = packedOf.get(variable)
  if (!packed || (memory && memory !== packed)) return
  packedOf.delete(variable)
  if (orphans.delete(packed)) packed.dispose()
}

/** [..., n] out of panels [ceil(n / panel), k, panel]. */
function unpacked(variable: Variable, packed: DeviceMemory): Float32Array {
  const { shape } = variable.type
  const n = shape.at(-1)!
  const k = elements(shape) / n
  const { panel } = packed.executor.target
  const data = new Float32Array(Math.ceil(n / panel) * k * panel)
  packed.executor.readSync(packed, 0, new Uint8Array(data.buffer))
  return unpackFilter({ shape: [Math.ceil(n / panel), k, panel], data }, k, n)
}
