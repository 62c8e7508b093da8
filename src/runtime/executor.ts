/**
 * The narrow interface behind which every device stands. An executor moves bytes and runs programs; it knows nothing of
 * graphs or models. Runs on one executor complete in the order in which they were started.
 */

import type { Target } from '../graph/target.js'
import type { Program } from './program.js'

/** A block of device memory, 64-byte aligned. */
export interface DeviceMemory {
  readonly bytes: number
  readonly executor: Executor
  readonly disposed: boolean
  /** Gives the block back at once; runs in flight that use it keep it alive until they end. */
  dispose(): void
}

/** The memory behind one buffer of a program. */
export interface Binding {
  readonly memory: DeviceMemory
  /** Bytes from the start of the block. */
  readonly offset: number
  /**
   * Of a state: runs may give its pages back to the system once their last call that reads it is done; its content is then
   * undefined. Only where the executor says `consumes`.
   */
  readonly consumed?: boolean
}

/** Options of one run. */
export interface RunOptions {
  /** Obeyed before the first call that writes state, never after; the run then rejects with the signal's reason. */
  signal?: AbortSignal
}

/** A program made ready on a device. */
export interface LoadedProgram {
  readonly program: Program
  /** Binds a `state` or `prepared` buffer (an index into `program.buffers`) until it is bound anew. */
  bind(buffer: number, binding: Binding): void
  /** Starts a run and resolves when it is complete; never blocks the event loop. */
  run(inputs: readonly Binding[], outputs: readonly Binding[], options?: RunOptions): Promise<void>
  /** The same on the calling thread: for benchmarks and workers. */
  runSync(inputs: readonly Binding[], outputs: readonly Binding[]): void
  /** Nanoseconds per call of the program, in order, of one more run on the given memory (for profiles and benchmarks). */
  profile(inputs: readonly Binding[], outputs: readonly Binding[]): Float64Array
  /** Nanoseconds of one more run as {@link runSync} does it, by the device's own clock where it has one. */
  elapsed(inputs: readonly Binding[], outputs: readonly Binding[]): number
  /** Unloads it; runs in flight end first. */
  dispose(): void
}

/** A device that is open. */
export interface Executor {
  /** `reference`, `cpu`, `cuda:0`, … */
  readonly name: string
  /** What passes and planner may know of it. */
  readonly target: Target
  /** Whether it obeys `consumed` (the host's memory, where pages can be given back). */
  readonly consumes?: boolean
  /** Uninitialised memory; throws ERR_MEMORY with what was asked for and what is free. */
  allocate(bytes: number): DeviceMemory
  /** Copies bytes into device memory; ordered after earlier runs and before later ones. */
  write(memory: DeviceMemory, offset: number, bytes: Uint8Array): void
  /** Copies bytes out once every earlier run is complete. */
  read(memory: DeviceMemory, offset: number, bytes: Uint8Array): Promise<void>
  /** {@link read} on the calling thread. */
  readSync(memory: DeviceMemory, offset: number, bytes: Uint8Array): void
  /** A view of a block's bytes where the host can see device memory, detached when the block is disposed. */
  buffer?(memory: DeviceMemory): ArrayBuffer
  /** Makes a program ready to run. @throws ERR_FORMAT for a damaged program, ERR_MEMORY. */
  load(program: Program): LoadedProgram
  /** Bytes now allocated and the highest since the start, the shared arena included. */
  memory(): { readonly allocated: number; readonly peak: number; readonly arena: number }
}
