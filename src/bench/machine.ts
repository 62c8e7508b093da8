/** What a result must say of where it comes from, and what the machine can do at most: the roofline, measured in the same run. */

import { execFileSync } from 'node:child_process'
import { arch, cpus, platform, release, totalmem } from 'node:os'
import type { Executor } from '../runtime/executor.js'
import { NativeDeviceExecutor } from '../runtime/executors/native.js'
import { deviceCopyGbps, devicePeakGflops } from './devicePeaks.js'
import { loadNative, packageRoot, packageVersion } from '../runtime/native.js'

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
    return git('rev-parse', 'HEAD') + (git('status', '--porcelain', '--untracked-files=no') === '' ? '' : '+')
  } catch {
    return null
  }
}

/** Limits of the processor or GPU: the time that a computation takes at least is the larger of its two shares. */
export class Roofline {
  readonly peakGflops: number
  readonly #copies = new Map<number, number>()

  private constructor(
    private readonly threads: number,
    isa: string,
    private readonly copyGbps: (bytes: number, threads: number) => number,
    peakGflops: (isa: string, threads: number) => number,
  ) {
    this.peakGflops = peakGflops(isa, threads)
  }

  /** The host's for `cpu`, a GPU's own by its own clock; `null` where it cannot be measured. */
  static measure(executor: Executor, isa: string | null, threads: number): Roofline | null {
    const { addon } = loadNative()
    if (executor instanceof NativeDeviceExecutor && executor.target.name === 'cuda') {
      const multiprocessors = Number(executor.info.multiprocessors)
      return new Roofline(
        threads,
        '',
        (bytes) => deviceCopyGbps(executor, bytes),
        () => devicePeakGflops(executor, multiprocessors),
      )
    }
    if (executor.name !== 'cpu' || isa === null || !addon) return null
    return new Roofline(
      threads,
      isa,
      (bytes, count) => addon.copyGbps(bytes, count),
      (name, count) => addon.peakGflops(name, count),
    )
  }

  /** Bandwidth of copies with this footprint, to the nearest power of two: what fits a cache is held to that cache's speed. */
  gbps(footprint: number): number {
    const size = 2 ** Math.round(Math.log2(footprint))
    let found = this.#copies.get(size)
    if (found === undefined) this.#copies.set(size, (found = this.copyGbps(size, this.threads)))
    return found
  }

  /** Milliseconds that this much arithmetic and traffic take at least. */
  floor(flops: number, bytes: number): number {
    return Math.max(flops / (this.peakGflops * 1e6), bytes / (this.gbps(bytes) * 1e6))
  }

  /** What was measured, for the record. */
  toJSON() {
    const copies = [...this.#copies].sort(([a], [b]) => a - b).map(([bytes, gbps]) => ({ bytes, gbps: round(gbps) }))
    return { threads: this.threads, peakGflops: round(this.peakGflops), copies }
  }
}

/** Four significant digits: more would be noise. */
export const round = (x: number): number => Number(x.toPrecision(4))
