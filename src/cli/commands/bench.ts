/** `sepconv bench kernels` and `sepconv bench model`: measured on this machine, as table, JSON and SVG. */

import { Command } from 'commander'
import { PRECISIONS, type Precision } from '../../graph/precision.js'
import type { KernelName, KernelReport, KernelResult } from '../../bench/kernels.js'
import { SepconvError } from '../../errors.js'
import {
  addModelOptions,
  decimal,
  deviceOption,
  jsonOption,
  list,
  modelOptions,
  oneOf,
  threadCount,
  threadsOption,
  wholeNumber,
} from '../options.js'
import { ExitStatus } from '../status.js'
import { Progress, red, say, writeJson, writeText } from '../ui.js'

interface Common {
  device?: string
  rounds?: number
  seconds?: number
  json?: boolean
  svg?: string
  out?: string
}

interface KernelSettings extends Common {
  layers?: string[]
  op?: KernelResult['op'][]
  pass: KernelResult['pass'][]
  batch: number
  precision?: Precision[]
  threads?: number
  nearest?: boolean
  details?: boolean
  compare?: string
}

interface ModelSettings extends Common, Record<string, unknown> {
  model: string[]
  task: ('inference' | 'train')[]
  batch: number[]
  threads?: number[]
  precision?: Precision[]
}

const sampling = (command: Command): Command =>
  command
    .option('--rounds <n>', 'turns of every candidate', wholeNumber())
    .option(
      '--seconds <s>',
      'per candidate and turn',
      decimal((x) => x > 0, 'above 0'),
    )
    .addOption(deviceOption())
    .addOption(jsonOption())
    .option('--svg <file>', 'write a chart')
    .option('--out <file>', 'write the JSON to a file too')

export const benchCommand = (): Command =>
  new Command('bench')
    .summary('measure kernels and models on this machine')
    .description(
      'Measures on this machine. Kernels are compared with the reference before they are timed; medians over interleaved rounds.',
    )
    .addCommand(kernelsCommand())
    .addCommand(modelCommand())
    .addHelpText('after', '\nExamples:\n  $ sepconv bench kernels\n  $ sepconv bench model --task inference --batch 1,8 --threads 1,2')

const kernelsCommand = (): Command =>
  sampling(
    new Command('kernels')
      .summary("separable against regular convolution over Xception's layers")
      .description(
        "Times every distinct separable layer of Xception as regular convolution, depthwise, pointwise, unfused pair and fused kernel (forward\nonly), against this machine's roofline: its multiply-add peak and copy bandwidth, measured in the same run.",
      )
      .option(
        '--layers <list>',
        'xception, library (odd channels, 5×5, 7×7, stride, dilation, multiplier, small and large maps), or any such as 728->728@19 or 100->129@57:k5:s2:d2:m2 (default: xception)',
        list(String),
      )
      .option('--nearest', 'beside each layer the nearest fast one, and the share of its rate that is kept (always with library)')
      .option(
        '--op <list>',
        'regular, depthwise, pointwise, unfused, fused (default: all)',
        list(oneOf('regular', 'depthwise', 'pointwise', 'unfused', 'fused')),
      )
      .option('--pass <list>', 'forward, data, filter (gradients)', list(oneOf('forward', 'data', 'filter')), ['forward', 'data', 'filter'])
      .option('--batch <n>', 'pictures', wholeNumber(), 1)
      .option('--precision <list>', 'float32, tf32, bfloat16 (default: all on a GPU, float32 elsewhere)', list(oneOf(...PRECISIONS)))
      .addOption(threadsOption())
      .option('--details', 'a row per kernel, with its rates and its share of the roofline')
      .option('--compare <file>', 'set the results beside those of an earlier run, a file that --out wrote'),
  )
    .addHelpText(
      'after',
      "\nExamples:\n  $ sepconv bench kernels --svg kernels.svg\n  $ sepconv bench kernels --layers '728->728@19' --details --threads 1\n  $ sepconv bench kernels --layers library --pass forward\n  $ sepconv bench kernels --out now.json --compare before.json",
    )
    .action(kernels)

const modelCommand = (): Command =>
  addModelOptions(
    sampling(
      new Command('model')
        .summary("latency, throughput and memory of a model's inference and training step")
        .description("Times a model's inference and training step, one native call each, over batch sizes and numbers of threads.")
        .option('--model <list>', 'registered models', list(String), ['xception'])
        .option('--task <list>', 'inference, train', list(oneOf('inference', 'train')), ['inference', 'train'])
        .option('--batch <list>', 'pictures per batch', list(wholeNumber()), [1, 8])
        .option('--threads <list>', 'threads of the cpu device (default: one per core)', list(threadCount))
        .option('--precision <list>', 'float32, tf32, bfloat16 (default: all on a GPU, float32 elsewhere)', list(oneOf(...PRECISIONS)))
        .option('--memory-limit <MiB>', 'most scratch memory of a training step', wholeNumber()),
    ),
  )
    .addHelpText(
      'after',
      '\nExamples:\n  $ sepconv bench model --task inference --batch 1,2,4,8 --svg throughput.svg\n  $ sepconv bench model --task train --batch 4 --threads 1,2 --json',
    )
    .action(model)

async function kernels(settings: KernelSettings): Promise<void> {
  const [{ benchKernels }, { parseLayers }, report, tables] = await Promise.all([
    import('../../bench/kernels.js'),
    import('../../bench/layers.js'),
    import('../../bench/report.js'),
    import('../benchTables.js'),
  ])
  const before = settings.compare === undefined ? undefined : await readReport(settings.compare)
  const progress = new Progress({ label: 'kernels', total: 1 })
  const { layers, op, pass, batch, threads, precision, device, rounds, seconds } = settings
  const nearest = settings.nearest || layers?.includes('library')
  const measured = await benchKernels({
    ...(layers && { layers: parseLayers(layers) }),
    ...(op && { ops: op }),
    ...{ passes: pass, batch, threads, precisions: precision, nearest, device, rounds, seconds },
    onProgress: ({ done, total, layer }) => progress.update(done / total, layer),
  })
  progress.finish()
  const comparison = before && report.compareKernels(measured, before, settings.compare!)
  const result = { ...measured, ...(comparison && { comparison }) }
  await save(result, settings, () =>
    comparison ? report.comparisonChart(result, comparison) : nearest ? report.nearestChart(result) : report.kernelChart(result),
  )
  if (settings.json) writeJson(result)
  else {
    writeText(settings.details ? tables.kernelDetails(result) : tables.kernelTable(result))
    if (nearest) writeText(`\n${tables.nearestTable(result)}`)
    if (comparison) writeText(`\n${tables.comparisonTable(comparison)}`)
    sayLimits(result, report)
  }
  if (comparison) for (const note of report.differencesOf(comparison)) say(note)
  const slow = result.results.filter((row) => row.nearest && row.nearest.share < 0.5)
  for (const { op: name, layer, pass: direction, nearest: other } of slow)
    say(red(`${name} ${direction} of ${layer} keeps ${(100 * other!.share).toFixed(0)} % of the rate at ${other!.layer}`))
  for (const { name, version, reason } of result.libraries ?? []) say(version ? `${name} ${version}` : (reason ?? ''))
  for (const { reason, ...kernel } of result.refused ?? []) say(`${kernelName(kernel)} is not to be had: ${reason}`)
  for (const { maxError, ...kernel } of result.wrong)
    say(red(`${kernelName(kernel)} disagrees with the reference by ${maxError.toExponential(1)} and was not timed`))
  if (result.wrong.length > 0) throw new ExitStatus(1)
}

/** `cudnn: regular forward of 128->128@147 in bfloat16`. */
const kernelName = ({ op, layer, pass, precision, library }: KernelName): string => `${library}: ${op} ${pass} of ${layer} in ${precision}`

/** What the machine can do at most, and where it runs slower paths than it might. */
function sayLimits(result: KernelReport, { machineTitle, slowPath }: typeof import('../../bench/report.js')): void {
  const { roofline, results } = result
  if (roofline) {
    const { copies } = roofline.toJSON()
    const [least, most] = [Math.min(...copies.map(({ gbps }) => gbps)), Math.max(...copies.map(({ gbps }) => gbps))]
    const threads = results.map((row) => row.threads)
    say(
      `${machineTitle(result, threads)}: ${roofline.peakGflops.toFixed(0)} GFLOP/s and, by footprint, ${least.toFixed(0)} to ${most.toFixed(0)} GB/s at most`,
    )
  } else say(`${machineTitle(result, [])}: no roofline, because device '${results[0]?.device ?? ''}' has none that can be measured`)
  const slow = slowPath(result)
  if (slow) say(slow)
}

async function model(settings: ModelSettings): Promise<void> {
  const { benchModel } = await import('../../bench/model.js')
  const progress = new Progress({ label: 'model', total: 1 })
  const { device, rounds, seconds, threads, memoryLimit } = settings
  const result = await benchModel({
    ...{ models: settings.model, tasks: settings.task, batches: settings.batch, precisions: settings.precision },
    options: modelOptions(settings),
    ...{ device, rounds, seconds, threads },
    ...(memoryLimit !== undefined && { memoryLimit: (memoryLimit as number) * 2 ** 20 }),
    onProgress: ({ done, total, label }) => progress.update(done / total, label),
  })
  progress.finish()
  const [report, { modelTable }] = await Promise.all([import('../../bench/report.js'), import('../benchTables.js')])
  await save(result, settings, () => report.modelChart(result))
  if (settings.json) return writeJson(result)
  writeText(modelTable(result))
  say(report.machineTitle(result, []))
  const slow = report.slowPath(result)
  if (slow) say(slow)
}

async function save(result: unknown, { svg, out }: Common, chart: () => Promise<string>): Promise<void> {
  if (out !== undefined) {
    const { writeAtomic } = await import('../../files.js')
    await writeAtomic(out, `${JSON.stringify(result, null, 2)}\n`)
  }
  if (svg === undefined) return
  const { writeSvg } = await import('../../charts/theme.js')
  await writeSvg(svg, await chart())
}

async function readReport(path: string): Promise<KernelReport> {
  const { readText } = await import('../../files.js')
  const text = await readText(path)
  try {
    const report = JSON.parse(text) as KernelReport
    if (Array.isArray(report.results)) return report
  } catch {
    // reported below, like JSON of another kind
  }
  throw new SepconvError('ERR_FORMAT', `${path} is no result of \`sepconv bench kernels --out\``, { subject: path })
}
