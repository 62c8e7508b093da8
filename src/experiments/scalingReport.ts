/** The part of a report that sets measured steps of several ranks beside the arithmetic, and carries that on to many more. */

import { lineChart } from '../charts/lines.js'
import { architecture } from '../models/registry.js'
import { summarize } from '../models/summary.js'
import type { ScalingResult } from './results.js'
import { asynchronousSeconds, NETWORKS, type StepWork, synchronousSeconds } from './scaling.js'
import { table } from './table.js'

/** The paper's, and where its 60 GPUs lie between. */
const RANKS = [1, 8, 16, 32, 60, 128, 256, 512, 1024]
const TOLD = [8, 60, 1024]
/** Pictures of a rank in a step, and what a device sustains: an assumption, not a measurement. */
const BATCH = 32
const TERAFLOPS = [5, 100]

/** The whole network's step on one device. Gradients are float32; beside what comes after the first bucket sums run for nothing. */
function paperWork(teraflops: number): StepWork & { readonly operations: number } {
  const { parameters, macs } = summarize(architecture('xception').build({}))
  // Forward, gradient of the inputs, gradient of the filters; two operations per multiply-add.
  const operations = 3 * 2 * macs * BATCH
  const computeSeconds = operations / (teraflops * 1e12)
  return {
    ...{ operations, computeSeconds, bytes: 4 * parameters.trainable, bucketBytes: 25 << 20, overlap: 0.6 },
  }
}

const percent = (x: number) => `${(100 * x).toFixed(0)} %`
const milliseconds = (seconds: number) => `${(1e3 * seconds).toPrecision(3)} ms`

export function scalingSection({ bytes, bucketBytes, batch, link, exchange, steps }: ScalingResult): string {
  const measured = table(
    ['ranks of one thread', 'computation alone, ms', 'with exchange, ms', 'arithmetic, ms', 'error', 'summing, ms', 'pictures per second'],
    steps.map(({ ranks, computeMs, stepMs, predictedMs, reduceMs }) => [
      ...[String(ranks), String(computeMs), String(stepMs), String(predictedMs)],
      ranks === 1 ? '–' : `${predictedMs >= stepMs ? '+' : '−'}${Math.abs(100 * (predictedMs / stepMs - 1)).toFixed(0)} %`,
      ...[ranks === 1 ? '–' : String(reduceMs), ((1e3 * batch * ranks) / stepMs).toFixed(0)],
    ]),
  )
  const works = TERAFLOPS.map((teraflops) => ({ teraflops, ...paperWork(teraflops) }))
  const predicted = table(
    ['network', 'a device sustains', ...TOLD.flatMap((ranks) => [`${ranks} ranks`]), ...TOLD.map((ranks) => `${ranks}, asynchronous`)],
    NETWORKS.flatMap((network) =>
      works.map((work) => [
        network.name,
        `${work.teraflops} TFLOP/s`,
        ...TOLD.map((ranks) => percent(work.computeSeconds / synchronousSeconds(work, ranks, network))),
        ...TOLD.map((ranks) => percent(work.computeSeconds / asynchronousSeconds(work, ranks, network))),
      ]),
    ),
  )
  const [work] = works
  return [
    '## How it scales',
    `**Measured here.** ${batch} pictures per rank and step, ${(bytes / 1e6).toFixed(1)} MB of gradients in buckets of ${bucketBytes / (1 << 20)} MiB, ranks of one thread on this machine's cores, medians. Sums alone over two ranks took ${exchange
      .map(
        ({ bytes: size, seconds }) =>
          `${milliseconds(seconds)} for ${size >= 1 << 20 ? `${size / (1 << 20)} MiB` : `${size / (1 << 10)} KiB`}`,
      )
      .join(
        ', ',
      )}, which a link of ${(link.latency * 1e6).toFixed(0)} µs and ${(link.bandwidth / 1e9).toPrecision(2)} GB/s explains best. The arithmetic (src/experiments/scaling.ts) adds the sums to the computation, since the cores that compute drive the exchange as well; four ranks are its check, for the link was fitted to two. Where ranks outnumber cores a sum also waits for ranks whose turn it is not, which the arithmetic knows nothing of.`,
    measured,
    `**By arithmetic, not measured:** Xception whole, ${BATCH} pictures per device and step (${(work!.operations / 1e12).toFixed(1)} TFLOP), ${(work!.bytes / 1e6).toFixed(0)} MB of float32 gradients in buckets of 25 MiB, sums beside the last 60 % of the computation, bandwidths of data sheets, latencies of 3 µs (NVLink) to 50 µs (Ethernet) assumed. In percent of what as many devices would do that exchange nothing. Not in it: devices that are not equally fast, reading pictures, and how many more steps a larger batch or older weights take. What a device sustains is an assumption; \`sepconv bench model --task train\` measures yours.`,
    predicted,
  ].join('\n\n')
}

/** Efficiency over ranks, a line per network and speed of the device. */
export async function scalingCharts(): Promise<Map<string, string>> {
  const lines = NETWORKS.flatMap((network) =>
    TERAFLOPS.map((teraflops) => {
      const work = paperWork(teraflops)
      const points = RANKS.map((ranks) => [ranks, (100 * work.computeSeconds) / synchronousSeconds(work, ranks, network)] as const)
      return { name: `${network.name.replace(/ \d+ Gb\/s per (device|machine)/, '')}, ${teraflops} TFLOP/s`, points }
    }),
  )
  const svg = await lineChart({
    title: 'Synchronous training over many devices, by arithmetic',
    subtitle: `Xception, ${BATCH} pictures per device and step`,
    ...{ xAxis: 'devices', yAxis: 'percent of devices that exchange nothing', xScale: 'log', lines },
  })
  return new Map([['scaling.svg', svg]])
}
