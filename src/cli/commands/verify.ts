/** `sepconv verify`: runs a model's programs call by call on a device and on the reference, or another device, and compares. */

import { Command } from 'commander'
import type { Precision } from '../../graph/precision.js'
import type { VerifyRow } from '../../runtime/verify.js'
import {
  addModelOptions,
  type DeviceSettings,
  deviceOption,
  jsonOption,
  list,
  modelOptions,
  oneOf,
  precisionOption,
  selectDevice,
  threadsOption,
  wholeNumber,
} from '../options.js'
import { ExitStatus } from '../status.js'
import { formatTable } from '../table.js'
import { Progress, red, say, writeJson, writeText } from '../ui.js'

interface Settings extends DeviceSettings, Record<string, unknown> {
  model: string
  task: ('inference' | 'train')[]
  batch: number
  against?: string
  size?: number
  precision?: Precision
  seed: number
  json?: boolean
}

export function verifyCommand(): Command {
  const command = new Command('verify')
    .summary("compare a device's kernels with the reference")
    .description(
      "Runs every call of a model's forward pass and training step on a device and on the reference, both with the reference's inputs so\nthat errors do not pile up, and prints the largest error of each op. Fails (exit status 1) when one is beyond its tolerance.",
    )
    .option('--model <name>', 'the architecture', 'xception')
    .option('--task <list>', 'inference, train or both', list(oneOf('inference', 'train')), ['inference', 'train'])
    .option('--batch <n>', 'pictures', wholeNumber(), 2)
    .option('--seed <n>', 'decides pictures and weights', wholeNumber(0), 0)
    .option('--against <device>', 'the device whose results are expected (default: reference)')
  return addModelOptions(command)
    .addOption(deviceOption())
    .addOption(precisionOption())
    .addOption(threadsOption())
    .addOption(jsonOption())
    .addHelpText('after', '\nExamples:\n  $ sepconv verify\n  $ sepconv verify --task inference --size 299 --device cuda --against cpu')
    .action(verify)
}

async function verify(settings: Settings): Promise<void> {
  const device = selectDevice(settings)
  const [{ verifyModel }] = await Promise.all([import('../../runtime/verify.js'), import('../../models/index.js')])
  const { model, batch, size, seed, against, precision } = settings
  const expected = against === undefined || against === 'reference' ? 'the reference' : against
  const rows: VerifyRow[] = []
  const progress = new Progress({ label: 'verifying', total: settings.task.length, unit: '' })
  for (const [i, task] of settings.task.entries()) {
    const onProgress = ({ done, total, op }: { done: number; total: number; op: string }) =>
      progress.update(i + done / total, `${task} ${op}`)
    const options = modelOptions(settings)
    for (const row of await verifyModel({
      model,
      options,
      task,
      device,
      against,
      batch,
      seed,
      precision,
      onProgress,
      ...(size !== undefined && { size }),
    }))
      merge(rows, row)
  }
  progress.finish()
  if (settings.json) writeJson(rows.map(({ op, maxError, tolerance, ok }) => ({ op, maxError, tolerance, ok })))
  else {
    const columns = [
      { title: 'op' },
      { title: 'largest error', align: 'right' as const },
      { title: 'tolerance', align: 'right' as const },
      { title: '' },
    ]
    writeText(
      formatTable(
        columns,
        rows.map((row) => [row.op, row.maxError.toExponential(1), row.tolerance.toExponential(1), row.ok ? 'ok' : 'WRONG']),
      ),
    )
  }
  const wrong = rows.filter(({ ok }) => !ok)
  if (wrong.length === 0) return say(`${rows.length} ops agree with ${expected}`)
  say(red(`${wrong.length} of ${rows.length} ops disagree with ${expected}: ${wrong.map(({ op }) => op).join(', ')}`))
  throw new ExitStatus(1)
}

/** One row per op, of the worst of all tasks. */
function merge(rows: VerifyRow[], row: VerifyRow): void {
  const at = rows.findIndex(({ op }) => op === row.op)
  if (at < 0) rows.push(row)
  else if (row.maxError / row.tolerance > rows[at]!.maxError / rows[at]!.tolerance || !row.ok) rows[at] = row
}
