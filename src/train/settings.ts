/** From the options of `fit` to complete, checked settings: what is given over what the recipe says over the defaults. */

import type { AugmentOptions } from '../data/augment.js'
import { type Dataset, dataFingerprint } from '../data/folder.js'
import { checkMix, type MixOptions } from '../data/mix.js'
import { checkOptions, SepconvError } from '../errors.js'
import type { Value } from '../graph/graph.js'
import { checkStorage } from '../graph/passes/storage.js'
import { PRECISIONS, type Precision } from '../graph/precision.js'
import type { Model } from '../models/model.js'
import type { AverageKind } from './average.js'
import type { Metric } from './events.js'
import { checkRange, type OptimizerSettings } from './optimizer.js'
import { type Recipe, recipeFor } from './recipe.js'
import { checkRates, checkSchedule, type RateFunction, type Schedule } from './schedule.js'

/** A loss of one's own: logits [n, classes] and targets (int32 [n], or float32 [n, classes] where several labels or mixing ask for it). */
export type LossFunction = (logits: Value, targets: Value) => Value

/** Single fields of settings that have a kind. */
type FieldsOf<T> = T extends unknown ? Partial<Omit<T, 'kind'>> & { kind?: never } : never

/** Everything about a training run that is plain data; see {@link FitOptions} for the meaning of each. */
export interface TrainingSettings {
  /** Passes over the training pictures. Default 10. */
  epochs?: number
  /** Pictures per step; the incomplete last batch of an epoch is left out. Default 32. */
  batch?: number
  /** Side of the training pictures. Default: the model's. */
  size?: number
  /** First learning rate. Default 0.045 · batch / 32; a recipe's is scaled likewise when `batch` is given and `rate` is not. */
  rate?: number
  /** Default SGD with momentum 0.9 and weight decay 1e-5 (the paper's for Xception) on filters. Fields left out stay the recipe's. */
  optimizer?: OptimizerSettings | FieldsOf<OptimizerSettings>
  /** Default cosine with half an epoch of warm-up. Fields left out stay the recipe's. */
  schedule?: Schedule | FieldsOf<Schedule> | RateFunction
  /** `'softmax'`: one label per picture; `'sigmoid'`: independent classes, the default where pictures have several labels. */
  loss?: 'softmax' | 'sigmoid' | LossFunction
  /** Share of every label spread over all classes. Default 0. */
  labelSmoothing?: number
  /** Which average of the weights is kept and evaluated, batch norm statistics included. Default `'ema'`. */
  average?: AverageKind
  /** Of `'ema'`. Default 0.999; the first steps use min(decay, (1 + t) / (10 + t)). */
  averageDecay?: number
  /** Gradients are scaled down to this global norm. Default: no limit. */
  clipNorm?: number
  /** Parts that each batch is cut into; gradients are averaged, then one update follows. Batch norm sees a part. Default 1. */
  accumulate?: number
  /** Random crops, mirroring, colours and more; `false` for none. Fields left out stay the recipe's. */
  augment?: AugmentOptions | false
  /** Mixup and cutmix. Default none. */
  mix?: MixOptions
  /** Decides order and augmentation; weights have a seed of their own. Default 0. */
  seed?: number
  /** Which score of the held-out pictures makes an epoch the best. Default `'top1'`, `'map'` where pictures have several labels. */
  metric?: Metric
  /** Ends the run after so many epochs without a better score. Default: never. */
  patience?: number
  /** With several ranks, whose rows batch norm takes its statistics over: the rank's own, or all of them. Default `'local'`. */
  batchNorm?: 'local' | 'synchronised'
  /**
   * With several ranks: none waits for the others' gradients. Each sends its own to the ranks that own the weights and goes on with what it
   * has, which may lack updates of at most `maxStaleness` steps of any rank. Not the same from run to run. Default: off.
   */
  asynchronous?: { readonly maxStaleness: number } | false
  /** What a step stores feature maps and their gradients in; parameters, optimizer and loss stay float32. Default `'float32'`. */
  precision?: Precision
}

const SETTINGS: readonly (keyof TrainingSettings)[] = [
  ...(['epochs', 'batch', 'size', 'rate', 'optimizer', 'schedule', 'loss', 'labelSmoothing', 'average', 'averageDecay'] as const),
  ...(['clipNorm', 'accumulate', 'augment', 'mix', 'seed', 'metric', 'patience', 'precision', 'batchNorm', 'asynchronous'] as const),
]
/** Names of settings, for those who pass them on. */
export const SETTING_NAMES: readonly string[] = SETTINGS

/** Settings with every default filled in. */
export type Settings = Required<Omit<TrainingSettings, 'clipNorm' | 'patience' | 'optimizer' | 'schedule'>> &
  Pick<TrainingSettings, 'clipNorm' | 'patience'> & { optimizer: OptimizerSettings; schedule: Schedule | RateFunction }

const DEFAULT_OPTIMIZER: OptimizerSettings = { kind: 'sgd', momentum: 0.9, weightDecay: 1e-5 }
/** The batch that the default rate is meant for. */
const RATE_BATCH = 32

/** @throws ERR_ARGUMENT, ERR_DATA, ERR_DEVICE naming the setting that is wrong. */
export function resolveSettings(
  given: TrainingSettings,
  recipe: Recipe | undefined,
  model: Model,
  data: Dataset,
  /** That share each batch. */
  ranks = 1,
): Settings {
  const { model: _, ...base }: TrainingSettings & { model?: unknown } = recipe
    ? (recipeFor(recipe, model.config.architecture) as never)
    : {}
  const { epochs = 10, batch = 32, ...rest } = { ...base, ...defined(given) }
  const severalLabels = data.multiLabel === true
  const settings: Settings = {
    epochs,
    batch,
    size: rest.size ?? model.config.preprocessing.size,
    rate: given.rate ?? ((base.rate ?? 0.045) * batch) / (base.rate === undefined ? RATE_BATCH : (base.batch ?? batch)),
    optimizer: merge((base.optimizer as OptimizerSettings | undefined) ?? DEFAULT_OPTIMIZER, given.optimizer as Partial<OptimizerSettings>),
    schedule: merge<Schedule | RateFunction>(
      (base.schedule as Schedule | undefined) ?? { kind: 'cosine', warmup: Math.min(0.5, epochs / 10) },
      given.schedule as Partial<Schedule> | RateFunction,
    ),
    loss: rest.loss ?? (severalLabels ? 'sigmoid' : 'softmax'),
    labelSmoothing: rest.labelSmoothing ?? 0,
    average: rest.average ?? 'ema',
    averageDecay: rest.averageDecay ?? 0.999,
    clipNorm: rest.clipNorm,
    accumulate: rest.accumulate ?? 1,
    augment: rest.augment === false ? false : { ...(base.augment || {}), ...given.augment },
    mix: { ...base.mix, ...given.mix },
    seed: rest.seed ?? 0,
    metric: rest.metric ?? (severalLabels ? 'map' : 'top1'),
    patience: rest.patience,
    precision: rest.precision ?? 'float32',
    batchNorm: rest.batchNorm ?? 'local',
    asynchronous: rest.asynchronous ?? false,
  }
  check(settings, model, data, ranks)
  return settings
}

const defined = <T extends object>(options: T): T =>
  Object.fromEntries(Object.entries(options).filter(([key, value]) => value !== undefined && SETTING_NAMES.includes(key))) as T

/** Without a kind, or with the same one, what is given changes single fields. */
function merge<T extends { kind: string } | RateFunction>(base: T, given: Partial<T> | undefined): T {
  if (given === undefined) return base
  if (typeof given === 'function' || typeof base === 'function') return given as T
  const { kind } = given as { kind?: string }
  return kind === undefined || kind === base.kind ? { ...base, ...given } : (given as T)
}

function check(settings: Settings, model: Model, data: Dataset, ranks: number): void {
  const { epochs, batch, size, accumulate } = settings
  const whole = (x: number) => Number.isInteger(x) && x >= 1
  for (const [name, value] of Object.entries({ epochs, batch, size, accumulate, patience: settings.patience ?? 1 }))
    checkRange('fit', name, value, whole, 'a whole number of at least 1')
  checkRange('fit', 'rate', settings.rate, (x) => x > 0, 'positive')
  checkRange('fit', 'seed', settings.seed, (x) => Number.isSafeInteger(x) && x >= 0, 'a whole number of at least 0')
  checkRange('fit', 'labelSmoothing', settings.labelSmoothing, (x) => x >= 0 && x < 1, 'in [0, 1)')
  choice('loss', settings.loss, ['softmax', 'sigmoid'], typeof settings.loss === 'function')
  choice('average', settings.average, ['ema', 'polyak', 'none'])
  choice('metric', settings.metric, data.multiLabel ? ['map', 'top1', 'top5', 'loss'] : ['top1', 'top5', 'loss'])
  choice('precision', settings.precision, PRECISIONS)
  choice('batchNorm', settings.batchNorm, ['local', 'synchronised'])
  checkMix(settings.mix)
  checkStorage(settings.precision, model.executor.target)
  if (batch % accumulate !== 0)
    throw new SepconvError('ERR_ARGUMENT', `fit: accumulate must divide the batch, got ${accumulate} for ${batch}`, {
      subject: 'accumulate',
      given: accumulate,
    })
  if (batch % (accumulate * ranks) !== 0)
    throw new SepconvError('ERR_ARGUMENT', `fit: a batch of ${batch} in ${accumulate} parts cannot be dealt out to ${ranks} ranks`, {
      subject: 'batch',
      expected: `a multiple of ${accumulate * ranks}`,
      given: batch,
    })
  if (settings.asynchronous) {
    const { maxStaleness } = settings.asynchronous
    checkRange('fit', 'asynchronous.maxStaleness', maxStaleness, (x) => Number.isInteger(x) && x >= 0, 'a whole number of at least 0')
    const clash = { accumulate: accumulate > 1, "batchNorm: 'synchronised'": settings.batchNorm === 'synchronised' }
    for (const [name, wrong] of Object.entries(clash))
      if (wrong) throw new SepconvError('ERR_ARGUMENT', `fit: asynchronous training has no ${name}`, { subject: 'asynchronous' })
  }
  if (ranks > 1 && model.executor.name === 'reference')
    throw new SepconvError('ERR_DEVICE', `fit: the reference device trains alone`, {
      subject: 'device',
      expected: 'cpu',
      given: model.device,
      hint: "Use device 'cpu', or one process",
    })
  if (data.multiLabel && settings.loss === 'softmax')
    throw new SepconvError('ERR_ARGUMENT', 'fit: the softmax loss takes one label per picture, and this data has several', {
      subject: 'loss',
      hint: "Use loss: 'sigmoid'",
    })
  if (data.classes.length !== model.network.classes)
    throw new SepconvError('ERR_DATA', `fit: the data has ${data.classes.length} classes, the model ${model.network.classes}`, {
      subject: 'classes',
      expected: model.network.classes,
      given: data.classes.length,
      hint: `Create the model with classes: ${data.classes.length}`,
    })
  checkLabels(data)
  if (data.train.length < batch)
    throw new SepconvError('ERR_DATA', `fit: ${data.train.length} training pictures do not fill one batch of ${batch}`, {
      subject: 'batch',
      given: batch,
      hint: 'Use a smaller batch',
    })
  if (typeof settings.schedule !== 'function') checkSchedule(settings.schedule)
  checkRates(settings.rate, settings.schedule, { epochs, batch, stepsPerEpoch: Math.floor(data.train.length / batch) })
}

function choice(name: string, value: unknown, choices: readonly string[], ok = false): void {
  if (ok || choices.includes(value as string)) return
  throw new SepconvError('ERR_ARGUMENT', `fit: ${name} must be ${choices.join(', ')}, got ${String(value)}`, {
    subject: name,
    expected: choices,
    given: value,
  })
}

function checkLabels({ classes, train, validation, multiLabel }: Dataset): void {
  const outside = (label: number) => !Number.isInteger(label) || label < 0 || label >= classes.length
  for (const sample of [...train, ...validation]) {
    const wrong = multiLabel ? sample.labels?.find(outside) : outside(sample.label) ? sample.label : undefined
    if (wrong === undefined && !(multiLabel && sample.labels === undefined)) continue
    throw new SepconvError('ERR_DATA', `'${sample.name}' has label ${wrong}, and there are ${classes.length} classes`, {
      subject: sample.name,
      expected: `0 to ${classes.length - 1}`,
      given: wrong,
    })
  }
}

/** What a run is, as plain data; a resumed run must be the same. Functions stand as their names. */
export function describeRun(
  model: Model,
  data: Dataset,
  { size, batchNorm, asynchronous, ...settings }: Settings,
  optimizer: Readonly<Record<string, unknown>>,
) {
  const { schedule, loss, clipNorm = null, patience = null } = settings
  const name = (x: unknown) => (typeof x === 'function' ? `function ${x.name}`.trimEnd() : x)
  return {
    version: 2,
    model: { architecture: model.config.architecture, options: model.config.options, preprocessing: model.config.preprocessing },
    data: {
      root: data.root,
      classes: data.classes,
      train: data.train.length,
      validation: data.validation.length,
      fingerprint: dataFingerprint(data),
    },
    // Only where it is not the default, so that runs from before there was a choice go on.
    settings: {
      ...settings,
      ...(batchNorm !== 'local' && { batchNorm }),
      ...(asynchronous && { asynchronous }),
      size,
      optimizer,
      schedule: name(schedule),
      loss: name(loss),
      clipNorm,
      patience,
    },
  }
}

/** @throws ERR_ARGUMENT for options that neither `fit` nor its settings know. */
export const checkFitOptions = (options: object, own: readonly string[]): void => checkOptions('fit', options, [...own, ...SETTING_NAMES])
