/**
 * The reference executor: every call runs the op's own plain loops. It exists to be obviously right, and to serve where there
 * is no native addon. bfloat16 is widened before and rounded after each call, so loops see float32 only.
 */

import { SepconvError } from '../../errors.js'
import { type HostTensor, opDefinition } from '../../graph/op.js'
import type { Target } from '../../graph/target.js'
import { elements, typedArray } from '../../graph/types.js'
import type { Binding, DeviceMemory, Executor, LoadedProgram, RunOptions } from '../executor.js'
import type { Call, Program, ProgramBuffer } from '../program.js'
import { fromBfloat16, toBfloat16 } from '../tensor.js'

/** Fuses and packs nothing: one call per op, as the model was written. */
export const referenceTarget: Target = {
  name: 'reference',
  dtypes: ['float32', 'bfloat16', 'int32', 'uint8'],
  // What is computed more exactly than asked for.
  tensorFloat: true,
  cacheBytes: 0,
  panel: 0,
  fusesSeparable: () => false,
  workspaceBytes: () => 0,
}

class HostMemory implements DeviceMemory {
  disposed = false
  buffer: ArrayBuffer
  constructor(
    readonly executor: ReferenceExecutor,
    readonly bytes: number,
  ) {
    this.buffer = new ArrayBuffer(bytes)
    executor.count(bytes)
  }
  dispose(): void {
    if (this.disposed) return
    this.disposed = true
    this.executor.count(-this.bytes)
    this.buffer = new ArrayBuffer(0)
  }
}

export class ReferenceExecutor implements Executor {
  readonly name = 'reference'
  readonly target = referenceTarget
  /** Runs and reads happen one after the other. */
  queue: Promise<unknown> = Promise.resolve()
  #arena = new ArrayBuffer(0)
  #allocated = 0
  #peak = 0

  count(bytes: number): void {
    this.#allocated += bytes
    this.#peak = Math.max(this.#peak, this.#allocated + this.#arena.byteLength)
  }

  arena(bytes: number): ArrayBuffer {
    if (this.#arena.byteLength < bytes) {
      this.#arena = new ArrayBuffer(bytes)
      this.count(0)
    }
    return this.#arena
  }

  allocate(bytes: number): DeviceMemory {
    return new HostMemory(this, bytes)
  }

  write(memory: DeviceMemory, offset: number, bytes: Uint8Array): void {
    new Uint8Array((memory as HostMemory).buffer, offset, bytes.length).set(bytes)
  }

  async read(memory: DeviceMemory, offset: number, bytes: Uint8Array): Promise<void> {
    const { buffer } = memory as HostMemory
    await this.queue
    bytes.set(new Uint8Array(buffer, offset, bytes.length))
  }

  readSync(memory: DeviceMemory, offset: number, bytes: Uint8Array): void {
    bytes.set(new Uint8Array((memory as HostMemory).buffer, offset, bytes.length))
  }

  /** @param observe sees every call's inputs and outputs before the outputs are stored (verification). */
  load(program: Program, observe?: Observer): LoadedProgram {
    return new ReferenceProgram(this, program, observe)
  }

  memory() {
    return { allocated: this.#allocated, peak: this.#peak, arena: this.#arena.byteLength }
  }
}

export type Observer = (call: Call, inputs: readonly (HostTensor | null)[], outputs: readonly HostTensor[]) => void

interface Place {
  readonly buffer: ArrayBufferLike
  readonly offset: number
}

class ReferenceProgram implements LoadedProgram {
  readonly #bound = new Map<number, Place>()

  constructor(
    private readonly executor: ReferenceExecutor,
    readonly program: Program,
    private readonly observe?: Observer,
  ) {
    for (const call of program.calls) opDefinition(call.kernel)
    program.buffers.forEach((buffer, i) => {
      if (buffer.data === undefined) return
      const bytes = Uint8Array.from(Buffer.from(buffer.data, 'base64'))
      this.#bound.set(i, { buffer: bytes.buffer, offset: 0 })
    })
  }

  bind(buffer: number, binding: Binding): void {
    this.#bound.set(buffer, place(binding))
  }

  run(inputs: readonly Binding[], outputs: readonly Binding[], options: RunOptions = {}): Promise<void> {
    const places = this.#places(inputs, outputs, this.executor.arena(this.program.arenaBytes))
    const work = this.executor.queue.then(async () => {
      let since = performance.now()
      for (const [i, call] of this.program.calls.entries()) {
        if (i <= this.program.updateStart) options.signal?.throwIfAborted()
        if (performance.now() - since > 10) {
          await new Promise(setImmediate)
          since = performance.now()
        }
        this.#call(call, places)
      }
    })
    this.executor.queue = work.catch(() => undefined)
    return work
  }

  runSync(inputs: readonly Binding[], outputs: readonly Binding[]): void {
    // A queued run may be half way through the shared arena, so this one has its own.
    const places = this.#places(inputs, outputs, new ArrayBuffer(this.program.arenaBytes))
    for (const call of this.program.calls) this.#call(call, places)
  }

  elapsed(inputs: readonly Binding[], outputs: readonly Binding[]): number {
    const since = performance.now()
    this.runSync(inputs, outputs)
    return (performance.now() - since) * 1e6
  }

  profile(inputs: readonly Binding[], outputs: readonly Binding[]): Float64Array {
    const places = this.#places(inputs, outputs, new ArrayBuffer(this.program.arenaBytes))
    return Float64Array.from(this.program.calls, (call) => {
      const start = process.hrtime.bigint()
      this.#call(call, places)
      return Number(process.hrtime.bigint() - start)
    })
  }

  dispose(): void {
    this.#bound.clear()
  }

  /** Where each buffer is in this run. Resolved at the start, so that later disposal or binding does not reach into it. */
  #places(inputs: readonly Binding[], outputs: readonly Binding[], arena: ArrayBuffer): (Place | undefined)[] {
    const { program } = this
    const places = program.buffers.map((buffer, i) =>
      buffer.place === 'arena' ? { buffer: arena, offset: buffer.offset! } : this.#bound.get(i),
    )
    program.inputs.forEach((index, i) => (places[index] = place(inputs[i]!)))
    program.outputs.forEach((index, i) => (places[index] = place(outputs[i]!)))
    program.buffers.forEach((buffer, i) => {
      if (buffer.view !== undefined) places[i] = places[buffer.view]
    })
    return places
  }

  #call(call: Call, places: readonly (Place | undefined)[]): void {
    const { buffers } = this.program
    const at = (index: number): Place => {
      const found = places[index]
      if (!found)
        throw new SepconvError(
          'ERR_INTERNAL',
          `${call.scope || call.kernel}: buffer ${index} (${buffers[index]!.place} '${buffers[index]!.name ?? ''}') was never bound`,
        )
      return found
    }
    const inputs = call.inputs.map((index) => (index === null ? null : widen(buffers[index]!, at(index))))
    // Outputs may share memory with inputs (in place): loops always write into fresh, zero-filled arrays.
    const outputs = call.outputs.map((index) => fresh(buffers[index]!))
    opDefinition(call.kernel).reference({ inputs, outputs, attributes: call.attributes })
    this.observe?.(call, inputs, outputs)
    call.outputs.forEach((index, i) => store(outputs[i]!, buffers[index]!, at(index)))
  }
}

const place = ({ memory, offset }: Binding): Place => ({ buffer: (memory as HostMemory).buffer, offset })

function widen(buffer: ProgramBuffer, { buffer: memory, offset }: Place): HostTensor {
  const { shape, dtype } = buffer
  const data = typedArray(dtype, memory, offset, elements(shape))
  return dtype === 'bfloat16' ? { shape, dtype, data: Float32Array.from(data, fromBfloat16) } : { shape, data: data as Float32Array }
}

function fresh({ shape, dtype }: ProgramBuffer): HostTensor {
  const length = elements(shape)
  if (dtype === 'bfloat16') return { shape, dtype, data: new Float32Array(length) }
  return { shape, data: dtype === 'int32' ? new Int32Array(length) : dtype === 'uint8' ? new Uint8Array(length) : new Float32Array(length) }
}

function store({ data }: HostTensor, { dtype }: ProgramBuffer, { buffer, offset }: Place): void {
  const target = typedArray(dtype, buffer, offset, data.length)
  if (dtype === 'bfloat16') data.forEach((x, i) => (target[i] = toBfloat16(x)))
  else target.set(data)
}
