/** Training runs as one HTML page that needs nothing else: no script, no network; light or dark as the reader's system is. */

import { lineChart } from '../charts/lines.js'
import { SERIES_COLOURS } from '../charts/theme.js'
import { confusion, type Mistake, worstMistakes } from './mistakes.js'
import type { ReportedRun } from './run.js'

/** Points per line: more are not seen. */
const POINTS = 240
/** Classes of which every pair is shown; of more the most frequent mistakes are listed. */
const MATRIX_CLASSES = 30
const MISTAKES = 18

/** @returns the page. @throws ERR_NATIVE when the chart library is not installed. */
export async function reportPage(runs: readonly ReportedRun[]): Promise<string> {
  const title = runs.length === 1 ? `Training run ${runs[0]!.name}` : `Training runs ${runs.map(({ name }) => name).join(', ')}`
  const details = await Promise.all(runs.map(async (run) => runDetails(run, await worstMistakes(run, MISTAKES))))
  const body = [`<h1>${escapeHtml(title)}</h1>`, summary(runs), await curves(runs), configuration(runs), ...details]
  return `<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>${escapeHtml(title)}</title>
<style>${STYLE}</style>
</head>
<body>
<main>
${body.join('\n')}
</main>
</body>
</html>
`
}

/** Colours of text and rules are those of the charts. */
const STYLE = `
:root{color-scheme:light dark;--ink:#24292f;--soft:#57606a;--ground:#fff;--rule:#d0d7de;--shade:#f6f8fa;--mark:#fff3d6;--heat:9,105,218}
@media (prefers-color-scheme:dark){:root{--ink:#e6edf3;--soft:#9198a1;--ground:#0d1117;--rule:#30363d;--shade:#161b22;--mark:#3b2f12;--heat:88,166,255}}
body{margin:0;background:var(--ground);color:var(--ink);font:15px/1.5 system-ui,sans-serif}
main{max-width:1240px;margin:0 auto;padding:24px}
h1{font-size:26px;margin:0 0 16px}h2{font-size:19px;margin:36px 0 12px;border-bottom:1px solid var(--rule);padding-bottom:4px}h3{font-size:15px;margin:20px 0 8px}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}th,td{padding:4px 10px;text-align:left;border-bottom:1px solid var(--rule)}
td.n,th.n{text-align:right}th{color:var(--soft);font-weight:600}tr.differs td{background:var(--mark)}
.wide{overflow-x:auto}.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(520px,1fr));gap:16px}
.charts svg{max-width:100%;height:auto}.key{display:inline-block;width:11px;height:11px;border-radius:2px;margin-right:7px}
.matrix td,.matrix th{border:1px solid var(--rule);padding:3px 7px;text-align:center;font-size:13px}.matrix th.row{text-align:right}
.mistakes{display:grid;grid-template-columns:repeat(auto-fill,minmax(150px,1fr));gap:14px}.mistakes figure{margin:0}
.mistakes img,.mistakes .none{width:112px;height:112px;border-radius:4px;background:var(--shade);display:block}.mistakes .none{color:var(--soft);font-size:12px;line-height:112px;text-align:center}
figcaption{font-size:13px;overflow-wrap:anywhere}figcaption small{color:var(--soft)}details{margin-top:8px}summary{cursor:pointer;color:var(--soft)}p.note{color:var(--soft)}
`

const escapeHtml = (text: string): string => text.replace(/[&<>"']/g, (c) => `&#${c.charCodeAt(0)};`)
const percent = (share: number): string => `${(share * 100).toFixed(1)} %`
const significant = (x: number): string => String(Number(x.toPrecision(4)))
const colour = (run: number): string => SERIES_COLOURS[1 + (run % (SERIES_COLOURS.length - 1))]!

function summary(runs: readonly ReportedRun[]): string {
  const rows = runs.map((run, i) => {
    const { epochs, steps, config } = run
    const scored = epochs.filter(({ validation }) => validation)
    const best = scored.length > 0 ? scored.reduce((a, b) => (score(b) > score(a) ? b : a)) : undefined
    const seconds = steps.reduce((sum, { computeMs = 0, waitMs = 0 }) => sum + computeMs + waitMs, 0) / 1e3
    const wait = steps.reduce((sum, { waitMs = 0 }) => sum + waitMs, 0) / 1e3 / Math.max(seconds, 1e-9)
    const batch = Number(config.settings.batch ?? 0)
    const cells = [
      String(epochs.length),
      best ? (best.validation!.map === undefined ? percent(best.validation!.top1) : `${percent(best.validation!.map)} MAP@100`) : '–',
      best ? `epoch ${best.epoch}` : '–',
      best ? significant(best.validation!.loss) : '–',
      significant(steps.at(-1)!.loss),
      seconds > 0 ? `${significant((steps.length * batch) / seconds)} img/s` : '–',
      percent(wait),
    ]
    return `<tr><td><span class="key" style="background:${colour(i)}"></span>${escapeHtml(run.name)}</td><td>${escapeHtml(config.model.architecture)}</td>${cells.map((cell) => `<td class="n">${escapeHtml(cell)}</td>`).join('')}</tr>`
  })
  const head = ['epochs', 'best held out', 'reached', 'loss there', 'last training loss', 'throughput', 'waiting for pictures']
  return `<div class="wide"><table><thead><tr><th>run</th><th>model</th>${head.map((name) => `<th class="n">${name}</th>`).join('')}</tr></thead><tbody>${rows.join('')}</tbody></table></div>`
}

const score = ({ validation }: ReportedRun['epochs'][number]): number => validation!.map ?? validation!.top1

type Points = (readonly [number, number])[]

/** Means of equal stretches, so that no line has more than `POINTS` points. */
export function thin(points: Points): Points {
  const stretch = Math.ceil(points.length / POINTS)
  if (stretch <= 1) return points
  return Array.from({ length: Math.ceil(points.length / stretch) }, (_, i) => {
    const part = points.slice(i * stretch, (i + 1) * stretch)
    return [part.at(-1)![0], part.reduce((sum, [, y]) => sum + y, 0) / part.length] as const
  })
}

async function curves(runs: readonly ReportedRun[]): Promise<string> {
  type Pick = (run: ReportedRun) => Points
  const ofEpochs =
    (value: (epoch: ReportedRun['epochs'][number]) => number | undefined): Pick =>
    ({ epochs }) =>
      epochs.flatMap((event) => {
        const y = value(event)
        return y === undefined ? [] : [[event.epoch, y] as const]
      })
  const ofSteps =
    (value: (step: ReportedRun['steps'][number]) => number | undefined): Pick =>
    ({ steps }) =>
      thin(steps.flatMap((event) => (value(event) === undefined ? [] : [[event.step, value(event)!] as const])))
  const charts: [title: string, x: string, y: string, pick: Pick, points: boolean][] = [
    ['Training loss', 'step', 'loss', ofSteps(({ loss }) => loss), false],
    ['Held-out loss', 'epoch', 'loss', ofEpochs(({ validation }) => validation?.loss), true],
    ['Held-out top-1', 'epoch', 'share', ofEpochs(({ validation }) => validation?.top1), true],
    ['Held-out MAP@100', 'epoch', 'MAP', ofEpochs(({ validation }) => validation?.map), true],
    ['Learning rate', 'step', 'rate', ofSteps(({ rate }) => rate), false],
    ['Throughput', 'step', 'pictures per second', ofSteps(({ imagesPerSecond }) => imagesPerSecond), false],
    ['Share of the time spent waiting for pictures', 'step', 'share', ofSteps(({ waitShare }) => waitShare), false],
  ]
  const drawn: string[] = []
  for (const [title, xAxis, yAxis, pick, points] of charts) {
    const lines = runs.map((run) => ({ name: run.name, points: pick(run) }))
    if (lines.every((line) => line.points.length === 0)) continue
    drawn.push(`<div>${await lineChart({ title, xAxis, yAxis, lines, points, zero: yAxis === 'share' })}</div>`)
  }
  return `<h2>Curves</h2><div class="charts">${drawn.join('\n')}</div>`
}

/** Settings as rows, runs as columns; rows in which runs differ come first and are marked. */
function configuration(runs: readonly ReportedRun[]): string {
  const flat = runs.map(({ config }) => {
    const { classes, fingerprint, ...data } = config.data as typeof config.data & { fingerprint?: string }
    return new Map(
      flatten({
        model: config.model,
        data: { ...data, classes: classes.length, fingerprint: fingerprint?.slice(0, 12) ?? null },
        settings: config.settings,
      }),
    )
  })
  const keys = [...new Set(flat.flatMap((map) => [...map.keys()]))]
  const differs = (key: string) => new Set(flat.map((map) => map.get(key))).size > 1
  const row = (key: string) =>
    `<tr${differs(key) ? ' class="differs"' : ''}><td>${escapeHtml(key)}</td>${flat.map((map) => `<td>${escapeHtml(map.get(key) ?? '')}</td>`).join('')}</tr>`
  const sorted = [...keys.filter(differs), ...keys.filter((key) => !differs(key))]
  const head = runs.map(({ name }) => `<th>${escapeHtml(name)}</th>`).join('')
  return `<h2>Configuration</h2><div class="wide"><table><thead><tr><th>setting</th>${head}</tr></thead><tbody>${sorted.map(row).join('')}</tbody></table></div>`
}

function flatten(value: unknown, path = ''): [string, string][] {
  if (typeof value !== 'object' || value === null || Array.isArray(value))
    return [[path, value === null ? '–' : typeof value === 'string' ? value : JSON.stringify(value)]]
  return Object.entries(value).flatMap(([key, inner]) => flatten(inner, path ? `${path}.${key}` : key))
}

function runDetails(run: ReportedRun, mistakes: readonly Mistake[]): string {
  const { predictions } = run
  if (!predictions) return ''
  const single = predictions.pictures.every(({ labels }) => labels.length === 1)
  return `<h2>${escapeHtml(run.name)}: what the best weights do</h2>
<p class="note">${predictions.pictures.length} held-out pictures, weights of epoch ${predictions.epoch}.</p>
${single ? `<h3>Confusion</h3>${predictions.classes.length <= MATRIX_CLASSES ? matrix(run) : confusedPairs(run)}` : ''}
<h3>Worst mistakes</h3>
${mistakes.length > 0 ? `<div class="mistakes">${mistakes.map(figure).join('')}</div>` : '<p class="note">None: every held-out picture is right.</p>'}`
}

/** Rows are labels, columns predictions; the shade is the share of the row. */
function matrix({ predictions }: ReportedRun): string {
  const { classes } = predictions!
  const counts = confusion(predictions!)
  const cell = (row: number, column: number) => {
    const count = counts[row * classes.length + column]!
    const total = counts.subarray(row * classes.length, (row + 1) * classes.length).reduce((sum, n) => sum + n, 0)
    const shade = count === 0 ? '' : ` style="background:rgba(var(--heat),${(0.1 + (0.5 * count) / total).toFixed(3)})"`
    return `<td${shade}>${count || ''}</td>`
  }
  const rows = classes.map(
    (name, row) => `<tr><th class="row">${escapeHtml(name)}</th>${classes.map((_, column) => cell(row, column)).join('')}</tr>`,
  )
  const head = classes.map((name) => `<th>${escapeHtml(name)}</th>`).join('')
  return `<div class="wide"><table class="matrix"><thead><tr><th class="row">label ╲ predicted</th>${head}</tr></thead><tbody>${rows.join('')}</tbody></table></div>`
}

function confusedPairs({ predictions }: ReportedRun): string {
  const { classes } = predictions!
  const pairs = [...confusion(predictions!).entries()]
    .map(([i, count]) => ({ label: Math.floor(i / classes.length), predicted: i % classes.length, count }))
    .filter(({ label, predicted, count }) => label !== predicted && count > 0)
    .sort((a, b) => b.count - a.count || a.label - b.label)
    .slice(0, 20)
  const rows = pairs.map(
    ({ label, predicted, count }) =>
      `<tr><td>${escapeHtml(classes[label]!)}</td><td>${escapeHtml(classes[predicted]!)}</td><td class="n">${count}</td></tr>`,
  )
  return `<table><thead><tr><th>label</th><th>predicted</th><th class="n">pictures</th></tr></thead><tbody>${rows.join('')}</tbody></table>`
}

const figure = ({ name, labels, predicted, confidence, thumbnail }: Mistake): string =>
  `<figure>${thumbnail ? `<img src="${thumbnail}" alt="${escapeHtml(name)}">` : '<div class="none">not found</div>'}<figcaption>${escapeHtml(labels.join(', ') || 'no label')} taken for <b>${escapeHtml(predicted)}</b>, ${percent(confidence)}<br><small>${escapeHtml(name)}</small></figcaption></figure>`
