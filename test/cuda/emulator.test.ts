/** The emulator can fail: each seeded bug is found, and in a correct kernel no mode finds anything. */

import { describe, expect, it } from 'vitest'
import { filled } from '../helpers.js'
import { floats, runCall } from './calls.js'
import { emulator } from './emulator.js'

const elements = 1024
const x = filled(
  [elements],
  Array.from({ length: elements }, (_, i) => i),
)
/** Tiles of 128 reversed. */
const expected = Float32Array.from({ length: elements }, (_, i) => (i & ~127) + 127 - (i & 127))

/** What each mode makes of the kernel: `right`, `wrong` values, or the emulator's message. */
function outcomes(bug: string): Map<string, string> {
  const all = new Map<string, string>()
  for (const { name } of emulator().executors()) {
    try {
      const y = floats(runCall(emulator().openExecutor(name), 'emulatorCheck', [x], { bug }, [x.type])[0]!)
      all.set(name, y.every((value, i) => value === expected[i]) ? 'right' : 'wrong')
    } catch (error) {
      all.set(name, (error as Error).message)
    }
  }
  return all
}

describe('emulator', () => {
  it('finds nothing wrong with a correct kernel', () => {
    expect([...new Set(outcomes('none').values())]).toEqual(['right'])
  })
  it.each(['missingBarrier', 'missingWait', 'overwrittenEarly', 'unwrittenShared', 'dependsOnBlockOrder'])(
    '%s gives wrong values in some mode',
    (bug) => {
      expect([...outcomes(bug).values()]).toContain('wrong')
    },
  )
  it('needs its adversary modes: some bugs stay hidden in the fair one', () => {
    for (const bug of ['missingWait', 'overwrittenEarly', 'dependsOnBlockOrder']) expect(outcomes(bug).get('emulator:fair')).toBe('right')
  })
  it.each([
    ['divergentBarrier', /threads of one block are at different barriers.*test_kernels\.cu:\d+/],
    ['divergentShuffle', /deadlock in block.*threads wait at a warp shuffle/],
    ['beyondGlobal', /write to global memory of 1 elements at 1024 of 1024 \(test_kernels\.cu:\d+, block 1,0,0, thread 127\)/],
    ['beyondShared', /read from shared memory of 1 elements at \d+ of 256/],
    ['misaligned', /write to global memory of 16 bytes is misaligned/],
  ])('%s is reported in every mode, with its place', (bug, message) => {
    for (const outcome of outcomes(bug).values()) expect(outcome).toMatch(message)
  })
})
