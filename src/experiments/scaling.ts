/**
 * How training in step scales with the number of ranks, as arithmetic: what a step computes, what it exchanges, and the links between.
 * Costs of an all-reduce: Thakur, Rabenseifner, Gropp 2005, section 4; in machines of several devices it is cut in two levels, as NCCL does.
 */

/** One way out of a rank: seconds of a message without content, bytes per second in each direction. */
export interface Link {
  readonly latency: number
  readonly bandwidth: number
}

/** Ranks in machines of `perMachine`, joined by `local`; machines joined by `remote`, whose bandwidth is one rank's share. */
export interface Network {
  readonly name: string
  readonly perMachine: number
  readonly local?: Link
  readonly remote: Link
}

const NVLINK: Link = { latency: 3e-6, bandwidth: 450e9 }

/** Bandwidths of data sheets, per direction, the machine's divided among its eight devices; latencies are assumptions. */
export const NETWORKS: readonly Network[] = [
  {
    ...{ name: 'NVLink 4, InfiniBand 400 Gb/s per device', perMachine: 8, local: NVLINK },
    remote: { latency: 5e-6, bandwidth: 50e9 },
  },
  {
    ...{ name: 'NVLink 4, Ethernet 100 Gb/s per machine', perMachine: 8, local: NVLINK },
    remote: { latency: 20e-6, bandwidth: 12.5e9 / 8 },
  },
  { name: 'Ethernet 10 Gb/s per device', perMachine: 1, remote: { latency: 50e-6, bandwidth: 1.25e9 } },
]

/** Seconds of a ring: every rank sends 2 (n - 1) messages of 1 / n of the bytes. */
export const ringSeconds = (bytes: number, ranks: number, { latency, bandwidth }: Link): number =>
  2 * (ranks - 1) * (latency + bytes / ranks / bandwidth)

/** Seconds of a pipelined tree, up and down: few messages on the way, all bytes twice. */
export const treeSeconds = (bytes: number, ranks: number, { latency, bandwidth }: Link): number =>
  ranks === 1 ? 0 : 2 * (Math.ceil(Math.log2(ranks)) * latency + bytes / bandwidth)

/** Seconds until the sum of `bytes` over all ranks is everywhere: inside machines first, then each rank's share of it between them. */
export function allReduceSeconds(bytes: number, ranks: number, { perMachine, local, remote }: Network): number {
  const inside = Math.min(ranks, perMachine)
  const machines = Math.ceil(ranks / inside)
  const share = bytes / inside
  const between = Math.min(ringSeconds(share, machines, remote), treeSeconds(share, machines, remote))
  return (local ? ringSeconds(bytes, inside, local) : 0) + between
}

/** What a rank does in a step. */
export interface StepWork {
  readonly computeSeconds: number
  readonly bytes: number
  readonly bucketBytes: number
  /**
   * Share of the computation beside which sums run without taking anything from it: what comes after the first bucket. 0 where the
   * processor that computes also drives the exchange.
   */
  readonly overlap: number
}

/** Seconds of a step of `ranks` that wait for each other: what does not fit beside the computation is added, the last bucket always. */
export function synchronousSeconds({ computeSeconds, bytes, bucketBytes, overlap }: StepWork, ranks: number, network: Network): number {
  if (ranks === 1) return computeSeconds
  const buckets = Math.max(1, Math.ceil(bytes / bucketBytes))
  const one = allReduceSeconds(bytes / buckets, ranks, network)
  return computeSeconds + Math.max(one, buckets * one - overlap * computeSeconds)
}

/**
 * Seconds of a step of a rank that waits for nobody: it sends its gradients to their owners and gets weights back, both at once, beside the
 * computation. What this says nothing about: how many more steps the older weights cost.
 */
export function asynchronousSeconds({ computeSeconds, bytes }: StepWork, ranks: number, { perMachine, local, remote }: Network): number {
  const inside = Math.min(ranks, perMachine)
  const near = local ? (bytes * (inside - 1)) / ranks / local.bandwidth : 0
  const far = (bytes * (ranks - inside)) / ranks / remote.bandwidth
  return Math.max(computeSeconds, near, far)
}

/** The link that explains measured rings of `ranks` best: least squares of the relative errors over bytes and seconds. */
export function fitLink(ranks: number, samples: readonly { readonly bytes: number; readonly seconds: number }[]): Link {
  // seconds = latency * u + v / bandwidth, each row divided by its seconds.
  const rows = samples.map(({ bytes, seconds }) => [(2 * (ranks - 1)) / seconds, (2 * (ranks - 1) * bytes) / ranks / seconds] as const)
  const sum = (value: (row: readonly [number, number]) => number) => rows.reduce((total, row) => total + value(row), 0)
  const [uu, uv, vv] = [sum(([u]) => u * u), sum(([u, v]) => u * v), sum(([, v]) => v * v)]
  const [u, v] = [sum(([x]) => x), sum(([, x]) => x)]
  const determinant = uu * vv - uv * uv
  const latency = (u * vv - v * uv) / determinant
  const perByte = (v * uu - u * uv) / determinant
  return { latency: Math.max(latency, 0), bandwidth: 1 / Math.max(perByte, 1e-15) }
}
