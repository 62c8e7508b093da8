/** `sepconv tune`: measures the tiles of a model's kernels on a GPU, keeps the times and explains the choice. */

import { Command } from 'commander'
import type { TuneReport, TuneRow } from '../../bench/tune.js'
import { SepconvError } from '../../errors.js'
import { PRECISIONS, type Precision } from '../../graph/precision.js'
import { addModelOptions, decimal, jsonOption, list, modelOptions, oneOf, wholeNumber } from '../options.js'
import { ExitStatus } from '../status.js'
import { formatTable } from '../table.js'
import { Progress, say, significant, writeJson, writeText } from '../ui.js'

interface Settings extends Record<string, unknown> {
  batch: number[]
  precision: Precision[]
  training?: boolean
  device: string
  again?: boolean
  budget: number
  dryRun?: boolean
  capability?: number
  multiprocessors?: number
  json?: boolean
}

/** Multiprocessors of the usual GPU of a compute capability: A100, H100 and H200, B200, RTX 5090. */
const USUAL: Readonly<Record<number, number>> = { 8: 108, 9: 132, 10: 148, 12: 170 }

export const tuneCommand = (): Command =>
  addModelOptions(
    new Command('tune')
      .summary("measure the tiles of a model's kernels on this GPU, and explain the choice")
      .description(
        "A kernel cuts its work into tiles, and which cut is fastest depends on the shape and on the GPU. A rule chooses by shape and number of\nmultiprocessors; this command measures every tile that would do, the calls that move most bytes first, and keeps the times under\nSEPCONV_CACHE, else ~/.cache/sepconv, by device, driver and version. Programs then take the fastest tile: from this cache, else from\nthe table that ships with the package, else by the rule. Tiles change the order of float32 sums; with SEPCONV_TUNE=0 the rule\ndecides alone, with the same bits on every GPU of one kind; with SEPCONV_TUNE=1 a program's unknown calls are measured when it is compiled.",
      )
      .argument('[model]', 'a registered model', 'xception')
      .option('--batch <list>', 'pictures per batch', list(wholeNumber()), [1, 32])
      .option('--precision <list>', 'float32, tf32, bfloat16', list(oneOf(...PRECISIONS)), ['bfloat16'])
      .option('--training', 'the training step too')
      .option('--device <name>', 'cuda, cuda:0, …', 'cuda')
      .option(
        '--budget <seconds>',
        'begin nothing new after so long',
        decimal((x) => x > 0, 'above 0'),
        60,
      )
      .option('--again', 'measure what a file knows already')
      .option('--dry-run', "measure nothing: the candidates and the rule's choice, on a machine without GPU too")
      .option('--capability <n>', 'of the GPU that --dry-run explains: its first number, 8, 9, … (default: 9, Hopper)', wholeNumber(8))
      .option('--multiprocessors <n>', 'of that GPU (default: 132 for 9, as H100 and H200 have)', wholeNumber())
      .addOption(jsonOption()),
  )
    .addHelpText(
      'after',
      `
Columns: blocks of one launch; waves, blocks per multiprocessor; wanted, the share of the work that is asked for, what hangs over the
edge and multiprocessors idle in the last wave taken off; gain, the rule's time over the fastest.

Ctrl-C ends after the call under way and keeps what was measured. Run again to go on: what is known is not measured twice.

Examples:
  $ sepconv tune
  $ sepconv tune xception --batch 64 --precision bfloat16,tf32 --training
  $ sepconv tune --dry-run --batch 32 --capability 9`,
    )
    .action(tune)

async function tune(model: string, settings: Settings): Promise<void> {
  const { dryRun = false, capability = 9, multiprocessors = USUAL[capability] ?? 132 } = settings
  for (const name of ['capability', 'multiprocessors'] as const)
    if (settings[name] !== undefined && !dryRun)
      throw new SepconvError('ERR_ARGUMENT', `--${name} goes with --dry-run: a GPU that is measured has its own`, { subject: name })
  const { tune: measure } = await import('../../bench/tune.js')
  const stop = new AbortController()
  const interrupt = () => stop.abort()
  process.once('SIGINT', interrupt)
  process.once('SIGTERM', interrupt)
  const progress = new Progress({ label: 'tuning', total: 1 })
  const { batch, precision, training, device, budget, again } = settings
  let report: TuneReport
  try {
    report = await measure({
      ...{ model, options: modelOptions(settings), batches: batch, precisions: precision, device, budget, signal: stop.signal },
      ...{ training: training ?? false, again: again ?? false, tuner: { onWarning: say } },
      ...(dryRun && { dryRun: { major: capability, multiprocessors } }),
      onProgress: ({ done, total, label }) => progress.update(done / total, label),
    })
  } finally {
    progress.finish()
    process.off('SIGINT', interrupt)
    process.off('SIGTERM', interrupt)
  }
  if (settings.json) writeJson(report)
  else writeText(report.rows.length === 0 ? 'no call of this model has tiles to choose among' : table(report))
  summarise(report, dryRun)
  if (report.interrupted) throw new ExitStatus(130)
}

function table({ rows }: TuneReport): string {
  const right = { align: 'right' as const }
  const columns = [
    ...[{ title: 'kernel' }, { title: 'shape' }, { title: 'calls', ...right }, { title: 'tile' }, { title: 'µs', ...right }],
    ...[{ title: 'blocks', ...right }, { title: 'waves', ...right }, { title: 'wanted', ...right }, { title: '' }],
  ]
  const cells = rows.map((row) =>
    row.candidates.map(({ tile, microseconds, blocks, waves, useful }, i) => [
      ...(i === 0 ? [row.kernel, row.shape, String(row.count)] : ['', '', '']),
      tile,
      microseconds === null ? '' : significant(microseconds),
      blocks === null ? '' : String(blocks),
      waves === null ? '' : waves.toFixed(2),
      useful === null ? '' : `${(100 * useful).toFixed(0)} %`,
      mark(row, tile),
    ]),
  )
  // The reason stands below its rows, in no column: it is prose.
  const [title, rule, ...lines] = formatTable(columns, cells.flat()).split('\n')
  const groups = rows.flatMap(({ candidates, why }) => [...lines.splice(0, candidates.length), `  ${why}`])
  return [title, rule, ...groups].join('\n')
}

function mark({ rule, winner, gain }: TuneRow, tile: string): string {
  const marks = [tile === winner && 'fastest', tile === rule && 'rule']
  const text = marks.filter(Boolean).join(', ')
  return tile === winner && gain !== null && gain > 1 ? `${text}, ${gain.toFixed(2)} times the rule` : text
}

function summarise({ device, multiprocessors, rows, measured, remaining, seconds, path, interrupted }: TuneReport, dryRun: boolean): void {
  if (dryRun) {
    say(`${rows.length} calls on ${device} with ${multiprocessors} multiprocessors, by the rule; nothing was measured`)
    return
  }
  const known = rows.length - measured - remaining
  say(`${device}: ${measured} calls measured in ${seconds} s${known > 0 ? `, ${known} known before` : ''}; kept in ${path}`)
  if (remaining > 0)
    say(
      `${remaining} calls ${interrupted ? 'were not measured' : 'did not fit into --budget or into memory'}: the rule serves them. Run again to go on`,
    )
}
