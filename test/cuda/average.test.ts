/** Averages of the weights in the optimizer's own launch: the pass, the kernels against the reference, a training step. */

import { describe, expect, it } from 'vitest'
import { adamW, compile, lamb, multiply, rmsprop, sgd, square, subtract, sum, tensor, Variable, weightAverage } from '../../src/index.js'
import type { Value } from '../../src/graph/graph.js'
import type { HostTensor } from '../../src/graph/op.js'
import { read } from '../../src/graph/trace.js'
import { constant } from '../../src/nn/index.js'
import { openDevice } from '../../src/runtime/device.js'
import { ReferenceExecutor } from '../../src/runtime/executors/reference.js'
import { readState } from '../../src/runtime/state.js'
import { runCall } from '../../src/runtime/verify.js'
import { Cases } from '../runtime/cases.js'
import { makers } from '../runtime/makers.js'
import './emulator.js'

const all = makers(16)
const scalars = { sgdUpdate: [3, 3], rmspropUpdate: [3, 4], adamUpdate: [4, 4] } as const

describe.each(Object.keys(scalars) as (keyof typeof scalars)[])('%s with averages', (kernel) => {
  const make = (seed: number) => {
    const c = new Cases(seed)
    const { inputs, attributes } = all[kernel]!(c)
    const [before, size] = scalars[kernel]
    const parameters = inputs.filter((_, i) => i >= before && (i - before) % size === 0) as HostTensor[]
    const averages = parameters.map(({ shape }) => c.float(...shape))
    const decay: HostTensor = { shape: [], data: Float32Array.of(c.pick(0.9, 0.999)) }
    return { inputs: [...inputs, decay, ...averages] as (HostTensor | null)[], attributes: { ...attributes, averaged: true } }
  }
  const outputsOf = ({ inputs }: ReturnType<typeof make>) => {
    const [before, size] = scalars[kernel]
    const groups = (inputs.length - before - 1) / (size + 1)
    const group = (g: number) => Array.from({ length: size - 1 }, (_, i) => inputs[before + g * size + i]!)
    const like = [
      ...(kernel === 'adamUpdate' ? [inputs[3]!] : []),
      ...Array.from({ length: groups }, (_, g) => group(g)).flat(),
      ...inputs.slice(inputs.length - groups),
    ]
    return like.map((x) => ({ shape: x!.shape, data: new Float32Array(x!.data.length) }))
  }
  it('agrees with the reference in every mode', () => {
    for (let seed = 1; seed < 13; seed++) {
      const made = make(seed)
      const call = { kernel, inputs: [], outputs: [], attributes: made.attributes, scope: 'test' }
      const expected = runCall(new ReferenceExecutor(), call, made.inputs, outputsOf(made))
      const device = ['emulator:fair', 'emulator:random-late-shuffled'][seed % 2]!
      const actual = runCall(openDevice(device), call, made.inputs, outputsOf(made))
      expected.forEach((values, i) =>
        values.forEach((value, at) =>
          expect(Math.abs(actual[i]![at]! - value), `${device} ${i}`).toBeLessThan(1e-4 * Math.max(1, Math.abs(value))),
        ),
      )
    }
  })
  it('refuses averages that do not fit', () => {
    const made = make(3)
    const call = { kernel, inputs: [], outputs: [], attributes: made.attributes, scope: 'test' }
    const wrong = { shape: [7, 3], data: new Float32Array(21) }
    for (const inputs of [made.inputs.slice(0, -1), made.inputs.with(-2, wrong).with(-1, wrong)])
      expect(() => runCall(openDevice('emulator:fair'), call, inputs, outputsOf(made))).toThrow()
  })
})

describe('a step that keeps an average', () => {
  const optimizers = {
    sgd: () => sgd({ rate: 0.05, momentum: 0.5 }),
    rmsprop: () => rmsprop({ rate: 0.05 }),
    adamW: () => adamW({ rate: 0.05 }),
    lamb: () => lamb({ rate: 0.05, weightDecay: 0.1 }),
  }
  it.each(Object.keys(optimizers) as (keyof typeof optimizers)[])(
    '%s: one call on cuda, the same averages as the reference',
    async (name) => {
      const run = async (device: string) => {
        const weights = [40, 3].map((n) => new Variable(`w${n}`, { shape: [n, 1], dtype: 'float32' }, constant(1)))
        const average = weightAverage('ema', 0.9)
        const loss = (x: Value) =>
          weights.map((w) => sum(square(subtract(multiply(read(w), x), x)))).reduce((a, b) => subtract(a, multiply(b, b)))
        const step = compile(loss, { train: optimizers[name](), device, average })
        const x = tensor(Float32Array.of(3), [1], { device })
        for (let i = 0; i < 4; i++) await step.run(x, { decay: 0.5 })
        const calls = step.executable(x).program.calls.map(({ kernel }) => kernel)
        const averages = await Promise.all(weights.map((w) => readState(average.variable(w)) as Promise<Float32Array>))
        return { calls, averages }
      }
      const [expected, actual] = [await run('reference'), await run('emulator:fair')]
      expect(expected.calls).toContain('averageUpdate')
      expect(actual.calls).not.toContain('averageUpdate')
      for (const [i, values] of actual.averages.entries())
        values.forEach((value, at) => expect(Math.abs(value - expected.averages[i]![at]!)).toBeLessThan(1e-4))
    },
  )
})
