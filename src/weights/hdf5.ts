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
import type { Attribute, Dataset, File, Group } from 'h5wasm/node'
import { SepconvError } from '../errors.js'
import { fileError } from '../files.js'
import { checkTarget, tensorOf, type WeightsFile } from './file.js'

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

/**
 * @param path the HDF5 file. @param name what messages call it.
 * @throws ERR_FORMAT when it is damaged or holds no layers of Keras; ERR_FILE.
 */
export async function openHdf5(path: string, name = path): Promise<WeightsFile> {
  const h5wasm = await import('h5wasm/node')
  // Otherwise the library prints its errors on stderr and goes on with invalid handles.
  ;(await h5wasm.ready).activate_throwing_error_handler()
  let bytes: number
  try {
    bytes = (await stat(path)).size
  } catch (error) {
    throw fileError(error, path, 'read')
  }
  let file: File | undefined
  try {
    const opened = guarded(name, () => new h5wasm.File(path, 'r'))
    file = opened
    const reader = new Reader(name, bytes, opened)
    const tensors = reader.tensors()
    let open = true
    const close = async () => {
      if (open) opened.close()
      open = false
    }
    return {
      path: name,
      format: 'hdf5',
      tensors,
      metadata: {},
      async readInto(tensor, target) {
        if (!open) throw new SepconvError('ERR_DISPOSED', `${name} was closed`, { subject: name })
        const { elements, place } = tensorOf({ path: name, tensors }, tensor)
        checkTarget(tensor, elements, target)
        reader.read(tensor, place, target)
      },
      close,
      [Symbol.asyncDispose]: close,
    }
  } catch (error) {
    file?.close()
    throw error
  }
}

/** The library's complaints, and WebAssembly's own, as errors about the file. */
function guarded<T>(name: string, body: () => T): T {
  try {
    return body()
  } catch (error) {
    if (error instanceof SepconvError) throw error
    throw new SepconvError('ERR_FORMAT', `${name}: damaged HDF5 file (${reasonOf(error)})`, { subject: name, cause: error })
  }
}

/** Of the library's stack of errors the innermost says what is wrong. */
function reasonOf(error: unknown): string {
  const text = error instanceof Error ? error.message : String(error)
  const innermost = [...text.matchAll(/^ *#\d+: .*\): (.*)$/gm)].at(-1)?.[1]
  return innermost ?? text.split('\n')[0]!.trim()
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
    private readonly file: File,
  ) {}

  tensors(): ReadonlyMap<string, Entry> {
    guarded(this.name, () => {
      const root = this.#hasList(this.file, 'layer_names') ? this.file : this.#group('model_weights')
      if (root && this.#hasList(root, 'layer_names')) this.#legacy(root)
      else if (this.#group('layers')) this.#byClass()
      else this.#fail('no layers of Keras are in it (neither layer_names, model_weights nor layers)')
    })
    if (this.#tensors.size === 0) this.#fail('its layers hold no weights')
    return this.#tensors
  }

  read(tensor: string, place: string, target: Float32Array): void {
    const data = guarded(this.name, () => (this.file.get(place) as Dataset).value)
    if (!(ArrayBuffer.isView(data) && 'length' in data && (data as Float32Array).length === target.length))
      this.#fail(`dataset ${place} of '${tensor}' holds no numbers of its shape`)
    if (data instanceof BigInt64Array || data instanceof BigUint64Array) this.#fail(`dataset ${place} holds 64-bit integers`)
    target.set(data as Float32Array)
  }

  #legacy(root: Group): void {
    const layers = this.#list(root, 'layer_names')
    const found: { layer: string; role: string; place: string }[] = []
    for (const layer of layers) {
      const group = this.#child(root, layer)
      if (!group) this.#fail(`layer_names lists '${layer}', which is not in it`)
      for (const weight of this.#hasList(group, 'weight_names') ? this.#list(group, 'weight_names') : [])
        found.push({ ...this.#weight(layer, weight), place: `${group.path}/${weight}` })
      if (found.length > MAX_LAYERS) this.#fail(`more than ${MAX_LAYERS} tensors`)
    }
    this.#addAll(found)
  }

  /** `block1_conv1/kernel:0` or, of Keras 1, `convolution2d_1_W:0` in the group of that name. */
  #weight(layer: string, weight: string): { layer: string; role: string } {
    const path = weight.replace(/:\d+$/, '').split('/')
    if (path.length > 1) return { layer: path.at(-2)!, role: path.at(-1)! }
    const role = path[0]!.startsWith(`${layer}_`) ? path[0]!.slice(layer.length + 1) : path[0]!
    return { layer, role: KERAS1_ROLES[role] ?? role }
  }

  #byClass(): void {
    const found: { layer: string; role: string; place: string }[] = []
    const counts = new Map<string, number>()
    const walk = (path: string, depth: number): void => {
      if (depth > MAX_DEPTH) this.#fail(`layers are nested deeper than ${MAX_DEPTH}`)
      for (const name of sortByNumber(this.#names(path))) {
        const inner = `${path}/${name}`
        const [, kind = name] = /^(.*?)(?:_\d+)?$/.exec(name) ?? []
        if (this.#group(`${inner}/layers`)) walk(`${inner}/layers`, depth + 1)
        const roles = ROLES[kind]
        const variables = this.#group(`${inner}/vars`) ? sortByNumber(this.#names(`${inner}/vars`)) : []
        if (!roles || variables.length === 0) continue
        const index = counts.get(kind) ?? 0
        counts.set(kind, index + 1)
        for (const [i, variable] of variables.entries())
          found.push({ layer: `${kind}#${index}`, role: roles[i] ?? variable, place: `${inner}/vars/${variable}` })
        if (found.length > MAX_LAYERS) this.#fail(`more than ${MAX_LAYERS} tensors`)
      }
    }
    walk('layers', 0)
    this.#addAll(found, false)
  }

  #addAll(found: readonly { layer: string; role: string; place: string }[], renumber = true): void {
    const automatic = new Map<string, string>()
    const layers = [...new Set(found.map(({ layer }) => layer))].filter((layer) => renumber && AUTOMATIC.test(layer))
    const counts = new Map<string, number>()
    for (const layer of sortByNumber(layers)) {
      const kind = AUTOMATIC.exec(layer)![1]!
      automatic.set(layer, `${kind}#${counts.get(kind) ?? 0}`)
      counts.set(kind, (counts.get(kind) ?? 0) + 1)
    }
    for (const { layer, role, place } of found) this.#add(`${automatic.get(layer) ?? layer}/${role}`, place)
  }

  #add(tensor: string, place: string): void {
    if (this.#tensors.has(tensor)) this.#fail(`'${tensor}' is in it twice`)
    const dataset = this.file.get(place)
    const shape = (dataset as Dataset | null)?.shape
    if (!dataset || !Array.isArray(shape)) throw this.#fail(`dataset ${place} is missing`)
    const elements = shape.reduce((product, size) => product * size, 1)
    // Nothing is compressed a thousandfold but what was made to fill the memory.
    if (!Number.isSafeInteger(elements) || elements > this.bytes * 250)
      this.#fail(`dataset ${place} claims ${elements} elements in a file of ${this.bytes} bytes`)
    this.#tensors.set(tensor, { shape, elements, place })
  }

  #names(path: string): string[] {
    const names = this.#group(path)?.keys() ?? []
    if (names.length > MAX_LAYERS) this.#fail(`group ${path} has ${names.length} entries`)
    return names
  }

  /** The group of that path; none where the library finds none. */
  #group(path: string): Group | undefined {
    try {
      const entry = this.file.get(path) as Group | null
      return entry && typeof entry.keys === 'function' ? entry : undefined
    } catch {
      return undefined
    }
  }

  #child(root: Group, name: string): Group | undefined {
    return this.#group(`${root.path}/${name}`)
  }

  #hasList(group: Group, name: string): boolean {
    return this.#attributes(group, name).length > 0
  }

  /** The attribute, or its numbered parts in order. */
  #attributes(group: Group, name: string): Attribute[] {
    const all = group.attrs
    if (all[name]) return [all[name]]
    const parts: Attribute[] = []
    for (let attribute = all[`${name}0`]; attribute; attribute = all[`${name}${parts.length}`]) parts.push(attribute)
    return parts
  }

  #list(group: Group, name: string): string[] {
    return this.#attributes(group, name).flatMap((attribute) => {
      const { shape, metadata } = attribute
      const count = (shape ?? []).reduce((product, size) => product * size, 1)
      if (count > MAX_LAYERS || count * metadata.size > MAX_ATTRIBUTE_BYTES)
        this.#fail(`attribute ${name} of ${group.path} has ${count} entries of ${metadata.size} bytes`)
      // An empty list is stored as one of numbers.
      if (count === 0) return []
      const value = attribute.value as unknown
      const list = Array.isArray(value) ? value : [value]
      if (!list.every((entry) => typeof entry === 'string')) this.#fail(`attribute ${name} of ${group.path} is no list of names`)
      return list as string[]
    })
  }

  #fail(problem: string): never {
    throw new SepconvError('ERR_FORMAT', `${this.name}: ${problem}`, { subject: this.name })
  }
}

/** `conv2d`, `conv2d_1`, `conv2d_2`, …, `conv2d_10`. */
const sortByNumber = (names: readonly string[]): string[] => {
  const number = (name: string) => Number(/_?(\d+)$/.exec(name)?.[1] ?? 0)
  const stem = (name: string) => name.replace(/_?\d+$/, '')
  return [...names].sort((a, b) => (stem(a) < stem(b) ? -1 : stem(a) > stem(b) ? 1 : number(a) - number(b)))
}
