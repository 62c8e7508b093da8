/** Options that several commands share, and parsers whose complaints name the option and what it takes. */

import { type Command, InvalidArgumentError, Option } from 'commander'
import { PRECISIONS } from '../graph/precision.js'

type Parser<T> = (text: string) => T

export const wholeNumber =
  (least = 1, most = Number.MAX_SAFE_INTEGER): Parser<number> =>
  (text) => {
    const value = Number(text)
    if (text.trim() === '' || !Number.isSafeInteger(value) || value < least || value > most)
      throw new InvalidArgumentError(
        `Expected a whole number ${most < Number.MAX_SAFE_INTEGER ? `between ${least} and ${most}` : `of at least ${least}`}.`,
      )
    return value
  }

/** Threads that a pool of the cpu device may have. */
export const threadCount: Parser<number> = wholeNumber(1, 1024)

export const decimal =
  (accepts: (x: number) => boolean, expected: string): Parser<number> =>
  (text) => {
    const value = Number(text)
    if (text.trim() === '' || !Number.isFinite(value) || !accepts(value)) throw new InvalidArgumentError(`Expected a number ${expected}.`)
    return value
  }

export const positive = decimal((x) => x > 0, 'above 0')

/** A comma-separated list without duplicates. */
export const list =
  <T>(parse: Parser<T>): Parser<T[]> =>
  (text) => {
    const parts = text.split(',').map((part) => part.trim())
    if (parts.includes('')) throw new InvalidArgumentError('Expected a comma-separated list without empty entries.')
    return [...new Set(parts.map(parse))]
  }

export const oneOf =
  <T extends string>(...choices: readonly T[]): Parser<T> =>
  (text) => {
    if (!choices.includes(text as T)) throw new InvalidArgumentError(`Allowed choices are ${choices.join(', ')}.`)
    return text as T
  }

export const jsonOption = (): Option => new Option('--json', 'print JSON on stdout and nothing else (see docs/json.md)')
export const deviceOption = (): Option => new Option('--device <name>', 'auto, cpu, cuda, cuda:0, … or reference (default: auto)')
export const threadsOption = (): Option =>
  new Option('--threads <n>', 'threads of the cpu device (default: one per core)').argParser(threadCount)

export const precisionOption = (): Option =>
  new Option(
    '--precision <type>',
    'of feature maps: float32, tf32 (GPUs: products on tensor cores), or bfloat16 at half the bytes (default: float32)',
  ).argParser(oneOf(...PRECISIONS))

export const resizeOption = (): Option =>
  new Option(
    '--resize <how>',
    "crop (shorter side, then the centre) or squash (the whole picture, as Keras loads it); default: the weights'",
  ).argParser(oneOf('crop', 'squash'))

/** Adds what `predict`, `evaluate` and `embed` take: how pictures are resized, and what computes in which precision. */
export const addInferenceOptions = (command: Command): Command =>
  command
    .addOption(resizeOption())
    .addOption(deviceOption())
    .addOption(precisionOption())
    .addOption(threadsOption())
    .addOption(jsonOption())

/** `--device` and `--threads` as commands receive them. */
export interface DeviceSettings {
  device?: string
  threads?: number
}

/**
 * Puts `--threads` in force and returns the device's name for the library. Threads belong to the process, not to a model, so they
 * travel as the environment's SEPCONV_THREADS, which the cpu device reads when it is first opened.
 */
export function selectDevice({ device, threads }: DeviceSettings): string | undefined {
  if (threads !== undefined) process.env.SEPCONV_THREADS = String(threads)
  return device
}

/** Flags for the options of an architecture, which `summary`, `train`, `bench model` and `verify` share. */
export function addModelOptions(command: Command, { classes = true } = {}): Command {
  if (classes) command.option('--classes <n>', 'outputs of the last layer (0: the embedding)', wholeNumber(0))
  return command
    .option('--size <pixels>', 'height and width of the input', wholeNumber())
    .option('--input-channels <n>', 'channels of the input', wholeNumber())
    .option('--width <factor>', 'multiplies every channel count', positive)
    .option('--middle-repeats <n>', "repeats of Xception's middle-flow module", wholeNumber(0))
    .option('--blocks <list>', 'repeats per stage of the other models, such as 1,1,1', counts)
    .option('--variant <name>', 'of Inception V3 and ResNet: keras or torchvision', oneOf('keras', 'torchvision'))
    .option('--padding <rule>', 'of Inception V3: valid as published, same for small pictures', oneOf('valid', 'same'))
    .option('--aux', 'the auxiliary tower of Inception V3')
    .option(
      '--dropout <share>',
      'share of the pooled features dropped in training',
      decimal((x) => x >= 0 && x < 1, 'in [0, 1)'),
    )
    .option('--pooling <kind>', 'avg or max, of the last feature map', oneOf('avg', 'max'))
    .option('--no-residual', 'without the shortcuts')
    .option('--intermediate-activation <name>', 'between depthwise and pointwise: none, relu or elu', oneOf('none', 'relu', 'elu'))
    .option('--intermediate-batch-norm', 'batch norm between depthwise and pointwise')
    .option('--segments <n>', 'channel segments of the spatial convolutions; w<n> for segments of n channels', segments)
    .option('--order <which>', 'depthwise-first, or inception: the 1×1 first', oneOf('depthwise-first', 'inception'))
    .option('--fully-connected [units]', "layers before the last: a list of widths (default: the paper's 4096,4096)", list(wholeNumber()))
    .option('--exit-bias', 'biases in the exit flow, as in Lucid')
    .option('--pool-padding <rule>', 'tf or symmetric', oneOf('tf', 'symmetric'))
}

/** The architecture's options that were given, under the library's names. */
export function modelOptions(values: Readonly<Record<string, unknown>>): Record<string, unknown> {
  const names = [
    ...['classes', 'inputChannels', 'width', 'middleRepeats', 'dropout', 'pooling', 'intermediateActivation', 'intermediateBatchNorm'],
    ...['segments', 'order', 'fullyConnected', 'exitBias', 'poolPadding', 'blocks', 'variant', 'padding', 'aux'],
  ]
  const given = Object.fromEntries(names.flatMap((name) => (values[name] === undefined ? [] : [[name, values[name]]])))
  return {
    ...given,
    ...(values.size !== undefined && { inputSize: values.size }),
    ...(values.residual === false && { residual: false }),
  }
}

/** Unlike `list`, repetitions count. */
const counts: Parser<number[]> = (text) => text.split(',').map(wholeNumber())

function segments(text: string): number | { width: number } {
  return text.startsWith('w') ? { width: wholeNumber()(text.slice(1)) } : wholeNumber()(text)
}
