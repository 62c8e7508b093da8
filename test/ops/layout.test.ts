import { describe, expect, it } from 'vitest'
import { broadcastTo, concat, pad, reshape, slice, transpose } from '../../src/ops/index.js'
import { expectGradients, filled, generator, numbers, run, runOp, shapeOf, uniform } from '../helpers.js'

const x = filled([2, 3], [1, 2, 3, 4, 5, 6])
const code = (code: string) => expect.objectContaining({ code })

describe('concat', () => {
  it('joins along any axis', () => {
    const y = filled([2, 1], [7, 8])
    expect(numbers((x, y) => concat([x!, y!, x!]), [x, y])).toEqual([1, 2, 3, 7, 1, 2, 3, 4, 5, 6, 8, 4, 5, 6])
    expect(numbers((x) => concat([x!, x!], { axis: 0 }), [x])).toEqual([1, 2, 3, 4, 5, 6, 1, 2, 3, 4, 5, 6])
    expect(shapeOf((a, b) => concat([a!, b!], { axis: -2 }), [2, 3, 4], [2, 5, 4])).toEqual([2, 8, 4])
  })
  it('has gradients', () => {
    const random = generator(1)
    expectGradients((a, b) => concat([a!, b!, a!], { axis: 1 }), [uniform(random, [2, 3, 2]), uniform(random, [2, 1, 2])])
  })
  it('explains what does not fit', () => {
    expect(() => shapeOf((a, b) => concat([a!, b!], { axis: 0 }), [2, 3], [2, 4])).toThrowError(
      /concat: tensor 1 \[2, 4\] does not fit \[2, 3\] along axis 0/,
    )
    expect(() => run((a, b) => concat([a!, b!]), [x, filled([2, 1], [1, 2], 'int32')])).toThrowError(code('ERR_DTYPE'))
    expect(() => shapeOf((a) => concat([a!], { axis: 2 }), [2, 3])).toThrowError(/axis 2 does not exist/)
  })
})

describe('slice', () => {
  it('takes a box, with strides', () => {
    expect(numbers((x) => slice(x!, { begin: [1, 0], size: [1, 2] }), [x])).toEqual([4, 5])
    expect(numbers((x) => slice(x!, { begin: [0, 0], size: [2, 2], strides: [1, 2] }), [x])).toEqual([1, 3, 4, 6])
  })
  it.each([
    [
      [0, 1, 2],
      [2, 3, 1],
      [1, 1, 1],
    ],
    [
      [0, 1, 0],
      [1, 2, 2],
      [1, 2, 1],
    ],
    [
      [1, 0, 1],
      [1, 2, 1],
      [2, 3, 3],
    ],
    [
      [0, 0, 0],
      [2, 2, 2],
      [1, 3, 2],
    ],
  ])('begin %j, size %j, strides %j has a gradient', (begin, size, strides) => {
    expectGradients((x) => slice(x!, { begin, size, strides }), [uniform(generator(2), [2, 5, 3])])
  })
  it('explains what does not fit', () => {
    expect(() => shapeOf((x) => slice(x!, { begin: [0, 2], size: [1, 2] }), [2, 3])).toThrowError(
      /slice: begin \[0, 2\], size \[1, 2\], strides \[1, 1\] reach outside \[2, 3\]/,
    )
    expect(() => shapeOf((x) => slice(x!, { begin: [0], size: [1, 2] }), [2, 3])).toThrowError(
      /slice: begin must hold one whole number per axis of \[2, 3\], got \[0\]/,
    )
    expect(() => shapeOf((x) => slice(x!, { start: [0, 0] } as never), [2, 3])).toThrowError(/unknown option 'start'/)
  })
})

describe('pad', () => {
  it('surrounds with a value', () => {
    expect(numbers((x) => pad(x!, { before: [0, 1], after: [1, 0], value: 9 }), [x])).toEqual([9, 1, 2, 3, 9, 4, 5, 6, 9, 9, 9, 9])
  })
  it('has a gradient', () => {
    expectGradients((x) => pad(x!, { before: [1, 0, 2], after: [0, 3, 1] }), [uniform(generator(3), [2, 3, 2])])
  })
  it('explains what does not fit', () => {
    expect(() => shapeOf((x) => pad(x!, { before: [0, -1], after: [0, 0] }), [2, 3])).toThrowError(
      /pad: before and after must be at least 0.*Use slice/,
    )
    expect(() => run((x) => pad(x!, { before: [1], after: [0], value: 256 }), [filled([1], [1], 'uint8')])).toThrowError(
      /pad: value 256 cannot stand in uint8\[1\]/,
    )
  })
})

describe('transpose', () => {
  it('reorders axes, reversed by default', () => {
    expect(numbers((x) => transpose(x!), [x])).toEqual([1, 4, 2, 5, 3, 6])
    expect(shapeOf((x) => transpose(x!, [0, 2, 3, 1]), [2, 3, 4, 5])).toEqual([2, 4, 5, 3])
    const nchw = filled([1, 2, 2, 2], [1, 2, 3, 4, 5, 6, 7, 8])
    expect(numbers((x) => transpose(x!, [0, 2, 3, 1]), [nchw])).toEqual([1, 5, 2, 6, 3, 7, 4, 8])
  })
  it('has a gradient', () => {
    expectGradients((x) => transpose(x!, [2, 0, 1]), [uniform(generator(4), [2, 3, 4])])
  })
  it('wants a permutation', () => {
    expect(() => shapeOf((x) => transpose(x!, [0, 0]), [2, 3])).toThrowError(/\[0, 0\] does not name every axis of \[2, 3\] once/)
  })
})

describe('broadcastTo', () => {
  it('repeats', () => {
    expect(numbers((x) => broadcastTo(x!, [2, 2, 3]), [filled([2, 1], [1, 2])])).toEqual([1, 1, 1, 2, 2, 2, 1, 1, 1, 2, 2, 2])
    expect(numbers((x) => broadcastTo(x!, [3]), [filled([], [4])])).toEqual([4, 4, 4])
  })
  it('has a gradient', () => {
    expectGradients((x) => broadcastTo(x!, [2, 3, 4]), [uniform(generator(5), [3, 1])])
    expectGradients((x) => broadcastTo(x!, [1, 3, 1]), [uniform(generator(6), [3, 1])])
  })
  it('only grows', () => {
    expect(() => shapeOf((x) => broadcastTo(x!, [3]), [2, 3])).toThrowError(/broadcastTo: \[2, 3\] does not broadcast to \[3\]/)
  })
})

describe('reshape', () => {
  it('keeps the order, and -1 is what is left', () => {
    expect(numbers((x) => reshape(x!, [3, 2]), [x])).toEqual([1, 2, 3, 4, 5, 6])
    expect(shapeOf((x) => reshape(x!, [-1, 4]), [2, 3, 4])).toEqual([6, 4])
    expect(shapeOf((x) => reshape(x!, []), [1, 1])).toEqual([])
  })
  it('has a gradient', () => {
    expectGradients((x) => reshape(x!, [6]), [uniform(generator(7), [2, 3])])
  })
  it('keeps the number of elements', () => {
    expect(() => shapeOf((x) => reshape(x!, [4]), [2, 3])).toThrowError(/reshape: \[2, 3\] has 6 elements, \[4\] would have 4/)
    expect(() => shapeOf((x) => reshape(x!, [-1, 4]), [2, 3])).toThrowError(/whole numbers/)
    expect(() => shapeOf((x) => reshape(x!, [-1, -1]), [2, 3])).toThrowError(code('ERR_SHAPE'))
  })
})

it('every layout op moves int32 and uint8 unchanged', () => {
  for (const dtype of ['int32', 'uint8'] as const) {
    const x = filled([2, 2], [1, 2, 3, 250], dtype)
    expect(numbers((x) => concat([transpose(x!), pad(x!, { before: [0, 0], after: [0, 1], value: 7 })]), [x])).toEqual([
      1, 3, 1, 2, 7, 2, 250, 3, 250, 7,
    ])
    expect(numbers((x) => slice(broadcastTo(x!, [2, 2, 2]), { begin: [1, 1, 0], size: [1, 1, 2] }), [x])).toEqual([3, 250])
    expect([...runOp('copy', [x])[0]!.data]).toEqual([1, 2, 3, 250])
  }
})
