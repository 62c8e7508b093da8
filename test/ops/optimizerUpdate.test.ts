/** Optimizer steps against their closed forms; the kernels are compared with these loops in test/runtime/kernels.test.ts. */

import { describe, expect, it } from 'vitest'
import { expectClose, filled, generator, runOp, uniform } from '../helpers.js'

const scalar = (x: number) => filled([], [x])

describe('sgdUpdate', () => {
  const random = generator(1)
  const shapes = [[2, 3], [4]]
  const groups = shapes.map((shape) => [uniform(random, shape), uniform(random, shape), uniform(random, shape)])
  const update = (flag: number, nesterov: boolean) =>
    runOp('sgdUpdate', [scalar(0.1), scalar(flag), scalar(0.5), ...groups.flat()], { momentum: 0.9, nesterov, weightDecay: [0.01, 0] })
  it.each([false, true])('steps along the velocity, nesterov %s', (nesterov) => {
    const outputs = update(1, nesterov)
    groups.forEach(([p, v, g], k) => {
      const decay = k === 0 ? 0.01 : 0
      const gradient = Array.from(p!.data, (w, i) => g!.data[i]! * 0.5 + decay * w)
      const velocity = gradient.map((step, i) => 0.9 * v!.data[i]! + step)
      expectClose(outputs[2 * k + 1]!.data, velocity)
      expectClose(
        outputs[2 * k]!.data,
        velocity.map((step, i) => p!.data[i]! - 0.1 * (nesterov ? gradient[i]! + 0.9 * step : step)),
      )
    })
  })
  it('changes nothing where the flag is 0', () => {
    const outputs = update(0, false)
    groups.forEach(([p, v], k) => {
      expect([...outputs[2 * k]!.data]).toEqual([...Array.from(p!.data)])
      expect([...outputs[2 * k + 1]!.data]).toEqual([...Array.from(v!.data)])
    })
  })
  it('explains what does not fit', () => {
    const call =
      (inputs: ReturnType<typeof scalar>[], weightDecay = [0]) =>
      () =>
        runOp('sgdUpdate', [scalar(1), scalar(1), scalar(1), ...inputs], { momentum: 0, weightDecay })
    const three = filled([3], [1, 2, 3])
    expect(call([three, three, filled([2], [1, 2])])).toThrowError(
      /group 0 must be float32 tensors of one shape, got float32\[3\], float32\[3\], float32\[2\]/,
    )
    expect(call([three, three, three], [0, 0])).toThrowError(/weightDecay must hold 1 numbers, got \[0,0\]/)
  })
})

describe('rmspropUpdate', () => {
  const options = { decay: 0.9, momentum: 0.5, weightDecay: [0] }
  /** The parameter after `steps` steps of gradient 2 from 1, and its mean square. */
  function run(form: string, epsilon: number, start: number, steps: number, rates = Array.from({ length: steps }, () => 0.1)) {
    let [p, s, v] = [1, start, 0]
    for (const rate of rates) {
      const outputs = runOp('rmspropUpdate', [scalar(rate), scalar(1), scalar(1), ...[p, s, v, 2].map((x) => filled([1], [x]))], {
        ...options,
        form,
        epsilon,
      })
      ;[p, s, v] = outputs.map(({ data }) => data[0]!) as [number, number, number]
    }
    return { p, s, v }
  }

  it('first step of each form', () => {
    // mean square: 0.9 · start + 0.1 · 4
    expect(run('tensorflow', 1, 1, 1).p).toBeCloseTo(1 - 0.2 / Math.sqrt(1.3 + 1), 6)
    expect(run('keras', 1, 0, 1).p).toBeCloseTo(1 - 0.2 / Math.sqrt(0.4 + 1), 6)
    expect(run('pytorch', 1, 0, 1).p).toBeCloseTo(1 - 0.2 / (Math.sqrt(0.4) + 1), 6)
  })

  it('with a constant gradient the mean square is 4 + (start − 4)·0.9ⁿ', () => {
    for (const start of [0, 1]) expect(run('keras', 1e-7, start, 20).s).toBeCloseTo(4 + (start - 4) * 0.9 ** 20, 5)
  })

  it('a drop of the rate acts at once where the rate is outside the velocity', () => {
    const rates = [0.1, 0]
    const [outside, inside] = [run('pytorch', 1, 0, 2, rates), run('keras', 1, 0, 2, rates)]
    expect(outside.p).toBeCloseTo(run('pytorch', 1, 0, 1).p, 6)
    expect(inside.p).toBeCloseTo(run('keras', 1, 0, 1).p - 0.5 * run('keras', 1, 0, 1).v, 6)
  })

  it('with ε = 1 and small gradients it steps as SGD does once the first mean square is forgotten', () => {
    const group = (p: number, s: number, v: number, g: number) => [p, s, v, g].map((x) => filled([1], [x]))
    const [p] = runOp('rmspropUpdate', [scalar(0.1), scalar(1), scalar(1), ...group(0, 0, 0, 1e-3)], {
      ...options,
      form: 'tensorflow',
      epsilon: 1,
    })
    expect(p!.data[0]).toBeCloseTo(-1e-4, 9)
  })

  it('changes nothing where the flag is 0', () => {
    const random = generator(4)
    const group = [uniform(random, [5]), uniform(random, [5]), uniform(random, [5]), uniform(random, [5])]
    const outputs = runOp('rmspropUpdate', [scalar(1), scalar(0), scalar(1), ...group], { ...options, form: 'keras', epsilon: 1 })
    outputs.forEach(({ data }, i) => expectClose(data, group[i]!.data))
  })
})

describe('adamUpdate', () => {
  const attributes = { beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weightDecay: [0], trust: [0] }
  const step = (count: number, group: readonly (readonly number[])[], extra = {}, rate = 0.1, flag = 1) =>
    runOp('adamUpdate', [scalar(rate), scalar(flag), scalar(1), scalar(count), ...group.map((x) => filled([x.length], [...x]))], {
      ...attributes,
      ...extra,
    })

  it('the first step has length rate whatever the gradient', () => {
    for (const g of [1e-4, 3, -50]) {
      const [count, p] = step(0, [[1], [0], [0], [g]])
      expect(count!.data[0]).toBe(1)
      expect(p!.data[0]).toBeCloseTo(1 - 0.1 * Math.sign(g), 4)
    }
  })

  it('bias correction: with a constant gradient every step has length rate', () => {
    let [count, p, m, s] = [0, 1, 0, 0]
    for (let i = 0; i < 30; i++)
      [count, p, m, s] = step(count, [[p], [m], [s], [0.3]]).map(({ data }) => data[0]!) as [number, number, number, number]
    expect(count).toBe(30)
    expect(p).toBeCloseTo(1 - 30 * 0.1, 4)
    expect(m).toBeCloseTo(0.3 * (1 - 0.9 ** 30), 6)
    expect(s).toBeCloseTo(0.09 * (1 - 0.999 ** 30), 7)
  })

  it('decay is decoupled: rate · weightDecay · w, whatever the gradient was', () => {
    const shrink = (g: number) =>
      step(5, [[2], [0], [0], [g]], { weightDecay: [0.01] })[1]!.data[0]! - step(5, [[2], [0], [0], [g]])[1]!.data[0]!
    expect(shrink(1)).toBeCloseTo(-0.1 * 0.01 * 2, 6)
    expect(shrink(1000)).toBeCloseTo(-0.1 * 0.01 * 2, 6)
  })

  it('with trust the step has the length rate · |w|', () => {
    const p = [3, 4]
    const [, moved] = step(0, [p, [0, 0], [0, 0], [0.2, -7]], { trust: [1] }, 0.01)
    expect(Math.hypot(moved!.data[0]! - 3, moved!.data[1]! - 4)).toBeCloseTo(0.01 * 5, 5)
    // Without weights or without a direction there is nothing to measure by.
    expect(step(0, [[0], [0], [0], [1]], { trust: [1] }, 0.01)[1]!.data[0]).toBeCloseTo(-0.01, 6)
    expect(step(0, [[2], [0], [0], [0]], { trust: [1] }, 0.01)[1]!.data[0]).toBe(2)
  })

  it('changes nothing where the flag is 0, the count included', () => {
    expect(step(7, [[1], [2], [3], [4]], {}, 0.1, 0).map(({ data }) => data[0])).toEqual([7, 1, 2, 3])
  })
})
