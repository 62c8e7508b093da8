import { describe, expect, it } from 'vitest'
import { mean, sigmoidCrossEntropy, softmax, softmaxCrossEntropy } from '../../src/ops/index.js'
import { expectClose, expectGradients, filled, generator, gradientOf, numbers, run, shapeOf, uniform } from '../helpers.js'

const log = Math.log

describe('softmax', () => {
  it('by hand, over the last axis, without overflow', () => {
    expectClose(
      numbers((x) => softmax(x!), [filled([2, 2], [0, log(3), 1000, 1000 - log(4)])]),
      [0.25, 0.75, 0.8, 0.2],
    )
    expect(numbers((x) => softmax(x!), [filled([1, 2], [-Infinity, 0])])).toEqual([0, 1])
  })
  it('has a gradient', () => {
    expectGradients((x) => softmax(x!), [uniform(generator(1), [2, 3, 4])])
  })
})

describe('softmaxCrossEntropy', () => {
  const random = generator(2)
  const logits = uniform(random, [5, 4])
  const labels = filled([5], [0, 3, -1, 2, 1], 'int32')
  const distribution = (rows: number, k: number) => {
    const data = Float64Array.from({ length: rows * k }, () => random() + 0.1)
    for (let row = 0; row < rows; row++) {
      const total = data.subarray(row * k, row * k + k).reduce((a, b) => a + b)
      for (let c = 0; c < k; c++) data[row * k + c]! /= total
    }
    return filled([rows, k], data)
  }
  it('by hand', () => {
    const x = filled([2, 3], [0, 0, 0, log(2), 0, 0])
    expectClose(
      numbers((x, y) => softmaxCrossEntropy(x!, y!), [x, filled([2], [1, 0], 'int32')]),
      [log(3), log(2)],
    )
    // Half of the label is spread over the three classes.
    const [first, other] = [-log(1 / 2), -log(1 / 4)]
    expectClose(
      numbers((x, y) => softmaxCrossEntropy(x!, y!, { labelSmoothing: 0.5 }), [filled([1, 3], [log(2), 0, 0]), filled([1], [0], 'int32')]),
      [(2 / 3) * first + (1 / 6) * other + (1 / 6) * other],
    )
  })
  it('is the same for integer and for one-hot labels', () => {
    const hot = filled([2, 3], [0, 1, 0, 0, 0, 1])
    const x = uniform(random, [2, 3])
    for (const labelSmoothing of [0, 0.1])
      expectClose(
        numbers((x, y) => softmaxCrossEntropy(x!, y!, { labelSmoothing }), [x, hot]),
        numbers((x, y) => softmaxCrossEntropy(x!, y!, { labelSmoothing }), [x, filled([2], [1, 2], 'int32')]),
      )
  })
  it.each([0, 0.1])('has gradients with smoothing %d', (labelSmoothing) => {
    expectGradients((x, y) => softmaxCrossEntropy(x!, y!, { labelSmoothing }), [logits, labels])
    expectGradients((x, y) => softmaxCrossEntropy(x!, y!, { labelSmoothing }), [logits, distribution(5, 4)], { wanted: [0] })
    // Rows that do not sum to one: the gradient stays that of the formula.
    expectGradients((x, y) => softmaxCrossEntropy(x!, y!, { labelSmoothing }), [logits, uniform(random, [5, 4])], { wanted: [0] })
  })
  it('ignores negative labels in loss and gradient, smoothing or not', () => {
    const loss = numbers((x, y) => softmaxCrossEntropy(x!, y!, { labelSmoothing: 0.1 }), [logits, labels])
    expect(loss[2]).toBe(0)
    const gradient = gradientOf((x, y) => mean(softmaxCrossEntropy(x!, y!, { labelSmoothing: 0.1 })), [logits, labels])
    expect(gradient.slice(8, 12)).toEqual([0, 0, 0, 0])
    expect(gradient[0]).not.toBe(0)
  })
  it('makes rows with a label beyond the classes NaN', () => {
    const bad = filled([5], [0, 4, -1, 2, 1], 'int32')
    expect(numbers((x, y) => softmaxCrossEntropy(x!, y!), [logits, bad]).map(Number.isNaN)).toEqual([false, true, false, false, false])
    expect(gradientOf((x, y) => mean(softmaxCrossEntropy(x!, y!)), [logits, bad]).filter(Number.isNaN).length).toBe(4)
  })
  it('allows classes masked by -Infinity', () => {
    expectClose(
      numbers((x, y) => softmaxCrossEntropy(x!, y!), [filled([1, 3], [-Infinity, 0, 0]), filled([1], [1], 'int32')]),
      [log(2)],
    )
  })
  it('is stable at large logits', () => {
    expectClose(
      numbers((x, y) => softmaxCrossEntropy(x!, y!), [filled([1, 2], [1e4, -1e4]), filled([1], [1], 'int32')]),
      [2e4],
    )
  })
  it('explains what does not fit', () => {
    expect(() => run((x, y) => softmaxCrossEntropy(x!, y!), [logits, filled([4], [0, 0, 0, 0], 'int32')])).toThrowError(
      /labels must be \[5\] \(one class per row\), got \[4\]/,
    )
    expect(() => run((x, y) => softmaxCrossEntropy(x!, y!), [logits, filled([5], [0, 0, 0, 0, 0], 'uint8')])).toThrowError(
      /labels must be int32 \[n\] or float32/,
    )
    expect(() => shapeOf((x) => softmaxCrossEntropy(x!, x!), [5])).toThrowError(/logits must be \[n, classes\], got \[5\]/)
    expect(() => run((x, y) => softmaxCrossEntropy(x!, y!, { labelSmoothing: 1 }), [logits, labels])).toThrowError(
      /labelSmoothing must be in \[0, 1\), got 1/,
    )
    expect(() => run((x, y) => softmaxCrossEntropy(x!, y!), [filled([1, 2], [1, 2], 'int32'), filled([1], [1], 'int32')])).toThrowError(
      /logits must be float32/,
    )
  })
})

describe('sigmoidCrossEntropy', () => {
  it('by hand', () => {
    const x = filled([4], [0, log(3), 1000, -1000])
    const t = filled([4], [1, 0, 1, 1])
    expectClose(
      numbers((x, t) => sigmoidCrossEntropy(x!, t!), [x, t]),
      [log(2), log(4), 0, 1000],
    )
    expectClose(
      numbers((x, t) => sigmoidCrossEntropy(x!, t!, { labelSmoothing: 0.5 }), [filled([1], [log(3)]), filled([1], [1])]),
      [0.75 * -log(0.75) + 0.25 * -log(0.25)],
    )
  })
  it.each([0, 0.2])('has a gradient in the logits with smoothing %d', (labelSmoothing) => {
    const random = generator(3)
    expectGradients(
      (x, t) => sigmoidCrossEntropy(x!, t!, { labelSmoothing }),
      [uniform(random, [2, 3]), filled([2, 3], [1, 0, 1, 0.3, 0, 1])],
      { wanted: [0] },
    )
  })
  it('wants one shape', () => {
    expect(() => shapeOf((x, t) => sigmoidCrossEntropy(x!, t!), [2, 3], [3])).toThrowError(
      /targets must be \[2, 3\] \(like the logits\), got \[3\]/,
    )
  })
})
