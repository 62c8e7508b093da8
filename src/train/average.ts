/** Averages of the weights, kept beside them by every step and used for evaluation. */

import { checkChoice } from '../errors.js'
import type { Variable } from '../graph/variable.js'
import type { WeightAverage } from '../runtime/function.js'
import { Companions } from './companions.js'
import { checkRange } from './optimizer.js'

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
