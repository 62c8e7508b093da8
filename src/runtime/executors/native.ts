/**
 * The executors of the native addon behind the interface of runtime/executor.ts: `cpu` and `cuda:<index>`. Only translation: no
 * device is touched before it is opened, and errors arrive as SepconvError with the code that the addon gave them.
 */

import { availableParallelism } from 'node:os'
import { type ErrorCode, SepconvError } from '../../errors.js'
import { separablePays } from '../../graph/separableCost.js'
import { strassenPays } from '../../graph/strassenCost.js'
import type { SeparableShape, Target } from '../../graph/target.js'
import type { DType } from '../../graph/types.js'
import type { Binding, DeviceMemory, Executor, LoadedProgram, RunOptions } from '../executor.js'
import {
  describeFailures,
  loadNative,
  type NativeExecutor,
  type NativeExecutorInfo,
  type NativeMemory,
  type NativeProgram,
  requireNative,
} from '../native.js'
import type { Program } from '../program.js'
import { tunedDevice, Tuner, tuningKey } from '../tuner.js'

/** Calls into the addon; its errors become SepconvErrors whose stack is the caller's. */
function native<T>(call: () => T): T {
  try {
    return call()
  } catch (error) {
    throw translated(error)
  }
}

/** An error of the addon with its code as a SepconvError; anything else as it is. */
export function translated(error: unknown): unknown {
  const code = (error as { code?: unknown } | null)?.code
  if (error instanceof SepconvError || !(error instanceof Error) || typeof code !== 'string' || !code.startsWith('ERR_')) return error
  return new SepconvError(code as ErrorCode, error.message, { cause: error })
}

class NativeDeviceMemory implements DeviceMemory {
  #disposed = false

  constructor(
    readonly executor: NativeDeviceExecutor,
    readonly bytes: number,
    readonly handle: NativeMemory,
  ) {}

  get disposed(): boolean {
    return this.#disposed
  }

  dispose(): void {
    if (this.#disposed) return
    this.#disposed = true
    this.handle.dispose()
  }
}

/** The addon's own object behind a block of memory. */
function handleOf(memory: DeviceMemory, executor: Executor): NativeMemory {
  if (memory.executor !== executor)
    throw new SepconvError('ERR_DEVICE', `memory of ${memory.executor.name} was given to ${executor.name}`, {
      expected: executor.name,
      given: memory.executor.name,
      hint: 'Copy the tensor to that device first',
    })
  return (memory as NativeDeviceMemory).handle
}

class NativeLoadedProgram implements LoadedProgram {
  readonly #handle: NativeProgram
  #tickets = 0

  constructor(
    readonly executor: NativeDeviceExecutor,
    readonly program: Program,
  ) {
    const buffers = program.buffers.map((buffer) =>
      buffer.place === 'constant' && buffer.view === undefined
        ? { ...buffer, data: new Uint8Array(Buffer.from(buffer.data ?? '', 'base64')) }
        : buffer,
    )
    this.#handle = native(() => executor.handle.load({ ...program, buffers }))
  }

  bind(buffer: number, { memory, offset, consumed = false }: Binding): void {
    native(() => this.#handle.bind(buffer, handleOf(memory, this.executor), offset, consumed))
  }

  async run(inputs: readonly Binding[], outputs: readonly Binding[], { signal }: RunOptions = {}): Promise<void> {
    const [inputMemories, inputOffsets, outputMemories, outputOffsets] = [
      this.#memories(inputs),
      offsets(inputs),
      this.#memories(outputs),
      offsets(outputs),
    ]
    try {
      if (!signal) {
        await this.#handle.run(inputMemories, inputOffsets, outputMemories, outputOffsets)
        return
      }
      signal.throwIfAborted()
      const ticket = ++this.#tickets
      const abort = () => this.#handle.abort(ticket)
      signal.addEventListener('abort', abort, { once: true })
      try {
        if (!(await this.#handle.run(inputMemories, inputOffsets, outputMemories, outputOffsets, ticket))) throw signal.reason
      } finally {
        signal.removeEventListener('abort', abort)
      }
    } catch (error) {
      throw translated(error)
    }
  }

  runSync(inputs: readonly Binding[], outputs: readonly Binding[]): void {
    native(() => this.#handle.runSync(this.#memories(inputs), offsets(inputs), this.#memories(outputs), offsets(outputs)))
  }

  profile(inputs: readonly Binding[], outputs: readonly Binding[]): Float64Array {
    return native(() => this.#handle.profile(this.#memories(inputs), offsets(inputs), this.#memories(outputs), offsets(outputs)))
  }

  elapsed(inputs: readonly Binding[], outputs: readonly Binding[]): number {
    return native(() => this.#handle.elapsed(this.#memories(inputs), offsets(inputs), this.#memories(outputs), offsets(outputs)))
  }

  dispose(): void {
    this.#handle.dispose()
  }

  #memories(bindings: readonly Binding[]): NativeMemory[] {
    return bindings.map(({ memory }) => handleOf(memory, this.executor))
  }
}

const offsets = (bindings: readonly Binding[]): number[] => bindings.map(({ offset }) => offset)

/** What passes may know of a GPU, the same for all of them. @param workspaceBytes default: none, for programs that are planned and not loaded. */
export const cudaTarget = (workspaceBytes: Target['workspaceBytes'] = () => 0): Target => ({
  name: 'cuda',
  dtypes: ['float32', 'bfloat16'],
  cacheBytes: 0,
  panel: 0,
  tensorFloat: true,
  fusesAverage: true,
  fusesDepthwiseGradients: ['float32', 'bfloat16'],
  fusesSeparable: (shape: SeparableShape) => separablePays(shape, false),
  recomputesSeparable: (shape: SeparableShape) => separablePays(shape, true),
  workspaceBytes,
})

/** Any executor of the addon. */
export class NativeDeviceExecutor implements Executor {
  readonly name: string
  readonly target: Target
  readonly consumes: boolean
  readonly handle: NativeExecutor

  constructor(name: string, options: NativeOptions = {}) {
    const addon = requireNative()
    this.name = name
    this.consumes = name === 'cpu'
    this.handle = native(() => addon.openExecutor(name, options))
    const info = this.handle.info()
    const { panel = 0, dtypes = ['float32'], cacheBytes = 0 } = info
    // What was measured is used; nothing is measured unasked, and `0` leaves all to the rule, with the same bits everywhere.
    const tuning = process.env.SEPCONV_TUNE
    const tuner =
      name !== 'cpu' && tuning !== '0'
        ? new Tuner(this.handle, { key: tuningKey(info), device: tunedDevice(info), measures: tuning === '1' })
        : undefined
    const workspaceBytes: Target['workspaceBytes'] = (...call) => native(() => this.handle.workspaceBytes(...call))
    this.target =
      name === 'cpu'
        ? {
            ...{ name: 'cpu', dtypes: dtypes as DType[], cacheBytes, panel, workspaceBytes },
            fusesSeparable: () => true,
            fusesDepthwiseGradients: ['float32'],
            strassenPays: (rows: number, k: number, n: number) => strassenPays(rows, k, n, panel),
          }
        : {
            ...cudaTarget(workspaceBytes),
            ...(tuner && { tile: (...call: Parameters<Tuner['tile']>) => native(() => tuner.tile(...call)) }),
          }
  }

  /** What the addon knows of the device: instruction set, threads, driver. */
  get info(): NativeExecutorInfo {
    return this.handle.info()
  }

  allocate(bytes: number): DeviceMemory {
    return new NativeDeviceMemory(
      this,
      bytes,
      native(() => this.handle.allocate(bytes)),
    )
  }

  write(memory: DeviceMemory, offset: number, bytes: Uint8Array): void {
    native(() => this.handle.write(handleOf(memory, this), offset, bytes))
  }

  async read(memory: DeviceMemory, offset: number, bytes: Uint8Array): Promise<void> {
    try {
      await this.handle.readAsync(handleOf(memory, this), offset, bytes)
    } catch (error) {
      throw translated(error)
    }
  }

  readSync(memory: DeviceMemory, offset: number, bytes: Uint8Array): void {
    native(() => this.handle.read(handleOf(memory, this), offset, bytes))
  }

  /** What rank 0 makes and all ranks join with; empty where sums over ranks need nothing of the device. @throws ERR_DEVICE without NCCL. */
  ranksId(): Uint8Array {
    return native(() => this.handle.ranksId())
  }

  /** Joins the ranks that sum over their devices, and waits for all of them. @throws ERR_RANK */
  async joinRanks(id: Uint8Array, size: number, rank: number): Promise<void> {
    try {
      await this.handle.joinRanks(id, size, rank)
    } catch (error) {
      throw translated(error)
    }
  }

  load(program: Program): LoadedProgram {
    return new NativeLoadedProgram(this, program)
  }

  memory(): { readonly allocated: number; readonly peak: number; readonly arena: number } {
    return this.handle.memory()
  }
}

/** SIMD kernels on a thread pool. */
export class NativeCpuExecutor extends NativeDeviceExecutor {
  constructor(options: NativeOptions = {}) {
    super('cpu', { ...options, threads: options.threads ?? defaultThreads(), isa: options.isa ?? defaultIsa() })
  }

  /** Number of threads that take part in a run. Results do not depend on it. */
  get threads(): number {
    return this.info.threads!
  }

  /** @throws ERR_ARGUMENT unless between 1 and 1024. Waits for runs under way. */
  setThreads(threads: number): void {
    native(() => this.handle.setThreads(threads))
  }

  /** A zero-copy view of a block's bytes; detached when the block is disposed. Runs write into it as they go. */
  buffer(memory: DeviceMemory): ArrayBuffer {
    return native(() => this.handle.buffer(handleOf(memory, this)))
  }
}

export interface NativeOptions {
  /** Default: the environment's `SEPCONV_THREADS`, else as many as the process may use. */
  threads?: number
  /** Instruction set: `avx512bf16`, `avx512`, `avx2`, `neon`, `scalar`. Default: the environment's `SEPCONV_ISA`, else the best one. */
  isa?: string
  /** Starts as many threads as asked for, however few processors there are, which costs time: for tests of many threads. Default false. */
  oversubscribe?: boolean
}

function defaultThreads(): number {
  const text = process.env.SEPCONV_THREADS
  if (!text) return availableParallelism()
  const threads = Number(text)
  if (!Number.isInteger(threads) || threads < 1 || threads > 1024)
    throw new SepconvError('ERR_ARGUMENT', `SEPCONV_THREADS must be between 1 and 1024, got '${text}'`, {
      subject: 'SEPCONV_THREADS',
      given: text,
    })
  return threads
}

function defaultIsa(): string | undefined {
  const isa = process.env.SEPCONV_ISA
  if (!isa) return undefined
  const { isas = [] } = native(() => requireNative().executors()).find(({ name }) => name === 'cpu') ?? {}
  if (!isas.includes(isa))
    throw new SepconvError('ERR_ARGUMENT', `SEPCONV_ISA='${isa}' is not available on this processor: there is ${isas.join(', ')}`, {
      subject: 'SEPCONV_ISA',
      given: isa,
      expected: isas,
    })
  return isa
}

/** Every native device, best first: what is available, then what is not, with the reason. Never throws. */
export function nativeExecutors(): NativeExecutorInfo[] {
  const { addon, source, failures } = loadNative()
  if (!addon) {
    const reason = describeFailures(failures)
    return ['cpu', 'cuda'].map((name) => ({ name, available: false, code: 'no-binary', reason }))
  }
  const rank = ({ name, available }: NativeExecutorInfo) => (available ? 0 : 2) + (name.startsWith('cuda') ? 0 : 1)
  return native(() => addon.executors())
    .map((info) => (info.available ? { ...info, source } : info))
    .sort((a, b) => rank(a) - rank(b))
}

/** Opens `cpu` or `cuda:<index>`. @throws ERR_NATIVE without an addon, ERR_DEVICE when there is no such device. */
export const openNative = (name: string, options?: NativeOptions): NativeDeviceExecutor =>
  name === 'cpu' ? new NativeCpuExecutor(options) : new NativeDeviceExecutor(name, options)
