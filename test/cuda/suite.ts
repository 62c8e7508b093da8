/**
 * The parametrised random suite that every executor passes (test/runtime/makers.ts), through the CUDA kernels: on the emulator each
 * round in another adversary mode, on hardware all on one device.
 */

import { describe, expect, it } from 'vitest'
import { opDefinitions } from '../../src/graph/op.js'
import type { NativeDeviceExecutor } from '../../src/runtime/executors/native.js'
import { relativeError, runCall } from '../../src/runtime/verify.js'
import { Cases, reference, NEVER_ALONE } from '../runtime/cases.js'
import { makers } from '../runtime/makers.js'

/** Float32 sums in another order than the reference's float64. */
const TOLERANCE = 2e-5
const all = makers(16)

export function testSuite(executors: readonly NativeDeviceExecutor[], rounds: number): void {
  describe('CUDA kernels against the reference', () => {
    it('exist for every op', () => {
      expect(
        opDefinitions()
          .map(({ name }) => name)
          .filter((name) => !NEVER_ALONE.has(name) && !(executors[0]!.info.kernels as readonly string[]).includes(name)),
      ).toEqual([])
    })

    it.each(Object.keys(all))('%s', (kernel) => {
      for (let round = 0; round < rounds; round++) {
        const executor = executors[round % executors.length]!
        const made = { kernel, ...all[kernel]!(new Cases(1000 * round + kernel.length)) }
        const expected = reference(made)
        const given = round % 2 ? made.inputs : made.inputs.slice(0, made.inputs.findLastIndex((input) => input !== null) + 1)
        const actual = runCall(executor, { ...made, scope: kernel, inputs: [], outputs: [] }, given, expected)
        expected.forEach((output, i) => {
          expect(
            relativeError(actual[i]!, output.data),
            `${executor.name}: ${kernel} round ${round} output ${i}: ${JSON.stringify({ shapes: made.inputs.map((x) => x?.shape ?? null), attributes: made.attributes })}`,
          ).toBeLessThanOrEqual(TOLERANCE)
        })
      }
    })
  })
}
