/**
 * Weights files of every kind behind one interface: named tensors that are read on demand, one at a time, as float32. What a file
 * is, its content says, never its name; the libraries for HDF5 and zip load when a file needs them.
 */

import { existsSync } from 'node:fs'
import { open, readFile, stat } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { SepconvError } from '../errors.js'
import { fileError } from '../files.js'
import type { FetchOptions } from './fetch.js'

export interface WeightsTensor {
  readonly shape: readonly number[]
  readonly elements: number
}

/**
 * An open weights file. Tensors of `hdf5` files are called `<layer>/<role>` after Keras' layers, such as
 * `block1_conv1/kernel`; those of other files as the file names them.
 */
export interface WeightsFile extends AsyncDisposable {
  readonly path: string
  readonly format: 'safetensors' | 'hdf5' | 'pytorch'
  readonly tensors: ReadonlyMap<string, WeightsTensor>
  /** Texts that travel with the weights; safetensors has them, and our own HDF5 files. */
  readonly metadata: Readonly<Record<string, string>>
  /** What the `config.json` beside the file says, where timm wrote one (it has a `pretrained_cfg`). */
  config?: Readonly<Record<string, unknown>>
  /** Reads a tensor, row-major, into an array of exactly its number of elements. @throws ERR_WEIGHTS, ERR_SHAPE, ERR_DTYPE, ERR_FILE. */
  readInto(name: string, target: Float32Array): Promise<void>
  close(): Promise<void>
}

type Kind = 'safetensors' | 'index' | 'hdf5' | 'zip' | 'pickle'

/**
 * The file that `weights` means: itself, or what `hf:owner/name`, an https address or the name of published weights downloads to.
 * @throws ERR_FILE, ERR_ARGUMENT; see src/weights/fetch.ts.
 */
export async function localWeights(weights: string, options: FetchOptions = {}): Promise<string> {
  if (existsSync(weights)) return weights
  const { fetchWeights, isRemote } = await import('./fetch.js')
  return isRemote(weights) ? await fetchWeights(weights, options) : weights
}

/**
 * Opens a weights file: safetensors (or the index of a sharded one), HDF5 of Keras 1, 2 and 3, `.keras`, PyTorch's zip and its
 * older pickles. Names of published weights and addresses are downloaded first.
 * @throws SepconvError `ERR_FILE` when it is missing, unreadable or truncated, `ERR_FORMAT` when it is none of these or not well formed.
 */
export async function openWeightsFile(weights: string): Promise<WeightsFile> {
  const path = await localWeights(weights)
  const file = await openKind(path, await recognise(path))
  const config = await timmConfig(path)
  if (config) file.config = config
  return file
}

async function openKind(path: string, kind: Kind): Promise<WeightsFile> {
  switch (kind) {
    case 'safetensors':
      return (await import('./safetensors.js')).SafetensorsFile.open(path)
    case 'index':
      return (await import('./sharded.js')).openSharded(path)
    case 'hdf5':
      return (await import('./hdf5.js')).openHdf5(path)
    case 'zip':
      return (await import('./zip.js')).openZippedWeights(path)
    case 'pickle':
      return (await import('./pytorch.js')).openLegacyPytorch(path)
  }
}

const MAX_CONFIG_BYTES = 1 << 20

/** Most folders have no such file, or one of another program. */
async function timmConfig(path: string): Promise<Readonly<Record<string, unknown>> | undefined> {
  const beside = join(dirname(path), 'config.json')
  try {
    const { size } = await stat(beside)
    const config = size <= MAX_CONFIG_BYTES ? (JSON.parse(await readFile(beside, 'utf8')) as unknown) : undefined
    return typeof config === 'object' && config !== null && 'pretrained_cfg' in config ? (config as Record<string, unknown>) : undefined
  } catch {
    return undefined
  }
}

const HDF5_SIGNATURE = '\x89HDF\r\n\x1a\n'

async function recognise(path: string): Promise<Kind> {
  const start = Buffer.alloc(512)
  let length = 0
  let size = 0
  try {
    const handle = await open(path, 'r')
    try {
      size = (await handle.stat()).size
      length = (await handle.read(start, 0, start.length, 0)).bytesRead
    } finally {
      await handle.close()
    }
  } catch (error) {
    throw fileError(error, path, 'read')
  }
  const text = start.toString('latin1', 0, length)
  if (text.startsWith(HDF5_SIGNATURE)) return 'hdf5'
  if (text.startsWith('PK\x03\x04')) return 'zip'
  const headerEnd = length >= 9 ? 8 + Number(start.readBigUInt64LE()) : Number.POSITIVE_INFINITY
  if (text[8] === '{' && headerEnd <= size) return 'safetensors'
  if (/^\s*\{/.test(text)) return 'index'
  if (start[0] === 0x80 && length > 2 && start[1]! >= 2 && start[1]! <= 5) return 'pickle'
  // Whatever says `{` where a header starts is a damaged safetensors file, whose reader says what is wrong with it.
  if (text[8] === '{') return 'safetensors'
  throw new SepconvError('ERR_FORMAT', `${path} is no weights file that is known here: ${describe(text, size)}`, {
    subject: path,
    expected: ['safetensors', 'HDF5 (.h5, .weights.h5)', '.keras', 'PyTorch (.pt, .pth)'],
    hint: 'Known are safetensors and their index, Keras .h5, .weights.h5 and .keras, PyTorch .pt and .pth',
  })
}

function describe(text: string, size: number): string {
  if (size === 0) return 'it is empty'
  if (/^version https:\/\/git-lfs/.test(text)) return 'it is a git-lfs pointer, not the file itself (run git lfs pull)'
  if (/^\s*<(!doctype|html|\?xml)/i.test(text)) return 'it is a web page, so the download did not give the file'
  return `it starts with ${Buffer.from(text.slice(0, 4), 'latin1').toString('hex')}`
}

/** The entry of a tensor. @throws ERR_WEIGHTS when the file has none of that name. */
export function tensorOf<T extends WeightsTensor>(file: { path: string; tensors: ReadonlyMap<string, T> }, name: string): T {
  const entry = file.tensors.get(name)
  if (!entry) throw new SepconvError('ERR_WEIGHTS', `${file.path} has no tensor '${name.slice(0, 80)}'`, { subject: name })
  return entry
}

/** Throws ERR_SHAPE unless `target` has the tensor's number of elements. */
export function checkTarget(name: string, elements: number, target: Float32Array): void {
  if (target.length === elements) return
  throw new SepconvError('ERR_SHAPE', `tensor '${name}' has ${elements} elements, the array ${target.length}`, {
    subject: name,
    expected: elements,
    given: target.length,
  })
}
