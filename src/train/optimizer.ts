/** Optimizers and weight averages as graph builders: the update of all parameters is one multi-tensor op of the step's program. */

import { checkChoice, checkOptions, SepconvError } from '../errors.js'
import { opDefinition } from '../graph/op.js'
import { emitAll } from '../graph/trace.js'
import { TRAINING_PREFIX, Variable } from '../graph/variable.js'
import { zeros } from '../nn/initializers.js'
import type { Optimizer, WeightAverage } from '../runtime/function.js'

/** A companion of each variable, made on demand and kept. */
class Companions {
  readonly #made = new Map<Variable, Variable>()
  constructor(private readonly label: string) {}
  of(variable: Variable): Variable {
    let companion = this.#made.get(variable)
    if (!companion) {
      companion = new Variable(`${TRAINING_PREFIX}${this.label}.${variable.name}`, variable.type, zeros, { trainable: false })
      this.#made.set(variable, companion)
    }
    return companion
  }
  entries(): IterableIterator<[Variable, Variable]> {
    return this.#made.entries()
  }
}

/** Options of {@link sgd}. */
export interface SgdOptions {
  /** Learning rate of a step that is given none. Default 0.045, the paper's. */
  rate?: number
  /** Share of the velocity that is kept. Default 0.9. */
  momentum?: number
  /** Nesterov's form: the gradient after the velocity's step. Default false. */
  nesterov?: boolean
  /** Added to the gradient as weightDecay · weight (half the L2 norm squared as a loss). Default 0. */
  weightDecay?: number
  /** Which parameters decay: `'filters'` (default) those of two and more axes, not biases and batch norm; `'all'`. */
  decays?: 'filters' | 'all'
}

export interface SgdOptimizer extends Optimizer {
  readonly options: Required<SgdOptions>
  /** Velocities by the parameter that they belong to. */
  slots(): IterableIterator<[Variable, Variable]>
  /** The velocity of a parameter. */
  slot(of: Variable): Variable
}

/**
 * Stochastic gradient descent with momentum: v ← momentum·v + g + weightDecay·w; w ← w − rate·v (Nesterov: − rate·(g + momentum·v)).
 * @throws ERR_ARGUMENT for unknown options and values out of range.
 */
export function sgd(options: SgdOptions = {}): SgdOptimizer {
  checkOptions('sgd', options, ['rate', 'momentum', 'nesterov', 'weightDecay', 'decays'])
  const { rate = 0.045, momentum = 0.9, nesterov = false, weightDecay = 0, decays = 'filters' } = options
  checkRange('sgd', 'rate', rate, (x) => x > 0, 'positive')
  checkRange('sgd', 'momentum', momentum, (x) => x >= 0 && x < 1, 'in [0, 1)')
  checkRange('sgd', 'weightDecay', weightDecay, (x) => x >= 0, 'at least 0')
  checkChoice('sgd', 'nesterov', nesterov, [true, false])
  checkChoice('sgd', 'decays', decays, ['filters', 'all'])
  const velocities = new Companions('velocity')
  return {
    name: 'sgd',
    rate,
    options: { rate, momentum, nesterov, weightDecay, decays },
    slots: () => velocities.entries(),
    slot: (variable) => velocities.of(variable),
    update({ graph, rate: rateValue, flag, scale, parameters }) {
      const slots = parameters.map(({ variable }) => velocities.of(variable))
      const groups = parameters.flatMap(({ variable, gradient }, i) => [graph.state(variable), graph.state(slots[i]!), gradient])
      const decay = parameters.map(({ variable }) => (decays === 'all' || variable.type.shape.length > 1 ? weightDecay : 0))
      const outputs = emitAll(opDefinition('sgdUpdate'), [rateValue, flag, scale, ...groups], { momentum, nesterov, weightDecay: decay })
      return parameters.map(({ variable }, i) => {
        graph.update(variable, outputs[2 * i]!)
        graph.update(slots[i]!, outputs[2 * i + 1]!)
        return { variable, value: outputs[2 * i]! }
      })
    },
  }
}

export function checkRange(subject: string, name: string, value: number, ok: (x: number) => boolean, expected: string): void {
  if (typeof value !== 'number' || !Number.isFinite(value) || !ok(value))
    throw new SepconvError('ERR_ARGUMENT', `${subject}: ${name} must be a finite number, ${expected}, got ${String(value)}`, {
      subject: name,
      expected,
      given: value,
    })
}

/** `ema`: exponential, with TensorFlow's warm-up; `polyak`: the uniform mean over all steps (Polyak and Juditsky 1992). */
export type AverageKind = 'ema' | 'polyak' | 'none'

export interface TrackedAverage extends WeightAverage {
  readonly kind: AverageKind
  /** The decay of update number `step`, counted from 0. */
  decay(step: number): number
  /** Averages by the variable that they follow. */
  entries(): IterableIterator<[Variable, Variable]>
}

/**
 * A weight average for `compile(…, { average })`.
 * @param decay of `ema`, default 0.9999; the first steps use min(decay, (1 + t) / (10 + t)) as tf.train.ExponentialMovingAverage does.
 */
export function weightAverage(kind: 'ema' | 'polyak' = 'ema', decay = 0.9999): TrackedAverage {
  checkChoice('weightAverage', 'kind', kind, ['ema', 'polyak'])
  checkRange('weightAverage', 'decay', decay, (x) => x >= 0 && x < 1, 'in [0, 1)')
  const averages = new Companions('average')
  return {
    kind,
    variable: (of) => averages.of(of),
    entries: () => averages.entries(),
    decay: (step) => (kind === 'polyak' ? step / (step + 1) : Math.min(decay, (1 + step) / (10 + step))),
  }
}
