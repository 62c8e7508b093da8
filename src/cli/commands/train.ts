/**
 * `sepconv train DIR`: a thin wrapper over `fit`. Ctrl-C finishes the step under way and saves; a second one ends at once. Either
 * way, and after `kill -9`, `--resume` goes on from the last checkpoint with the same bits.
 */

import { basename, resolve } from 'node:path'
import { Command } from 'commander'
import { SepconvError } from '../../errors.js'
import type { Preprocessing } from '../../models/preprocessing.js'
import type { FitOptions } from '../../train/fit.js'
import type { Communicator } from '../../distributed/communicator.js'
import { onStopRequest } from '../../distributed/stop.js'
import { deviceOfRank } from '../../distributed/device.js'
import { withRanks } from '../ranks.js'
import {
  addModelOptions,
  type DeviceSettings,
  deviceOption,
  jsonOption,
  modelOptions,
  selectDevice,
  threadsOption,
  wholeNumber,
} from '../options.js'
import { ExitStatus } from '../status.js'
import { trainReporter } from '../trainReporter.js'
import { addTrainingOptions, givenOptions, storedRecipe, storedTuning } from '../trainSettings.js'
import { clear, say, writeJsonLine, writeText } from '../ui.js'
import { describeDevice, downloaded } from '../weights.js'

interface Settings extends DeviceSettings, Readonly<Record<string, unknown>> {
  device?: string
  threads?: number
  out?: string
  resume?: string | true
  model?: string
  recipe?: string
  weights?: string
  size?: number
  strict?: boolean
  json?: boolean
  workers?: number
}

export function trainCommand(): Command {
  const command = new Command('train')
    .summary('train a model on labelled pictures')
    .description(
      'Trains a classifier on labelled pictures: class folders (DIR/<class>/…, of which a fifth is held out, or DIR/train/<class>/… and\nDIR/val/<class>/…), WebDataset shards, JSON-lines or CSV files with several labels per picture, or what `sepconv prepare` made.\nWrites best.safetensors, last.safetensors, config.json, state.json, log.jsonl and TensorBoard events into the output folder.',
    )
    .argument('[dir]', 'the pictures (with --resume: those of the run that goes on)')
    .option('--out <folder>', 'where checkpoints and log go (default: runs/<name of DIR>)')
    .option('--resume [folder]', 'go on with the run in that folder (default: --out)')
    .option('--model <name>', 'the architecture (default: that of --weights, else xception)')
  addTrainingOptions(command).optionsGroup('Model:')
  // The number of classes is that of the data.
  return addModelOptions(command, { classes: false })
    .optionsGroup('Options:')
    .addOption(deviceOption())
    .addOption(threadsOption())
    .addOption(jsonOption())
    .optionsGroup('Several processes (docs/cluster.md):')
    .option('--workers <n>', 'train in so many processes of this machine, by mpirun; --batch counts all of them', wholeNumber())
    .option('--sync-batch-norm', "batch norm takes its statistics over all processes' rows, as one process would")
    .option('--asynchronous', 'processes do not wait for the gradients of others, as the paper trained on JFT')
    .option('--max-staleness <steps>', 'of asynchronous: how many steps weights may lag behind any process (default: 4)', wholeNumber(0))
    .addHelpText(
      'after',
      '\nExamples:\n  $ sepconv train pets/ --epochs 20 --size 150\n  $ sepconv train imagenet/ --model inception_v3 --recipe paper-imagenet --batch 64\n  $ sepconv train pets/ --weights keras/xception --freeze middle --layer-rates exit=0.1\n  $ sepconv train --resume runs/pets\n  $ sepconv train pets/ --workers 4 --batch 64\n  $ mpirun -n 16 --hostfile hosts npx sepconv train /data/imagenet --device cuda --batch 1024\n  $ sepconv train pets/ --width 0.25 --middle-repeats 2 --size 96 --batch 64 --json > events.jsonl',
    )
    .action((directory: string | undefined, settings: Settings) =>
      settings.workers === undefined ? withRanks((ranks) => train(directory, settings, ranks)) : trainInWorkers(settings),
    )
}

/** Starts this command as often as there shall be workers, without `--workers`. */
async function trainInWorkers({ workers, threads }: Settings): Promise<void> {
  const { launched } = await import('../../distributed/launched.js')
  const { launch } = await import('../../distributed/launch.js')
  if (launched())
    throw new SepconvError('ERR_ARGUMENT', '--workers starts ranks by itself, and this process is one already', {
      subject: 'workers',
      hint: 'Leave --workers out under mpirun and srun',
    })
  const args = process.argv.slice(2)
  const at = args.findIndex((arg) => arg === '--workers' || arg.startsWith('--workers='))
  args.splice(at, args[at] === '--workers' ? 2 : 1)
  const status = await launch({
    workers: workers!,
    command: [process.execPath, ...process.execArgv, process.argv[1]!, ...args],
    ...(threads !== undefined && { threads }),
    onInterrupt: () => say('finishing the step under way and saving; Ctrl-C again ends at once'),
  })
  if (status !== 0) throw new ExitStatus(status)
}

async function train(directory: string | undefined, settings: Settings, ranks: Communicator | undefined): Promise<void> {
  const tell = (ranks?.rank ?? 0) === 0
  const resume = settings.resume !== undefined
  const out = typeof settings.resume === 'string' ? settings.resume : settings.out
  if (resume && out === undefined)
    throw new SepconvError('ERR_ARGUMENT', '--resume needs the folder of the run', {
      subject: 'resume',
      hint: 'sepconv train --resume runs/pets',
    })
  if (!resume && directory === undefined)
    throw new SepconvError('ERR_ARGUMENT', 'train needs a folder of pictures', { subject: 'dir', hint: 'sepconv train pets/' })
  const device = await deviceOfRank(selectDevice(settings), ranks)
  if (settings.weights !== undefined && !resume) settings.weights = await downloaded(settings.weights)
  const [plan, { openDataset }, { createModel }, { fit }] = await Promise.all([
    resume ? storedPlan(out!, settings) : freshPlan(settings),
    import('../../data/open.js'),
    import('../../models/index.js'),
    import('../../train/fit.js'),
  ])
  const root = directory ?? plan.root!
  const folder = out ?? `runs/${basename(resolve(root))}`
  const data = await openDataset(root, { strict: settings.strict === true })
  using model = await createModel(plan.architecture, {
    ...plan.modelOptions,
    ...(await weightsOptions(settings, plan, data.classes)),
    classes: data.classes.length,
    device,
    seed: plan.seed,
  })
  const names = { train: data.train.length, validation: data.validation.length }
  const among = ranks
    ? ` · ${ranks.size} processes on ${new Set(ranks.hosts).size === 1 ? 'this machine' : `${new Set(ranks.hosts).size} machines`}`
    : ''
  if (tell)
    say(
      `${names.train + names.validation} pictures (${names.validation} held out), ${data.classes.length} classes · ${plan.architecture}, ${count(model.summary().parameters.trainable)} parameters · ${await describeDevice(model.device)}${among}`,
    )
  if (tell && data.ignored.count > 0)
    say(`${data.ignored.count} files are no pictures and were left out (${data.ignored.examples.join(', ')})`)
  const stop = new AbortController()
  const release = onInterrupt(() => stop.abort(), tell)
  const report = !tell ? () => {} : settings.json ? writeJsonLine : trainReporter(plan.batch)
  const goOn = `sepconv train${directory === undefined ? '' : ` ${directory}`} --resume ${folder}`
  try {
    for await (const event of fit({
      ...plan.fit,
      model,
      data,
      out: folder,
      resume,
      strict: settings.strict === true,
      signal: stop.signal,
      ranks,
    })) {
      report(event)
      if (event.type === 'stopped') {
        if (tell) say(`stopped after step ${event.step}; continue with: ${goOn}`)
        throw new ExitStatus(130)
      }
      if (event.type === 'done' && tell && !settings.json) writeText(`${folder}/best.safetensors`)
    }
  } finally {
    release()
    clear()
  }
}

/** What `--weights` adds: the file, a new head unless its classes are these, and its preprocessing at the size asked for. */
async function weightsOptions({ weights, size }: Settings, { preprocessing }: Plan, classes: readonly string[]) {
  if (preprocessing) return { preprocessing }
  if (weights === undefined) return {}
  const { readSource } = await import('../../models/source.js')
  const source = await readSource(weights)
  const same = source.labels?.length === classes.length && source.labels.every((label, i) => label === classes[i])
  return {
    weights,
    head: same ? ('load' as const) : ('new' as const),
    ...(size !== undefined && { preprocessing: { size, resize: Math.round((size * 333) / 299) } }),
  }
}

async function readArchitecture(weights: string): Promise<string> {
  await import('../../models/index.js')
  return (await (await import('../../models/source.js')).readSource(weights)).architecture
}

interface Plan {
  architecture: string
  modelOptions: Record<string, unknown>
  /** Of a run that goes on. */
  preprocessing?: Preprocessing
  fit: Omit<FitOptions, 'model' | 'data'>
  batch: number
  seed: number
  /** Of a run that goes on: where its pictures are. */
  root?: string
}

async function freshPlan(settings: Settings): Promise<Plan> {
  const fit = givenOptions(settings)
  const { weights } = settings
  const name = settings.model ?? (weights === undefined ? 'xception' : await readArchitecture(weights))
  const [{ loadRecipe, recipeFor }, { architecture }] = await Promise.all([
    import('../../train/recipe.js'),
    import('../../models/registry.js'),
    import('../../models/index.js'),
  ])
  const { options: known } = architecture(name)
  const recipe = settings.recipe === undefined ? undefined : await loadRecipe(settings.recipe)
  const { model = {}, batch = 32 } = recipe ? recipeFor(recipe, name) : {}
  // A recipe for many models may name what one of them lacks, such as the momentum of batch norm.
  const applicable = Object.fromEntries(Object.entries(model).filter(([option]) => known.includes(option)))
  return {
    architecture: name,
    modelOptions: { ...applicable, ...modelOptions(settings) },
    fit: { ...fit, ...(recipe && { recipe }) },
    batch: fit.batch ?? batch,
    seed: fit.seed ?? 0,
  }
}

/** The run's own settings; flags that differ from them are left in, so that `fit` refuses them by name. */
async function storedPlan(folder: string, settings: Settings): Promise<Plan> {
  const { readConfig } = await import('../../train/checkpoint.js')
  const config = (await readConfig(folder)) as {
    version: number
    model: { architecture: string; options: Record<string, unknown>; preprocessing: Preprocessing }
    data: { root: string }
    settings: { seed: number; batch: number }
  }
  if (config.version !== 2)
    throw new SepconvError('ERR_FORMAT', `${folder} holds a run of another version of sepconv (${config.version})`, {
      subject: folder,
      hint: 'Finish it with that version, or start a new run',
    })
  return {
    architecture: settings.model ?? config.model.architecture,
    modelOptions: { ...config.model.options, ...modelOptions(settings) },
    preprocessing: config.model.preprocessing,
    fit: { ...storedTuning(config.settings), ...givenOptions(settings), recipe: storedRecipe(config.settings) },
    batch: config.settings.batch,
    seed: config.settings.seed,
    root: config.data.root,
  }
}

/** 22855952 → `22.9 M`, 26608 → `26.6 k`. */
const count = (x: number): string => (x >= 1e6 ? `${(x / 1e6).toPrecision(3)} M` : `${(x / 1e3).toPrecision(3)} k`)

/** The first Ctrl-C, SIGTERM or request of a launcher calls `stop`, the second ends the process. @returns a function that takes the handler off again. */
function onInterrupt(stop: () => void, tell: boolean): () => void {
  let asked = false
  const handle = () => {
    clear()
    if (asked) process.exit(130)
    asked = true
    if (tell) say('finishing the step under way and saving; Ctrl-C again ends at once')
    stop()
  }
  process.on('SIGINT', handle)
  process.on('SIGTERM', handle)
  const deaf = onStopRequest(handle)
  return () => {
    process.off('SIGINT', handle)
    process.off('SIGTERM', handle)
    deaf()
  }
}
