/** Benchmark results as tables and charts; both are made from the JSON alone, so that a stored file can be shown again. */

import { type BarChart, barChart } from '../charts/bars.js'
import { lineChart } from '../charts/lines.js'
import type { KernelReport, KernelResult } from './kernels.js'
import { type GpuState, type Origin, round } from './machine.js'
import type { ModelReport } from './model.js'

/** `728->728@19` → `728 → 728 @ 19²`, `64->128@56:k5:s2` → `64 → 128 @ 56², 5×5, stride 2`. */
export const layerTitle = (name: string): string =>
  name
    .replace(/^(\d+)->(\d+)@(\d+)/, '$1 → $2 @ $3²')
    .replace(/:k(\d+)/, ', $1×$1')
    .replace(/:s(\d+)/, ', stride $1')
    .replace(/:d(\d+)/, ', dilation $1')
    .replace(/:m(\d+)/, ', multiplier $1')

/** `AMD EPYC, 2 threads, avx2`. */
export function machineTitle({ machine, gpu }: Origin & { readonly gpu?: GpuState | null }, threads: readonly number[]): string {
  if (gpu) return gpu.name
  const counts = [...new Set(threads)]
  return [machine.cpu, counts.length === 1 ? `${counts[0]} thread${counts[0] === 1 ? '' : 's'}` : '', machine.isa ?? '']
    .filter(Boolean)
    .join(', ')
}

/** A sentence where the kernels take the path for processors without wider vectors; `undefined` elsewhere. */
export const slowPath = ({ machine }: Origin): string | undefined =>
  machine.isa === 'scalar'
    ? 'scalar path: vectors of 16 bytes, as on a processor without AVX2 (SEPCONV_ISA or the processor itself asks for it)'
    : undefined

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

const KERNEL_SERIES = { regular: 'regular', unfused: 'depthwise + pointwise', fused: 'fused' } as const

/** A chart shows one precision: the one that products are fastest in. */
const chartPrecision = ({ results }: KernelReport) =>
  (['bfloat16', 'tf32'] as const).find((precision) => results.some((row) => row.precision === precision)) ?? 'float32'

/** `batch 1, float32, AMD EPYC, 2 threads, avx512`. */
function kernelSubtitle(report: KernelReport): string {
  const { batch = 1 } = report.results[0] ?? {}
  return `batch ${batch}, ${chartPrecision(report)}, ${machineTitle(
    report,
    report.results.map(({ threads }) => threads),
  )}`
}

const groupTitle = (layer: string, pass: string, passes: number): string =>
  passes > 1 ? `${layerTitle(layer)} ${pass}` : layerTitle(layer)

/** Regular against separable convolution, layer by layer. */
export function kernelChart(report: KernelReport): Promise<string> {
  const passes = new Set(report.results.map(({ pass }) => pass)).size
  const own = report.results.filter(({ library = 'sepconv', precision }) => library === 'sepconv' && precision === chartPrecision(report))
  const groups: BarChart['groups'] = layerRows(own).map(({ layer, pass, byOp }) => ({
    label: groupTitle(layer, pass, passes),
    values: Object.fromEntries(Object.entries(KERNEL_SERIES).map(([op, title]) => [title, byOp[op as keyof typeof KERNEL_SERIES]?.ms])),
  }))
  return barChart({
    title: 'Separable against regular convolution',
    subtitle: `${kernelSubtitle(report)}; median time, lower is better`,
    axis: 'milliseconds (logarithmic)',
    series: Object.values(KERNEL_SERIES).filter((title) => groups.some(({ values }) => values[title] !== undefined)),
    groups,
    scale: 'log',
  })
}

/** Shares of the nearest fast layers' rates, by layer and pass. */
export function nearestChart(report: KernelReport): Promise<string> {
  const passes = new Set(report.results.map(({ pass }) => pass)).size
  const ops = [...new Set(report.results.map(({ op }) => op))]
  return barChart({
    title: 'Rates beside the nearest fast layer',
    subtitle: `${kernelSubtitle(report)}; higher is better, 100 % is as fast`,
    axis: '% of the rate at the nearest fast layer',
    series: ops,
    groups: layerRows(report.results).map(({ layer, pass, byOp }) => ({
      label: groupTitle(layer, pass, passes),
      values: Object.fromEntries(
        ops.map((op) => {
          const share = byOp[op]?.nearest?.share
          return [op, share === undefined ? undefined : 100 * share]
        }),
      ),
    })),
  })
}

/** Two runs side by side. */
export interface KernelComparison {
  /** The earlier run. */
  readonly before: Pick<Origin, 'date' | 'machine' | 'versions' | 'commit'> & { readonly file: string }
  /** What both runs measured, with both medians in milliseconds and the earlier over the later one. */
  readonly rows: readonly (Pick<KernelResult, 'op' | 'layer' | 'pass' | 'precision' | 'batch' | 'threads'> & {
    readonly before: number
    readonly ms: number
    readonly faster: number
  })[]
  /** How many results of this run the earlier one has not got. */
  readonly unmatched: number
  /** In what the runs differ other than in their code, such as `cpu` or `isa`. */
  readonly differences: readonly string[]
}

export function compareKernels(now: KernelReport, before: KernelReport, file: string): KernelComparison {
  const key = ({ op, layer, pass, device, precision, library = 'sepconv', batch, threads }: KernelResult) =>
    [op, layer, pass, device, precision, library, batch, threads].join()
  const old = new Map(before.results.map((row) => [key(row), row]))
  const rows = now.results.flatMap((row) => {
    const was = old.get(key(row))
    if (!was) return []
    const { op, layer, pass, precision, batch, threads, ms } = row
    return [{ op, layer, pass, precision, batch, threads, before: was.ms, ms, faster: round(was.ms / ms) }]
  })
  const { date, machine, versions, commit } = before
  const differences = (['cpu', 'cores', 'isa', 'system'] as const).flatMap((name) =>
    machine?.[name] === now.machine[name] ? [] : [`${name} (${machine?.[name]} then, ${now.machine[name]} now)`],
  )
  return { before: { file, date, machine, versions, commit }, rows, unmatched: now.results.length - rows.length, differences }
}

/** What must be known to read a comparison. */
export const differencesOf = ({ before, rows, unmatched, differences }: KernelComparison): string[] => [
  ...(differences.length > 0 ? [`${before.file} comes from another setting: ${differences.join(', ')}`] : []),
  ...(unmatched > 0 ? [`${rows.length > 0 ? unmatched : 'all'} of these kernels are not in ${before.file}`] : []),
]

/** Times of both runs, kernel by kernel. */
export function comparisonChart(report: KernelReport, { before, rows }: KernelComparison): Promise<string> {
  const names = [before.commit?.slice(0, 8) ?? before.date, 'now'] as const
  return barChart({
    title: 'Two runs side by side',
    subtitle: `${kernelSubtitle(report)}; median time, lower is better`,
    axis: 'milliseconds (logarithmic)',
    series: names,
    groups: rows.map((row) => ({
      label: `${layerTitle(row.layer)} ${row.op} ${row.pass}`,
      values: { [names[0]]: row.before, [names[1]]: row.ms },
    })),
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
