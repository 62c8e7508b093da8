/**
 * Finds and loads the native addon, and says what its exports are. Nothing is loaded before the first question; an addon that is
 * missing or unfit is not an error here: every attempt and its outcome is kept, for `sepconv devices` and for messages.
 */

import { existsSync, readFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { fileURLToPath } from 'node:url'
import { SepconvError } from '../errors.js'

/** Memory of a native executor. `bytes` is 0 after `dispose`. */
export interface NativeMemory {
  readonly bytes: number
  dispose(): void
}

/** A loaded program. Memories and offsets come as parallel arrays in the order of `Program.inputs` and `Program.outputs`. */
export interface NativeProgram {
  bind(buffer: number, memory: NativeMemory, offset: number, consumed?: boolean): void
  /** Resolves to `true`, or to `false` when `abort(ticket)` was obeyed. */
  run(
    inputs: readonly NativeMemory[],
    inputOffsets: readonly number[],
    outputs: readonly NativeMemory[],
    outputOffsets: readonly number[],
    ticket?: number,
  ): Promise<boolean>
  runSync(
    inputs: readonly NativeMemory[],
    inputOffsets: readonly number[],
    outputs: readonly NativeMemory[],
    outputOffsets: readonly number[],
  ): void
  /** Nanoseconds per call of one more run. */
  profile(
    inputs: readonly NativeMemory[],
    inputOffsets: readonly number[],
    outputs: readonly NativeMemory[],
    outputOffsets: readonly number[],
  ): Float64Array
  /** Nanoseconds of the device's clock that one more run takes from its first to its last call. */
  elapsed(
    inputs: readonly NativeMemory[],
    inputOffsets: readonly number[],
    outputs: readonly NativeMemory[],
    outputOffsets: readonly number[],
  ): number
  /** Asks the run with this ticket to stop before its first call that writes state. */
  abort(ticket: number): void
  dispose(): void
}

/** One device with a queue and, on a CPU, a thread pool of its own. */
export interface NativeExecutor {
  info(): NativeExecutorInfo
  allocate(bytes: number): NativeMemory
  /** A zero-copy view of host memory, detached by `dispose`. Only where the host can see the memory (cpu). */
  buffer(memory: NativeMemory): ArrayBuffer
  write(memory: NativeMemory, offset: number, bytes: Uint8Array): void
  read(memory: NativeMemory, offset: number, bytes: Uint8Array): void
  /** Nothing where a few bytes could be copied at once; else `bytes` must not be transferred before the promise is settled. */
  readAsync(memory: NativeMemory, offset: number, bytes: Uint8Array): Promise<boolean> | undefined
  workspaceBytes(kernel: string, inputs: readonly unknown[], outputs: readonly unknown[], attributes: object): number
  /** Values of the attribute `tile` among which the tuner may choose; fewer than two: there is no choice. */
  tiles(kernel: string, inputs: readonly unknown[], outputs: readonly unknown[], attributes: object): string[]
  load(program: object): NativeProgram
  /** What one rank makes and all join with, where sums over the ranks of a job take a library of the device; else nothing. */
  ranksId(): Uint8Array
  joinRanks(id: Uint8Array, size: number, rank: number): Promise<unknown>
  memory(): { allocated: number; peak: number; arena: number }
  setThreads(threads: number): void
}

/** A device, or the reason why there is none. */
export interface NativeExecutorInfo {
  readonly name: string
  readonly available: boolean
  /** Where unavailable: `no-driver`, `no-device`, `driver-too-old`, `no-kernel-image`, `not-built`. */
  readonly code?: string
  readonly reason?: string
  /** Columns per panel of a packed right-hand operand. */
  readonly panel?: number
  /** Bytes of the last-level cache. */
  readonly cacheBytes?: number
  /** Storage types of activations and weights. */
  readonly dtypes?: readonly string[]
  readonly isa?: string
  readonly isas?: readonly string[]
  readonly threads?: number
  readonly [property: string]: unknown
}

/** The CUDA executor's choice for one call. */
export interface KernelChoice {
  /** Variant, tile and splits, such as `'bfloat16 192x184 wgmma'`; empty where there is no choice. */
  readonly description: string
  /** Values of the attribute `tile` that would serve the call. */
  readonly tiles: string[]
  /** Scratch that its launches hand to each other. */
  readonly workspaceBytes: number
}

export interface NativeAddon {
  readonly version: string
  executors(): NativeExecutorInfo[]
  /** NVIDIA's libraries (NCCL, and what benchmarks can measure): version, or the reason why it was not found. Empty in a build without CUDA. */
  cudaLibraries(): { readonly name: string; readonly version?: string; readonly reason?: string }[]
  /** What is chosen for a call on a GPU of that many multiprocessors and compute capability (default 8), which need not be there. */
  describeKernel(
    kernel: string,
    inputs: readonly unknown[],
    outputs: readonly unknown[],
    attributes: object,
    multiprocessors: number,
    major?: number,
  ): KernelChoice
  openExecutor(name: string, options?: { threads?: number; isa?: string; oversubscribe?: boolean }): NativeExecutor
  /** Starts MPI through the shim at this path, once per process. */
  openCommunicator(shim: string): NativeCommunicator
  /** A file's bytes over a private mapping: pages come when they are touched. Must not be cut shorter meanwhile. */
  mapFile(path: string): ArrayBuffer
  /**
   * Operations per second of the host's vectors, in 10⁹ (two per multiply-add), of float32 or with bfloat16 factors, which the same
   * multiply-adds take where an instruction set has none of their own; takes some 30 ms.
   */
  peakGflops(isa: string, threads: number, bfloat16?: boolean): number
  /** Bytes read and written per second, in 10⁹, by copies of this footprint (source and target together). */
  copyGbps(bytes: number, threads: number): number
}

/** The ranks of an MPI job: native/addon/communicator.cc. */
export interface NativeCommunicator {
  readonly rank: number
  readonly size: number
  readonly localRank: number
  readonly localSize: number
  readonly library: string
  allGather(bytes: Uint8Array): Promise<Uint8Array>
  gather(bytes: Uint8Array): Promise<Uint8Array>
  broadcast(bytes: Uint8Array): Promise<Uint8Array>
  send(to: number, tag: number, bytes: Uint8Array): Promise<unknown>
  receive(receiver: ((from: number, tag: number, bytes: Uint8Array) => void) | undefined): void
  fail(reason: string): void
  close(status: number): void
  statistics(): { reductions: number; bytes: number; busySeconds: number; waitSeconds: number }
}

/** One place where the addon was looked for, and why it was not taken. */
export interface NativeFailure {
  readonly source: string
  readonly reason: string
}

export interface NativeLoad {
  readonly addon?: NativeAddon
  /** What it was loaded from: a file or the name of a package. */
  readonly source?: string
  readonly failures: readonly NativeFailure[]
}

const require = createRequire(import.meta.url)

/** Folder of the package: two levels above both src/runtime and dist/runtime. */
export const packageRoot: string = fileURLToPath(new URL('../../', import.meta.url))

/** Where a local build leaves the addon. */
export const localAddon: string = fileURLToPath(new URL('../../build/Release/sepconv.node', import.meta.url))

/** Version of this package, which the addon must share. */
export const packageVersion: string = (
  JSON.parse(readFileSync(new URL('../../package.json', import.meta.url), 'utf8')) as { version: string }
).version

let loaded: NativeLoad | undefined

/**
 * The addon from the file that `SEPCONV_NATIVE` names (`none`: no addon at all), else from the local build, else from the platform
 * package of the same version. Never throws; looked for once per process.
 */
export function loadNative(): NativeLoad {
  loaded ??= find()
  return loaded
}

function find(): NativeLoad {
  const failures: NativeFailure[] = []
  const attempt = (source: string, load: () => unknown): NativeLoad | undefined => {
    try {
      return { addon: checked(load()), source, failures }
    } catch (error) {
      failures.push({ source, reason: error instanceof Error ? (error.message.split('\n')[0] ?? '') : String(error) })
      return undefined
    }
  }
  const named = process.env.SEPCONV_NATIVE
  if (named === 'none') return { failures: [{ source: 'SEPCONV_NATIVE', reason: "switched off by SEPCONV_NATIVE='none'" }] }
  // A file that was asked for by name is not replaced by another one.
  if (named) return attempt(named, () => require(named.startsWith('/') ? named : `${process.cwd()}/${named}`)) ?? { failures }
  return (
    attempt(localAddon, () => {
      if (!existsSync(localAddon)) throw new Error('not built: run `npm run build` in a clone, or `sepconv build`')
      return require(localAddon)
    }) ??
    attempt(`@sepconv/${process.platform}-${process.arch}`, platformPackage) ?? { failures }
  )
}

/** Names in full, so that bundlers and scanners see which packages may be loaded. */
function platformPackage(): unknown {
  switch (`${process.platform}-${process.arch}`) {
    case 'linux-x64':
      return require('@sepconv/linux-x64')
    case 'linux-arm64':
      return require('@sepconv/linux-arm64')
    case 'darwin-arm64':
      return require('@sepconv/darwin-arm64')
    case 'darwin-x64':
      return require('@sepconv/darwin-x64')
    default:
      throw new Error('there is no package with a built addon for this platform')
  }
}

function checked(addon: unknown): NativeAddon {
  const { version } = addon as Partial<NativeAddon>
  if (version !== packageVersion)
    throw new Error(`it is version ${version ?? 'unknown'}, sepconv is ${packageVersion}: build it again or install the same version`)
  return addon as NativeAddon
}

/** Why there is no addon, in one sentence. */
export const describeFailures = (failures: readonly NativeFailure[]): string =>
  `no native addon: ${failures.map(({ source, reason }) => `${source} (${reason})`).join('; ')}`

/** The addon, or ERR_NATIVE with the outcome of every attempt. */
export function requireNative(): NativeAddon {
  const { addon, failures } = loadNative()
  if (!addon) throw new SepconvError('ERR_NATIVE', describeFailures(failures), { hint: 'Build it with `sepconv build`' })
  return addon
}
