/** Sums over ranks by themselves: in memory that the ranks share (up to four on one machine), and by MPI's own algorithm. */

import { describe, expect, it } from 'vitest'
import { hasMpi, json } from './mpirun.js'

const settings = {
  // Smaller than a vector, the size of a slot and around it, several slots.
  lengths: [1, 13, 4097, 2 ** 17 - 1, 2 ** 17, 2 ** 17 + 1, 700_001],
  times: 3,
}

describe.skipIf(!hasMpi)('sums over ranks', () => {
  it.each([2, 3, 4])('%i ranks add in their order, in shared memory', async (count) => {
    const found = await json<{ digest: string; same: boolean; wrong: number }>(count, 'sums.mjs', settings)
    expect(found).toMatchObject({ same: true, wrong: 0 })
    expect(await json(count, 'sums.mjs', settings)).toEqual(found)
  })

  it('five ranks leave it to MPI, whose order may be another one but is the same in every run', async () => {
    const found = await json<{ digest: string; same: boolean; error: number }>(5, 'sums.mjs', settings)
    expect(found.same).toBe(true)
    expect(found.error).toBeLessThan(1e-6)
    expect((await json<{ digest: string }>(5, 'sums.mjs', settings)).digest).toBe(found.digest)
  })
})
