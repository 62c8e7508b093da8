import { describe, expect, it } from 'vitest'
import { convCost } from '../../src/ops/cost.js'

describe('convCost', () => {
  it('regular: k² · in · out', () => {
    expect(convCost({ kernel: 3, in: 728, out: 728, height: 19, width: 19 })).toEqual({
      parameters: 9 * 728 * 728,
      macs: 361 * 9 * 728 * 728,
    })
  })
  it('separable: k² · in + in · out', () => {
    expect(convCost({ kernel: 3, in: 728, out: 728, height: 19, width: 19, separable: true })).toEqual({
      parameters: 536536,
      macs: 193689496,
    })
  })
  it('grouped: k² · in · out / groups, down to depthwise', () => {
    expect(convCost({ kernel: [3, 5], in: 8, out: 16, groups: 4, height: 2, width: 3 })).toEqual({
      parameters: (15 * 8 * 16) / 4,
      macs: (6 * 15 * 8 * 16) / 4,
    })
    expect(convCost({ kernel: 3, in: 32, out: 32, groups: 32, height: 1, width: 1 }).parameters).toBe(9 * 32)
  })
  it('explains bad input', () => {
    expect(() => convCost({ kernel: 3, in: 8, out: 9, groups: 4, height: 1, width: 1 })).toThrowError(/4 does not divide out = 9/)
    expect(() => convCost({ kernel: 3, in: 8, out: 8, groups: 2, separable: true, height: 1, width: 1 })).toThrowError(/no groups/)
    expect(() => convCost({ kernel: 0, in: 8, out: 8, height: 1, width: 1 })).toThrowError(/kernel must be a whole number/)
    expect(() => convCost({ kernel: 3, in: 8, out: 8, height: 1 } as never)).toThrowError(/width must be a whole number/)
    expect(() => convCost({ kernel: 3, inputs: 8 } as never)).toThrowError(/unknown option 'inputs'/)
  })
})
