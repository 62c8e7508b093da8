import { describe, expect, it } from 'vitest'
import { filled, runOp } from '../helpers.js'

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
