/** Flags of MAP@k, and the files that they name. */

import { type Command, InvalidArgumentError } from 'commander'
import { SepconvError } from '../errors.js'
import { readText } from '../files.js'
import type { MeanAveragePrecisionOptions } from '../meanAveragePrecision.js'
import { oneOf } from './options.js'

export interface MapSettings {
  metric?: number
  classWeights?: string
  evalClasses?: string
  mapAverage?: 'image' | 'class'
  mapDivisor?: 'labels' | 'min'
}

export function addMapOptions(command: Command): Command {
  return command
    .option('--metric <name>', 'map@100 (or another k): also mean average precision of the best k classes', metric)
    .option(
      '--class-weights <file>',
      "weights of classes in map: a JSON object from name to weight, or a number per line in the classes' order",
    )
    .option('--eval-classes <file>', 'the classes that count in map, one name per line (default: all)')
    .option('--map-average <over>', 'image or class (default: image)', oneOf('image', 'class'))
    .option('--map-divisor <which>', 'labels, or min: at most as many as could be hit (default: labels)', oneOf('labels', 'min'))
}

function metric(text: string): number {
  const k = Number(/^map@(\d+)$/.exec(text)?.[1])
  if (!(k >= 1)) throw new InvalidArgumentError('Expected map@ and a whole number, such as map@100.')
  return k
}

/** `undefined` where no flag asks for MAP. @throws ERR_ARGUMENT, ERR_FILE, ERR_DATA for files that do not fit the classes. */
export async function mapOptions(settings: MapSettings, classes: readonly string[]): Promise<MeanAveragePrecisionOptions | undefined> {
  const { metric: k, classWeights, evalClasses, mapAverage, mapDivisor } = settings
  if (k === undefined) {
    const flag = Object.entries({
      'class-weights': classWeights,
      'eval-classes': evalClasses,
      'map-average': mapAverage,
      'map-divisor': mapDivisor,
    })
    const [given] = flag.filter(([, value]) => value !== undefined)
    if (given) throw new SepconvError('ERR_ARGUMENT', `--${given[0]} needs --metric map@100`, { subject: given[0] })
    return undefined
  }
  const index = new Map(classes.map((name, i) => [name, i]))
  const indexOf = (file: string, name: string) => {
    const at = index.get(name)
    if (at === undefined) throw new SepconvError('ERR_DATA', `${file}: '${name}' is no class of this data`, { subject: file, given: name })
    return at
  }
  return {
    k,
    ...(mapAverage && { average: mapAverage }),
    ...(mapDivisor && { divisor: mapDivisor }),
    ...(classWeights !== undefined && { classWeights: await readWeights(classWeights, classes.length, indexOf) }),
    ...(evalClasses !== undefined && { classes: (await readLines(evalClasses)).map((name) => indexOf(evalClasses, name)) }),
  }
}

const withoutMark = async (file: string): Promise<string> => (await readText(file)).replace(/^\uFEFF/, '')

const readLines = async (file: string): Promise<string[]> => (await withoutMark(file)).split(/\r?\n/).flatMap((line) => line.trim() || [])

async function readWeights(file: string, count: number, indexOf: (file: string, name: string) => number): Promise<number[]> {
  const text = await withoutMark(file)
  if (!text.trimStart().startsWith('{')) return (await readLines(file)).map(Number)
  let entries: Record<string, unknown>
  try {
    entries = JSON.parse(text) as Record<string, unknown>
  } catch (cause) {
    throw new SepconvError('ERR_FORMAT', `${file} starts like JSON and is not (${(cause as Error).message})`, { subject: file, cause })
  }
  const weights = new Array<number>(count).fill(0)
  for (const [name, weight] of Object.entries(entries)) weights[indexOf(file, name)] = Number(weight)
  return weights
}
