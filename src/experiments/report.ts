/** The report of an experiment: the paper's claim and numbers beside ours, verdicts, curves, and what this scale cannot show. */

import { mkdir } from 'node:fs/promises'
import { join } from 'node:path'
import { barChart } from '../charts/bars.js'
import { lineChart, type Point } from '../charts/lines.js'
import { writeSvg } from '../charts/theme.js'
import { writeAtomic } from '../files.js'
import { type Experiment, experiment } from './definition.js'
import type { Results, RunResult } from './results.js'
import { scalingCharts, scalingSection } from './scalingReport.js'
import { table } from './table.js'
import { compare, deviationOf, meanOf, summarizeVariant } from './verdict.js'

export const REPORT = 'report.md'

/** Writes `report.md` and its pictures beside `results.json`. @returns the paths. @throws ERR_FILE. */
export async function writeReport(folder: string, results: Results): Promise<string[]> {
  const defined = experiment(results.experiment)
  await mkdir(folder, { recursive: true })
  const pictures = await draw(defined, results)
  for (const [name, svg] of pictures) await writeSvg(join(folder, name), svg)
  await writeAtomic(join(folder, REPORT), markdown(defined, results, [...pictures.keys()]))
  return [REPORT, ...pictures.keys()].map((name) => join(folder, name))
}

const METRICS: Readonly<Record<string, string>> = { top1: 'top-1', top5: 'top-5', map: 'MAP@100', loss: 'loss' }
const percent = (x: number) => `${(100 * x).toFixed(1)} %`
const count = (x: number) => Math.round(x).toLocaleString('en-US')

export function markdown(defined: Experiment, results: Results, pictures: readonly string[]): string {
  const { machine, date, commit } = results.origin as { machine?: { cpu: string; cores: number }; date?: string; commit?: string | null }
  const generated = results.data.startsWith('patterns')
  const { train, validation, size, epochs, batch } = results.settings as Record<string, number>
  const how =
    defined.kind === 'speed'
      ? `Whole training steps of ${batch} pictures of ${size} × ${size} pixels, in turns in one process, medians.`
      : `${results.seeds.length} seeds each (${results.seeds.join(', ')}); a seed decides weights, order and augmentation, the pictures are the same for all. ` +
        (generated
          ? `Generated pictures (${results.data}: src/experiments/patterns.ts says how and why): ${count(train!)} to learn from, ${count(validation!)} held out, ${size} × ${size} pixels, ${epochs} epochs, batch ${batch}, ${optimizerText(results)}. Scores are of averaged weights after the last epoch.`
          : `Pictures: ${results.data}.`)
  return `${[
    `# ${defined.title}`,
    `**The paper:** ${defined.claim}`,
    `**Here:** scale \`${results.scale}\`, device \`${results.device}\`${machine ? `, ${machine.cores} × ${machine.cpu}` : ''}${date ? `, ${date.slice(0, 10)}` : ''}${commit ? `, commit ${commit.slice(0, 12)}` : ''}. ${how}`,
    `    sepconv experiment ${defined.name} --scale ${results.scale} --seeds ${results.seeds.length}`,
    defined.kind === 'speed' ? speedTable(defined, results) : scoreTable(defined, results),
    `## What the differences say`,
    ...(defined.kind === 'speed' ? [speedVerdict(defined, results)] : verdicts(defined, results)),
    ...(results.scaling ? [scalingSection(results.scaling)] : []),
    ...pictures.map((name) => `![${name.replace(/\.svg$/, '')}](${name})`),
    `## What this scale can and cannot show`,
    defined.limits,
  ].join('\n\n')}\n`
}

function optimizerText({ settings }: Results): string {
  const { optimizer, rate } = settings as { optimizer?: { kind: string }; rate?: number }
  return optimizer
    ? `${optimizer.kind === 'sgd' ? 'SGD with momentum' : 'RMSProp'} from a rate of ${rate}, cosine`
    : "the recipe's optimizer"
}

const paperHeader = (defined: Experiment) => Object.values(defined.paperColumns ?? {}).map((title) => `${title}, paper`)
const paperCells = (defined: Experiment, name: string) => {
  const paper = defined.variants.find((variant) => variant.name === name)?.paper
  return Object.keys(defined.paperColumns ?? {}).map((key) => {
    const value = paper?.[key]
    return value === undefined ? '–' : key === 'parameters' ? count(value) : key.startsWith('top') ? value.toFixed(3) : String(value)
  })
}

function scoreTable(defined: Experiment, results: Results): string {
  const metrics = defined.metric === 'map' ? ['map', 'top1'] : ['top1', 'top5']
  const rows = results.variants.map(({ name, parameters, macs }) => {
    const scores = metrics.map((metric) => {
      const { mean, deviation, diverged, values } = summarizeVariant(results, name, metric)
      if (diverged > 0) return `${diverged} of ${values.length} diverged`
      return mean === undefined ? 'not run' : `${percent(mean)} ± ${(100 * deviation!).toFixed(1)}`
    })
    const timing = results.timings.find(({ variant }) => variant === name)
    const speed = timing ? [String(timing.imagesPerSecond)] : []
    const sizes = [count(parameters), (macs / 1e6).toPrecision(3)]
    // One network, trained in several ways, has one size.
    return [
      name,
      ...paperCells(defined, name),
      ...scores,
      ...(defined.target === undefined ? sizes : timeCells(defined, results, name)),
      ...speed,
    ]
  })
  const scoreColumns = metrics.map((metric) => `${METRICS[metric]}, here`)
  const speedColumn = results.timings.length > 0 ? ['pictures per second, training'] : []
  const target = defined.target === undefined ? '' : percent(defined.target)
  const sizeColumns = target
    ? [`seconds to ${target}`, 'seconds in all', 'staleness (most)', 'summing, ms per step', 'of it not hidden']
    : ['parameters', 'million multiply-adds']
  return table(['', ...paperHeader(defined), ...scoreColumns, ...sizeColumns, ...speedColumn], rows)
}

/** Seconds until a run's score first reaches the target, `undefined` where it never does. */
export function secondsTo({ epochs }: RunResult, metric: string, target: number): number | undefined {
  let seconds = 0
  for (const epoch of epochs) {
    seconds += epoch.seconds
    if (epoch.scores[metric]! >= target) return seconds
  }
  return undefined
}

function timeCells({ metric, target }: Experiment, { runs }: Results, name: string): string[] {
  const own = runs.filter(({ variant, status }) => variant === name && status === 'done')
  const mean = (values: readonly (number | undefined)[], digits: number) => {
    const known = values.filter((value) => value !== undefined)
    return known.length === 0 ? '–' : meanOf(known).toFixed(digits)
  }
  const times = own.map((run) => secondsTo(run, metric, target!))
  const reached = times.filter((time) => time !== undefined).length
  const missed = reached < own.length ? ` (${reached} of ${own.length} runs)` : ''
  const ages = own.flatMap(({ epochs }) => epochs.flatMap(({ staleness }) => (staleness ? [staleness] : [])))
  return [
    reached === 0 ? 'never' : `${mean(times, 1)}${missed}`,
    mean(
      own.map(({ epochs }) => epochs.reduce((sum, { seconds }) => sum + seconds, 0)),
      1,
    ),
    ages.length === 0 ? '–' : `${meanOf(ages.map((age) => age.mean)).toFixed(1)} (${Math.max(...ages.map(({ max }) => max))})`,
    mean(
      own.map(({ exchange }) => exchange?.reduceMs),
      2,
    ),
    mean(
      own.map(({ exchange }) => exchange?.exposedMs),
      2,
    ),
  ]
}

function verdicts(defined: Experiment, results: Results): string[] {
  return [
    defined.comparisons
      .map(([first, second]) => `- ${second} against ${first}: ${compare(results, defined, first, second).text}`)
      .join('\n'),
    'After ± stand the deviation over seeds in the table, and half a 95 % interval of the paired difference here; what holds zero is called undecided.',
    ...results.runs
      .filter(({ status }) => status === 'diverged')
      .map(({ variant, seed, reason }) => `Diverged: ${variant}, seed ${seed} (${reason}). It counts: no mean is given without it.`),
  ]
}

function speedTable(defined: Experiment, results: Results): string {
  const kinds = [...new Set(results.timings.flatMap(({ shares }) => Object.keys(shares)))].sort()
  const rows = results.timings.map((timing) => {
    const variant = results.variants.find(({ name }) => name === timing.variant)!
    return [
      ...[timing.variant, ...paperCells(defined, timing.variant)],
      ...[count(variant.parameters), count(variant.macs / 1e6), String(timing.stepsPerSecond), String(timing.imagesPerSecond)],
      ...kinds.map((kind) => percent(timing.shares[kind] ?? 0)),
    ]
  })
  return table(
    ['', ...paperHeader(defined), 'parameters, here', 'million multiply-adds', 'steps per second, here', 'pictures per second', ...kinds],
    rows,
  )
}

function speedVerdict(defined: Experiment, results: Results): string {
  return defined.comparisons
    .map(([first, second]) => {
      const [a, b] = [first, second].map((name) => results.timings.find(({ variant }) => variant === name)!)
      const paper = [first, second].map((name) => defined.variants.find((variant) => variant.name === name)?.paper?.stepsPerSecond)
      const ratio = b!.stepsPerSecond / a!.stepsPerSecond
      const [x, y] = [first, second].map((name) => results.variants.find((variant) => variant.name === name)!)
      const ours = `${second} makes ${ratio.toFixed(2)} times the steps of ${first} here, on the ${results.device} executor`
      const work = `A step of ${second} has ${(y!.macs / x!.macs).toFixed(2)} times the multiply-adds, so it does ${((ratio * y!.macs) / x!.macs).toFixed(2)} times as many of them per second.`
      return `${ours}${paper[0] && paper[1] ? `; in the paper ${(paper[1] / paper[0]).toFixed(2)} times` : ''}. ${work}`
    })
    .join('\n')
}

async function draw(defined: Experiment, results: Results): Promise<Map<string, string>> {
  if (defined.kind === 'speed') return new Map([['time.svg', await timeBars(defined, results)]])
  const pictures = await curves(defined, results)
  if (defined.target !== undefined) pictures.set('time.svg', await overTime(defined, results))
  if (results.scaling) for (const [name, svg] of await scalingCharts()) pictures.set(name, svg)
  if (defined.sweep) for (const [name, svg] of await sweeps(defined, results)) pictures.set(name, svg)
  return pictures
}

function timeBars({ title }: Experiment, results: Results): Promise<string> {
  const kinds = [...new Set(results.timings.flatMap(({ shares }) => Object.keys(shares)))].sort()
  const groups = results.timings.map(({ variant, shares, stepMs }) => ({
    label: variant,
    values: Object.fromEntries(kinds.map((kind) => [kind, (shares[kind] ?? 0) * stepMs])),
  }))
  return barChart({ title, axis: 'milliseconds of a training step', series: kinds, groups })
}

const subtitleOf = ({ seeds }: Results) => `held-out pictures; mean and deviation of ${seeds.length} seeds`

function spread(x: number, values: readonly number[]): Point[] {
  if (values.length === 0) return []
  const [mean, deviation] = [meanOf(values), deviationOf(values)]
  return [[x, mean, mean - deviation, mean + deviation]]
}

/** Scores over epochs, in one picture or in those that the experiment names. */
async function curves({ title, metric, variants, figures }: Experiment, results: Results): Promise<Map<string, string>> {
  const lineOf = (name: string) => {
    const runs = results.runs.filter(({ variant }) => variant === name)
    const longest = Math.max(0, ...runs.map(({ epochs }) => epochs.length))
    // Where some run is over, for it diverged, a mean of the rest would be of another question.
    const points = Array.from({ length: longest }, (_, i) => runs.map(({ epochs }) => epochs[i]))
      .filter((row) => row.every((epoch) => epoch !== undefined))
      .flatMap((row) =>
        spread(
          row[0]!.epoch,
          row.map((epoch) => epoch!.scores[metric]!),
        ),
      )
    return { name, points }
  }
  const pictures = new Map<string, string>()
  for (const [picture, figure] of Object.entries(figures ?? { curves: { title, variants: variants.map(({ name }) => name) } })) {
    // Beyond seven lines a picture is a knot; a sweep has pictures of its own.
    if (figure.variants.length > 7) continue
    const axes = { xAxis: 'epoch', yAxis: METRICS[metric]!, zero: false, points: false }
    pictures.set(
      `${picture}.svg`,
      await lineChart({ title: figure.title, subtitle: subtitleOf(results), ...axes, lines: figure.variants.map(lineOf) }),
    )
  }
  return pictures
}

/** Scores over seconds of training: each epoch at the mean of its seeds' times. */
function overTime({ title, metric, variants }: Experiment, results: Results): Promise<string> {
  const lines = variants.map(({ name }) => {
    const runs = results.runs.filter(({ variant, status }) => variant === name && status === 'done')
    const times = runs.map(({ epochs }) => epochs.map((_, i) => epochs.slice(0, i + 1).reduce((sum, { seconds }) => sum + seconds, 0)))
    const points = (runs[0]?.epochs ?? []).flatMap((_, i) =>
      spread(
        meanOf(times.map((own) => own[i]!)),
        runs.map(({ epochs }) => epochs[i]!.scores[metric]!),
      ),
    )
    return { name, points }
  })
  const axes = { xAxis: 'seconds', yAxis: METRICS[metric]!, zero: false, points: false }
  return lineChart({ title, subtitle: subtitleOf(results), ...axes, lines })
}

/** Last scores over the number that the experiment sweeps, and the speed of training steps where they were timed. */
async function sweeps({ title, metric, sweep }: Experiment, results: Results): Promise<Map<string, string>> {
  const { axis, at, meeting } = sweep!
  const line = (held: string, pointsOf: (variant: string) => readonly Point[]) => ({
    name: held,
    points: results.variants
      .filter(({ name }) => name.endsWith(held) || name === meeting)
      .flatMap(({ name }) => pointsOf(name))
      .sort(([a], [b]) => a - b),
  })
  const lines = (pointsOf: (variant: string) => readonly Point[]) => ['equal width', 'equal parameters'].map((held) => line(held, pointsOf))
  const common = { title, xAxis: axis, xScale: 'log' as const, zero: false }
  const scores = lines((name) => {
    const { values, diverged } = summarizeVariant(results, name, metric)
    const known = values.filter((value) => value !== undefined)
    return diverged > 0 ? [] : spread(at[name]!, known)
  })
  const pictures = new Map([
    ['spectrum.svg', await lineChart({ ...common, subtitle: subtitleOf(results), yAxis: METRICS[metric]!, lines: scores })],
  ])
  if (results.timings.length > 0) {
    const speeds = lines((name) =>
      results.timings.filter(({ variant }) => variant === name).map(({ imagesPerSecond }): Point => [at[name]!, imagesPerSecond]),
    )
    const subtitle = 'training steps in turns in one process, medians'
    pictures.set('speed.svg', await lineChart({ ...common, subtitle, yAxis: 'pictures per second, training', lines: speeds, zero: true }))
  }
  return pictures
}
