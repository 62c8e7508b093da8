/** What a weights file holds, judged by its tensors: whose names, hence which layout, pool padding, epsilon and preprocessing. */

import { SepconvError } from '../errors.js'
import { type Convention, HEAD_ALIASES, isPytorch, type NamedTensor, namedTensors } from '../weights/conventions.js'
import { openWeightsFile, type WeightsFile } from '../weights/file.js'
import type { ModelConfig } from './model.js'
import type { Preprocessing } from './preprocessing.js'
import { type Architecture, architecture, listModels } from './registry.js'

/** What a file says, and what its names imply, about the model that it belongs to. */
export interface WeightsSource {
  readonly architecture: string
  readonly convention: 'own' | Convention
  /** Options of the architecture. */
  readonly options: Readonly<Record<string, unknown>>
  readonly preprocessing: Partial<Preprocessing>
  readonly labels?: readonly string[]
  /** In front of every name, such as `module.` after data-parallel training. */
  readonly prefix: string
  /** The head's name in the file; `undefined` where it has none. */
  readonly head?: string
  /** Beginning of the names of a part that a model may do without, such as the auxiliary tower of Inception V3. */
  readonly unused?: string
}

const CONVENTIONS: Readonly<Record<WeightsFile['format'], readonly Convention[]>> = {
  safetensors: ['timm', 'lucid', 'torchvision'],
  pytorch: ['timm', 'lucid', 'torchvision'],
  hdf5: ['keras', 'keras1', 'keras3'],
}
const PREFIXES = ['', 'module.', 'model.', 'backbone.', 'module.model.', '_orig_mod.']

/**
 * Identifies a file, as one of `name` or of any architecture.
 * @throws ERR_WEIGHTS when its tensors are nobody's that is known here; ERR_FORMAT for metadata that is no JSON.
 */
export function identify(file: WeightsFile, name?: string, given: Readonly<Record<string, unknown>> = {}): WeightsSource {
  const stored = readMetadata(file.path, file.metadata)
  if (stored) {
    const convention = conventionOf(file, stored)
    return { ...stored, convention, prefix: '', ...headOf(file, convention, '') }
  }
  let best: Match | undefined
  for (const candidate of name === undefined ? listModels().map((model) => model.name) : [name]) {
    const found = match(file, architecture(candidate), given)
    if (found && better(found, best)) best = found
  }
  if (best) return best.source
  const names = [...file.tensors.keys()]
  throw new SepconvError(
    'ERR_WEIGHTS',
    `${file.path} holds none of the names that are known for ${name ?? 'any model'}: its ${names.length} tensors are called ${names.slice(0, 3).join(', ')}, …`,
    {
      subject: file.path,
      given: names.slice(0, 20),
      hint: name === undefined ? 'Name the architecture, such as xception' : 'Is it of another architecture, width or depth?',
    },
  )
}

/** What the weights file at `path` holds. */
export async function readSource(path: string): Promise<WeightsSource> {
  await using file = await openWeightsFile(path)
  return identify(file)
}

/** A file that says which model it holds may still bear another program's names. */
function conventionOf(file: WeightsFile, { architecture: name, options }: ModelConfig): 'own' | Convention {
  const { layerNames } = architecture(name)
  if (!layerNames) return 'own'
  if (file.format === 'hdf5') return 'keras'
  for (const convention of ['timm', 'torchvision'] as const) {
    const first = namedTensors(layerNames(options), convention)[0]
    if (first && file.tensors.has(first.name) && !file.tensors.has(first.own)) return convention
  }
  return 'own'
}

/** How well a file fits an architecture: the share of its tensors that are there, and how many those are. */
interface Match {
  readonly share: number
  readonly count: number
  readonly source: WeightsSource
}

/** Every tensor of ResNet-50 is in a file of ResNet-152 too: among equals the one of more tensors is meant. */
const better = (a: Pick<Match, 'share' | 'count'>, b: Pick<Match, 'share' | 'count'> | undefined): boolean =>
  !b || a.share > b.share || (a.share === b.share && a.count > b.count)

/** The convention and prefix under which most of the architecture's tensors are in the file, if more than half are. */
function match(file: WeightsFile, candidate: Architecture, given: Readonly<Record<string, unknown>>): Match | undefined {
  let best: { share: number; count: number; convention: Convention; prefix: string; found: object } | undefined
  for (const convention of CONVENTIONS[file.format])
    for (const prefix of PREFIXES) {
      const found = candidate.detect?.((name) => file.tensors.has(prefix + name)) ?? {}
      const rows = candidate.layerNames?.({ ...found, ...given }) ?? []
      const wanted = namedTensors(rows, convention).filter(({ head, optional }) => !head && !optional)
      const count = wanted.filter((tensor) => file.tensors.has(prefix + tensor.name)).length
      const share = count / wanted.length
      if (share > 0.5 && better({ share, count }, best)) best = { share, count, convention, prefix, found }
    }
  if (!best) return undefined
  const { share, count, convention, prefix, found } = best
  const head = headOf(file, convention, prefix)
  const { options = {}, preprocessing = {}, unused } = candidate.sources?.[convention] ?? {}
  const source: WeightsSource = {
    architecture: candidate.name,
    convention,
    options: { ...options, ...found, classes: head.classes ?? 0 },
    preprocessing: { ...preprocessing, ...(convention === 'timm' && timmPreprocessing(candidate.name, file.config)) },
    prefix,
    ...(head.head !== undefined && { head: head.head }),
    ...(unused !== undefined && { unused }),
  }
  return { share, count, source }
}

/** What timm's config.json says of pictures; a value that is none of its kind is as if it were not there. */
function timmPreprocessing(name: string, config: WeightsFile['config']): Partial<Preprocessing> {
  if (config?.architecture !== name && config?.architecture !== `legacy_${name}`) return {}
  const { pretrained_cfg: found } = config
  if (typeof found !== 'object' || found === null) return {}
  const { input_size, crop_pct, crop_mode, interpolation, mean, std } = found as Record<string, unknown>
  const numbers = (value: unknown, positive: boolean): value is number[] =>
    Array.isArray(value) && value.length > 0 && value.every((x) => Number.isFinite(x) && (!positive || x > 0))
  const size = numbers(input_size, true) && Number.isInteger(input_size[1]) && input_size[1]! <= 4096 ? input_size[1] : undefined
  const side = size ?? 299
  return {
    ...(size !== undefined && { size }),
    ...(typeof crop_pct === 'number' && crop_pct >= 0.25 && crop_pct <= 1 && { resize: Math.floor(side / crop_pct) }),
    ...(crop_mode === 'center' || crop_mode === 'squash' ? { crop: crop_mode } : {}),
    ...(interpolation === 'bicubic' || interpolation === 'bilinear' || interpolation === 'nearest' ? { interpolation } : {}),
    ...(numbers(mean, false) && { mean }),
    ...(numbers(std, true) && { deviation: std }),
  }
}

function headOf(file: WeightsFile, convention: 'own' | Convention, prefix: string): { head?: string; classes?: number } {
  if (convention === 'own') return {}
  const weight = isPytorch(convention) ? '.weight' : '/kernel'
  for (const head of HEAD_ALIASES[convention]) {
    const shape = file.tensors.get(prefix + head + weight)?.shape
    if (shape?.length === 2) return { head, classes: weight === '.weight' ? shape[0] : shape[1] }
  }
  return {}
}

/** Variable by variable, where the file has it. */
export function sourceTensors(
  source: WeightsSource,
  variables: Iterable<string>,
  options: Readonly<Record<string, unknown>>,
): NamedTensor[] {
  const own = [...variables].map((name) => ({ own: name, name, head: false, optional: false }))
  const { convention, prefix, head } = source
  if (convention === 'own') return own
  const { layerNames, head: ownHead = 'predictions' } = architecture(source.architecture)
  const rows = layerNames!(options)
  const known = new Map(namedTensors(rows, convention).map((tensor) => [tensor.own, tensor]))
  const headName = rows.find((row) => row.own === ownHead)?.[convention]
  return own.map((tensor) => {
    const entry = known.get(tensor.own)
    if (!entry) return tensor
    const isHead = tensor.own.startsWith(`${ownHead}.`) && head !== undefined && headName !== undefined
    const name = isHead ? head + entry.name.slice(headName.length) : entry.name
    return { ...entry, name: prefix + name }
  })
}

/** What a file written by `saveWeights` says of its model; `undefined` for files of other programs. @throws ERR_FORMAT. */
export function readMetadata(path: string, metadata: Readonly<Record<string, string>>): ModelConfig | undefined {
  if (metadata.format !== 'sepconv' || metadata.architecture === undefined) return undefined
  const parsed = (key: string, expected: string, accepts: (value: unknown) => boolean): unknown => {
    const refuse = (cause?: unknown) =>
      new SepconvError('ERR_FORMAT', `${path}: ${key} in its metadata is not ${expected}`, { subject: key, expected, cause })
    let value: unknown
    try {
      value = JSON.parse(metadata[key]!)
    } catch (cause) {
      throw refuse(cause)
    }
    if (!accepts(value)) throw refuse()
    return value
  }
  const object = (key: string) =>
    metadata[key] === undefined
      ? {}
      : (parsed(key, 'a JSON object', (value) => typeof value === 'object' && value !== null && !Array.isArray(value)) as object)
  const isList = (value: unknown) => Array.isArray(value) && value.every((entry) => typeof entry === 'string')
  return {
    architecture: metadata.architecture,
    options: object('options') as Record<string, unknown>,
    preprocessing: object('preprocessing') as Preprocessing,
    ...(metadata.labels !== undefined && { labels: parsed('labels', 'a JSON list of texts', isList) as string[] }),
  }
}

/** The metadata of a file that `saveWeights` writes. */
export const writeMetadata = ({ architecture: name, options, preprocessing, labels }: ModelConfig): Record<string, string> => ({
  format: 'sepconv',
  architecture: name,
  options: JSON.stringify(options),
  preprocessing: JSON.stringify(preprocessing),
  ...(labels && { labels: JSON.stringify(labels) }),
})
