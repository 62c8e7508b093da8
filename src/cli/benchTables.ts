/** What `sepconv bench` prints, made from the reports alone. */

import type { KernelReport, KernelResult } from '../bench/kernels.js'
import type { ModelReport } from '../bench/model.js'
import { type KernelComparison, layerRows, layerTitle } from '../bench/report.js'
import { type Column, formatBytes, formatTable, milliseconds, percent } from './table.js'

const left = (...titles: string[]): Column[] => titles.map((title) => ({ title }))
const right = (...titles: string[]): Column[] => titles.map((title) => ({ title, align: 'right' }))

const share = (value: number | null): string => (value === null ? '' : percent(value))

/** A row per layer and pass: times of all kernels side by side, rates of the best one. */
export function kernelTable({ results }: KernelReport): string {
  const several = results.some(({ library = 'sepconv', precision }) => library !== 'sepconv' || precision !== 'float32')
  const columns = [
    ...left('layer', 'pass', ...(several ? ['precision', 'library'] : [])),
    ...right('regular', 'depthwise', 'pointwise', 'pair', 'fused', 'speed-up', 'GFLOP/s', 'GB/s', 'of the roofline'),
  ]
  const time = (row: KernelResult | undefined) => (row ? milliseconds(row.ms) : '')
  const rows = layerRows(results).map(({ layer, pass, precision, library, byOp, speedUp }) => {
    const best = byOp.fused ?? byOp.unfused ?? Object.values(byOp)[0]
    return [
      ...[layerTitle(layer), pass, ...(several ? [precision, library] : [])],
      ...[time(byOp.regular), time(byOp.depthwise), time(byOp.pointwise), time(byOp.unfused), time(byOp.fused)],
      speedUp === undefined ? '' : `${speedUp.toFixed(1)}×`,
      ...(best ? [best.gflops.toFixed(0), best.gbps.toFixed(1), share(best.rooflineShare)] : []),
    ]
  })
  return formatTable(columns, rows)
}

/** A row per kernel, with its own rates. */
export function kernelDetails({ results }: KernelReport): string {
  const rows = results.map(
    ({ layer, pass, precision, library = 'sepconv', op, ms, least, gflops, gbps, rooflineShare, maxError, samples }) => [
      ...[
        layerTitle(layer),
        pass,
        precision,
        library,
        op,
        milliseconds(ms),
        milliseconds(least),
        gflops.toFixed(1),
        gbps.toFixed(1),
        share(rooflineShare),
      ],
      ...[maxError.toExponential(0), String(samples)],
    ],
  )
  return formatTable(
    [
      ...left('layer', 'pass', 'precision', 'library', 'kernel'),
      ...right('time', 'fastest', 'GFLOP/s', 'GB/s', 'of the roofline', 'error', 'runs'),
    ],
    rows,
  )
}

/** A row per kernel beside the nearest fast layer, slowest first. */
export function nearestTable({ results }: KernelReport): string {
  const rows = results
    .filter(({ nearest }) => nearest)
    .sort((a, b) => a.nearest!.share - b.nearest!.share)
    .map(({ layer, pass, op, ms, gflops, gbps, nearest }) => [
      ...[layerTitle(layer), pass, op, milliseconds(ms), gflops.toFixed(1), gbps.toFixed(1)],
      ...[layerTitle(nearest!.layer), percent(nearest!.share)],
    ])
  return formatTable(
    [...left('layer', 'pass', 'kernel'), ...right('time', 'GFLOP/s', 'GB/s'), ...left('nearest fast layer'), ...right('of its rate')],
    rows,
  )
}

/** Times of two runs side by side, for what both have. */
export function comparisonTable({ before, rows }: KernelComparison): string {
  return formatTable(
    [...left('layer', 'pass', 'kernel'), ...right(before.commit?.slice(0, 8) ?? 'before', 'now', 'faster by')],
    rows.map((row) => [
      ...[layerTitle(row.layer), row.pass, row.op, milliseconds(row.before), milliseconds(row.ms), `${row.faster.toFixed(2)}×`],
    ]),
  )
}

export function modelTable({ results }: ModelReport): string {
  const rows = results.map((row) => [
    ...[row.model, row.task, row.device, row.precision, String(row.batch), String(row.threads), milliseconds(row.ms)],
    ...[milliseconds(row.least), row.imagesPerSecond.toFixed(1), formatBytes(row.peakBytes)],
    row.peakResidentBytes === null ? '' : formatBytes(row.peakResidentBytes),
  ])
  return formatTable(
    [
      ...left('model', 'task', 'device', 'precision'),
      ...right('batch', 'threads', 'time', 'fastest', 'pictures/s', 'peak memory', 'peak resident'),
    ],
    rows,
  )
}
