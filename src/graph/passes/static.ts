/** Which values of a graph do not change from run to run: those made of constants and of state that the graph does not write. */

import type { Value } from '../graph.js'
import type { Variable } from '../variable.js'

/** A memoised predicate; `updated` holds the variables that the graph itself writes. */
export function staticValues(updated: ReadonlySet<Variable>): (value: Value) => boolean {
  const known = new Map<Value, boolean>()
  const isStatic = (value: Value): boolean => {
    const { kind, variable, inputs, name } = value.node
    switch (kind) {
      case 'constant':
      case 'prepared':
        return true
      case 'state':
        return !updated.has(variable!)
      case 'input':
        return false
      default: {
        let result = known.get(value)
        if (result === undefined)
          known.set(value, (result = name !== 'dropout' && inputs.every((input) => input === null || isStatic(input))))
        return result
      }
    }
  }
  return isStatic
}
