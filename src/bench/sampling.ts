/**
 * Timing by Benchmark.js in short rounds that take turns: whatever slows the machine down for a second (another process, its clock)
 * falls on every candidate alike. Medians over all rounds are reported.
 *
 * A candidate measures itself (executors report nanoseconds per call, so that a kernel of 10 µs is not charged with the call from
 * JavaScript); Benchmark.js decides how often it runs.
 */

import { setImmediate } from 'node:timers/promises'

export interface Candidate {
  readonly name: string
  /** One run; its duration in milliseconds. */
  run(): number
}

export interface Timing {
  /** Median, in milliseconds. */
  readonly ms: number
  readonly least: number
  readonly samples: number
}

export interface SamplingOptions {
  /** Turns of every candidate. Default 5. */
  readonly rounds?: number
  /** Seconds per candidate and turn, at least one run. Default 0.04. */
  readonly seconds?: number
}

/** Runs all candidates in turns; leaves the event loop a chance between two. */
export async function sampleRounds(
  candidates: readonly Candidate[],
  { rounds = 5, seconds = 0.04 }: SamplingOptions = {},
): Promise<Map<string, Timing>> {
  const { default: Benchmark } = await import('benchmark')
  const times = new Map<string, number[]>(candidates.map(({ name }) => [name, []]))
  for (let round = 0; round < rounds; round++) {
    for (const { name, run } of candidates) {
      const own = times.get(name)!
      const benchmark = new Benchmark(name, () => void own.push(run()), { maxTime: seconds, minTime: 1e-3, minSamples: 1 })
      benchmark.run()
      if (benchmark.error) throw benchmark.error
      await setImmediate()
    }
  }
  return new Map(
    [...times].map(([name, own]) => [
      name,
      { ms: median(own), least: own.reduce((least, ms) => Math.min(least, ms)), samples: own.length },
    ]),
  )
}

export function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b)
  const middle = sorted.length >> 1
  return sorted.length % 2 === 1 ? sorted[middle]! : (sorted[middle - 1]! + sorted[middle]!) / 2
}
