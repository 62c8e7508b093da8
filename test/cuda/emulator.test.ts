/** The emulator can fail: each seeded bug is found, and in a correct kernel no mode finds anything. */

import { describe, expect, it } from 'vitest'
import { filled } from '../helpers.js'
import { floats, runCall } from './calls.js'
import { emulator, hopperNames } from './emulator.js'

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

describe('emulator of compute capability 9.0', () => {
  const depth = 512
  // Small integers: every sum is exact.
  const matrix = (lines: number, seed: number) =>
    filled(
      [lines, depth],
      Array.from({ length: lines * depth }, (_, i) => ((i * seed) % 7) - 3),
      'bfloat16',
    )
  const [x, w] = [matrix(128, 5), matrix(96, 11)]
  const expected = Float32Array.from({ length: 128 * 96 }, (_, i) => {
    let sum = 0
    for (let k = 0; k < depth; k++) sum -= Number(x.data[Math.floor(i / 96) * depth + k]) * Number(w.data[(i % 96) * depth + k])
    return sum
  })
  const output = { dtype: 'float32', shape: [128, 96] } as const

  function outcomesOf(bug: string, names = hopperNames()): Map<string, string> {
    const all = new Map<string, string>()
    for (const name of names) {
      try {
        const y = floats(runCall(emulator().openExecutor(name), 'hopperCheck', [x, w], { bug }, [output])[0]!)
        all.set(name, y.every((value, i) => value === expected[i]) ? 'right' : 'wrong')
      } catch (error) {
        all.set(name, (error as Error).message)
      }
    }
    return all
  }

  it.each(['none', 'registers'])('finds nothing wrong with a correct kernel: %s', (bug) => {
    expect([...new Set(outcomesOf(bug).values())]).toEqual(['right'])
  })
  it.each([
    'missingFullWait',
    'earlyRelease',
    'ownReleaseOnly',
    'missingProxyFence',
    'missingStoreFence',
    'missingStoreWait',
    'missingProductWait',
    'changedFragment',
  ])('%s gives wrong values in some mode', (bug) => {
    expect([...outcomesOf(bug).values()]).toContain('wrong')
  })
  it('needs its adversary modes', () => {
    for (const bug of ['earlyRelease', 'missingStoreWait', 'changedFragment']) expect(outcomesOf(bug).get('hopper:fair'), bug).toBe('right')
  })
  it.each([
    ['fewerBytes', /deadlock/],
    ['moreBytes', /deadlock in block.*threads wait at an mbarrier/],
    ['missingProductFence', /a wgmma without wgmma\.fence/],
    ['unpublishedBarrier', /without a fence behind its initialisation/],
    ['missingDependencyWait', /device memory is touched before griddepcontrol\.wait/],
    ['keptRegisters', /deadlock.*threads wait at registers that others give back/],
    ['brokenStage', /destination of a TMA load is not at a multiple of 1024 bytes/],
  ])('%s is reported in every mode', (bug, message) => {
    for (const [mode, outcome] of outcomesOf(bug)) expect(outcome, mode).toMatch(message)
  })
  it('missingClusterBarrier is reported in some mode', () => {
    expect([...outcomesOf('missingClusterBarrier', hopperNames({ all: true })).values()].join()).toMatch(
      /of a block that has ended|into a block that has ended/,
    )
  })
})
