/** The ranks that train together, or this process alone: what `fit` needs of the others. */

import type { Communicator } from '../distributed/communicator.js'
import { agree } from '../distributed/agreement.js'
import type { Variable } from '../graph/variable.js'
import { typedArray } from '../graph/types.js'
import type { Executor } from '../runtime/executor.js'
import { readState, writeState } from '../runtime/state.js'

/** One rank's part of a step. */
export interface StepReport {
  readonly correct: number
  /** Whether this rank wants to stop. */
  readonly stop: boolean
  /** Milliseconds of the step without standing still for other ranks; of waiting for pictures; of making them. */
  readonly ownMs: number
  readonly waitMs: number
  readonly decodeMs: number
}

/** What all ranks know after a step. */
export interface StepOfAll {
  readonly correct: number
  readonly stop: boolean
  readonly waitMs: number
  readonly decodeMs: number
  /** A rank that has been much slower than the others over the last steps; named once per epoch. */
  readonly straggler?: Straggler
}

/** A rank that the others wait for. */
export interface Straggler {
  readonly rank: number
  readonly host: string
  /** How many times longer than the others it takes for its part of a step, waiting for pictures included. */
  readonly times: number
}

/** Steps over which ranks are compared, and from how many times longer one is called a straggler. */
const STRAGGLER_STEPS = 20
const STRAGGLER_TIMES = 1.5

export class Team {
  readonly rank: number
  readonly size: number
  readonly #own: number[]
  #steps = 0
  readonly #named = new Set<number>()

  constructor(readonly ranks: Communicator | undefined) {
    this.rank = ranks?.rank ?? 0
    this.size = ranks?.size ?? 1
    this.#own = new Array<number>(this.size).fill(0)
  }

  /** Whether this is the rank that writes and reports. */
  get first(): boolean {
    return this.rank === 0
  }

  /** @throws ERR_RANK naming what differs between ranks. */
  async agree(description: () => unknown): Promise<void> {
    if (this.ranks) await agree(this.ranks, description())
  }

  /** Lets programs on the device sum over all ranks. */
  async connect(device: string): Promise<void> {
    await this.ranks?.connect(device)
  }

  /** What rank 0 has found out. */
  async fromFirst<T>(own: T): Promise<T> {
    return this.ranks ? this.ranks.fromFirst(own) : own
  }

  /** Gives every rank the content that the variables have on rank 0. */
  async adopt(variables: readonly Variable[], executor: Executor): Promise<void> {
    if (!this.ranks) return
    for (const variable of variables) {
      const own = await readState(variable)
      const bytes = await this.ranks.broadcast(new Uint8Array(own.buffer, own.byteOffset, own.byteLength))
      if (!this.first)
        writeState(variable, typedArray(variable.type.dtype, bytes.buffer as ArrayBuffer, bytes.byteOffset, own.length), executor)
    }
  }

  /** Tells the others of a step, and learns of theirs. */
  async meet(report: StepReport): Promise<StepOfAll> {
    if (!this.ranks) return report
    const { correct, stop, ownMs, waitMs, decodeMs } = report
    const all = await this.ranks.numbers([correct, stop ? 1 : 0, ownMs, waitMs, decodeMs])
    const column = (i: number) => all.map((row) => row[i]!)
    const sum = (values: readonly number[]) => values.reduce((a, b) => a + b, 0)
    for (const [rank, row] of all.entries()) this.#own[rank]! += row[2]! + row[3]!
    const straggler = ++this.#steps % STRAGGLER_STEPS === 0 ? this.#slowest() : undefined
    return {
      correct: sum(column(0)),
      stop: sum(column(1)) > 0,
      waitMs: Math.max(...column(3)),
      decodeMs: sum(column(4)),
      ...(straggler && { straggler }),
    }
  }

  /** Sums over all ranks of what each has counted beyond `common`, and that once. */
  async sum<T extends Record<string, number>>(own: T, common: T): Promise<T> {
    if (!this.ranks) return own
    const names = Object.keys(own)
    const all = await this.ranks.numbers(names.map((name) => own[name]! - common[name]!))
    return Object.fromEntries(names.map((name, i) => [name, common[name]! + all.reduce((total, row) => total + row[i]!, 0)])) as T
  }

  /** Begins an epoch: stragglers may be named again. */
  forgive(): void {
    this.#named.clear()
  }

  #slowest(): Straggler | undefined {
    const found = straggler(this.#own)
    this.#own.fill(0)
    if (!found || this.#named.has(found.rank)) return undefined
    this.#named.add(found.rank)
    return { ...found, host: this.ranks!.hosts[found.rank]! }
  }
}

/** The slowest of some times, where it is well above the median of the others. */
export function straggler(times: readonly number[]): { rank: number; times: number } | undefined {
  const rank = times.indexOf(Math.max(...times))
  const others = times.filter((_, other) => other !== rank).sort((a, b) => a - b)
  const median = others[others.length >> 1]!
  const ratio = times[rank]! / median
  return ratio >= STRAGGLER_TIMES ? { rank, times: Math.round(ratio * 100) / 100 } : undefined
}
