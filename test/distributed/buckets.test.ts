/** Buckets of an allReduce: when they start, where they lie, what they cost in memory. */

import { describe, expect, it } from 'vitest'
import { compileGraph } from '../../src/graph/compile.js'
import type { Graph, Value } from '../../src/graph/graph.js'
import { trace } from '../../src/graph/trace.js'
import { Variable } from '../../src/graph/variable.js'
import { allReduce } from '../../src/ops/allReduce.js'
import { add, multiply, reshape, square, sum } from '../../src/ops/index.js'
import { openDevice } from '../../src/runtime/device.js'
import { Executable } from '../../src/runtime/executable.js'
import type { Program } from '../../src/runtime/program.js'
import { tensor } from '../../src/runtime/tensor.js'

/** A chain x → x² → …, whose intermediate values are summed over ranks. */
const chain = (lengths: readonly number[], bucketBytes: number, ranks = 1): Graph =>
  trace((graph) => {
    const values = lengths.map((length, i) => square(graph.input(`x${i}`, { shape: [length], dtype: 'float32' })))
    const sums = allReduce(values, ranks, bucketBytes)
    sums.forEach((value, i) => graph.output(`y${i}`, multiply(value, 2)))
  })

const compiled = (graph: Graph): Program => compileGraph(graph, openDevice('reference').target).main.program
const kernels = (program: Program) => program.calls.map(({ kernel }) => kernel)

describe('buckets', () => {
  it('start behind their last value and are waited for where the sum stands', () => {
    expect(kernels(compiled(chain([10, 10, 10], 80)))).toEqual([
      ...['unary', 'unary', 'allReduceStart', 'unary', 'allReduceStart', 'allReduceWait', 'allReduceWait'],
      ...['binary', 'binary', 'binary'],
    ])
  })

  it('the last one is small, because nothing is left to be computed beside it', () => {
    const graph = compiled(chain([100, 100, 10, 5], 1000))
    const starts = graph.calls.filter(({ kernel }) => kernel === 'allReduceStart')
    expect(starts.map(({ inputs }) => inputs.length)).toEqual([2, 2])
  })

  it('lie side by side, in the memory of the values where nobody else reads them', () => {
    const { calls, buffers } = compiled(chain([5, 100, 7], 1 << 20))
    const start = calls.find(({ kernel }) => kernel === 'allReduceStart')!
    expect(start.outputs).toEqual(start.inputs)
    const places = start.outputs.map((index) => buffers[index]!)
    expect(places.map(({ offset }) => offset! - places[0]!.offset!)).toEqual([0, 64, 64 + 448])
    expect(calls.find(({ kernel }) => kernel === 'allReduceWait')!.outputs).toEqual(start.outputs)
  })

  it('values that are still wanted, stand twice, or are no result are copied', () => {
    const graph = trace((graph) => {
      const x = graph.input('x', { shape: [4], dtype: 'float32' })
      const [kept, twice] = [square(x), add(x, 1)]
      const view = reshape(multiply(x, 3), [2, 2])
      const sums = allReduce([kept, twice, twice, x, view], 1)
      sums.forEach((value, i) => graph.output(`y${i}`, value))
      graph.output('kept', add(kept, twice))
    })
    const { calls } = compiled(graph)
    const start = calls.find(({ kernel }) => kernel === 'allReduceStart')!
    expect(start.inputs.map((input, i) => input === start.outputs[i])).toEqual([false, false, false, false, true])
  })

  it.each(['reference', 'cpu'])('among one rank sums change nothing (%s)', async (device) => {
    const executor = openDevice(device)
    const graph = trace((graph) => {
      const x = graph.input('x', { shape: [3], dtype: 'float32' })
      const values: Value[] = [square(x), add(x, 1), reshape(multiply(x, 3), [3, 1]), x]
      allReduce(values, 1, 20).forEach((value, i) => graph.output(`y${i}`, value))
      graph.output('z', sum(values[0]!))
    })
    const executable = new Executable(executor, compileGraph(graph, executor.target))
    const outputs = await executable.run([tensor([1, 2, 3], [3], { device })])
    expect(await Promise.all(outputs.map(async (output) => [...(await output.data())]))).toEqual([
      [1, 4, 9],
      [2, 3, 4],
      [3, 6, 9],
      [1, 2, 3],
      [14],
    ])
    executable.dispose()
  })

  it('a program for several ranks does not run alone', async () => {
    for (const [device, code] of [
      ['reference', 'ERR_DEVICE'],
      ['cpu', 'ERR_MPI'],
    ] as const) {
      const executor = openDevice(device)
      const executable = new Executable(executor, compileGraph(chain([3], 80, 2), executor.target))
      await expect(executable.run([tensor([1, 2, 3], [3], { device })])).rejects.toMatchObject({ code })
      executable.dispose()
    }
  })

  it('no buffer of the arena overlaps a bucket between start and wait', () => {
    // Random lengths, values that are read again later, and state that is updated at the end.
    let seed = 1
    const random = (below: number) => (seed = (seed * 48271) % 2147483647) % below
    for (let round = 0; round < 50; round++) {
      const graph = trace((graph) => {
        let x = graph.input('x', { shape: [64], dtype: 'float32' })
        const values: Value[] = []
        const kept: Value[] = []
        for (let i = 0; i < 12; i++) {
          x = random(2) ? square(x) : add(x, i)
          if (random(2)) values.push(random(3) ? multiply(x, 2) : x)
          if (random(4) === 0) kept.push(x)
        }
        values.push(multiply(x, 5))
        const sums = allReduce(values, 1, 256 * (1 + random(4)))
        sums.forEach((value, i) => graph.output(`y${i}`, random(2) ? value : square(value)))
        kept.forEach((value, i) => graph.output(`k${i}`, add(value, 1)))
        const variable = new Variable('v', { shape: [64], dtype: 'float32' }, { name: 'zeros', fill: (data) => void data.fill(0) })
        graph.update(variable, sums[0]!)
      })
      const { calls, buffers } = compiled(graph)
      const range = (index: number) => {
        const buffer = buffers[buffers[index]!.view ?? index]!
        return buffer.place === 'arena' ? [buffer.offset!, buffer.offset! + buffer.bytes] : undefined
      }
      const open = new Map<string, number[]>()
      for (const call of calls) {
        const touched = [...call.outputs, ...call.inputs.filter((i) => i !== null)]
        if (call.kernel === 'allReduceWait') open.delete(String(call.outputs))
        for (const bucket of open.values())
          for (const index of touched) {
            const [own, other] = [range(index), [range(bucket[0]!)![0]!, range(bucket.at(-1)!)![1]!]]
            expect(!own || own[1]! <= other[0]! || own[0]! >= other[1]!, `${call.kernel} of round ${round}`).toBe(true)
          }
        if (call.kernel === 'allReduceStart') open.set(String(call.outputs), [...call.outputs])
      }
      expect(open.size).toBe(0)
    }
  })
})
