/** What all ranks of a job must have in common before they begin. */

import { differences } from '../differences.js'
import { SepconvError } from '../errors.js'
import type { Communicator } from './communicator.js'

/**
 * Compares a description (plain data) with that of rank 0, on every rank alike.
 * @throws ERR_RANK naming the first rank that differs, its machine, and every difference.
 */
export async function agree(ranks: Communicator, description: unknown): Promise<void> {
  const all = await ranks.share(description)
  for (const [rank, own] of all.entries()) {
    const found = differences(all[0], own)
    if (found.length === 0) continue
    const texts = found.map(({ path, was, is }) => `${path} is ${JSON.stringify(is)}, of rank 0 it is ${JSON.stringify(was)}`)
    throw new SepconvError('ERR_RANK', `${ranks.name(rank)} differs from rank 0: ${texts.slice(0, 5).join('; ')}`, {
      subject: ranks.name(rank),
      given: texts,
      hint: 'Every rank must see the same data, settings and kind of device',
    })
  }
}
