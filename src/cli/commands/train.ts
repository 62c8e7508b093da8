/**
 * `sepconv train DIR`: a thin wrapper over `fit`. Ctrl-C finishes the step under way and saves; a second one ends at once. Either
 * way, and after `kill -9`, `--resume` goes on from the last checkpoint with the same bits.
 */

import { basename, resolve } from 'node:path'
import { Command } from 'commander'
import { SepconvError } from '../../errors.js'
import type { AverageKind } from '../../train/optimizer.js'
import type { FitEvent, FitOptions } from '../../train/fit.js'
import type { Schedule } from '../../train/schedule.js'
import {
  addModelOptions,
  type DeviceSettings,
  decimal,
  deviceOption,
  jsonOption,
  modelOptions,
  oneOf,
  positive,
  selectDevice,
  threadsOption,
  wholeNumber,
} from '../options.js'
import { percent } from '../table.js'
import { ExitStatus } from '../status.js'
import { clear, Progress, say, significant, writeJsonLine, writeText } from '../ui.js'
import { describeDevice } from '../weights.js'

interface Settings extends DeviceSettings {
  out?: string
  resume?: string | true
  model?: string
  size?: number
  epochs?: number
  batch?: number
  rate?: number
  seed?: number
  schedule?: Schedule['kind']
  warmup?: number
  momentum?: number
  weightDecay?: number
  nesterov?: boolean
  average?: AverageKind
  averageDecay?: number
  labelSmoothing?: number
  clipNorm?: number
  augment?: boolean
  checkpointSteps?: number
  memoryLimit?: number
  strict?: boolean
  json?: boolean
}

const share = decimal((x) => x >= 0 && x < 1, 'in [0, 1)')
const MEBIBYTE = 2 ** 20

export function trainCommand(): Command {
  const command = new Command('train')
    .summary('train a model on folders of pictures')
    .description(
      'Trains a classifier on pictures in class folders: DIR/<class>/… (a fifth is held out), or DIR/train/<class>/… and DIR/val/<class>/….\nWrites best.safetensors, last.safetensors, config.json, state.json and log.jsonl into the output folder.',
    )
    .argument('[dir]', 'the pictures (with --resume: those of the run that goes on)')
    .option('--out <folder>', 'where checkpoints and log go (default: runs/<name of DIR>)')
    .option('--resume [folder]', 'go on with the run in that folder (default: --out)')
    .option('--model <name>', 'the architecture (default: xception)')
    .option('--epochs <n>', 'passes over the pictures (default: 10)', wholeNumber())
    .option('--batch <n>', 'pictures per step (default: 32)', wholeNumber())
    .option('--rate <rate>', 'first learning rate (default: 0.045 × batch / 32)', positive)
    .option('--seed <n>', 'decides weights, order and augmentation (default: 0)', wholeNumber(0))
    .option('--schedule <kind>', 'constant, cosine or exponential (default: cosine)', oneOf('constant', 'cosine', 'exponential'))
    .option(
      '--warmup <epochs>',
      'epochs over which the rate rises from 0 (default: 0.5, at most a tenth of all)',
      decimal((x) => x >= 0, 'of at least 0'),
    )
    .option('--momentum <share>', 'of SGD (default: 0.9)', share)
    .option(
      '--weight-decay <factor>',
      'on filters (default: 1e-5)',
      decimal((x) => x >= 0, 'of at least 0'),
    )
    .option('--nesterov', "Nesterov's form of the momentum")
    .option('--average <kind>', 'of the weights, for evaluation: ema, polyak or none (default: ema)', oneOf('ema', 'polyak', 'none'))
    .option('--average-decay <share>', 'of ema (default: 0.999)', share)
    .option('--label-smoothing <share>', 'share of each label spread over all classes (default: 0)', share)
    .option('--clip-norm <norm>', 'scales gradients down to this norm (default: off)', positive)
    .option('--no-augment', 'no random crops, mirroring and colours')
    .option('--checkpoint-steps <n>', 'steps between checkpoints (default: every minute, and after each epoch)', wholeNumber())
    .option(
      '--memory-limit <MiB>',
      'most scratch memory of a step; values are computed again instead of kept (default: off)',
      wholeNumber(),
    )
    .option('--strict', 'fail on a picture that cannot be read instead of skipping it')
  // The number of classes is that of the folders.
  return addModelOptions(command, { classes: false })
    .addOption(deviceOption())
    .addOption(threadsOption())
    .addOption(jsonOption())
    .addHelpText(
      'after',
      '\nExamples:\n  $ sepconv train pets/ --epochs 20 --size 150\n  $ sepconv train --resume runs/pets\n  $ sepconv train pets/ --width 0.25 --middle-repeats 2 --size 96 --batch 64 --json > events.jsonl',
    )
    .action(train)
}

async function train(directory: string | undefined, settings: Settings): Promise<void> {
  const resume = settings.resume !== undefined
  const out = typeof settings.resume === 'string' ? settings.resume : settings.out
  if (resume && out === undefined)
    throw new SepconvError('ERR_ARGUMENT', '--resume needs the folder of the run', {
      subject: 'resume',
      hint: 'sepconv train --resume runs/pets',
    })
  if (!resume && directory === undefined)
    throw new SepconvError('ERR_ARGUMENT', 'train needs a folder of pictures', { subject: 'dir', hint: 'sepconv train pets/' })
  const device = selectDevice(settings)
  const [plan, { imageFolder }, { createModel }, { fit }] = await Promise.all([
    resume ? storedPlan(out!, settings) : freshPlan(settings),
    import('../../data/folder.js'),
    import('../../models/index.js'),
    import('../../train/fit.js'),
  ])
  const root = directory ?? plan.root!
  const folder = out ?? `runs/${basename(resolve(root))}`
  const data = await imageFolder(root, { strict: settings.strict === true })
  using model = await createModel(plan.architecture, {
    ...plan.modelOptions,
    classes: data.classes.length,
    device,
    seed: plan.fit.seed ?? 0,
  })
  const names = { train: data.train.length, validation: data.validation.length }
  say(
    `${names.train + names.validation} pictures (${names.validation} held out), ${data.classes.length} classes · ${plan.architecture}, ${count(model.summary().parameters.trainable)} parameters · ${await describeDevice(model.device)}`,
  )
  if (data.ignored.count > 0) say(`${data.ignored.count} files are no pictures and were left out (${data.ignored.examples.join(', ')})`)
  const stop = new AbortController()
  const release = onInterrupt(() => stop.abort())
  const report = settings.json ? writeJsonLine : reporter(plan.fit.batch ?? 32)
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
    })) {
      report(event)
      if (event.type === 'stopped') {
        say(`stopped after step ${event.step}; continue with: ${goOn}`)
        throw new ExitStatus(130)
      }
      if (event.type === 'done' && !settings.json) writeText(`${folder}/best.safetensors`)
    }
  } finally {
    release()
    clear()
  }
}

interface Plan {
  architecture: string
  modelOptions: Record<string, unknown>
  fit: Omit<FitOptions, 'model' | 'data'>
  /** Of a run that goes on: where its pictures are. */
  root?: string
}

const FIT_NAMES = [
  ...[
    'epochs',
    'batch',
    'size',
    'rate',
    'seed',
    'momentum',
    'weightDecay',
    'nesterov',
    'average',
    'averageDecay',
    'labelSmoothing',
    'clipNorm',
  ],
  'checkpointSteps',
] as const

/** What the flags say of `fit`'s options. */
function givenOptions(settings: Settings): Omit<FitOptions, 'model' | 'data'> {
  return {
    ...Object.fromEntries(FIT_NAMES.flatMap((name) => (settings[name] === undefined ? [] : [[name, settings[name]]]))),
    ...(settings.augment === false && { augment: false as const }),
    ...(settings.memoryLimit !== undefined && { memoryLimit: settings.memoryLimit * MEBIBYTE }),
  }
}

function freshPlan(settings: Settings): Plan {
  const fit = givenOptions(settings)
  if (settings.schedule !== undefined || settings.warmup !== undefined) {
    const warmup = settings.warmup ?? Math.min(0.5, (settings.epochs ?? 10) / 10)
    fit.schedule = { kind: settings.schedule ?? 'cosine', warmup }
  }
  return { architecture: settings.model ?? 'xception', modelOptions: modelOptions({ ...settings }), fit }
}

/** The run's own settings; flags that differ from them are left in, so that `fit` refuses them by name. */
async function storedPlan(folder: string, settings: Settings): Promise<Plan> {
  const { readConfig } = await import('../../train/checkpoint.js')
  const config = (await readConfig(folder)) as {
    model: { architecture: string; options: Record<string, unknown> }
    data: { root: string }
    settings: Record<string, unknown>
  }
  const { clipNorm, ...stored } = config.settings
  const known = [
    'epochs',
    'batch',
    'size',
    'rate',
    'seed',
    'labelSmoothing',
    'schedule',
    'momentum',
    'weightDecay',
    'nesterov',
    'augment',
    'average',
    'averageDecay',
  ]
  const fit = Object.fromEntries(known.flatMap((name) => (stored[name] === undefined ? [] : [[name, stored[name]]])))
  return {
    architecture: settings.model ?? config.model.architecture,
    modelOptions: { ...config.model.options, ...modelOptions({ ...settings }) },
    fit: { ...fit, ...(clipNorm !== null && clipNorm !== undefined && { clipNorm: clipNorm as number }), ...givenOptions(settings) },
    root: config.data.root,
  }
}

/** 22855952 → `22.9 M`, 26608 → `26.6 k`. */
const count = (x: number): string => (x >= 1e6 ? `${(x / 1e6).toPrecision(3)} M` : `${(x / 1e3).toPrecision(3)} k`)

/** The first Ctrl-C calls `stop`, the second ends the process. @returns a function that takes the handler off again. */
function onInterrupt(stop: () => void): () => void {
  let asked = false
  const handle = () => {
    clear()
    if (asked) process.exit(130)
    asked = true
    say('finishing the step under way and saving; Ctrl-C again ends at once')
    stop()
  }
  process.on('SIGINT', handle)
  process.on('SIGTERM', handle)
  return () => {
    process.off('SIGINT', handle)
    process.off('SIGTERM', handle)
  }
}

/** Shows events to people. */
function reporter(batch: number): (event: FitEvent) => void {
  let epochs = 0
  let stepsPerEpoch = 1
  let progress: Progress | undefined
  let current = 0
  return (event) => {
    if (event.type === 'start') {
      epochs = event.epochs
      stepsPerEpoch = event.stepsPerEpoch
      if (event.step > 0) say(`going on after step ${event.step} of ${event.steps}`)
    } else if (event.type === 'step') {
      const within = event.step - (event.epoch - 1) * stepsPerEpoch
      if (current !== event.epoch) {
        current = event.epoch
        progress = new Progress({
          label: `epoch ${event.epoch}/${epochs}`,
          total: stepsPerEpoch * batch,
          unit: 'img',
          done: (within - 1) * batch,
        })
      }
      progress?.update(within * batch, `loss ${significant(event.loss)}   top-1 ${percent(event.top1)}`, event.imagesPerSecond)
    } else if (event.type === 'epoch') {
      progress?.finish()
      const held = event.validation
        ? `   held out: loss ${significant(event.validation.loss)}   top-1 ${percent(event.validation.top1)}`
        : ''
      say(
        `epoch ${event.epoch}/${epochs}   loss ${significant(event.loss)}   top-1 ${percent(event.top1)}${held}${event.best ? '   best so far' : ''}   ${event.seconds.toFixed(1)} s`,
      )
      if (event.skipped.length > 0) say(`skipped ${event.skipped.length} unreadable pictures: ${event.skipped.slice(0, 5).join(', ')}`)
    } else if (event.type === 'done' && event.best) {
      say(`best: ${percent(event.best.top1)} held out, epoch ${event.best.epoch}`)
    }
  }
}
