/** bfloat16 storage: every op that takes it, for every instruction set, on random calls; then programs and models made of them. */

import { describe, expect, it } from 'vitest'
import type { HostTensor } from '../../src/graph/op.js'
import { NativeCpuExecutor, nativeExecutors } from '../../src/runtime/executors/native.js'
import { relativeError, runCall } from '../../src/runtime/verify.js'
import { Cases, CUDA_ONLY, reference, STORED } from './cases.js'
import { bfloat16Makers } from './makers.js'

const cpu = nativeExecutors().find(({ name }) => name === 'cpu')!
const sets = cpu.available ? [...(cpu.isas ?? [])] : []
const ROUNDS = 20

/** Half a unit in the last place of eight bits, for the result; a fused separable convolution rounds its depthwise result too. */
const toleranceOf = (kernel: string): number => (kernel === 'separableConv2d' ? 2 ** -7 : 2 ** -8)
/** float32 results of bfloat16 operands: the order of sums alone. */
const FLOAT32_TOLERANCE = 2e-5

describe.skipIf(!cpu.available)('bfloat16 on the cpu', () => {
  describe.each(sets)('%s', (isa) => {
    const executor = new NativeCpuExecutor({ isa, threads: 2 })
    const all = bfloat16Makers(executor.target.panel)

    /** A random call, and what it must give: float32 loops over the rounded operands. */
    function call(kernel: string, seed: number) {
      const made = { kernel, ...all[kernel]!(new Cases(seed)) }
      return { ...made, expected: reference(made) }
    }

    const run = (on: NativeCpuExecutor, { kernel, inputs, attributes, expected }: ReturnType<typeof call>) =>
      runCall(on, { kernel, attributes, scope: kernel, inputs: [], outputs: [] }, inputs, expected)

    const kernels = Object.keys(STORED).filter((kernel) => !CUDA_ONLY.has(kernel))

    it.each(kernels)('%s', (kernel) => {
      for (let i = 0; i < ROUNDS; i++) {
        const made = call(kernel, 1000 * i + kernel.length)
        const actual = run(executor, made)
        made.expected.forEach((output, j) => {
          // Statistics beside a product are those of its rounded result; what enters a product after an elu is rounded before.
          const rounded =
            output.dtype || kernel === 'pointwiseConv2d' || (kernel.startsWith('pointwise') && made.attributes.inputActivation === 'elu')
          const tolerance = rounded ? toleranceOf(kernel) : FLOAT32_TOLERANCE
          expect(
            relativeError(actual[j]!, output.data),
            `${kernel} round ${i} output ${j}: ${JSON.stringify({ shapes: made.inputs.map((x) => x?.shape ?? null), attributes: made.attributes })}`,
          ).toBeLessThanOrEqual(tolerance)
        })
      }
    })

    it('gives the same bits on one thread and on three', () => {
      const single = new NativeCpuExecutor({ isa, threads: 1 })
      const several = new NativeCpuExecutor({ isa, threads: 3, oversubscribe: true })
      for (const kernel of kernels) {
        const made = call(kernel, 77)
        expect(run(single, made), kernel).toEqual(run(several, made))
      }
    })

    it('rounds to nearest, ties to even, and keeps NaN and infinities', () => {
      const values = Float32Array.of(1, 1 + 2 ** -8, 1 + 3 * 2 ** -8, -1 - 2 ** -8, 3.4e38, Number.NaN, Infinity, -Infinity, 2 ** -126)
      const attributes = { dtype: 'bfloat16', scale: 1, offset: 0 }
      const output: HostTensor = { shape: [values.length], dtype: 'bfloat16', data: new Float32Array(values.length) }
      const [actual] = runCall(
        executor,
        { kernel: 'cast', attributes, scope: '', inputs: [], outputs: [] },
        [{ shape: [values.length], data: values }],
        [output],
      )
      expect(Array.from(actual!)).toEqual([1, 1, 1 + 2 ** -6, -1, Infinity, Number.NaN, Infinity, -Infinity, 2 ** -126])
      const relu = run(executor, {
        kernel: 'unary',
        inputs: [{ shape: [4], dtype: 'bfloat16', data: Float32Array.of(-1, Number.NaN, -Infinity, 2) }],
        attributes: { function: 'relu' },
        expected: [{ shape: [4], dtype: 'bfloat16', data: new Float32Array(4) }],
      })
      expect(Array.from(relu[0]!)).toEqual([0, Number.NaN, 0, 2])
    })
  })
})
