import { describe, expect, it } from 'vitest'
import { expectClose, filled, generator, runOp, uniform } from '../helpers.js'

const scalar = (x: number) => filled([], [x])

describe('allFinite', () => {
  it('looks at every element of every tensor', () => {
    const tensors = () => [filled([2, 2], [1, 2, 3, 4]), filled([], [0]), filled([3], [-1e38, 0, 1e-40])]
    expect(runOp('allFinite', tensors())[0]!.data[0]).toBe(1)
    for (const bad of [Number.NaN, Infinity, -Infinity])
      for (let i = 0; i < 3; i++) {
        const inputs = tensors()
        const data = Array.from(inputs[i]!.data)
        data[data.length - 1] = bad
        inputs[i] = { ...inputs[i]!, data }
        expect(runOp('allFinite', inputs)[0]!.data[0]).toBe(0)
      }
  })
})

describe('globalNorm', () => {
  it('is the root of the sum of squares over all tensors', () => {
    expect(runOp('globalNorm', [filled([2], [1, -2]), filled([1, 2], [2, 4])])[0]!.data[0]).toBe(5)
  })
  it('takes float32 only', () => {
    expect(() => runOp('globalNorm', [filled([2], [1, 2], 'int32')])).toThrowError(/globalNorm: input 0 must be float32, got int32\[2\]/)
  })
})

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

describe('averageUpdate', () => {
  const inputs = [filled([2], [1, 2]), filled([2], [3, 4]), filled([1], [10]), filled([1], [20])]
  it('moves towards the value times its factor', () => {
    const [first, second] = runOp('averageUpdate', [scalar(0.75), scalar(1), ...inputs], { factor: [1, 2] })
    expect([...first!.data]).toEqual([1.5, 2.5])
    expect([...second!.data]).toEqual([17.5])
  })
  it('changes nothing where the flag is 0', () => {
    expect([...runOp('averageUpdate', [scalar(0.75), scalar(0), ...inputs], { factor: [1, 1] })[0]!.data]).toEqual([1, 2])
  })
})
