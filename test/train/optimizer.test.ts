/** Optimizers through compiled steps on small problems whose course is known. */

import { describe, expect, it } from 'vitest'
import { adamW, compile, lamb, rmsprop, sgd, tensor, type Tensor, Variable, weightAverage } from '../../src/index.js'
import { multiply, square, subtract, sum } from '../../src/index.js'
import { constant } from '../../src/nn/index.js'
import type { TrainingOptimizer } from '../../src/train/optimizer.js'
import { createOptimizer } from '../../src/train/optimizer.js'
import { read } from '../../src/graph/trace.js'
import type { Value } from '../../src/graph/graph.js'
import { devices } from '../../src/index.js'
import { readState, releaseState } from '../../src/runtime/state.js'

const available = devices()
  .filter(({ name, available: here }) => here && (name === 'cpu' || name === 'reference'))
  .map(({ name }) => name)

/** Minimises Σ (w·x − y)² over w of two elements; returns w after each run. */
async function descend(device: string, train: TrainingOptimizer, batches: readonly [number, number][], options: object = {}) {
  const w = new Variable('w', { shape: [2, 1], dtype: 'float32' }, constant(1))
  const step = compile(({ x, y }: { x: Value; y: Value }) => sum(square(subtract(multiply(read(w), x), y))), { device, train, ...options })
  const path: number[][] = []
  for (const [x, y] of batches) {
    const batch = { x: tensor(Float32Array.of(x), [1], { device }), y: tensor(Float32Array.of(y), [1], { device }) }
    const { loss, finite } = (await step.run(batch as never, { decay: 0.5 })) as { loss: Tensor; finite: Tensor }
    path.push(Array.from(await readState(w)))
    for (const made of [batch.x, batch.y, loss, finite]) made.dispose()
  }
  step.dispose()
  releaseState(w)
  for (const variable of train.state()) releaseState(variable)
  return path
}

describe.each(available)('on %s', (device) => {
  const ten = Array.from({ length: 10 }, (): [number, number] => [1, 3])

  it('SGD with Nesterov and both L2 conventions follows its recurrence', async () => {
    for (const [l2, factor] of [
      ['half', 1],
      ['full', 2],
    ] as const) {
      const path = await descend(device, sgd({ rate: 0.05, momentum: 0.9, nesterov: true, weightDecay: 0.1, l2 }), ten)
      let [w, v] = [1, 0]
      for (const [got] of path) {
        const g = 2 * (w - 3) + factor * 0.1 * w
        v = 0.9 * v + g
        w -= 0.05 * (g + 0.9 * v)
        expect(got).toBeCloseTo(w, 4)
      }
    }
  })

  it.each(['tensorflow', 'keras', 'pytorch'] as const)('RMSProp in the form of %s follows its recurrence', async (form) => {
    const path = await descend(device, rmsprop({ form, rate: 0.02, decay: 0.9, momentum: 0.9, epsilon: 0.1 }), ten)
    let [w, s, v] = [1, form === 'tensorflow' ? 1 : 0, 0]
    for (const [got] of path) {
      const g = 2 * (w - 3)
      s = 0.9 * s + 0.1 * g * g
      v = 0.9 * v + (form === 'pytorch' ? g / (Math.sqrt(s) + 0.1) : (0.02 * g) / Math.sqrt(s + 0.1))
      w -= form === 'pytorch' ? 0.02 * v : v
      expect(got).toBeCloseTo(w, 4)
    }
  })

  it.each([adamW, lamb])('%o follows its recurrence', async (make) => {
    const layerwise = make === lamb
    const path = await descend(device, make({ rate: 0.1, weightDecay: 0.01, epsilon: 1e-6 }), ten)
    let [w, m, s] = [1, 0, 0]
    for (const [step, [got]] of path.entries()) {
      const g = 2 * (w - 3)
      m = 0.9 * m + 0.1 * g
      s = 0.999 * s + 0.001 * g * g
      const d = m / (1 - 0.9 ** (step + 1)) / (Math.sqrt(s / (1 - 0.999 ** (step + 1))) + 1e-6) + 0.01 * w
      // Both elements are equal, so |w| / |d| is that of one.
      w -= 0.1 * d * (layerwise ? Math.abs(w / d) : 1)
      expect(got).toBeCloseTo(w, 4)
    }
  })

  it('accumulating over four runs equals one run on their mean gradient', async () => {
    const batches: [number, number][] = [
      [1, 3],
      [2, 1],
      [-1, 2],
      [0.5, 0],
    ]
    const path = await descend(device, sgd({ rate: 0.1, momentum: 0 }), [...batches, ...batches], { accumulate: 4 })
    const gradient = (w: number) => batches.reduce((total, [x, y]) => total + 2 * x * (w * x - y), 0) / 4
    const first = 1 - 0.1 * gradient(1)
    expect(path.slice(0, 3).flat()).toEqual([1, 1, 1, 1, 1, 1])
    expect(path[3]![0]).toBeCloseTo(first, 5)
    expect(path[6]![0]).toBeCloseTo(first, 5)
    expect(path[7]![0]).toBeCloseTo(first - 0.1 * gradient(first), 5)
  })

  it('clipping scales the mean of accumulated gradients', async () => {
    const path = await descend(
      device,
      sgd({ rate: 1, momentum: 0 }),
      [
        [1, 300],
        [1, 300],
      ],
      { accumulate: 2, clipNorm: 0.5 },
    )
    // Two equal elements share the norm of 0.5.
    expect(path[1]![0]).toBeCloseTo(1 + 0.5 / Math.SQRT2, 5)
  })

  it('Polyak averages uniformly, EMA with TensorFlow’s warm-up', async () => {
    const polyak = weightAverage('polyak')
    expect([0, 1, 2, 9].map((step) => polyak.decay(step))).toEqual([0, 1 / 2, 2 / 3, 9 / 10])
    const ema = weightAverage('ema', 0.999)
    expect(ema.decay(0)).toBe(0.1)
    expect(ema.decay(10)).toBe(11 / 20)
    expect(ema.decay(1e6)).toBe(0.999)
    const average = weightAverage('ema')
    const w = await descend(device, sgd({ rate: 0.1, momentum: 0 }), ten, { average })
    const [, kept] = [...average.entries()][0]!
    const expected = w.reduce((mean, [value]) => 0.5 * mean + 0.5 * value!, 0)
    expect((await readState(kept))[0]).toBeCloseTo(expected, 5)
    releaseState(kept)
  })
})

describe('which parameters decay', () => {
  const decay = (decays: 'filters' | 'no-depthwise' | 'all', names: Record<string, number[]>) => {
    const variables = Object.entries(names).map(([name, shape]) => new Variable(name, { shape, dtype: 'float32' }, constant(0)))
    return { decays, variables }
  }
  it.each([
    ['filters', [0.1, 0.1, 0, 0]],
    ['no-depthwise', [0, 0.1, 0, 0]],
    ['all', [0.1, 0.1, 0.1, 0.1]],
  ] as const)('%s', async (decays, expected) => {
    const { variables } = decay(decays, { 'a.depthwise': [3, 3, 4, 1], 'a.pointwise': [4, 8], 'a_bn.gamma': [8], 'fc.bias': [8] })
    const step = compile(() => variables.map((variable) => sum(read(variable))).reduce((a, b) => a.graph && subtract(a, b)), {
      device: 'reference',
      train: sgd({ weightDecay: 0.1, decays }),
    })
    const call = step.executable({}).program.calls.find(({ kernel }) => kernel === 'sgdUpdate')!
    expect(call.attributes.weightDecay).toEqual(expected)
    step.dispose()
  })
})

describe('bad settings', () => {
  it('are refused by name', () => {
    expect(() => rmsprop({ form: 'torch' as never })).toThrowError(/form must be .*tensorflow.*got torch/)
    expect(() => lamb({ beta2: 1 })).toThrowError(/beta2 must be a finite number, in \[0, 1\)/)
    expect(() => sgd({ l2: 'double' as never })).toThrowError(/l2 must be one of half, full, got double/)
    expect(() => createOptimizer({ kind: 'adam' as never }, 1)).toThrowError(/kind must be sgd, rmsprop, adamw or lamb, got adam/)
    expect(() => createOptimizer({ kind: 'adamw', momentum: 0.9 } as never, 1)).toThrowError(/adamw: unknown option 'momentum'/)
  })
})
