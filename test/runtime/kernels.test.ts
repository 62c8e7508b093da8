import { describe, expect, it } from 'vitest'
import { opDefinitions } from '../../src/graph/op.js'
import { NativeCpuExecutor, nativeExecutors } from '../../src/runtime/executors/native.js'
import { relativeError, runCall } from '../../src/runtime/verify.js'
import { Cases, reference, NEVER_ALONE } from './cases.js'
import { cpuMakers, makers } from './makers.js'

const cpu = nativeExecutors().find(({ name }) => name === 'cpu')!
/** Every instruction set that this machine and build run; SEPCONV_WIDE=1 builds also have the 512-bit tiling on 256-bit instructions. */
const sets = cpu.available ? [...(cpu.isas ?? [])] : []
const ROUNDS = 25

/** Float32 sums in another order than the reference's float64; single elements are near exact. */
const TOLERANCE = 2e-5

/**
 * Pixels, channels in and out of filter gradients beyond the random calls, one for each way to cut them (kernels/filter_gradient.cc):
 * pieces fetched ahead with columns beyond the last panel, blocks, shares of blocks, rows that fall into few sets of the cache.
 */
const LARGE_FILTER_GRADIENTS: readonly [number, number, number, string][] = [
  [2100, 20, 45, 'none'],
  [30000, 8, 32, 'none'],
  [600, 290, 250, 'relu'],
  [1700, 300, 225, 'none'],
  [520, 70, 1024, 'none'],
]

describe.skipIf(!cpu.available)('CPU kernels against the reference', () => {
  it('covers every op', () => {
    const covered = new Set(Object.keys(makers(16)))
    expect(
      opDefinitions()
        .map(({ name }) => name)
        .filter((name) => !covered.has(name) && !NEVER_ALONE.has(name)),
    ).toEqual([])
  })

  describe.each(sets)('%s', (isa) => {
    const executor = new NativeCpuExecutor({ isa, threads: 2 })
    const all = cpuMakers(makers(executor.target.panel))
    it.each(Object.keys(all))('%s', (kernel) => {
      for (let round = 0; round < ROUNDS; round++) {
        const made = { kernel, ...all[kernel]!(new Cases(1000 * round + kernel.length)) }
        const expected = reference(made)
        // Absent inputs at the end may be null or left out: a kernel must not look beyond what it was given.
        const given = round % 2 ? made.inputs : made.inputs.slice(0, made.inputs.findLastIndex((input) => input !== null) + 1)
        const actual = runCall(executor, { ...made, scope: kernel, inputs: [], outputs: [] }, given, expected)
        expected.forEach((output, i) => {
          const error = relativeError(actual[i]!, output.data)
          expect(
            error,
            `${kernel} round ${round} output ${i}: ${JSON.stringify({ shapes: made.inputs.map((x) => x?.shape ?? null), attributes: made.attributes })}`,
          ).toBeLessThanOrEqual(TOLERANCE)
        })
      }
    })

    it.each([3, 16, 70, 129])('a maximum over a window keeps NaN, wherever it lies: %i channels', (channels) => {
      const x = Float32Array.from({ length: 5 * 5 * channels }, (_, i) => Math.sin(7 * i))
      for (let tap = 0; tap < 9; tap++) x[(Math.floor(tap / 3) * 5 + (tap % 3)) * channels + ((5 * tap) % channels)] = Number.NaN
      const attributes = { windowSize: [3, 3], strides: [2, 2], padding: [0, 0, 0, 0] }
      const made = { kernel: 'maxPool2d', inputs: [{ shape: [1, 5, 5, channels], data: x }], attributes }
      const expected = reference(made)
      const [actual] = runCall(executor, { ...made, scope: '', inputs: [], outputs: [] }, made.inputs, expected)
      expect(Array.from(expected[0]!.data).some(Number.isNaN)).toBe(true)
      expect(Array.from(actual!)).toEqual(Array.from(expected[0]!.data))
    })

    it.each(LARGE_FILTER_GRADIENTS)('a filter gradient of %i pixels, %i to %i channels, %s', (rows, cin, cout, inputActivation) => {
      const c = new Cases(rows)
      const kernel = 'pointwiseConv2dFilterGradient'
      const made = { kernel, inputs: [c.float(rows, cin), c.float(rows, cout)], attributes: { inputActivation } }
      const expected = reference(made)
      const run = (on: NativeCpuExecutor) => runCall(on, { ...made, scope: kernel, inputs: [], outputs: [] }, made.inputs, expected)
      const actual = run(executor)
      expect(relativeError(actual[0]!, expected[0]!.data)).toBeLessThanOrEqual(TOLERANCE)
      expect(run(new NativeCpuExecutor({ isa, threads: 3, oversubscribe: true }))).toEqual(actual)
    })

    it('gives the same bits on one thread and on three', () => {
      const single = new NativeCpuExecutor({ isa, threads: 1 })
      const several = new NativeCpuExecutor({ isa, threads: 3, oversubscribe: true })
      for (const kernel of Object.keys(all)) {
        const made = { kernel, ...all[kernel]!(new Cases(77)) }
        const expected = reference(made)
        const run = (on: NativeCpuExecutor) => runCall(on, { ...made, scope: kernel, inputs: [], outputs: [] }, made.inputs, expected)
        expect(run(single), kernel).toEqual(run(several))
      }
    })
  })
})
