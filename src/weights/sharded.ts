/**
 * Safetensors in several files: an index (`model.safetensors.index.json`) says which file of the same folder holds which tensor.
 */

import { readFile, stat } from 'node:fs/promises'
import { basename, dirname, join } from 'node:path'
import { SepconvError } from '../errors.js'
import { fileError } from '../files.js'
import { tensorOf, type WeightsFile, type WeightsTensor } from './file.js'
import { SafetensorsFile } from './safetensors.js'

/** Indices of real models have a few hundred kilobytes. */
const MAX_INDEX_BYTES = 32 << 20
const MAX_SHARDS = 1000

/** @throws ERR_FORMAT for what is no index, ERR_WEIGHTS when a shard lacks what the index promises, ERR_FILE for a missing shard. */
export async function openSharded(path: string): Promise<WeightsFile> {
  const map = await readIndex(path)
  const shards = new Map<string, SafetensorsFile>()
  const close = async () => {
    for (const shard of shards.values()) await shard.close()
  }
  try {
    for (const name of new Set(map.values())) shards.set(name, await SafetensorsFile.open(join(dirname(path), name)))
    const tensors = new Map<string, WeightsTensor>([...map].map(([name, shard]) => [name, tensorOf(shards.get(shard)!, name)]))
    for (const shard of shards.values())
      for (const name of shard.tensors.keys())
        if (!tensors.has(name))
          throw new SepconvError('ERR_WEIGHTS', `${shard.path} holds '${name}', which ${path} does not name`, { subject: name })
    return {
      path,
      format: 'safetensors',
      tensors,
      metadata: Object.assign({}, ...[...shards.values()].map(({ metadata }) => metadata)) as Record<string, string>,
      readInto: (name, target) => shards.get(map.get(name) ?? '')?.readInto(name, target) ?? Promise.reject(missing(path, name)),
      close,
      [Symbol.asyncDispose]: close,
    }
  } catch (error) {
    await close()
    throw error
  }
}

const missing = (path: string, name: string) =>
  new SepconvError('ERR_WEIGHTS', `${path} has no tensor '${name.slice(0, 80)}'`, { subject: name })

/** The file of every tensor, by the tensor's name. @throws ERR_FORMAT for what is no index; ERR_FILE. */
export async function readIndex(path: string): Promise<Map<string, string>> {
  const refuse = (problem: string, cause?: unknown): never => {
    throw new SepconvError('ERR_FORMAT', `${path}: ${problem}`, { subject: path, cause })
  }
  let text: string
  try {
    if ((await stat(path)).size > MAX_INDEX_BYTES) refuse(`an index of more than ${MAX_INDEX_BYTES >> 20} MiB`)
    text = await readFile(path, 'utf8')
  } catch (error) {
    throw fileError(error, path, 'read')
  }
  let index: { weight_map?: unknown } = {}
  try {
    index = JSON.parse(text) as typeof index
  } catch (cause) {
    refuse(`it starts like JSON and is not (${(cause as Error).message})`, cause)
  }
  const map = index.weight_map
  if (typeof map !== 'object' || map === null || Array.isArray(map))
    return refuse('it is JSON without a weight_map, so no index of weights')
  const entries = Object.entries(map as Record<string, unknown>)
  for (const [name, file] of entries)
    if (typeof file !== 'string' || file === '' || file !== basename(file) || /[\\/\0]|^\.\.?$/.test(file))
      refuse(`weight_map['${name.slice(0, 80)}'] must be the name of a file in the same folder, got ${JSON.stringify(file)}`)
  if (entries.length === 0) refuse('weight_map is empty')
  if (new Set(entries.map(([, file]) => file)).size > MAX_SHARDS) refuse(`weight_map names more than ${MAX_SHARDS} files`)
  return new Map(entries as [string, string][])
}
