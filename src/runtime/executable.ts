/**
 * A compiled graph on a device: its programs loaded, its state bound, its prepared weights kept up to date. Outputs are fresh
 * tensors that no later run overwrites.
 */

import { SepconvError } from '../errors.js'
import type { Compiled } from '../graph/compile.js'
import { byteLength, formatType, type Shape, sameType, type TensorType } from '../graph/types.js'
import { now, type Variable } from '../graph/variable.js'
import type { Binding, DeviceMemory, Executor, LoadedProgram, RunOptions } from './executor.js'
import type { Program } from './program.js'
import { disposePacked, forgetPacked, keepPacked, restoreState, stateMemory } from './state.js'
import { Tensor } from './tensor.js'

/** Folded or packed weights, shared by all executables that want the same (batch sizes of one model, say). */
interface Prepared {
  readonly memory: DeviceMemory
  /** Valid while no variable behind it has a later version. */
  at: number
  users: number
}

/** Host memory of a loaded program and of each of its calls; measured: a one-op program keeps 14 KiB, a training step 2 KiB per call. */
const PROGRAM_BYTES = 12 << 10
const CALL_BYTES = 2 << 10

/** Fewest bytes of a variable that are worth giving back to the system. */
const CONSUMED_BYTES = 64 << 10

const preparedOn = new WeakMap<Executor, Map<string, Prepared>>()

/** How many live executables read a variable's own memory in their main program. */
const readers = new WeakMap<Variable, number>()

/** A compiled graph on a device; comes from `compiled.executable(…)`. */
export class Executable {
  readonly inputs: readonly { readonly name: string; readonly type: TensorType }[]
  readonly outputs: readonly { readonly name: string; readonly type: TensorType }[]
  readonly #main: LoadedProgram
  readonly #prepare: LoadedProgram | undefined
  readonly #prepared: Prepared[] = []
  readonly #preparedKeys: string[] = []
  readonly #updated: readonly Variable[]
  /** Variables that the prepare program packs as they are: its state buffer, and where the packed form goes. */
  readonly #packed: readonly { readonly buffer: number; readonly variable: Variable; readonly memory: DeviceMemory }[]
  #disposed = false

  constructor(
    readonly executor: Executor,
    readonly compiled: Compiled,
    /** How many times a run executes the program, on consecutive parts of its inputs and outputs along their first axis. */
    readonly repeat = 1,
  ) {
    const { main, prepare } = compiled
    this.#main = this.#load(compiled.main)
    this.#prepare = prepare && this.#load(prepare)
    this.#updated = compiled.graph.updates.map(({ variable }) => variable)
    const { buffers } = main.program
    const describe = (index: number) => ({
      name: buffers[index]!.name!,
      type: { shape: repeated(buffers[index]!.shape, repeat), dtype: buffers[index]!.dtype },
    })
    this.inputs = main.program.inputs.map(describe)
    this.outputs = main.program.outputs.map(describe)
    const store = this.#store()
    prepare?.program.outputs.forEach((index) => {
      const { name, bytes } = prepare.program.buffers[index]!
      let entry = store.get(name!)
      if (!entry) store.set(name!, (entry = { memory: executor.allocate(bytes), at: -1, users: 0 }))
      entry.users++
      this.#prepared.push(entry)
      this.#preparedKeys.push(name!)
    })
    this.#packed = this.#packings()
    for (const variable of main.variables.values()) readers.set(variable, (readers.get(variable) ?? 0) + 1)
    buffers.forEach((buffer, i) => {
      if (buffer.place === 'prepared' && buffer.view === undefined)
        this.#main.bind(i, { memory: store.get(buffer.name!)!.memory, offset: 0 })
    })
  }

  /** The program as plain data: print it, save it, replay it elsewhere. */
  get program(): Program {
    return this.compiled.main.program
  }

  /** The program that folds and packs weights, when there is one. */
  get prepareProgram(): Program | undefined {
    return this.compiled.prepare?.program
  }

  /** Bytes that this executable alone keeps, besides the shared arena and state: on the device, and for the program itself on the host. */
  get ownBytes(): number {
    const calls = this.program.calls.length + (this.prepareProgram?.calls.length ?? 0)
    const constants = this.program.buffers.reduce((sum, buffer) => sum + (buffer.place === 'constant' ? buffer.bytes : 0), 0)
    return (
      PROGRAM_BYTES +
      CALL_BYTES * calls +
      constants +
      this.#prepared.reduce((sum, entry) => sum + (entry.users === 1 ? entry.memory.bytes : 0), 0)
    )
  }

  /**
   * Runs the program. Runs on one device complete in the order in which they were started.
   * @throws ERR_SHAPE, ERR_DTYPE, ERR_DEVICE for inputs that do not fit; the signal's reason when aborted in time.
   */
  async run(inputs: readonly Tensor[], options: RunOptions = {}): Promise<Tensor[]> {
    options.signal?.throwIfAborted()
    const bindings = this.#check(inputs)
    const prepared = this.#refresh((program, to) => program.run([], to))
    prepared?.catch(() => this.#stale())
    restoreState(this.compiled.main.variables.values())
    const outputs = this.#allocate()
    // All are queued at once: they complete in order, and an abort is obeyed by each of them.
    const done = this.#parts(bindings, outputs).map(([from, to]) => this.#main.run(from, to, options))
    this.#written()
    try {
      await Promise.all([prepared, ...done])
    } catch (error) {
      for (const output of outputs) output.dispose()
      throw error
    }
    return outputs
  }

  /** {@link run} on the calling thread. */
  runSync(inputs: readonly Tensor[]): Tensor[] {
    return this.#runSync(inputs, (from, to) => this.#main.runSync(from, to)).outputs
  }

  /** Nanoseconds that each call of the program took in one more run. */
  profile(inputs: readonly Tensor[]): Float64Array {
    const { outputs, results } = this.#runSync(inputs, (from, to) => this.#main.profile(from, to))
    for (const output of outputs) output.dispose()
    return results.reduce((sum, part) => sum.map((time, i) => time + part[i]!))
  }

  /** Nanoseconds that one more run took, by the device's own clock where it has one. */
  elapsed(inputs: readonly Tensor[]): number {
    const { outputs, results } = this.#runSync(inputs, (from, to) => this.#main.elapsed(from, to))
    for (const output of outputs) output.dispose()
    return results.reduce((sum, part) => sum + part, 0)
  }

  /** Gives back what this executable alone keeps. A second call does nothing. */
  dispose(): void {
    if (this.#disposed) return
    this.#disposed = true
    this.#main.dispose()
    this.#prepare?.dispose()
    for (const variable of this.compiled.main.variables.values()) readers.set(variable, readers.get(variable)! - 1)
    const store = this.#store()
    this.#prepared.forEach((entry, i) => {
      if (--entry.users > 0) return
      disposePacked(entry.memory)
      store.delete(this.#preparedKeys[i]!)
    })
  }

  /** Prepared weights and state as they must be, then `runPart` for every repetition. */
  #runSync<T>(inputs: readonly Tensor[], runPart: (from: readonly Binding[], to: readonly Binding[]) => T) {
    const bindings = this.#check(inputs)
    this.#refresh((program, to) => program.runSync([], to))
    restoreState(this.compiled.main.variables.values())
    const outputs = this.#allocate()
    const results = this.#parts(bindings, outputs).map(([from, to]) => runPart(from, to))
    this.#written()
    return { outputs, results }
  }

  #load(lowered: Compiled['main']): LoadedProgram {
    const loaded = this.executor.load(lowered.program)
    for (const [index, variable] of lowered.variables) loaded.bind(index, { memory: stateMemory(variable, this.executor), offset: 0 })
    return loaded
  }

  #store(): Map<string, Prepared> {
    let store = preparedOn.get(this.executor)
    if (!store) preparedOn.set(this.executor, (store = new Map()))
    return store
  }

  /** Makes the prepared values anew when a variable behind them has changed since. @returns what `run` does, when it was called. */
  #refresh<T>(run: (program: LoadedProgram, outputs: { memory: DeviceMemory; offset: number }[]) => T): T | undefined {
    const { prepare } = this.compiled
    if (!prepare || !this.#prepare) return undefined
    const oldest = Math.min(...this.#prepared.map((entry) => entry.at))
    let changed = oldest < 0
    for (const variable of prepare.variables.values()) if (variable.version > oldest) changed = true
    if (!changed) return undefined
    restoreState(prepare.variables.values())
    const consumed = this.executor.consumes ? this.#packed.filter(({ variable }) => !readers.get(variable)) : []
    for (const { buffer, variable } of this.#packed)
      this.#prepare.bind(buffer, {
        memory: stateMemory(variable, this.executor),
        offset: 0,
        consumed: consumed.some((packing) => packing.buffer === buffer),
      })
    const result = run(
      this.#prepare,
      this.#prepared.map(({ memory }) => ({ memory, offset: 0 })),
    )
    for (const entry of this.#prepared) entry.at = now()
    for (const { variable, memory } of consumed) keepPacked(variable, memory)
    return result
  }

  /** After a prepare program that failed, which on a device that gives pages back is before its first call: no call of it allocates. */
  #stale(): void {
    for (const entry of this.#prepared) entry.at = -1
    for (const { variable, memory } of this.#packed) forgetPacked(variable, memory)
  }

  /** The calls of the prepare program that pack a variable as it is, at most through a reshape. */
  #packings() {
    const { prepare } = this.compiled
    if (!prepare) return []
    const { buffers, calls, outputs } = prepare.program
    const stored = (index: number) => buffers[index]!.view ?? index
    return calls.flatMap(({ kernel, inputs, outputs: [target] }) => {
      const buffer = kernel === 'packFilter' ? stored(inputs[0]!) : -1
      const variable = prepare.variables.get(buffer)
      const at = outputs.findIndex((index) => stored(index) === stored(target!))
      if (!variable || at < 0 || buffers[target!]!.dtype !== variable.type.dtype || buffers[buffer]!.bytes < CONSUMED_BYTES) return []
      return [{ buffer, variable, memory: this.#prepared[at]!.memory }]
    })
  }

  /** Inputs and outputs of each repetition. */
  #parts(inputs: readonly Binding[], outputs: readonly Tensor[]): (readonly [readonly Binding[], readonly Binding[]])[] {
    if (this.repeat === 1) return [[inputs, outputs.map((output) => output.binding)]]
    const { buffers, ...program } = this.program
    const part = (bindings: readonly Binding[], indices: readonly number[], at: number): Binding[] =>
      bindings.map(({ memory, offset }, i) => ({ memory, offset: offset + at * buffers[indices[i]!]!.bytes }))
    const whole = outputs.map((output) => output.binding)
    return Array.from({ length: this.repeat }, (_, at) => [part(inputs, program.inputs, at), part(whole, program.outputs, at)])
  }

  #check(inputs: readonly Tensor[]) {
    if (this.#disposed) throw new SepconvError('ERR_DISPOSED', 'the executable was used after dispose()')
    if (inputs.length !== this.inputs.length)
      throw new SepconvError(
        'ERR_ARGUMENT',
        `expected ${this.inputs.length} inputs (${this.inputs.map(({ name }) => name).join(', ')}), got ${inputs.length}`,
      )
    return inputs.map((input, i) => {
      const { name, type } = this.inputs[i]!
      if (!sameType(input.type, type))
        throw new SepconvError(
          input.dtype === type.dtype ? 'ERR_SHAPE' : 'ERR_DTYPE',
          `input '${name}': expected ${formatType(type)}, got ${formatType(input.type)}`,
          { subject: name, expected: type, given: input.type },
        )
      if (input.executor !== this.executor)
        throw new SepconvError(
          'ERR_DEVICE',
          `input '${name}' is on device '${input.device}', the program runs on '${this.executor.name}'`,
          { subject: name, expected: this.executor.name, given: input.device },
        )
      return input.binding
    })
  }

  #allocate(): Tensor[] {
    return this.outputs.map(({ type }) => new Tensor(type, this.executor.allocate(byteLength(type))))
  }

  #written(): void {
    for (const variable of this.#updated) variable.touch()
  }
}

const repeated = (shape: Shape, repeat: number): Shape => (repeat === 1 ? shape : [shape[0]! * repeat, ...shape.slice(1)])
