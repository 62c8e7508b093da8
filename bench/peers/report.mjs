// Tables and the chart, made from the JSON alone, so that a stored file can be shown again.

import { layerTitle, machineTitle } from '../../dist/bench/report.js'
import { barChart } from '../../dist/charts/bars.js'
import { formatBytes, formatTable, milliseconds } from '../../dist/cli/table.js'
import { XCEPTION_LAYERS } from '../../dist/bench/layers.js'

const TITLES = { inference: 'Inference', train: 'Training step', layer: 'Separable layers' }
const times = (ratio) => `${ratio.toFixed(2)}×`
const plural = (n, noun) => `${n} ${noun}${n === 1 ? '' : 's'}`
const caseTitle = ({ batch, threads }) => `batch ${batch}, ${plural(threads, 'thread')}`
const keyOf = ({ task, batch, threads }) => `${task} ${batch} ${threads}`
const WORDS = { unsupported: 'cannot', wrong: 'disagrees', failed: 'failed' }

/** `38.1 ms (1.15×)`, or in a word why there is no time. */
const cell = (row) => {
  if (!row) return ''
  if (row.status !== 'measured') return WORDS[row.status]
  return row.ratio === null ? milliseconds(row.ms) : `${milliseconds(row.ms)} (${times(row.ratio)})`
}

const unique = (values) => [...new Set(values)]

/**
 * Tables of a report: `{ title, columns, rows }`, the first column to the left. Times of the model by peer and case with the peak memory;
 * layers by shape and peer with the sum over the network's 34.
 */
export function tables({ results }) {
  const model = ['inference', 'train'].flatMap((task) => {
    const own = results.filter((row) => row.task === task)
    if (own.length === 0) return []
    const cases = unique(own.map(keyOf)).map((key) => own.find((row) => keyOf(row) === key))
    const find = (peer, { batch, threads }) => own.find((row) => row.peer === peer && row.batch === batch && row.threads === threads)
    const rows = unique(own.map(({ peer }) => peer)).map((peer) => {
      const peaks = cases.map((entry) => find(peer, entry)?.peakBytes)
      const memory = peaks.some(Boolean) ? peaks.map((bytes) => (bytes ? formatBytes(bytes) : '–')).join(' / ') : ''
      return [peer, ...cases.map((entry) => cell(find(peer, entry))), memory]
    })
    return [{ title: TITLES[task], columns: ['', ...cases.map(caseTitle), 'peak memory'], rows }]
  })
  const layers = results.filter((row) => row.task === 'layer')
  const groups = unique(layers.map(keyOf)).map((key) => {
    const own = layers.filter((row) => keyOf(row) === key)
    const peers = unique(own.map(({ peer }) => peer))
    const names = unique(own.map(({ layer }) => layer))
    const find = (layer, peer) => own.find((row) => row.layer === layer && row.peer === peer)
    const rows = names.map((layer) => [layerTitle(layer), ...peers.map((peer) => cell(find(layer, peer)))])
    const sums = peers.map((peer) => networkSum((layer) => find(layer, peer)))
    const sumCell = (sum) =>
      sum === undefined
        ? ''
        : sums[0] === undefined || sum === sums[0]
          ? milliseconds(sum)
          : `${milliseconds(sum)} (${times(sum / sums[0])})`
    if (sums.some((sum) => sum !== undefined)) rows.push(["the network's 34", ...sums.map(sumCell)])
    return { title: `${TITLES.layer}, ${caseTitle(own[0])}`, columns: ['', ...peers], rows }
  })
  return [...model, ...groups]
}

/** Milliseconds of all separable layers of Xception, each as often as it occurs; `undefined` unless every one was measured. */
export function networkSum(find) {
  const rows = XCEPTION_LAYERS.map(({ name, count }) => ({ count, row: find(name) }))
  return rows.every(({ row }) => row?.status === 'measured') ? rows.reduce((sum, { count, row }) => sum + count * row.ms, 0) : undefined
}

/** Why there are cells without a time, once per peer, task and reason. */
export function notes({ results }) {
  const rows = results.filter(({ status }) => status !== 'measured')
  return unique(
    rows.map(
      ({ peer, task, status, reason, threads }) =>
        `${peer}, ${task}${/thread/.test(reason) ? `, ${plural(threads, 'thread')}` : ''}: ${status === 'unsupported' ? '' : `${WORDS[status]}: `}${reason}`,
    ),
  )
}

/** Cases in which somebody else used the machine: the median of some peer lies far above its fastest run. */
export const disturbed = ({ results }) => {
  const lines = results
    .filter(({ status, ms, least }) => status === 'measured' && ms > DISTURBED * least)
    .map(
      (row) =>
        `disturbed: ${[row.task, row.layer && layerTitle(row.layer)].filter(Boolean).join(' ')}, ${caseTitle(row)}: repeat it on a quiet machine`,
    )
  return [...new Set(lines)]
}
const DISTURBED = 1.3

const RATIO_NOTE = 'In brackets: how many times as long as sepconv, the median over the rounds.'

export const provenance = (report) =>
  `${machineTitle(report, [])}, ${plural(report.machine.cores, 'core')}; ${report.date.slice(0, 10)}; ${Object.entries(report.versions)
    .map(([name, version]) => `${name} ${version}`)
    .join(', ')}; commit ${report.commit?.slice(0, 9) ?? 'unknown'}`

/** For a terminal. */
export function textReport(report) {
  const parts = tables(report).map(({ title, columns, rows }) => {
    const aligned = columns.map((name, i) => ({ title: name, align: i === 0 ? 'left' : 'right' }))
    return `${title}\n${formatTable(aligned, rows)}`
  })
  return [...parts, ...[[RATIO_NOTE, ...notes(report), ...disturbed(report)].join('\n')]].join('\n\n')
}

/** For the README. */
export function markdownReport(report) {
  const line = (cells) => `| ${cells.join(' | ')} |`
  const parts = tables(report).map(({ title, columns, rows }) =>
    [`**${title}**`, '', line(columns), line(columns.map((_, i) => (i === 0 ? '---' : '---:'))), ...rows.map(line)].join('\n'),
  )
  return [...parts, [RATIO_NOTE, ...notes(report), ...disturbed(report), provenance(report)].map((text) => `${text}  `).join('\n')].join(
    '\n\n',
  )
}

/** The charts of a report by what is added to the file's name: the model's cases, and the layers' (nothing where there is no other). */
export function charts(report) {
  const [model, layers] = [report.results.some(({ task }) => task !== 'layer'), report.results.some(({ task }) => task === 'layer')]
  return { ...(model && { '': chart(report) }), ...(layers && { [model ? '-layers' : '']: layerChart(report) }) }
}

/** Times of the separable layers, a group per layer and number of threads; at the top the network's 34 together. */
export function layerChart(report) {
  const rows = report.results.filter(({ task }) => task === 'layer')
  const peers = unique(rows.map(({ peer }) => peer))
  const groups = unique(rows.map(keyOf)).flatMap((key) => {
    const own = rows.filter((row) => keyOf(row) === key)
    const find = (layer, peer) => own.find((row) => row.layer === layer && row.peer === peer)
    const group = (title, value) => ({
      label: `${title}, ${caseTitle(own[0])}`,
      values: Object.fromEntries(peers.map((peer) => [peer, value(peer)])),
    })
    const sum = group("the network's 34", (peer) => networkSum((layer) => find(layer, peer)))
    const layers = unique(own.map(({ layer }) => layer)).map((layer) => group(layerTitle(layer), (peer) => find(layer, peer)?.ms))
    return [...(Object.values(sum.values).some((ms) => ms !== undefined) ? [sum] : []), ...layers]
  })
  return barChart({
    title: 'Separable layers of Xception on the CPU',
    subtitle: `float32 where nothing else is named, ${machineTitle(report, [])}; median over interleaved rounds, lower is better`,
    axis: 'milliseconds (logarithmic)',
    series: peers,
    groups,
    scale: 'log',
  })
}

/**
 * One report of two runs: of what both measured, the later counts. @throws when machine, versions, settings or commit differ, since
 * such figures do not belong into one table.
 */
export function joined(earlier, later) {
  const same = (name, a, b) => {
    if (JSON.stringify(a) !== JSON.stringify(b))
      throw new Error(`the earlier results come from another ${name}: ${JSON.stringify(a)}, now ${JSON.stringify(b)}`)
  }
  same('machine', earlier.machine, later.machine)
  same('commit', earlier.commit, later.commit)
  same('setting', earlier.settings, later.settings)
  for (const name of Object.keys(later.versions))
    if (name in earlier.versions) same(`${name}`, earlier.versions[name], later.versions[name])
  const place = ({ task, layer, batch, threads, peer }) => [task, layer, batch, threads, peer].join()
  const fresh = new Map(later.results.map((row) => [place(row), row]))
  const before = new Set(earlier.results.map(place))
  return {
    ...later,
    versions: { ...earlier.versions, ...later.versions },
    results: [...earlier.results.map((row) => fresh.get(place(row)) ?? row), ...later.results.filter((row) => !before.has(place(row)))],
  }
}

/** Pictures per second of the model, a group per case. */
export function chart(report) {
  const rows = report.results.filter(({ task, status }) => task !== 'layer' && status === 'measured')
  const groups = unique(rows.map(keyOf)).map((key) => {
    const own = rows.filter((row) => keyOf(row) === key)
    return {
      label: `${own[0].task === 'train' ? 'training' : 'inference'}, ${caseTitle(own[0])}`,
      values: Object.fromEntries(own.map(({ peer, imagesPerSecond }) => [peer, imagesPerSecond])),
    }
  })
  return barChart({
    title: 'Xception at 299 × 299 on the CPU, the same weights everywhere',
    subtitle: `float32 where nothing else is named, ${machineTitle(report, [])}; median over interleaved rounds, higher is better`,
    axis: 'pictures per second',
    series: unique(rows.map(({ peer }) => peer)),
    groups,
  })
}
