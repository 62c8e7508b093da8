/** What all ranks of a job must have in common before they begin. */

import { isDeepStrictEqual } from 'node:util'
import { SepconvError } from '../errors.js'
import type { Communicator } from './communicator.js'

/** Where two descriptions differ, as `settings.rate is 0.1, of rank 0 it is 0.2`. */
export function differencesOf(own: unknown, first: unknown, path = ''): string[] {
  const nested = (x: unknown): x is Record<string, unknown> => typeof x === 'object' && x !== null && !Array.isArray(x)
  if (nested(own) && nested(first)) {
    const keys = [...new Set([...Object.keys(own), ...Object.keys(first)])]
    return keys.flatMap((key) => differencesOf(own[key], first[key], path ? `${path}.${key}` : key))
  }
  return isDeepStrictEqual(own, first) ? [] : [`${path} is ${JSON.stringify(own)}, of rank 0 it is ${JSON.stringify(first)}`]
}

/**
 * Compares a description (plain data) with that of rank 0, on every rank alike.
 * @throws ERR_RANK naming the first rank that differs, its machine, and every difference.
 */
export async function agree(ranks: Communicator, description: unknown): Promise<void> {
  const all = await ranks.share(description)
  for (const [rank, own] of all.entries()) {
    const differences = differencesOf(own, all[0])
    if (differences.length === 0) continue
    throw new SepconvError('ERR_RANK', `${ranks.name(rank)} differs from rank 0: ${differences.slice(0, 5).join('; ')}`, {
      subject: ranks.name(rank),
      given: differences,
      hint: 'Every rank must see the same data, settings and kind of device',
    })
  }
}
