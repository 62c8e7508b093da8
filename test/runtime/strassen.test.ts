// Products by one level of Strassen's algorithm on the CPU: where they are chosen, and that nothing but rounding tells.

import { describe, expect, it } from 'vitest'
import { compileGraph } from '../../src/graph/compile.js'
import type { Value } from '../../src/graph/graph.js'
import { opDefinition } from '../../src/graph/op.js'
import { strassenPays } from '../../src/graph/strassenCost.js'
import { trace } from '../../src/graph/trace.js'
import { pointwiseConv2d, separableConv2d } from '../../src/index.js'
import { NativeCpuExecutor, nativeExecutors } from '../../src/runtime/executors/native.js'
import { relativeError, runCall } from '../../src/runtime/verify.js'
import { Cases, reference } from './cases.js'

const cpu = nativeExecutors().find(({ name }) => name === 'cpu')!
const sets = cpu.available ? [...(cpu.isas ?? [])] : []
const TOLERANCE = 2e-5

describe('where it pays', () => {
  it.each([
    [361, 728, 728, true],
    [100, 1536, 2048, true],
    [1369, 256, 728, true],
    // Too few columns share the sums of the left operand, or k is too short for what seven calls cost.
    [5476, 256, 256, false],
    [21609, 128, 128, false],
    // The filter's way from memory is what takes the time.
    [1, 2048, 1000, false],
    [361, 727, 728, false],
    [361, 728, 63, false],
  ])('%i rows, k %i, %i columns: %s', (rows, k, n, pays) => expect(strassenPays(rows, k, n, 32)).toBe(pays))
  it('nowhere without panels', () => expect(strassenPays(361, 728, 728, 0)).toBe(false))
})

describe.skipIf(!cpu.available)('on the CPU', () => {
  const executor = new NativeCpuExecutor({ threads: 2 })

  it('is chosen for large float32 products, unless the option says otherwise', () => {
    const build = () =>
      trace((graph) => {
        const [x, d, w] = [
          graph.input('x', { shape: [1, 19, 19, 728], dtype: 'float32' }),
          graph.input('d', { shape: [3, 3, 728], dtype: 'float32' }),
          graph.input('w', { shape: [728, 728], dtype: 'float32' }),
        ]
        graph.output('separable', separableConv2d(x, d, w))
        graph.output('pointwise', pointwiseConv2d(x, w))
      })
    const chosen = (options: object) =>
      compileGraph(build(), executor.target, options)
        .main.program.calls.filter(({ attributes }) => attributes.strassen)
        .map(({ kernel }) => kernel)
    expect(chosen({}).sort()).toEqual(['pointwiseConv2d', 'separableConv2d'])
    expect(chosen({ fastProducts: false })).toEqual([])
    expect(chosen({ precision: 'bfloat16' })).toEqual([])
  })

  it('is left alone where a product also gives batch statistics, though nothing is updated', () => {
    const graph = trace((graph) => {
      const x = graph.input('x', { shape: [1, 19, 19, 728], dtype: 'float32' })
      const y = pointwiseConv2d(x, graph.input('w', { shape: [728, 728], dtype: 'float32' })) as Value
      const [mean] = graph.emit(opDefinition('batchNormStatistics'), [y], {})
      graph.output('y', y)
      graph.output('mean', mean!)
    })
    const [call] = compileGraph(graph, executor.target, {}).main.program.calls
    expect(call!.attributes.statistics).toBe(true)
    expect(call!.attributes.strassen).toBeUndefined()
  })

  it('gives the same bits on any number of threads', () => {
    const c = new Cases(3)
    const inputs = [c.float(300, 130), c.float(130, 200)]
    const attributes = { inputActivation: 'none', activation: 'relu', packed: false, cout: 200, strassen: true }
    const outputs = [{ shape: [300, 200], data: new Float32Array(300 * 200) }]
    const bits = [1, 2, 3].map(
      (threads) =>
        runCall(
          new NativeCpuExecutor({ threads, oversubscribe: true }),
          { kernel: 'pointwiseConv2d', attributes, scope: '', inputs: [], outputs: [] },
          inputs,
          outputs,
        )[0]!,
    )
    expect(bits[1]).toEqual(bits[0])
    expect(bits[2]).toEqual(bits[0])
  })

  it('an odd k is refused', () => {
    const c = new Cases(4)
    const call = {
      kernel: 'pointwiseConv2d',
      attributes: { inputActivation: 'none', activation: 'none', packed: false, cout: 64, strassen: true },
      scope: '',
      inputs: [],
      outputs: [],
    }
    const run = () => runCall(executor, call, [c.float(70, 9), c.float(9, 64)], [{ shape: [70, 64], data: new Float32Array(70 * 64) }])
    expect(run).toThrow(
      expect.objectContaining({ code: 'ERR_ARGUMENT', message: expect.stringMatching(/k must be even, got 9/) as string }) as Error,
    )
  })

  // Several blocks, groups of uneven height, columns beyond the last pair; with everything around a product.
  it.each(sets.flatMap((isa) => [[isa, 361, 300, 200] as const, [isa, 129, 130, 97] as const, [isa, 85, 1024, 64] as const]))(
    '%s: %i rows, k %i, %i columns agree with the reference',
    (isa, rows, k, n) => {
      const on = new NativeCpuExecutor({ isa, threads: 2 })
      const c = new Cases(rows)
      const common = { packed: false, cout: n, strassen: true }
      const epilogue = [c.float(n), c.float(n)]
      const cases = [
        {
          kernel: 'pointwiseConv2d',
          inputs: [c.float(rows, k), c.float(k, n), ...epilogue, c.float(rows, n)],
          attributes: { ...common, inputActivation: 'relu', activation: 'elu' },
        },
        {
          kernel: 'separableConv2d',
          inputs: [c.float(1, 1, rows, k), c.float(1, 3, k, 1), c.float(k, n), null, null, null, ...epilogue, null],
          attributes: {
            ...common,
            ...{ strides: [1, 1], dilations: [1, 1], padding: [0, 0, 1, 1] },
            ...{ inputActivation: 'relu', intermediateActivation: 'none', activation: 'relu' },
          },
        },
      ]
      for (const made of cases) {
        const expected = reference(made)
        const actual = runCall(on, { ...made, scope: '', inputs: [], outputs: [] }, made.inputs, expected)
        expected.forEach((output, i) =>
          expect(relativeError(actual[i]!, output.data), `${made.kernel} output ${i}`).toBeLessThanOrEqual(TOLERANCE),
        )
      }
    },
  )
})
