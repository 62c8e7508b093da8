/** Where two descriptions (plain data) differ: settings of a resumed run, of the ranks of a job. */

import { isDeepStrictEqual } from 'node:util'

export interface Difference {
  /** Such as `settings.rate`. */
  readonly path: string
  readonly was: unknown
  readonly is: unknown
}

/** Every leaf that differs; lists are leaves. */
export function differences(was: unknown, is: unknown, path = ''): Difference[] {
  const nested = (x: unknown): x is Record<string, unknown> => typeof x === 'object' && x !== null && !Array.isArray(x)
  if (nested(was) && nested(is)) {
    const keys = [...new Set([...Object.keys(was), ...Object.keys(is)])]
    return keys.flatMap((key) => differences(was[key], is[key], path ? `${path}.${key}` : key))
  }
  return isDeepStrictEqual(was, is) ? [] : [{ path, was, is }]
}
