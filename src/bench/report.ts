/** Benchmark results as tables and charts; both are made from the JSON alone, so that a stored file can be shown again. */

import { type BarChart, barChart } from '../charts/bars.js'
import { lineChart } from '../charts/lines.js'
import type { KernelReport, KernelResult } from './kernels.js'
import type { Origin } from './machine.js'
import type { ModelReport } from './model.js'

/** `728->728@19` → `728 → 728 @ 19²`. */
export const layerTitle = (name: string): string => name.replace(/^(\d+)->(\d+)@(\d+)$/, '$1 → $2 @ $3²')

/** `AMD EPYC, 2 threads, avx2`. */
export function machineTitle({ machine }: Origin, threads: readonly number[]): string {
  const counts = [...new Set(threads)]
  return [machine.cpu, counts.length === 1 ? `${counts[0]} thread${counts[0] === 1 ? '' : 's'}` : '', machine.isa ?? '']
    .filter(Boolean)
    .join(', ')
}

/** What one layer's kernels took in one pass, by op. */
export interface LayerRow {
  readonly layer: string
  readonly pass: string
  readonly byOp: Readonly<Partial<Record<KernelResult['op'], KernelResult>>>
  /** Regular over fused time; over the unfused pair's where nothing is fused. */
  readonly speedUp: number | undefined
}

export function layerRows(results: readonly KernelResult[]): LayerRow[] {
  const rows = new Map<string, { layer: string; pass: string; byOp: Partial<Record<KernelResult['op'], KernelResult>> }>()
  for (const result of results) {
    const key = `${result.layer}/${result.pass}`
    const row = rows.get(key) ?? { layer: result.layer, pass: result.pass, byOp: {} }
    row.byOp[result.op] = result
    rows.set(key, row)
  }
  return [...rows.values()].map((row) => {
    const separable = row.byOp.fused ?? row.byOp.unfused
    return { ...row, speedUp: row.byOp.regular && separable && row.byOp.regular.ms / separable.ms }
  })
}

/** Regular against separable convolution, layer by layer. */
export function kernelChart(report: KernelReport): Promise<string> {
  const series = { regular: 'regular 3×3', unfused: 'depthwise + pointwise', fused: 'fused' } as const
  const passes = new Set(report.results.map(({ pass }) => pass))
  const groups: BarChart['groups'] = layerRows(report.results).map(({ layer, pass, byOp }) => ({
    label: passes.size > 1 ? `${layerTitle(layer)} ${pass}` : layerTitle(layer),
    values: Object.fromEntries(Object.entries(series).map(([op, title]) => [title, byOp[op as keyof typeof series]?.ms])),
  }))
  const { batch = 1 } = report.results[0] ?? {}
  return barChart({
    title: 'Separable against regular convolution: the layers of Xception',
    subtitle: `batch ${batch}, float32, ${machineTitle(
      report,
      report.results.map(({ threads }) => threads),
    )}; median time, lower is better`,
    axis: 'milliseconds (logarithmic)',
    series: Object.values(series).filter((title) => groups.some(({ values }) => values[title] !== undefined)),
    groups,
    scale: 'log',
  })
}

/** Throughput over batch sizes, a line per task and number of threads. */
export function modelChart(report: ModelReport): Promise<string> {
  const precisions = [...new Set(report.results.map(({ precision }) => precision))]
  const several = precisions.length > 1
  const lines = new Map<string, [number, number][]>()
  for (const { task, model, batch, threads, precision, imagesPerSecond } of report.results) {
    const name = `${model} ${task}${several ? ` ${precision}` : ''}, ${threads} thread${threads === 1 ? '' : 's'}`
    lines.set(name, [...(lines.get(name) ?? []), [batch, imagesPerSecond]])
  }
  return lineChart({
    title: 'Throughput',
    subtitle: `${several ? '' : `${precisions[0] ?? 'float32'}, `}${machineTitle(
      report,
      report.results.map(({ threads }) => threads),
    )}`,
    xAxis: 'pictures per batch',
    yAxis: 'pictures per second',
    lines: [...lines].map(([name, points]) => ({ name, points: points.sort(([a], [b]) => a - b) })),
    xScale: 'log',
  })
}
