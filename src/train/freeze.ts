/**
 * Which variables a fine-tuning run changes, and how fast. Parts of a model are named by its stages (`entry`, `middle`, `exit`, `head`),
 * by `all-but-head`, or by patterns of variable names with `*` for any text.
 */

import { SepconvError } from '../errors.js'
import type { Variable } from '../graph/variable.js'
import type { Model } from '../models/model.js'
import { architecture } from '../models/registry.js'

/** Stages from the input to the output. */
const ORDER = ['entry', 'middle', 'exit', 'head'] as const
type Stage = (typeof ORDER)[number]

const matches = (name: string, pattern: string): boolean =>
  new RegExp(`^${pattern.replace(/[.+?^${}()|[\]\\]/g, '\\$&').replace(/\*/g, '.*')}$`).test(name)

/**
 * The trainable variables of a part. `entry`, `middle` and `exit` reach from the input to the end of that stage where `upTo`.
 * @throws ERR_ARGUMENT when nothing bears the name.
 */
export function variablesOfPart(model: Model, part: string, upTo: boolean): Variable[] {
  const { architecture: name, options } = model.config
  const stages = architecture(name).stages?.(options)
  const all = model.parameters
  const inStage = (stage: Stage) => all.filter((variable) => stages?.[stage].some((prefix) => variable.name.startsWith(`${prefix}.`)))
  let found: Variable[]
  if (part === 'all-but-head' && stages) {
    const head = new Set(inStage('head'))
    found = all.filter((variable) => !head.has(variable))
  } else if (stages && (ORDER as readonly string[]).includes(part)) {
    const at = ORDER.indexOf(part as Stage)
    // A stage may be empty: a model without middle flow has none.
    return upTo ? ORDER.slice(0, at + 1).flatMap(inStage) : inStage(part as Stage)
  } else found = all.filter((variable) => matches(variable.name, part))
  if (found.length > 0) return found
  throw new SepconvError('ERR_ARGUMENT', `no trainable variable of ${name} is called '${part}'`, {
    subject: 'freeze',
    given: part,
    expected: [...(stages ? [...ORDER, 'all-but-head'] : []), 'a pattern such as block1.*'],
    hint: `Parts are ${stages ? `${ORDER.join(', ')}, all-but-head and ` : ''}patterns such as 'block1.*'`,
  })
}

export interface FreezeOptions {
  /**
   * What stays as it is: `entry` (the entry flow), `middle` (everything up to the end of the middle flow), `all-but-head`, or a
   * pattern such as `block1.*`. Batch norms whose scale and shift are frozen run on their stored statistics. Default nothing.
   */
  readonly freeze?: string | readonly string[]
  /**
   * Gradual unfreezing: training starts with the head alone, and every so many epochs the next stage (exit, middle, entry) joins it;
   * what `freeze` names never does. Default off.
   */
  readonly unfreezeEvery?: number
  /** Factors of the learning rate by part: `{ entry: 0.1, middle: 0.3 }`, or by pattern; the first that matches counts. */
  readonly rates?: Readonly<Record<string, number>>
}

/** What is trained in which epoch. Sets the variables' `trainable`; `restore` puts it back. */
export class Freezing {
  readonly #all: readonly Variable[]
  readonly #kept: ReadonlySet<Variable>
  readonly #stages: readonly ReadonlySet<Variable>[]
  readonly #factors = new Map<Variable, number>()
  readonly #every: number | undefined

  constructor(model: Model, { freeze = [], unfreezeEvery, rates = {} }: FreezeOptions) {
    this.#all = model.parameters
    this.#kept = new Set([freeze].flat().flatMap((part) => variablesOfPart(model, part, true)))
    this.#every = unfreezeEvery
    if (unfreezeEvery !== undefined && !(Number.isInteger(unfreezeEvery) && unfreezeEvery >= 1))
      throw new SepconvError('ERR_ARGUMENT', `fit: unfreezeEvery must be a whole number of epochs, got ${unfreezeEvery}`, {
        subject: 'unfreezeEvery',
        given: unfreezeEvery,
      })
    this.#stages = unfreezeEvery === undefined ? [] : [...ORDER].reverse().map((stage) => new Set(variablesOfPart(model, stage, false)))
    for (const [part, factor] of Object.entries(rates)) {
      if (!(factor > 0 && Number.isFinite(factor)))
        throw new SepconvError('ERR_ARGUMENT', `fit: the rate factor of '${part}' must be positive, got ${factor}`, {
          subject: 'rates',
          given: factor,
        })
      for (const variable of variablesOfPart(model, part, false)) if (!this.#factors.has(variable)) this.#factors.set(variable, factor)
    }
    if (this.#kept.size === this.#all.length)
      throw new SepconvError('ERR_ARGUMENT', 'fit: everything is frozen, so nothing would be trained', { subject: 'freeze', given: freeze })
  }

  /** How many stages take part in an epoch, counted from 1: what a step was compiled for. */
  level(epoch: number): number {
    return this.#every === undefined ? 0 : Math.min(ORDER.length, 1 + Math.floor((epoch - 1) / this.#every))
  }

  /** The stages that take part, from the output to the input; `undefined` without gradual unfreezing. */
  stages(level: number): readonly string[] | undefined {
    return level === 0 ? undefined : [...ORDER].reverse().slice(0, level)
  }

  apply(level: number): void {
    for (const variable of this.#all)
      variable.trainable = !this.#kept.has(variable) && (level === 0 || this.#stages.slice(0, level).some((stage) => stage.has(variable)))
  }

  restore(): void {
    for (const variable of this.#all) variable.trainable = true
  }

  /** The factor of a variable's learning rate. */
  rateOf(variable: Variable): number {
    return this.#factors.get(variable) ?? 1
  }

  /** Elements of the variables that stay as they are. */
  get frozen(): number {
    const count = (variable: Variable) => variable.type.shape.reduce((product, size) => product * size, 1)
    return this.#all.filter(({ trainable }) => !trainable).reduce((sum, variable) => sum + count(variable), 0)
  }
}
