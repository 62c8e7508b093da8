/** Benchmark results as tables and charts; both are made from the JSON alone, so that a stored file can be shown again. */

import { type BarChart, barChart } from '../charts/bars.js'
import { lineChart } from '../charts/lines.js'
import type { KernelReport, KernelResult } from './kernels.js'
import type { GpuState, Origin } from './machine.js'
import type { ModelReport } from './model.js'

/** `728->728@19` → `728 → 728 @ 19²`. */
export const layerTitle = (name: string): string => name.replace(/^(\d+)->(\d+)@(\d+)$/, '$1 → $2 @ $3²')

/** `AMD EPYC, 2 threads, avx2`. */
export function machineTitle({ machine, gpu }: Origin & { readonly gpu?: GpuState | null }, threads: readonly number[]): string {
  if (gpu) return gpu.name
  const counts = [...new Set(threads)]
  return [machine.cpu, counts.length === 1 ? `${counts[0]} thread${counts[0] === 1 ? '' : 's'}` : '', machine.isa ?? '']
    .filter(Boolean)
    .join(', ')
}

/** What one layer's kernels took in one pass, by op. */
export interface LayerRow {
  readonly layer: string
  readonly pass: string
  readonly precision: string
  readonly library: string
  readonly byOp: Readonly<Partial<Record<KernelResult['op'], KernelResult>>>
  /** Regular over fused time; over the unfused pair's where nothing is fused. */
  readonly speedUp: number | undefined
}

export function layerRows(results: readonly KernelResult[]): LayerRow[] {
  const rows = new Map<string, Omit<LayerRow, 'speedUp' | 'byOp'> & { byOp: Partial<Record<KernelResult['op'], KernelResult>> }>()
  for (const result of results) {
    // Files from before there was more than one.
    const { layer, pass, precision = 'float32', library = 'sepconv' } = result
    const key = `${layer}/${pass}/${precision}/${library}`
    const row = rows.get(key) ?? { layer, pass, precision, library, byOp: {} }
    row.byOp[result.op] = result
    rows.set(key, row)
  }
  return [...rows.values()].map((row) => {
    const separable = row.byOp.fused ?? row.byOp.unfused
    return { ...row, speedUp: row.byOp.regular && separable && row.byOp.regular.ms / separable.ms }
  })
}

/** The chart shows one precision: the one that products are fastest in. */
const chartPrecision = ({ results }: KernelReport) =>
  (['bfloat16', 'tf32'] as const).find((precision) => results.some((row) => row.precision === precision)) ?? 'float32'

/** Regular against separable convolution, layer by layer. */
export function kernelChart(report: KernelReport): Promise<string> {
  const series = { regular: 'regular 3×3', unfused: 'depthwise + pointwise', fused: 'fused' } as const
  const passes = new Set(report.results.map(({ pass }) => pass))
  const own = report.results.filter(({ library = 'sepconv', precision }) => library === 'sepconv' && precision === chartPrecision(report))
  const groups: BarChart['groups'] = layerRows(own).map(({ layer, pass, byOp }) => ({
    label: passes.size > 1 ? `${layerTitle(layer)} ${pass}` : layerTitle(layer),
    values: Object.fromEntries(Object.entries(series).map(([op, title]) => [title, byOp[op as keyof typeof series]?.ms])),
  }))
  const { batch = 1 } = report.results[0] ?? {}
  return barChart({
    title: 'Separable against regular convolution: the layers of Xception',
    subtitle: `batch ${batch}, ${chartPrecision(report)}, ${machineTitle(
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
  const lines = new Map<string, [number, number][]>()
  for (const { task, model, batch, threads, imagesPerSecond } of report.results) {
    const name = `${model} ${task}, ${threads} thread${threads === 1 ? '' : 's'}`
    lines.set(name, [...(lines.get(name) ?? []), [batch, imagesPerSecond]])
  }
  return lineChart({
    title: 'Throughput',
    subtitle: `float32, ${machineTitle(
      report,
      report.results.map(({ threads }) => threads),
    )}`,
    xAxis: 'pictures per batch',
    yAxis: 'pictures per second',
    lines: [...lines].map(([name, points]) => ({ name, points: points.sort(([a], [b]) => a - b) })),
    xScale: 'log',
  })
}
