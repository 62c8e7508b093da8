/** A model's weights as files of other programs: safetensors in our or timm's names, Keras 2's HDF5, ONNX. */

import { extname } from 'node:path'
import { checkOptions, SepconvError } from '../errors.js'
import type { Variable } from '../graph/variable.js'
import { readState } from '../runtime/state.js'
import { type Convention, encode, kerasShape, namedTensors, pytorchShape } from '../weights/conventions.js'
import { writeSafetensors } from '../weights/safetensors.js'
import type { Model } from './model.js'
import { architecture } from './registry.js'
import { writeMetadata } from './source.js'

/** Formats that `model.saveWeights` writes. */
export type WeightsFormat = 'safetensors' | 'keras' | 'onnx'

/** Options of `model.saveWeights`. */
export interface SaveOptions {
  /** Default by the name's extension: `.h5` is Keras 2's layout, `.onnx` ONNX, everything else safetensors. */
  format?: WeightsFormat
  /** Of safetensors: `'own'` (default), `'timm'` for PyTorch's Xceptions, `'torchvision'` for the baselines. */
  names?: 'own' | 'timm' | 'torchvision'
  /** Of ONNX: batch norm multiplied into the convolutions before it. Default true. */
  fold?: boolean
  /** Another variable to read in place of one, such as its average. */
  variable?: (of: Variable) => Variable
}

/** @throws ERR_ARGUMENT for unknown options and models that the format has no names for; ERR_FILE. */
export async function saveVariables(path: string, model: Model, options: SaveOptions): Promise<void> {
  checkOptions('saveWeights', options, ['format', 'names', 'fold', 'variable'])
  const { format = formatOf(path), names = 'own' } = options
  if (!['safetensors', 'keras', 'onnx'].includes(format))
    throw new SepconvError('ERR_ARGUMENT', `saveWeights: format must be safetensors, keras or onnx, got ${format}`, {
      subject: 'format',
      given: format,
    })
  if (!['own', 'timm', 'torchvision'].includes(names))
    throw new SepconvError('ERR_ARGUMENT', `saveWeights: names must be 'own', 'timm' or 'torchvision', got ${String(names)}`, {
      subject: 'names',
      given: names,
    })
  const read = async (variable: Variable) => (await readState(options.variable?.(variable) ?? variable)) as Float32Array
  if (format === 'safetensors') return names === 'own' ? await saveOwn(path, model, read) : await savePytorch(path, model, names, read)
  if (names !== 'own')
    throw new SepconvError('ERR_ARGUMENT', `saveWeights: names: '${names}' goes with safetensors, not with ${format}`, { subject: 'names' })
  if (format === 'keras') return await saveKeras(path, model, read)
  const { writeOnnx } = await import('./onnx.js')
  await writeOnnx(path, model, { fold: options.fold ?? true, read })
}

export const formatOf = (path: string): WeightsFormat =>
  (({ '.h5': 'keras', '.hdf5': 'keras', '.onnx': 'onnx' }) as const)[extname(path).toLowerCase() as '.h5'] ?? 'safetensors'

type Read = (variable: Variable) => Promise<Float32Array>

async function saveOwn(path: string, model: Model, read: Read): Promise<void> {
  const tensors = new Map(
    [...model.variables].map(([name, variable]) => [
      name,
      { dtype: 'F32' as const, shape: variable.type.shape, data: () => read(variable) },
    ]),
  )
  await writeSafetensors(path, tensors, { metadata: writeMetadata(model.config) })
}

async function savePytorch(path: string, model: Model, names: 'timm' | 'torchvision', read: Read): Promise<void> {
  const tensors = new Map(
    named(model, names).map((tensor) => {
      const { own, name } = tensor
      const variable = model.variables.get(own)!
      const { shape } = variable.type
      const data = async () => encode(tensor, names, shape, await read(variable))
      return [name, { dtype: 'F32' as const, shape: pytorchShape(own, shape), data }]
    }),
  )
  await writeSafetensors(path, tensors, { metadata: writeMetadata(model.config) })
}

async function saveKeras(path: string, model: Model, read: Read): Promise<void> {
  const { writeKeras } = await import('../weights/kerasWriter.js')
  const layers = new Map<string, { weight: string; shape: readonly number[]; data: () => Promise<Float32Array> }[]>()
  for (const tensor of named(model, 'keras')) {
    const { own, name } = tensor
    const variable = model.variables.get(own)!
    const [layer, weight] = name.split('/') as [string, string]
    const list = layers.get(layer) ?? []
    layers.set(layer, list)
    list.push({
      weight,
      shape: kerasShape(own, variable.type.shape),
      data: async () => encode(tensor, 'keras', variable.type.shape, await read(variable)),
    })
  }
  await writeKeras(path, layers, writeMetadata(model.config))
}

/** Every variable under a convention's name. @throws ERR_ARGUMENT when it has none for some. */
function named(model: Model, convention: Convention) {
  const { architecture: name, options } = model.config
  const table = new Map(namedTensors(architecture(name).layerNames?.(options) ?? [], convention).map((tensor) => [tensor.own, tensor]))
  const nameless = [...model.variables.keys()].filter((own) => !table.has(own))
  if (nameless.length > 0)
    throw new SepconvError('ERR_ARGUMENT', `${convention} has no name for ${nameless.slice(0, 3).join(', ')} of this ${name}`, {
      subject: 'names',
      given: nameless,
      hint: 'Save it under our own names',
    })
  return [...model.variables.keys()].map((own) => table.get(own)!)
}
