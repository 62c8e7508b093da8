import { describe, expect, it } from 'vitest'
import type { Value } from '../../src/graph/graph.js'
import { independentSamples, samplesAtOnce } from '../../src/graph/samples.js'
import { trace } from '../../src/graph/trace.js'
import {
  add,
  compile,
  concat,
  globalAveragePool,
  mean,
  multiply,
  pad,
  reshape,
  slice,
  softmax,
  sum,
  tensor,
  transpose,
  xception,
} from '../../src/index.js'
import { openDevice } from '../../src/runtime/device.js'
import { nativeExecutors } from '../../src/runtime/executors/native.js'

/** What independentSamples says of a function of one [4, 6, 6, 8] input. */
function samples(fn: (x: Value) => Value): number {
  return independentSamples(trace((graph) => graph.output('y', fn(graph.input('x', { shape: [4, 6, 6, 8], dtype: 'float32' })))))
}
const constant = (x: Value, ...shape: number[]) =>
  x.graph.constant({ shape, dtype: 'float32' }, new Float32Array(shape.reduce((a, b) => a * b)))

describe('independent samples', () => {
  it.each<[string, (x: Value) => Value]>([
    ['a vector over channels', (x) => multiply(x, constant(x, 8))],
    ['softmax over channels', (x) => softmax(globalAveragePool(x))],
    [
      'slices, concatenation, padding and transposition within a sample',
      (x) =>
        transpose(
          pad(concat([x, slice(x, { begin: [0, 0, 0, 2], size: [4, 6, 6, 3] })]), { before: [0, 1, 0, 0], after: [0, 0, 0, 0] }),
          [0, 3, 1, 2],
        ),
    ],
    ['a reshape that keeps the batch', (x) => reshape(x, [4, 288])],
  ])('%s', (_, fn) => expect(samples(fn)).toBe(4))

  it.each<[string, (x: Value) => Value]>([
    ['a sum over the batch', (x) => add(x, sum(x, { axes: [0], keepDims: true }))],
    ['a mean over everything', (x) => multiply(x, mean(x))],
    ['a slice of the batch', (x) => slice(x, { begin: [1, 0, 0, 0], size: [3, 6, 6, 8] })],
    ['concatenation along the batch', (x) => concat([x, x], { axis: 0 })],
    ['a transposed batch', (x) => transpose(x, [3, 1, 2, 0])],
    ['a reshape across samples', (x) => reshape(x, [8, 144])],
    ['softmax over the batch', (x) => softmax(sum(x, { axes: [1, 2, 3] }))],
    ['a constant per sample', (x) => add(x, constant(x, 4, 1, 1, 1))],
    ['an output without a batch', (x) => sum(x, { axes: [0] })],
  ])('not: %s', (_, fn) => expect(samples(fn)).toBe(0))

  it('as many at once as the cache holds', () => {
    expect([100, 45, 5, 60, 30].map((bytes, i) => samplesAtOnce([8, 8, 8, 7, 6][i]!, 10, bytes))).toEqual([8, 4, 1, 1, 3])
  })
})

describe.skipIf(!nativeExecutors().some(({ name, available }) => name === 'cpu' && available))('runs on parts of a batch', () => {
  it('give the bits of single pictures', async () => {
    const model = xception({ classes: 5, width: 0.25, middleRepeats: 1, inputSize: 96, device: 'cpu' })
    const forward = compile((x: Value) => model(x), { device: 'cpu' })
    const data = Float32Array.from({ length: 6 * 96 * 96 * 3 }, (_, i) => Math.sin(i * 12.9898))
    const images = tensor(data, [6, 96, 96, 3], { device: 'cpu' })
    const { arenaBytes } = forward.program(tensor(data.slice(0, 27648), [1, 96, 96, 3], { device: 'cpu' }))
    Object.assign(openDevice('cpu').target, { cacheBytes: 2.5 * arenaBytes })
    const executable = forward.executable(images)
    expect(executable.repeat).toBe(3)
    expect(executable.inputs[0]!.type.shape).toEqual([6, 96, 96, 3])
    const all = (await (await forward(images)).data()) as Float32Array
    expect(all.length).toBe(30)
    const [sync] = executable.runSync([images])
    expect(sync!.shape).toEqual([6, 5])
    expect(await sync!.data()).toEqual(all)
    expect(executable.profile([images]).length).toBe(executable.program.calls.length)
    for (let i = 0; i < 6; i++) {
      const one = tensor(data.slice(i * 27648, (i + 1) * 27648), [1, 96, 96, 3], { device: 'cpu' })
      expect(await (await forward(one)).data()).toEqual(all.slice(i * 5, (i + 1) * 5))
    }
    model.dispose()
  })

  it('a function that counts on its batch runs on the whole of it', async () => {
    Object.assign(openDevice('cpu').target, { cacheBytes: 1 })
    const x = tensor(new Float32Array(4 * 36).fill(1), [4, 6, 6], { device: 'cpu' })
    const f = compile((v: Value) => reshape(v, [4, 36]), { device: 'cpu' })
    expect(f.executable(x).repeat).toBe(1)
    expect((await f(x)).shape).toEqual([4, 36])
  })
})
