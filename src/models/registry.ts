/** Model architectures by name: `createModel('xception')` finds them here, and so does every command. */

import { nearest, SepconvError } from '../errors.js'
import type { Value } from '../graph/graph.js'
import type { Layer } from '../nn/layer.js'
import type { Convention, LayerNames } from '../weights/conventions.js'
import type { Preprocessing } from './preprocessing.js'

/** What an architecture builds: layers, and what one must know to feed them. */
export interface Network {
  /** Owns every variable. */
  readonly root: Layer
  /** [n, h, w, c] float32, normalised → logits [n, classes], an embedding, or named feature maps. */
  forward(x: Value): Value | Readonly<Record<string, Value>>
  /** Height and width that it was built for. */
  readonly inputSize: number
  readonly inputChannels: number
  /** 0 where the output is no score per class. */
  readonly classes: number
  /** Whether the same weights take other input sizes. */
  readonly variableInputSize: boolean
  /** How pictures become its input, where that is not as for Xception. */
  readonly preprocessing?: Partial<Preprocessing>
}

/** Options of the architecture and preprocessing that come with weights of one origin. */
export interface SourceDefaults {
  readonly options?: Readonly<Record<string, unknown>>
  readonly preprocessing?: Partial<Preprocessing>
  /** Beginning of the names of a part that such files may have and a model may do without. */
  readonly unused?: string
}

/** An entry of the registry. */
export interface Architecture {
  readonly name: string
  readonly description: string
  /** Names of the options that `build` takes. */
  readonly options: readonly string[]
  /** The layer that maps features to classes. Default `'predictions'`. */
  readonly head?: string
  /** Every layer with weights under the names of other programs, for given options; without it only our own files fit. */
  layerNames?(options: Readonly<Record<string, unknown>>): readonly LayerNames[]
  /** Options that decide which names there are, as a file of another program tells by the tensors that it has. */
  detect?(has: (name: string) => boolean): Readonly<Record<string, unknown>>
  /** Prefixes of variable names by stage, from the input to the output, for freezing and layer-wise learning rates. */
  stages?(options: Readonly<Record<string, unknown>>): Readonly<Record<'entry' | 'middle' | 'exit' | 'head', readonly string[]>>
  /** What weights of each origin were trained with. */
  readonly sources?: Readonly<Partial<Record<Convention, SourceDefaults>>>
  /** Builds the layers. @throws ERR_ARGUMENT for bad options. */
  build(options: Readonly<Record<string, unknown>>): Network
}

const architectures = new Map<string, Architecture>()

/** Makes an architecture known by its name. @throws ERR_ARGUMENT when the name is taken or a part is missing. */
export function registerModel(architecture: Architecture): void {
  const { name, options, build } = architecture ?? {}
  if (typeof name !== 'string' || name === '' || !Array.isArray(options) || typeof build !== 'function')
    throw new SepconvError('ERR_ARGUMENT', 'registerModel: an architecture needs name, description, options (a list of names) and build', {
      subject: 'architecture',
      given: architecture,
    })
  if (architectures.has(architecture.name))
    throw new SepconvError('ERR_ARGUMENT', `registerModel: '${architecture.name}' is registered already`, {
      subject: 'name',
      given: architecture.name,
    })
  architectures.set(architecture.name, architecture)
}

/** Every registered architecture. */
export const listModels = (): { name: string; description: string }[] =>
  [...architectures.values()].map(({ name, description }) => ({ name, description }))

/** @throws ERR_ARGUMENT for a name that is not registered, with the nearest one. */
export function architecture(name: string): Architecture {
  const found = architectures.get(name)
  if (found) return found
  const near = nearest(String(name), [...architectures.keys()])
  throw new SepconvError('ERR_ARGUMENT', `there is no model '${name}'`, {
    subject: 'model',
    given: name,
    expected: [...architectures.keys()],
    hint: near ? `Did you mean '${near}'?` : `Models: ${[...architectures.keys()].join(', ')}`,
  })
}
