/** What the arithmetic of scaling.ts is checked against: ranks of one thread on this machine. */

import { BUCKET_BYTES } from '../ops/allReduce.js'
import { round } from '../bench/machine.js'
import { measureOverRanks } from './overRanks.js'
import type { StepTimes } from './rankTimes.js'
import type { ScalingResult } from './results.js'
import { fitLink, synchronousSeconds } from './scaling.js'

const RANKS = [1, 2, 4] as const
/** Of the exchange that the link is fitted to: from where latency decides to where bandwidth does. */
const BYTES = [4 << 10, 64 << 10, 1 << 20, 4 << 20]
/** Ranks that the link is fitted to; the others check it. */
const FITTED = 2

/**
 * Times steps of 1, 2 and 4 ranks with and without exchange, and sums alone over two. The cores that compute drive the exchange too, so the
 * arithmetic hides nothing of it here.
 */
export async function measureScaling(
  variant: { readonly architecture: string; readonly options: Readonly<Record<string, unknown>> },
  options: {
    batch: number
    turnSeconds?: number
    signal?: AbortSignal
    onProgress?(progress: { done: number; total: number; label: string }): void
  },
): Promise<ScalingResult> {
  const { architecture, options: own } = variant
  const { batch, turnSeconds = 1, signal, onProgress } = options
  let done = 0
  const tell = (label: string) => {
    signal?.throwIfAborted()
    onProgress?.({ done: done++, total: 1 + 2 * RANKS.length, label })
  }
  const steps = (ranks: number, reduce: 'overlapped' | 'none') => {
    const job = { kind: 'steps', variant: { architecture, options: own }, batch: batch * ranks, reduce, seconds: 2 * turnSeconds } as const
    tell(`${ranks} ranks, ${reduce === 'none' ? 'without' : 'with'} exchange`)
    return measureOverRanks<StepTimes[]>(job, ranks, 1)
  }
  tell('sums alone')
  const exchange = await measureOverRanks<{ bytes: number; seconds: number }[]>(
    { kind: 'exchange', bytes: BYTES, seconds: turnSeconds },
    FITTED,
    1,
  )
  const link = fitLink(FITTED, exchange)
  const network = { name: 'this machine', perMachine: 1, remote: link }
  const mean = (times: readonly StepTimes[], key: keyof StepTimes) => times.reduce((sum, own) => sum + own[key], 0) / times.length
  const rows = []
  let bytes = 0
  for (const ranks of RANKS) {
    const [alone, together] = [await steps(ranks, 'none'), await steps(ranks, 'overlapped')]
    bytes = Math.max(bytes, mean(together, 'bytesPerStep'))
    const computeMs = mean(alone, 'medianMs')
    const work = { computeSeconds: computeMs / 1e3, bytes, bucketBytes: BUCKET_BYTES, overlap: 0 }
    rows.push({
      ...{ ranks, computeMs: round(computeMs), stepMs: round(mean(together, 'medianMs')) },
      ...{ predictedMs: round(1e3 * synchronousSeconds(work, ranks, network)), reduceMs: round(mean(together, 'busyMs')) },
    })
  }
  return {
    ...{ bytes, bucketBytes: BUCKET_BYTES, batch, steps: rows },
    exchange: exchange.map(({ bytes: size, seconds }) => ({ bytes: size, seconds: round(seconds) })),
    link: { latency: round(link.latency), bandwidth: round(link.bandwidth) },
  }
}
