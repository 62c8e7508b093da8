/**
 * Weights out of HDF5 files of Keras, read through h5wasm:
 *
 *     Keras 1 to 3, `.h5`    attribute layer_names at the root or under model_weights, per layer a group with attribute
 *                            weight_names; lists beyond 64 KB are cut into layer_names0, layer_names1, …
 *     Keras 3, .weights.h5   layers/<class>[_n]/vars/<index>, in the order of the layers
 *
 * Tensors come out as `<layer>/<role>`, roles under today's names (kernel, depthwise_kernel, gamma, moving_variance, …). Layers that
 * Keras named by itself are `<class>#<n>`, counted from 0 in the order of their numbers: `conv2d_4` to `conv2d_7` of one process
 * are `conv2d` to `conv2d_3` of another. Only paths that those lists name are opened, so cycles in a file lead nowhere.
 */

import { stat } from 'node:fs/promises'
import { SepconvError } from '../errors.js'
import { fileError } from '../files.js'
import { checkTarget, tensorOf, type WeightsFile } from './file.js'
import { Hdf5File, type Hdf5Group } from './hdf5Library.js'
import { METADATA_ATTRIBUTE } from './kerasWriter.js'

const MAX_ATTRIBUTE_BYTES = 16 << 20
const MAX_LAYERS = 20_000
/** Layers of a model inside a model, and so on. */
const MAX_DEPTH = 8

interface Entry {
  readonly shape: readonly number[]
  readonly elements: number
  /** Where the dataset is in the file. */
  readonly place: string
}

interface Found {
  readonly layer: string
  readonly role: string
  readonly place: string
}

/**
 * @param path the HDF5 file. @param name what messages call it.
 * @throws ERR_FORMAT when it is damaged or holds no layers of Keras; ERR_FILE.
 */
export async function openHdf5(path: string, name = path): Promise<WeightsFile> {
  let bytes: number
  try {
    bytes = (await stat(path)).size
  } catch (error) {
    throw fileError(error, path, 'read')
  }
  const file = await Hdf5File.open(path, name)
  try {
    const reader = new Reader(name, bytes, file)
    const tensors = await reader.tensors()
    const metadata = await reader.metadata()
    const close = () => file.close()
    return {
      path: name,
      format: 'hdf5',
      tensors,
      metadata,
      async readInto(tensor, target) {
        const { elements, place } = tensorOf({ path: name, tensors }, tensor)
        checkTarget(tensor, elements, target)
        await reader.read(tensor, place, target)
      },
      close,
      [Symbol.asyncDispose]: close,
    }
  } catch (error) {
    await file.close()
    throw error
  }
}

/** Roles by position, for the layout that has no names. */
const ROLES: Readonly<Record<string, readonly string[]>> = {
  conv2d: ['kernel', 'bias'],
  depthwise_conv2d: ['depthwise_kernel', 'bias'],
  separable_conv2d: ['depthwise_kernel', 'pointwise_kernel', 'bias'],
  batch_normalization: ['gamma', 'beta', 'moving_mean', 'moving_variance'],
  dense: ['kernel', 'bias'],
}

/** What Keras 1 called them; its running_std holds the variance. */
const KERAS1_ROLES: Readonly<Record<string, string>> = {
  W: 'kernel',
  b: 'bias',
  running_mean: 'moving_mean',
  running_std: 'moving_variance',
}

const AUTOMATIC = /^(conv2d|batch_normalization|dense)(?:_(\d+))?$/

class Reader {
  readonly #tensors = new Map<string, Entry>()

  constructor(
    private readonly name: string,
    private readonly bytes: number,
    private readonly file: Hdf5File,
  ) {}

  async tensors(): Promise<ReadonlyMap<string, Entry>> {
    const [root, model] = [await this.file.group(''), await this.file.group('model_weights')]
    if (partsOf(root, 'layer_names').length > 0) await this.#legacy('', root!)
    else if (partsOf(model, 'layer_names').length > 0) await this.#legacy('model_weights', model!)
    else if (await this.file.group('layers')) await this.#byClass()
    else this.#fail('no layers of Keras are in it (neither layer_names, model_weights nor layers)')
    if (this.#tensors.size === 0) this.#fail('its layers hold no weights')
    return this.#tensors
  }

  /** What our own files say of their model; nothing where others use the name. */
  async metadata(): Promise<Readonly<Record<string, string>>> {
    const root = await this.file.group('')
    if (!root || partsOf(root, METADATA_ATTRIBUTE).length === 0) return {}
    try {
      const value = JSON.parse((await this.#list('', root, METADATA_ATTRIBUTE))[0] ?? '{}') as Record<string, unknown> | null
      return Object.fromEntries(Object.entries(value ?? {}).filter((entry): entry is [string, string] => typeof entry[1] === 'string'))
    } catch (error) {
      if (error instanceof SepconvError) throw error
      return {}
    }
  }

  async read(tensor: string, place: string, target: Float32Array): Promise<void> {
    const data = await this.file.read(place)
    if (!(data && 'length' in data && (data as Float32Array).length === target.length))
      this.#fail(`dataset ${place} of '${tensor}' holds no numbers of its shape`)
    if (data instanceof BigInt64Array || data instanceof BigUint64Array) this.#fail(`dataset ${place} holds 64-bit integers`)
    target.set(data as Float32Array)
  }

  async #legacy(root: string, group: Hdf5Group): Promise<void> {
    const found: Found[] = []
    for (const layer of await this.#list(root, group, 'layer_names')) {
      const path = `${root}/${layer}`
      const inside = await this.file.group(path)
      if (!inside) this.#fail(`layer_names lists '${layer}', which is not in it`)
      for (const weight of await this.#list(path, inside, 'weight_names'))
        found.push({ ...this.#weight(layer, weight), place: `${path}/${weight}` })
      if (found.length > MAX_LAYERS) this.#fail(`more than ${MAX_LAYERS} tensors`)
    }
    await this.#addAll(found)
  }

  /** `block1_conv1/kernel:0` or, of Keras 1, `convolution2d_1_W:0` in the group of that name. */
  #weight(layer: string, weight: string): { layer: string; role: string } {
    const path = weight.replace(/:\d+$/, '').split('/')
    if (path.length > 1) return { layer: path.at(-2)!, role: path.at(-1)! }
    const role = path[0]!.startsWith(`${layer}_`) ? path[0]!.slice(layer.length + 1) : path[0]!
    return { layer, role: KERAS1_ROLES[role] ?? role }
  }

  async #byClass(): Promise<void> {
    const found: Found[] = []
    const counts = new Map<string, number>()
    const walk = async (path: string, depth: number): Promise<void> => {
      if (depth > MAX_DEPTH) this.#fail(`layers are nested deeper than ${MAX_DEPTH}`)
      for (const name of sortByNumber(await this.#names(path))) {
        const inner = `${path}/${name}`
        const [, kind = name] = /^(.*?)(?:_\d+)?$/.exec(name) ?? []
        const parts = await this.#names(inner)
        if (parts.includes('layers')) await walk(`${inner}/layers`, depth + 1)
        const roles = ROLES[kind]
        const variables = parts.includes('vars') ? sortByNumber(await this.#names(`${inner}/vars`)) : []
        if (!roles || variables.length === 0) continue
        const index = counts.get(kind) ?? 0
        counts.set(kind, index + 1)
        for (const [i, variable] of variables.entries())
          found.push({ layer: `${kind}#${index}`, role: roles[i] ?? variable, place: `${inner}/vars/${variable}` })
        if (found.length > MAX_LAYERS) this.#fail(`more than ${MAX_LAYERS} tensors`)
      }
    }
    await walk('layers', 0)
    await this.#addAll(found, false)
  }

  async #addAll(found: readonly Found[], renumber = true): Promise<void> {
    const automatic = new Map<string, string>()
    const layers = [...new Set(found.map(({ layer }) => layer))].filter((layer) => renumber && AUTOMATIC.test(layer))
    const counts = new Map<string, number>()
    for (const layer of sortByNumber(layers)) {
      const kind = AUTOMATIC.exec(layer)![1]!
      automatic.set(layer, `${kind}#${counts.get(kind) ?? 0}`)
      counts.set(kind, (counts.get(kind) ?? 0) + 1)
    }
    for (const { layer, role, place } of found) await this.#add(`${automatic.get(layer) ?? layer}/${role}`, place)
  }

  async #add(tensor: string, place: string): Promise<void> {
    if (this.#tensors.has(tensor)) this.#fail(`'${tensor}' is in it twice`)
    const shape = await this.file.shape(place)
    if (!shape) this.#fail(`dataset ${place} is missing`)
    const elements = shape.reduce((product, size) => product * size, 1)
    // Nothing is compressed a thousandfold but what was made to fill the memory.
    if (!Number.isSafeInteger(elements) || elements > this.bytes * 250)
      this.#fail(`dataset ${place} claims ${elements} elements in a file of ${this.bytes} bytes`)
    this.#tensors.set(tensor, { shape, elements, place })
  }

  async #names(path: string): Promise<readonly string[]> {
    const names = (await this.file.group(path))?.names ?? []
    if (names.length > MAX_LAYERS) this.#fail(`group ${path} has ${names.length} entries`)
    return names
  }

  async #list(path: string, group: Hdf5Group, name: string): Promise<string[]> {
    const list: string[] = []
    for (const part of partsOf(group, name)) {
      const { count, bytes } = group.attributes[part]!
      if (count > MAX_LAYERS || bytes > MAX_ATTRIBUTE_BYTES)
        this.#fail(`attribute ${part} of /${path} has ${count} entries, ${bytes} bytes`)
      // An empty list is stored as one of numbers.
      if (count === 0) continue
      const value = await this.file.attribute(path, part)
      const entries = Array.isArray(value) ? (value as unknown[]) : [value]
      if (!entries.every((entry) => typeof entry === 'string')) this.#fail(`attribute ${part} of /${path} is no list of names`)
      list.push(...(entries as string[]))
    }
    return list
  }

  #fail(problem: string): never {
    throw new SepconvError('ERR_FORMAT', `${this.name}: ${problem}`, { subject: this.name })
  }
}

/** The names of an attribute: its own, or those of its numbered parts in order. */
function partsOf(group: Hdf5Group | null, name: string): string[] {
  const has = (attribute: string) => group !== null && Object.hasOwn(group.attributes, attribute)
  if (has(name)) return [name]
  const parts: string[] = []
  while (has(`${name}${parts.length}`)) parts.push(`${name}${parts.length}`)
  return parts
}

/** `conv2d`, `conv2d_1`, `conv2d_2`, …, `conv2d_10`. */
const sortByNumber = (names: readonly string[]): string[] => {
  const number = (name: string) => Number(/_?(\d+)$/.exec(name)?.[1] ?? 0)
  const stem = (name: string) => name.replace(/_?\d+$/, '')
  return [...names].sort((a, b) => (stem(a) < stem(b) ? -1 : stem(a) > stem(b) ? 1 : number(a) - number(b)))
}
