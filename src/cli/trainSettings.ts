/** The flags of `sepconv train` that are training settings, and what they mean to `fit`. */

import { type Command, InvalidArgumentError } from 'commander'
import type { FitOptions } from '../train/fit.js'
import type { FreezeOptions } from '../train/freeze.js'
import type { Recipe } from '../train/recipe.js'
import type { Span } from '../train/schedule.js'
import { decimal, list, oneOf, positive, precisionOption, wholeNumber } from './options.js'

const share = decimal((x) => x >= 0 && x < 1, 'in [0, 1)')
const upToOne = decimal((x) => x >= 0 && x <= 1, 'in [0, 1]')
const atLeast0 = decimal((x) => x >= 0, 'of at least 0')
const MEBIBYTE = 2 ** 20

export function addTrainingOptions(command: Command): Command {
  return command
    .optionsGroup('Length and pace:')
    .option('--recipe <name>', 'paper-imagenet, paper-jft, slim-inception, modern, or a file; flags change single settings of it')
    .option('--epochs <n>', 'passes over the pictures (default: 10)', wholeNumber())
    .option('--batch <n>', 'pictures per step (default: 32)', wholeNumber())
    .option('--accumulate <n>', 'parts that each batch is cut into, to save memory; one update follows (default: 1)', wholeNumber())
    .option('--rate <rate>', 'first learning rate (default: 0.045 × batch / 32)', positive)
    .option('--schedule <kind>', 'constant, cosine or exponential (default: cosine)', oneOf('constant', 'cosine', 'exponential'))
    .option('--warmup <epochs>', 'epochs over which the rate rises from 0 (default: with cosine 0.5, at most a tenth of all)', atLeast0)
    .option('--decay-factor <factor>', 'of exponential: × this (default: 0.94)', positive)
    .option('--decay-every <span>', 'every so many epochs, or 3000000samples, 5000steps (default: 2)', span)
    .option('--continuous', 'of exponential: not in whole stairs')
    .option('--patience <epochs>', 'end after so many epochs without a better score (default: never)', wholeNumber())
    .option('--seed <n>', 'decides weights, order and augmentation (default: 0)', wholeNumber(0))
    .optionsGroup('Optimizer:')
    .option('--optimizer <kind>', 'sgd, rmsprop, adamw or lamb (default: sgd)', oneOf('sgd', 'rmsprop', 'adamw', 'lamb'))
    .option('--momentum <share>', 'of sgd (default: 0.9) and rmsprop (default: 0)', share)
    .option('--nesterov', "Nesterov's form of the momentum, of sgd")
    .option('--rmsprop-form <form>', 'tensorflow, keras or pytorch (default: tensorflow)', oneOf('tensorflow', 'keras', 'pytorch'))
    .option('--epsilon <value>', 'of rmsprop, adamw and lamb', positive)
    .option('--weight-decay <factor>', 'on filters (default: 1e-5 with sgd)', atLeast0)
    .option('--decays <which>', 'filters, no-depthwise or all (default: filters)', oneOf('filters', 'no-depthwise', 'all'))
    .option('--l2 <convention>', 'half: gradient λ·w; full: 2λ·w, as Keras counts (default: half)', oneOf('half', 'full'))
    .option('--clip-norm <norm>', 'scales gradients down to this norm (default: off)', positive)
    .option('--average <kind>', 'of the weights, for evaluation: ema, polyak or none (default: ema)', oneOf('ema', 'polyak', 'none'))
    .option('--average-decay <share>', 'of ema (default: 0.999)', share)
    .optionsGroup('Fine-tuning:')
    .option('--weights <file>', 'begin with these (see docs/weights.md); the last layer starts anew unless they have the same classes')
    .option(
      '--freeze <parts>',
      'leave as they are: entry, middle (and all before it), all-but-head, or patterns such as block1.*',
      list(String),
    )
    .option('--unfreeze-every <epochs>', 'train the head alone first; every so many epochs the stage before joins', wholeNumber())
    .option('--layer-rates <list>', 'factors of the rate by stage or pattern, such as entry=0.1,middle=0.3', layerRates)
    .optionsGroup('Loss and data:')
    .option('--loss <kind>', 'softmax or sigmoid (default: sigmoid where pictures have several labels)', oneOf('softmax', 'sigmoid'))
    .option('--label-smoothing <share>', 'share of each label spread over all classes (default: 0)', share)
    .option('--metric <name>', 'what makes an epoch the best: top1, top5, loss, map', oneOf('top1', 'top5', 'loss', 'map'))
    .option('--no-augment', 'no random crops, mirroring and colours')
    .option(
      '--rand-augment <magnitude>',
      'two random changes per picture, from 0 to 10 strong',
      decimal((x) => x >= 0 && x <= 10, 'from 0 to 10'),
    )
    .option('--erase <share>', 'share of the pictures of which a random part is erased', upToOne)
    .option('--mixup <alpha>', 'mixes pictures and labels', atLeast0)
    .option('--cutmix <alpha>', 'cuts parts of pictures into others', atLeast0)
    .addOption(precisionOption())
    .optionsGroup('Checkpoints:')
    .option('--checkpoint-steps <n>', 'steps between checkpoints (default: every minute, and after each epoch)', wholeNumber())
    .option('--snapshots <epochs>', 'epochs between weights that are kept for good (default: none are)', wholeNumber())
    .option(
      '--memory-limit <MiB>',
      'most scratch memory of a step; values are computed again instead of kept (default: off)',
      wholeNumber(),
    )
    .option('--strict', 'fail on a picture that cannot be read instead of skipping it')
    .optionsGroup('Options:')
}

/** `entry=0.1,middle=0.3` */
function layerRates(text: string): Record<string, number> {
  return Object.fromEntries(
    text.split(',').map((entry) => {
      const [, part, factor] = /^([^=]+)=([^=]+)$/.exec(entry.trim()) ?? []
      if (part === undefined) throw new InvalidArgumentError('Expected a list such as entry=0.1,middle=0.3.')
      return [part, positive(factor!)]
    }),
  )
}

function span(text: string): Span {
  const [, number = '', unit = 'epochs'] = /^([\d.e+]+)\s*(epochs|steps|samples)?$/i.exec(text.trim()) ?? []
  return { [unit]: positive(number) } as unknown as Span
}

/** What the flags say of `fit`'s options. */
export function givenOptions(flags: Readonly<Record<string, unknown>>): Omit<FitOptions, 'model' | 'data'> {
  const pick = (names: Readonly<Record<string, string>>) =>
    Object.fromEntries(Object.entries(names).flatMap(([name, flag]) => (flags[flag] === undefined ? [] : [[name, flags[flag]]])))
  const same = (...names: string[]) => pick(Object.fromEntries(names.map((name) => [name, name])))
  const group = (name: string, fields: Readonly<Record<string, unknown>>) => (Object.keys(fields).length > 0 ? { [name]: fields } : {})
  const optimizer = {
    ...pick({ kind: 'optimizer', form: 'rmspropForm' }),
    ...same('momentum', 'nesterov', 'epsilon', 'weightDecay', 'decays', 'l2'),
  }
  const schedule = {
    ...pick({ kind: 'schedule', factor: 'decayFactor', every: 'decayEvery' }),
    ...same('warmup'),
    ...(flags.continuous === true && { staircase: false }),
  }
  const augment = {
    ...(flags.randAugment !== undefined && { randAugment: { magnitude: flags.randAugment } }),
    ...(flags.erase !== undefined && { erase: { probability: flags.erase } }),
  }
  return {
    ...same('recipe', 'epochs', 'batch', 'accumulate', 'size', 'rate', 'patience', 'seed', 'clipNorm', 'average', 'averageDecay', 'loss'),
    ...same('labelSmoothing', 'metric', 'precision', 'checkpointSteps', 'snapshots', 'strict', 'freeze', 'unfreezeEvery'),
    ...pick({ rates: 'layerRates' }),
    ...group('optimizer', optimizer),
    ...group('schedule', schedule),
    ...group('augment', augment),
    ...group('mix', same('mixup', 'cutmix')),
    ...(flags.syncBatchNorm === true && { batchNorm: 'synchronised' as const }),
    ...((flags.asynchronous === true || flags.maxStaleness !== undefined) && {
      asynchronous: { maxStaleness: (flags.maxStaleness as number | undefined) ?? 4 },
    }),
    ...(flags.augment === false && { augment: false as const }),
    ...(flags.memoryLimit !== undefined && { memoryLimit: (flags.memoryLimit as number) * MEBIBYTE }),
  }
}

/** The settings that a run was started with, as the recipe of its continuation. */
export function storedRecipe(settings: Readonly<Record<string, unknown>>): Recipe {
  const tuning = ['freeze', 'unfreezeEvery', 'rates']
  const known = Object.fromEntries(Object.entries(settings).filter(([name, value]) => value !== null && !tuning.includes(name)))
  return { name: 'resumed', description: 'the settings of the run that goes on', ...known } as Recipe
}

/** Freezing and layer-wise rates of a run that goes on. */
export const storedTuning = ({ freeze, unfreezeEvery, rates }: Readonly<Record<string, unknown>>): FreezeOptions =>
  ({
    ...(freeze !== undefined && { freeze }),
    ...(unfreezeEvery !== undefined && { unfreezeEvery }),
    ...(rates !== undefined && { rates }),
  }) as FreezeOptions
