/** What a result must say of where it comes from, and what the machine can do at most: the roofline, measured in the same run. */

import { execFileSync } from 'node:child_process'
import { arch, cpus, platform, release, totalmem } from 'node:os'
import type { Executor } from '../runtime/executor.js'
import { NativeDeviceExecutor } from '../runtime/executors/native.js'
import { loadNative, packageRoot, packageVersion } from '../runtime/native.js'
import type { Precision } from '../graph/precision.js'
import { deviceCopyGbps, devicePeakGflops } from './devicePeaks.js'

/** Goes into every benchmark's JSON. */
export interface Origin {
  readonly date: string
  readonly machine: {
    readonly cpu: string
    readonly cores: number
    readonly isa: string | null
    readonly memoryBytes: number
    readonly system: string
  }
  readonly versions: Readonly<Record<string, string>>
  /** Of the repository that the code was run from, with `+` when files differ from it; `null` outside a repository. */
  readonly commit: string | null
}

export function origin(isa: string | null): Origin {
  const processors = cpus()
  return {
    date: new Date().toISOString(),
    machine: {
      cpu: processors[0]?.model.trim() ?? 'unknown',
      cores: processors.length,
      isa,
      memoryBytes: totalmem(),
      system: `${platform()} ${release()} ${arch()}`,
    },
    versions: { sepconv: packageVersion, node: process.versions.node, v8: process.versions.v8 },
    commit: commit(),
  }
}

function commit(): string | null {
  const git = (...args: string[]) =>
    execFileSync('git', args, { cwd: packageRoot, encoding: 'utf8', stdio: ['ignore', 'pipe', 'ignore'] }).trim()
  try {
    // An installed package lies inside somebody else's repository.
    if (git('rev-parse', '--show-prefix') !== '') return null
    // Results are no part of what is measured: a comparison in parts adds to a file that the first part has changed.
    const changed = git('status', '--porcelain', '--untracked-files=no', '--', '.', ':!bench/results')
    return git('rev-parse', 'HEAD') + (changed === '' ? '' : '+')
  } catch {
    return null
  }
}

/** A GPU as its driver describes it while the benchmark runs; `null` where nvidia-smi does not say. */
export interface GpuState {
  readonly name: string
  readonly driver: string
  /** Megahertz of the multiprocessors and of the memory: as they are now, and the highest. */
  readonly clocks: { readonly sm: number; readonly memory: number; readonly smMax: number; readonly memoryMax: number }
  readonly powerLimitWatts: number | null
}

/** @param index of the CUDA device. */
export function gpuState(index: number): GpuState | null {
  const fields = ['name', 'driver_version', 'clocks.sm', 'clocks.mem', 'clocks.max.sm', 'clocks.max.mem', 'power.limit']
  try {
    const text = execFileSync('nvidia-smi', [`--id=${index}`, `--query-gpu=${fields.join(',')}`, '--format=csv,noheader,nounits'], {
      encoding: 'utf8',
      stdio: ['ignore', 'pipe', 'ignore'],
      timeout: 10_000,
    })
    return parseGpuState(text)
  } catch {
    return null
  }
}

/** Reads nvidia-smi's line of comma-separated values. */
export function parseGpuState(line: string): GpuState | null {
  const [name, driver, ...numbers] = line.trim().split(/\s*,\s*/)
  if (!name || !driver || numbers.length !== 5) return null
  const [sm, memory, smMax, memoryMax, watts] = numbers.map(Number) as [number, number, number, number, number]
  return { name, driver, clocks: { sm, memory, smMax, memoryMax }, powerLimitWatts: Number.isFinite(watts) ? watts : null }
}

/** Limits of the processor or GPU: the time that a computation takes at least is the larger of its two shares. */
export class Roofline {
  readonly #copies = new Map<number, number>()
  readonly #peaks = new Map<Precision, number>()

  private constructor(
    private readonly threads: number,
    private readonly copyGbps: (bytes: number) => number,
    private readonly measurePeak: (precision: Precision) => number,
  ) {
    this.peak('float32')
  }

  /** The host's for `cpu`, a GPU's own by its own clock; `null` where it cannot be measured. */
  static measure(executor: Executor, isa: string | null, threads: number): Roofline | null {
    const { addon } = loadNative()
    if (executor instanceof NativeDeviceExecutor && executor.target.name === 'cuda') {
      const multiprocessors = Number(executor.info.multiprocessors)
      return new Roofline(
        threads,
        (bytes) => deviceCopyGbps(executor, bytes),
        (precision) => devicePeakGflops(executor, multiprocessors, precision),
      )
    }
    if (executor.name !== 'cpu' || isa === null || !addon) return null
    return new Roofline(
      threads,
      (bytes) => addon.copyGbps(bytes, threads),
      (precision) => addon.peakGflops(isa, threads, precision === 'bfloat16'),
    )
  }

  /** Of float32 multiply-adds. */
  get peakGflops(): number {
    return this.peak('float32')
  }

  /** The multiply-add peak of a precision, measured when it is first asked for. */
  peak(precision: Precision): number {
    let found = this.#peaks.get(precision)
    if (found === undefined) this.#peaks.set(precision, (found = this.measurePeak(precision)))
    return found
  }

  /** Bandwidth of copies with this footprint, to the nearest power of two: what fits a cache is held to that cache's speed. */
  gbps(footprint: number): number {
    const size = 2 ** Math.round(Math.log2(footprint))
    let found = this.#copies.get(size)
    if (found === undefined) this.#copies.set(size, (found = this.copyGbps(size)))
    return found
  }

  /**
   * Milliseconds that this much arithmetic and traffic take at least.
   * @param footprint of what is in use; larger than `bytes` where operands rotate. Default: `bytes`.
   */
  floor(flops: number, bytes: number, precision: Precision = 'float32', footprint = bytes): number {
    return Math.max(flops / (this.peak(precision) * 1e6), bytes / (this.gbps(footprint) * 1e6))
  }

  /** What was measured, for the record. */
  toJSON() {
    const copies = [...this.#copies].sort(([a], [b]) => a - b).map(([bytes, gbps]) => ({ bytes, gbps: round(gbps) }))
    const peaks = Object.fromEntries([...this.#peaks].map(([precision, gflops]) => [precision, round(gflops)]))
    return { threads: this.threads, peakGflops: round(this.peakGflops), ...(this.#peaks.size > 1 && { peaks }), copies }
  }
}

/** Four significant digits: more would be noise. */
export const round = (x: number): number => Number(x.toPrecision(4))
