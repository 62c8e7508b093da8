import { describe, expect, it } from 'vitest'
import {
  allReduceSeconds,
  asynchronousSeconds,
  fitLink,
  type Network,
  NETWORKS,
  ringSeconds,
  synchronousSeconds,
  treeSeconds,
} from '../../src/experiments/scaling.js'

const link = { latency: 1e-5, bandwidth: 1e9 }
const flat: Network = { name: 'flat', perMachine: 1, remote: link }

describe('sums over ranks', () => {
  it('a ring: 2 (n - 1) messages of 1 / n, by hand', () => {
    expect(ringSeconds(4e6, 4, link)).toBeCloseTo(6 * (1e-5 + 1e-3), 12)
    expect(ringSeconds(4e6, 1, link)).toBe(0)
  })

  it('a tree: up and down, by hand; the shorter of both is taken', () => {
    expect(treeSeconds(4e6, 60, link)).toBeCloseTo(2 * (6 * 1e-5 + 4e-3), 12)
    expect(allReduceSeconds(100, 1024, flat)).toBe(treeSeconds(100, 1024, link))
    expect(allReduceSeconds(1e9, 4, flat)).toBe(ringSeconds(1e9, 4, link))
  })

  it('inside machines first, then a share of it between them', () => {
    const local = { latency: 1e-6, bandwidth: 1e11 }
    const network: Network = { name: '', perMachine: 8, local, remote: link }
    expect(allReduceSeconds(8e6, 8, network)).toBeCloseTo(ringSeconds(8e6, 8, local), 12)
    const between = Math.min(ringSeconds(1e6, 2, link), treeSeconds(1e6, 2, link))
    expect(allReduceSeconds(8e6, 16, network)).toBeCloseTo(ringSeconds(8e6, 8, local) + between, 12)
  })

  it('the link that made some times is found again', () => {
    const samples = [1e3, 1e5, 1e7].map((bytes) => ({ bytes, seconds: ringSeconds(bytes, 4, link) }))
    const found = fitLink(4, samples)
    expect(found.latency / link.latency).toBeCloseTo(1, 6)
    expect(found.bandwidth / link.bandwidth).toBeCloseTo(1, 6)
  })
})

describe('a step', () => {
  const work = { computeSeconds: 0.1, bytes: 1e8, bucketBytes: 25e6, overlap: 0.6 }

  it('alone it exchanges nothing', () => {
    for (const network of NETWORKS) {
      expect(synchronousSeconds(work, 1, network)).toBe(0.1)
      expect(asynchronousSeconds(work, 1, network)).toBe(0.1)
    }
  })

  it('what does not fit beside the computation is added, the last bucket always', () => {
    const one = allReduceSeconds(25e6, 4, flat)
    expect(4 * one).toBeGreaterThan(0.06)
    expect(synchronousSeconds(work, 4, flat)).toBeCloseTo(0.1 + 4 * one - 0.06, 12)
    const fast: Network = { ...flat, remote: { latency: 1e-6, bandwidth: 1e11 } }
    expect(synchronousSeconds(work, 4, fast)).toBeCloseTo(0.1 + allReduceSeconds(25e6, 4, fast), 12)
  })

  it('grows with the ranks, and without waiting takes at least its computation', () => {
    for (const network of NETWORKS) {
      const times = [1, 8, 60, 1024].map((ranks) => synchronousSeconds(work, ranks, network))
      expect([...times].sort((a, b) => a - b)).toEqual(times)
      for (const ranks of [8, 60, 1024]) expect(asynchronousSeconds(work, ranks, network)).toBeGreaterThanOrEqual(0.1)
    }
    // Gradients out and weights in at once, over the slow link: 59 of 60 parts.
    expect(asynchronousSeconds(work, 60, { ...flat, remote: { latency: 0, bandwidth: 1e8 } })).toBeCloseTo(59 / 60, 12)
  })
})
