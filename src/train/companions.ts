/** Variables that training keeps beside a model's own: velocities, second moments, averages. */

import { type Initializer, TRAINING_PREFIX, Variable } from '../graph/variable.js'
import { zeros } from '../nn/initializers.js'

/** A companion of each variable, made on demand and kept. */
export class Companions {
  readonly #made = new Map<Variable, Variable>()
  constructor(
    private readonly label: string,
    private readonly initializer: Initializer = zeros,
  ) {}

  of(variable: Variable): Variable {
    let companion = this.#made.get(variable)
    if (!companion) {
      companion = new Variable(`${TRAINING_PREFIX}${this.label}.${variable.name}`, variable.type, this.initializer, { trainable: false })
      this.#made.set(variable, companion)
    }
    return companion
  }
  all(): Variable[] {
    return [...this.#made.values()]
  }
  entries(): IterableIterator<[Variable, Variable]> {
    return this.#made.entries()
  }
}
