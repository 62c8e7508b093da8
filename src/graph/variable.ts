/**
 * Named state that outlives runs: parameters, running statistics, optimizer slots, averages. A variable is created once by a
 * layer or an optimizer, read by any number of traced graphs, and its memory is shared by all executables on its device.
 */

import { checkShape, type TensorType } from './types.js'

/** Fills a fresh array of `elements(type.shape)` values; must depend on nothing but the key and the shape. */
export interface Initializer {
  readonly name: string
  /** Writes every element of `data`, row-major. */
  fill(data: Float32Array, shape: readonly number[], key: { readonly seed: number; readonly name: string }): void
}

/** State that belongs to training, not to the model, is named and stored under this prefix. */
export const TRAINING_PREFIX = 'train.'

let created = 0

/** A named tensor that lives as long as its model: a parameter, a running statistic, a slot of an optimizer. */
export class Variable {
  /** Unique within the process; names may repeat between models. */
  readonly id = created++
  /** The full path, such as `block2.sepconv1.depthwise`; set when the owning layer is attached to a model. */
  name: string
  readonly type: TensorType
  /** Whether the loss is differentiated with respect to it and an optimizer changes it. */
  trainable: boolean
  readonly initializer: Initializer
  /** Seed of its initial content. */
  seed = 0
  /** When the content last changed, on a clock that all variables share; prepared weights compare it. */
  version = 0
  /** Where the content lives, owned by the runtime (src/runtime/state.ts); `undefined` until first used. */
  storage: unknown = undefined

  /** @throws ERR_SHAPE for sizes below 1. */
  constructor(name: string, type: TensorType, initializer: Initializer, options: { trainable?: boolean } = {}) {
    checkShape('variable', type.shape)
    this.name = name
    this.type = type
    this.initializer = initializer
    this.trainable = options.trainable ?? true
  }

  /** Notes that the content has changed. */
  touch(): void {
    this.version = ++clock
  }
}

let clock = 0

/** Counts the changes of all variables: whatever was made at `now()` holds as long as no variable's version is later. */
export const now = (): number => clock
