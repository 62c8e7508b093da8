/** Weights of any source into a model's variables, compared strictly: everything that does not fit is listed before anything changes. */

import { SepconvError } from '../errors.js'
import { elements, formatShape, sameShape } from '../graph/types.js'
import type { Variable } from '../graph/variable.js'
import type { Executor } from '../runtime/executor.js'
import { fillState, readState, writeState } from '../runtime/state.js'
import { decode, IGNORED, isPytorch, type NamedTensor, pytorchShape, sameButOnes } from '../weights/conventions.js'
import type { WeightsFile } from '../weights/file.js'
import { architecture } from './registry.js'
import { sourceTensors, type WeightsSource } from './source.js'

/** Options of `model.loadWeights`. */
export interface LoadOptions {
  /**
   * `'new'` keeps the model's own last layer and takes everything else from the file: for another number of classes. Default
   * `'load'`: it must fit like every other layer.
   */
  head?: 'load' | 'new'
}

/** What loading did besides filling every variable. */
export interface LoadReport {
  readonly format: WeightsFile['format']
  /** Whose names and layouts the file has. */
  readonly convention: WeightsSource['convention']
  /** Tensors read. */
  readonly loaded: number
  /** Tensors of the file that mean nothing to a model, such as PyTorch's batch counters and a run's optimizer state. */
  readonly ignored: readonly string[]
  /** The last layer was left as it was. */
  readonly newHead: boolean
  /** Biases that went into the running means of the batch norms behind them, which changes nothing but the form. */
  readonly foldedBiases: readonly string[]
}

export interface LoadTarget {
  readonly name: string
  readonly options: Readonly<Record<string, unknown>>
  readonly variables: ReadonlyMap<string, Variable>
  /** Name of the last layer, if the model has one. */
  readonly head: string | undefined
  readonly executor: Executor
}

/**
 * Fills the variables of a model.
 * @throws ERR_WEIGHTS when tensors are missing, unexpected or of another shape, all of them listed; nothing has changed then.
 */
export async function loadVariables(
  file: WeightsFile,
  source: WeightsSource,
  target: LoadTarget,
  options: LoadOptions = {},
): Promise<LoadReport> {
  const { variables, executor } = target
  const newHead = options.head === 'new'
  const isHead = ({ own, head }: NamedTensor) => head || (target.head !== undefined && own.startsWith(`${target.head}.`))
  const wanted = sourceTensors(source, variables.keys(), target.options).filter((tensor) => !(newHead && isHead(tensor)))
  const biases = biasesOf(file, source, wanted)
  const ignored = compare(file, source, target, wanted, biases, newHead)
  const { convention } = source
  let loaded = 0
  const load = async (tensor: NamedTensor) => {
    const { own, name, optional } = tensor
    const variable = variables.get(own)!
    const present = file.tensors.has(name)
    if (!present && !optional) throw new SepconvError('ERR_INTERNAL', `no tensor for '${own}'`)
    if (present) loaded++
    if (present && convention !== 'own' && (isPytorch(convention) || tensor.order)) {
      const data = new Float32Array(elements(variable.type.shape))
      await file.readInto(name, data)
      writeState(variable, decode(tensor, convention, variable.type.shape, data), executor)
    } else await fillState(variable, executor, async (data) => void (present ? await file.readInto(name, data) : data.fill(0)))
  }
  const rest = [...wanted]
  await settled(
    Array.from({ length: READERS }, async () => {
      try {
        for (let tensor = rest.shift(); tensor; tensor = rest.shift()) await load(tensor)
      } catch (error) {
        rest.length = 0
        throw error
      }
    }),
  )
  for (const fold of biases) await foldBiases(file, fold, variables, executor)
  return { format: file.format, convention: source.convention, loaded, ignored, newHead, foldedBiases: biases.map(({ layer }) => layer) }
}

/** Tensors that are read at once: reading one waits for the file, copying another for the processor. */
const READERS = 4

/** Waits for all, also when one fails: none may go on reading after the file was closed. @throws the first error. */
async function settled(promises: readonly Promise<void>[]): Promise<void> {
  for (const result of await Promise.allSettled(promises)) if (result.status === 'rejected') throw result.reason
}

function compare(
  file: WeightsFile,
  source: WeightsSource,
  target: LoadTarget,
  wanted: readonly NamedTensor[],
  biases: readonly Fold[],
  newHead: boolean,
): string[] {
  const { variables } = target
  const names = new Set([...wanted.map(({ name }) => name), ...biases.flatMap(({ depthwise, pointwise }) => [depthwise, pointwise])])
  const missing = wanted.filter(({ name, optional }) => !file.tensors.has(name) && !optional).map(({ name }) => name)
  const rest = [...file.tensors.keys()].filter((name) => !names.has(name))
  const unused = source.unused
  const ignored = rest.filter((name) => IGNORED.test(name) || (unused !== undefined && name.startsWith(source.prefix + unused)))
  // A model without a head asks for none of the file's.
  const headless = newHead || target.head === undefined
  const headPrefix =
    source.convention === 'own' ? (architecture(source.architecture).head ?? 'predictions') : source.prefix + (source.head ?? '\0')
  const dropped = rest.filter((name) => headless && (name.startsWith(`${headPrefix}.`) || name.startsWith(`${headPrefix}/`)))
  const unexpected = rest.filter((name) => !ignored.includes(name) && !dropped.includes(name))
  const reshaped = wanted.flatMap(({ own, name }) => {
    const found = file.tensors.get(name)
    if (!found || fits(source, own, found.shape, variables.get(own)!.type.shape)) return []
    return [`${name} ${formatShape(found.shape)} for ${own} ${formatShape(variables.get(own)!.type.shape)}`]
  })
  for (const { layer, depthwise, pointwise } of biases) {
    const sizes = variables.get(`${layer}.pointwise`)!.type.shape
    for (const [i, name] of [depthwise, pointwise].entries())
      if (file.tensors.get(name)!.elements !== sizes[i])
        reshaped.push(`${name} ${formatShape(file.tensors.get(name)!.shape)} for [${sizes[i]}]`)
  }
  if (missing.length + unexpected.length + reshaped.length === 0) return [...ignored, ...dropped]
  const list = (label: string, entries: readonly string[]) =>
    entries.length > 0 ? [`${entries.length} ${label} (${entries.slice(0, 4).join(', ')}${entries.length > 4 ? ', …' : ''})`] : []
  const parts = [...list('missing', missing), ...list('unexpected', unexpected), ...list('of another shape', reshaped)]
  const headTensors = wanted.filter(({ own }) => target.head !== undefined && own.startsWith(`${target.head}.`)).map(({ name }) => name)
  const onlyHead =
    unexpected.length === 0 && [...missing, ...reshaped.map((text) => text.split(' ')[0]!)].every((name) => headTensors.includes(name))
  throw new SepconvError('ERR_WEIGHTS', `${file.path} does not fit this ${target.name}: ${parts.join('; ')}`, {
    subject: file.path,
    given: { missing, unexpected, reshaped },
    hint: onlyHead
      ? "Only the last layer differs: head: 'new' keeps the model's own and loads the rest"
      : `The file holds '${source.architecture}' under names of ${source.convention === 'own' ? 'sepconv' : source.convention} with options ${JSON.stringify(source.options)}`,
  })
}

function fits(source: WeightsSource, own: string, found: readonly number[], wanted: readonly number[]): boolean {
  if (source.convention === 'own') return sameShape(found, wanted)
  return sameButOnes(found, isPytorch(source.convention) ? pytorchShape(own, wanted) : wanted)
}

/** Biases of a separable convolution for which the model has no place. */
interface Fold {
  readonly layer: string
  /** Tensors of the file. */
  readonly depthwise: string
  readonly pointwise: string
}

function biasesOf(file: WeightsFile, source: WeightsSource, wanted: readonly NamedTensor[]): Fold[] {
  if (source.convention !== 'lucid') return []
  const taken = new Set(wanted.map(({ name }) => name))
  return wanted.flatMap(({ own, name }) => {
    const [layer, stem] = [own.replace(/\.depthwise$/, ''), name.replace(/\.depthwise\.weight$/, '')]
    if (layer === own || stem === name) return []
    const fold = { layer, depthwise: `${stem}.depthwise.bias`, pointwise: `${stem}.pointwise.bias` }
    return file.tensors.has(fold.depthwise) && file.tensors.has(fold.pointwise) && !taken.has(fold.depthwise) ? [fold] : []
  })
}

/** Batch norm subtracts the mean, so a constant before it is a smaller mean: mean −= pointwiseᵀ · depthwiseBias + pointwiseBias. */
async function foldBiases(file: WeightsFile, fold: Fold, variables: ReadonlyMap<string, Variable>, executor: Executor): Promise<void> {
  const pointwise = variables.get(`${fold.layer}.pointwise`)!
  const mean = variables.get(`${fold.layer}_bn.movingMean`)!
  const [channelsIn, channelsOut] = pointwise.type.shape as [number, number]
  const depthwiseBias = new Float32Array(channelsIn)
  const bias = new Float32Array(channelsOut)
  await file.readInto(fold.depthwise, depthwiseBias)
  await file.readInto(fold.pointwise, bias)
  const [weights, means] = [(await readState(pointwise)) as Float32Array, (await readState(mean)) as Float32Array]
  const folded = means.map((value, o) => {
    let total = bias[o]!
    for (let i = 0; i < channelsIn; i++) total += depthwiseBias[i]! * weights[i * channelsOut + o]!
    return value - total
  })
  writeState(mean, folded, executor)
}
