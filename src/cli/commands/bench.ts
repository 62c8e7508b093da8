/** `sepconv bench kernels` and `sepconv bench model`: measured on this machine, as table, JSON and SVG. */

import { readFile } from 'node:fs/promises'
import { Command } from 'commander'
import type { KernelReport, KernelResult } from '../../bench/kernels.js'
import type { ModelReport } from '../../bench/model.js'
import { SepconvError } from '../../errors.js'
import { addModelOptions, decimal, deviceOption, jsonOption, list, modelOptions, oneOf, wholeNumber } from '../options.js'
import { ExitStatus } from '../status.js'
import { formatBytes, formatTable, milliseconds, percent } from '../table.js'
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
  precision?: ('float32' | 'tf32' | 'bfloat16')[]
  threads?: number
  compare?: string
}

interface ModelSettings extends Common, Record<string, unknown> {
  model: string[]
  task: ('inference' | 'train')[]
  batch: number[]
  threads?: number[]
  precision: string[]
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
        "Times every distinct separable layer of Xception as regular 3×3 convolution, depthwise, pointwise, unfused pair and fused kernel,\nagainst this machine's roofline: its multiply-add peak and copy bandwidth, measured in the same run.",
      )
      .option('--layers <list>', 'such as 728->728@19 (default: the ten of Xception)', list(String))
      .option(
        '--op <list>',
        'regular, depthwise, pointwise, unfused, fused (default: all)',
        list(oneOf('regular', 'depthwise', 'pointwise', 'unfused', 'fused')),
      )
      .option('--pass <list>', 'forward, data, filter (gradients)', list(oneOf('forward', 'data', 'filter')), ['forward'])
      .option('--batch <n>', 'pictures', wholeNumber(), 1)
      .option(
        '--precision <list>',
        'float32, tf32, bfloat16 (default: all on a GPU, float32 elsewhere)',
        list(oneOf('float32', 'tf32', 'bfloat16')),
      )
      .option('--threads <n>', 'threads of the cpu device (default: one per core)', wholeNumber())
      .option('--compare <file>', 'set the results beside those of an earlier run, a file that --out wrote'),
  )
    .addHelpText(
      'after',
      "\nExamples:\n  $ sepconv bench kernels --svg kernels.svg\n  $ sepconv bench kernels --layers '728->728@19' --pass forward,data,filter --threads 1\n  $ sepconv bench kernels --out now.json --compare before.json",
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
        .option('--threads <list>', 'threads of the cpu device (default: one per core)', list(wholeNumber()))
        .option('--precision <list>', 'float32', list(String), ['float32'])
        .option('--memory-limit <MiB>', 'most scratch memory of a training step', wholeNumber()),
    ),
  )
    .addHelpText(
      'after',
      '\nExamples:\n  $ sepconv bench model --task inference --batch 1,2,4,8 --svg throughput.svg\n  $ sepconv bench model --task train --batch 4 --threads 1,2 --json',
    )
    .action(model)

async function kernels(settings: KernelSettings): Promise<void> {
  const [{ benchKernels }, { parseLayer }, report] = await Promise.all([
    import('../../bench/kernels.js'),
    import('../../bench/layers.js'),
    import('../../bench/report.js'),
  ])
  const before = settings.compare === undefined ? undefined : await readReport(settings.compare)
  const progress = new Progress({ label: 'kernels', total: 1 })
  const { layers, op, pass, batch, precision, threads, device, rounds, seconds } = settings
  const result = await benchKernels({
    ...(layers && { layers: layers.map(parseLayer) }),
    ...(op && { ops: op }),
    ...{ passes: pass, batch, precisions: precision, threads, device, rounds, seconds },
    onProgress: ({ done, total, layer }) => progress.update(done / total, layer),
  })
  progress.finish()
  await save(result, settings, () => report.kernelChart(result))
  if (settings.json) writeJson(result)
  else {
    writeText(kernelTable(result, report))
    if (before) writeText(`\n${comparison(result, before, report.layerTitle)}`)
    if (result.roofline)
      say(
        `${report.machineTitle(
          result,
          result.results.map((row) => row.threads),
        )}: ${result.roofline.peakGflops.toFixed(0)} GFLOP/s at most`,
      )
    else
      say(
        `${report.machineTitle(result, [])}: no roofline, because device '${result.results[0]?.device ?? ''}' has none that can be measured`,
      )
  }
  for (const { name, version, reason } of result.libraries ?? []) say(version ? `${name} ${version}` : (reason ?? ''))
  for (const { op: name, layer, pass: direction, precision: format, library, reason } of result.refused ?? [])
    say(`${library} has no ${name} ${direction} of ${layer} in ${format}: ${reason}`)
  for (const { op: name, layer, pass: direction, precision: format, library, maxError } of result.wrong)
    say(
      red(
        `${library}: ${name} ${direction} of ${layer} in ${format} disagrees with the reference by ${maxError.toExponential(1)} and was not timed`,
      ),
    )
  if (result.wrong.length > 0) throw new ExitStatus(1)
}

type Report = Pick<typeof import('../../bench/report.js'), 'layerRows' | 'layerTitle'>

export function kernelTable(result: KernelReport, { layerRows, layerTitle }: Report): string {
  const right = (title: string) => ({ title, align: 'right' as const })
  const several = result.results.some(({ library, precision }) => library !== 'sepconv' || precision !== 'float32')
  const columns = [
    { title: 'layer' },
    { title: 'pass' },
    ...(several ? [{ title: 'precision' }, { title: 'library' }] : []),
    ...['regular 3×3', 'depthwise', 'pointwise', 'pair', 'fused', 'speed-up', 'GFLOP/s', 'GB/s', 'of the roofline'].map(right),
  ]
  const time = (row: KernelResult | undefined) => (row ? milliseconds(row.ms) : '')
  const rows = layerRows(result.results).map(({ layer, pass, precision, library, byOp, speedUp }) => {
    const best = byOp.fused ?? byOp.unfused ?? Object.values(byOp)[0]
    return [
      ...[layerTitle(layer), pass, ...(several ? [precision, library] : [])],
      ...[time(byOp.regular), time(byOp.depthwise), time(byOp.pointwise), time(byOp.unfused), time(byOp.fused)],
      speedUp === undefined ? '' : `${speedUp.toFixed(1)}×`,
      ...(best ? [best.gflops.toFixed(0), best.gbps.toFixed(1), best.rooflineShare === null ? '' : percent(best.rooflineShare)] : []),
    ]
  })
  return formatTable(columns, rows)
}

/** Times of two runs side by side, for what both have. */
function comparison(now: KernelReport, before: KernelReport, title: (layer: string) => string): string {
  const key = ({ op, layer, pass, precision, library = 'sepconv', batch, threads }: KernelResult) =>
    [op, layer, pass, precision, library, batch, threads].join()
  const old = new Map(before.results.map((row) => [key(row), row]))
  const rows = now.results.flatMap((row) => {
    const was = old.get(key(row))
    return was ? [[title(row.layer), row.pass, row.op, milliseconds(was.ms), milliseconds(row.ms), `${(was.ms / row.ms).toFixed(2)}×`]] : []
  })
  const right = (name: string) => ({ title: name, align: 'right' as const })
  return formatTable(
    [
      { title: 'layer' },
      { title: 'pass' },
      { title: 'op' },
      right(before.commit?.slice(0, 8) ?? 'before'),
      right('now'),
      right('faster by'),
    ],
    rows,
  )
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
  const report = await import('../../bench/report.js')
  await save(result, settings, () => report.modelChart(result))
  if (settings.json) return writeJson(result)
  writeText(modelTable(result))
  say(report.machineTitle(result, []))
}

export function modelTable({ results }: ModelReport): string {
  const columns = ['model', 'task', 'device'].map((title) => ({ title }))
  const right = ['batch', 'threads', 'time', 'pictures/s', 'peak memory'].map((title) => ({ title, align: 'right' as const }))
  const rows = results.map((row) => [
    ...[row.model, row.task, row.device, String(row.batch), String(row.threads), milliseconds(row.ms)],
    ...[row.imagesPerSecond.toFixed(1), formatBytes(row.peakBytes)],
  ])
  return formatTable([...columns, ...right], rows)
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
  const { fileError } = await import('../../files.js')
  let text: string
  try {
    text = await readFile(path, 'utf8')
  } catch (error) {
    throw fileError(error, path, 'read')
  }
  try {
    const report = JSON.parse(text) as KernelReport
    if (Array.isArray(report.results)) return report
  } catch {
    // reported below, like JSON of another kind
  }
  throw new SepconvError('ERR_FORMAT', `${path} is no result of \`sepconv bench kernels --out\``, { subject: path })
}
