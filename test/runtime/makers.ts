/** A maker of random calls for every op that reaches an executor. */

import type { HostTensor } from '../../src/graph/op.js'
import { unpackFilter } from '../../src/ops/packFilter.js'
import { fromBfloat16, toBfloat16 } from '../../src/runtime/tensor.js'
import { type Case, type Cases, CUDA_ONLY, type Maker, reference, STORED } from './cases.js'
import { convolutionMakers } from './convolutionMakers.js'

/** Of unary and its gradient. */
const FUNCTIONS = [
  'relu',
  'elu',
  'negate',
  'exp',
  'log',
  'sqrt',
  'reciprocalSqrt',
  'square',
  'abs',
  'sigmoid',
  'tanh',
  'reciprocal',
  'sign',
]

const scalar = (x: number): HostTensor => ({ shape: [], data: Float32Array.of(x) })

/** Rate, flag and gradient scale of an update, then two groups of tensors. */
const twoGroups = (c: Cases, group: (n: number) => HostTensor[]): HostTensor[] => {
  const [a, b] = [c.whole(1, 300), c.whole(1, 40)]
  return [scalar(0.1), scalar(c.whole(0, 1)), scalar(0.5), ...group(a), ...group(b)]
}

/** One maker per kernel; `panel` is the executor's. */
export const makers = (panel: number): Readonly<Record<string, Maker>> => ({
  ...convolutionMakers(panel),
  packFilter: (c) => ({ inputs: [c.float(c.whole(1, 70), c.whole(1, 70))], attributes: { panel: panel || c.pick(16, 24) } }),
  batchNormStatistics: (c) => ({ inputs: [c.float(c.whole(2, 9), c.whole(1, 40), c.channels())], attributes: {} }),
  batchNormCoefficients(c) {
    const ch = c.channels()
    return {
      inputs: [c.float(ch), c.positive(ch), c.maybe(() => c.float(ch)), c.maybe(() => c.float(ch))],
      attributes: { epsilon: c.pick(1e-3, 0.1) },
    }
  },
  scaleShift(c) {
    const [rows, ch] = [c.whole(1, 90), c.channels()]
    return {
      inputs: [c.float(rows, ch), c.maybe(() => c.float(ch)), c.maybe(() => c.float(ch)), c.maybe(() => c.float(rows, ch))],
      attributes: { activation: c.activation() },
    }
  },
  batchNormGradient(c) {
    const [rows, ch] = [c.whole(2, 200), c.channels()]
    return {
      inputs: [c.float(rows, ch), c.float(rows, ch), c.float(ch), c.positive(ch), c.maybe(() => c.positive(ch))],
      attributes: { epsilon: c.pick(1e-3, 0.1) },
    }
  },
  batchNormInputGradient(c) {
    const [rows, ch] = [c.whole(2, 200), c.channels()]
    return {
      inputs: [c.float(rows, ch), c.float(rows, ch), c.float(ch), c.positive(ch), c.float(ch), c.float(ch), c.maybe(() => c.positive(ch))],
      attributes: { epsilon: c.pick(1e-3, 0.1) },
    }
  },
  unary(c) {
    const name = c.pick(...FUNCTIONS)
    return {
      inputs: [/log|sqrt|Sqrt|reciprocal/.test(name) ? c.positive(c.whole(1, 300)) : c.float(c.whole(1, 300))],
      attributes: { function: name },
    }
  },
  unaryGradient(c) {
    const name = c.pick(...FUNCTIONS)
    const n = c.whole(1, 300)
    return { inputs: [c.float(n), /log|sqrt|Sqrt|reciprocal/.test(name) ? c.positive(n) : c.float(n)], attributes: { function: name } }
  },
  binary(c) {
    const name = c.pick('add', 'subtract', 'multiply', 'divide', 'maximum', 'minimum', 'power', 'greater', 'greaterEqual', 'equal')
    const [n, h, ch] = [c.whole(1, 4), c.whole(1, 9), c.channels()]
    const shapes = c.pick(
      [
        [n, h, ch],
        [n, h, ch],
      ],
      [[n, h, ch], [ch]],
      [[], [n, h, ch]],
      [
        [n, 1, ch],
        [h, 1],
      ],
      [
        [n, h, ch],
        [n, h, 1],
      ],
    )
    const make = (shape: number[]) => (name === 'power' || name === 'divide' ? c.positive(...shape) : c.float(...shape))
    return { inputs: shapes.map((shape) => make(shape as number[])), attributes: { function: name } }
  },
  select(c) {
    const n = c.whole(1, 200)
    return { inputs: [{ shape: [n], data: Float32Array.from({ length: n }, () => c.whole(0, 1)) }, c.float(n), c.float(n)], attributes: {} }
  },
  cast(c) {
    const n = c.whole(1, 300)
    return c.pick<Omit<Case, 'kernel'>>(
      { inputs: [c.bytes(n)], attributes: { dtype: 'float32', scale: 1 / 127.5, offset: -1 } },
      { inputs: [c.float(n)], attributes: { dtype: 'uint8', scale: 300, offset: 17 } },
      { inputs: [c.float(n)], attributes: { dtype: 'int32', scale: 1000, offset: 0 } },
      { inputs: [c.ints(1000, n)], attributes: { dtype: 'float32', scale: 1, offset: 0 } },
    )
  },
  dropout: (c) => ({
    inputs: [c.float(c.whole(1, 4), c.whole(1, 50)), { shape: [2], data: Int32Array.of(c.whole(-5, 5), c.whole(0, 3)) }],
    attributes: { rate: c.pick(0, 0.1, 0.5, 0.9), seed: c.whole(0, 9), stream: c.whole(0, 9) },
  }),
  maxPool2d(c) {
    const { n, h, w, kh, kw, oh, ow, geometry } = c.pool()
    const ch = c.channels()
    return {
      inputs: [c.float(n, h, w, ch), c.maybe(() => c.float(n, oh, ow, ch))],
      attributes: { windowSize: [kh, kw], strides: geometry.strides, padding: geometry.padding },
    }
  },
  maxPool2dGradient(c) {
    const { n, h, w, kh, kw, oh, ow, geometry } = c.pool()
    const ch = c.channels()
    return {
      inputs: [c.float(n, oh, ow, ch), c.float(n, h, w, ch)],
      attributes: { windowSize: [kh, kw], strides: geometry.strides, padding: geometry.padding },
    }
  },
  avgPool2d(c) {
    const { n, h, w, kh, kw, geometry } = c.pool()
    return {
      inputs: [c.float(n, h, w, c.channels())],
      attributes: { windowSize: [kh, kw], strides: geometry.strides, padding: geometry.padding, countPadding: c.pick(true, false) },
    }
  },
  avgPool2dGradient(c) {
    const { n, h, w, kh, kw, oh, ow, geometry } = c.pool()
    return {
      inputs: [c.float(n, oh, ow, c.channels())],
      attributes: {
        windowSize: [kh, kw],
        strides: geometry.strides,
        padding: geometry.padding,
        countPadding: c.pick(true, false),
        inputSize: [h, w],
      },
    }
  },
  reduce: (c) => ({
    inputs: [c.float(c.whole(1, 5), c.whole(1, 6), c.whole(1, 7), c.channels())],
    attributes: {
      function: c.pick('sum', 'mean', 'max', 'min'),
      axes: c.pick([1, 2], [0, 1, 2], [3], [0, 1, 2, 3], [0, 2], [1, 3]),
      keepDims: c.pick(true, false),
    },
  }),
  softmax: (c) => ({ inputs: [c.float(c.whole(1, 9), c.whole(1, 70))], attributes: {} }),
  softmaxGradient(c) {
    const [n, k] = [c.whole(1, 9), c.whole(1, 70)]
    return { inputs: [c.float(n, k), c.positive(n, k)], attributes: {} }
  },
  softmaxCrossEntropy(c) {
    const [n, k] = [c.whole(1, 9), c.whole(2, 70)]
    return { inputs: [c.float(n, k), c.pick(c.ints(k, n), c.positive(n, k))], attributes: { labelSmoothing: c.pick(0, 0.1) } }
  },
  softmaxCrossEntropyGradient(c) {
    const [n, k] = [c.whole(1, 9), c.whole(2, 70)]
    return { inputs: [c.float(n), c.float(n, k), c.pick(c.ints(k, n), c.positive(n, k))], attributes: { labelSmoothing: c.pick(0, 0.1) } }
  },
  sigmoidCrossEntropy(c) {
    const [n, k] = [c.whole(1, 9), c.whole(1, 70)]
    return { inputs: [c.float(n, k), c.positive(n, k)], attributes: { labelSmoothing: c.pick(0, 0.1) } }
  },
  sigmoidCrossEntropyGradient(c) {
    const [n, k] = [c.whole(1, 9), c.whole(1, 70)]
    return { inputs: [c.float(n, k), c.float(n, k), c.positive(n, k)], attributes: { labelSmoothing: c.pick(0, 0.1) } }
  },
  concat(c) {
    const axis = c.whole(0, 2)
    const shape = [c.whole(1, 3), c.whole(1, 5), c.channels()]
    const part = (size: number) => c.float(...shape.with(axis, size))
    return { inputs: [part(shape[axis]!), part(c.channels()), part(1)], attributes: { axis } }
  },
  slice: (c) => ({
    inputs: [c.pick(c.float(4, 7, 9), c.bytes(4, 7, 9))],
    attributes: {
      begin: [c.whole(0, 1), 1, c.whole(0, 3)],
      size: [c.whole(1, 2), 3, c.whole(1, 3)],
      strides: [1, c.whole(1, 2), c.whole(1, 2)],
    },
  }),
  pad: (c) => ({
    inputs: [c.float(c.whole(1, 4), c.whole(1, 5), c.channels())],
    attributes: { before: [0, c.whole(0, 3), 1], after: [1, 0, c.whole(0, 2)], value: c.pick(0, 2.5) },
  }),
  transpose: (c) => ({
    inputs: [c.pick(c.float(2, c.whole(1, 9), c.whole(1, 9), c.channels()), c.bytes(2, 5, 6, 3))],
    attributes: { permutation: c.pick([0, 2, 3, 1], [0, 3, 1, 2], [3, 2, 1, 0], [1, 0, 2, 3]) },
  }),
  broadcastTo(c) {
    const [h, ch] = [c.whole(1, 9), c.channels()]
    return { inputs: [c.pick(c.float(), c.float(ch), c.float(h, 1))], attributes: { shape: [c.whole(1, 3), h, ch] } }
  },
  copy: (c) => ({ inputs: [c.pick(c.float(c.whole(1, 300)), c.bytes(c.whole(1, 300)))], attributes: {} }),
  allFinite(c) {
    const bad = c.float(20)
    if (c.pick(true, false)) (bad.data as Float32Array)[c.whole(0, 19)] = c.pick(Number.NaN, Infinity, -Infinity)
    return { inputs: [c.float(c.whole(1, 300)), bad], attributes: {} }
  },
  globalNorm: (c) => ({ inputs: [c.float(c.whole(1, 300)), c.float(3, 5)], attributes: {} }),
  sgdUpdate(c) {
    const group = (n: number) => [c.float(n), c.float(n), c.float(n)]
    return {
      inputs: twoGroups(c, group),
      attributes: { momentum: c.pick(0.9, 0.5), nesterov: c.pick(true, false), weightDecay: c.pick([0.01, 0], [0, 0.1]) },
    }
  },
  rmspropUpdate(c) {
    const group = (n: number) => [c.float(n), c.positive(n), c.float(n), c.float(n)]
    return {
      inputs: twoGroups(c, group),
      attributes: {
        decay: c.pick(0.9, 0.99),
        momentum: c.pick(0, 0.9),
        epsilon: c.pick(1, 1e-3),
        form: c.pick('tensorflow', 'pytorch', 'keras'),
        weightDecay: c.pick([0.01, 0], [0, 0.1]),
      },
    }
  },
  adamUpdate(c) {
    const [a, b] = [c.pick(c.whole(1, 300), 20_000), c.whole(1, 40)]
    const group = (n: number) => [c.float(n), c.float(n), c.positive(n), c.float(n)]
    return {
      inputs: [scalar(0.1), scalar(c.pick(0, 1, 1)), scalar(0.5), scalar(c.pick(0, 1, 7, 100_000)), ...group(a), ...group(b)],
      attributes: {
        beta1: c.pick(0.9, 0.8),
        beta2: c.pick(0.99, 0.999),
        epsilon: c.pick(1e-6, 1e-3),
        weightDecay: c.pick([0.02, 0], [0, 0.1]),
        trust: [c.whole(0, 1), c.whole(0, 1)],
      },
    }
  },
  averageUpdate(c) {
    const [a, b] = [c.whole(1, 300), c.whole(1, 40)]
    return {
      inputs: [scalar(0.99), scalar(c.whole(0, 1)), c.float(a), c.float(a), c.float(b), c.float(b)],
      attributes: { factor: c.pick([1, 1.5], [0.5, 1]) },
    }
  },
})

const rounded = (tensor: HostTensor): HostTensor => ({
  shape: tensor.shape,
  dtype: 'bfloat16',
  data: Float32Array.from(tensor.data, (x) => fromBfloat16(toBfloat16(x))),
})

/** Calls of the ops that the CPU executor has. */
export const cpuMakers = (all: Readonly<Record<string, Maker>>): Readonly<Record<string, Maker>> =>
  Object.fromEntries(Object.entries(all).filter(([kernel]) => !CUDA_ONLY.has(kernel)))

/** The same calls with bfloat16 where activations and filters are stored ({@link STORED}), packed in pairs. */
export function bfloat16Makers(panel: number): Readonly<Record<string, Maker>> {
  const all = makers(panel)
  return Object.fromEntries(
    Object.entries(STORED).map(([kernel, stored]) => [
      kernel,
      (c) => {
        const made = all[kernel]!(c)
        const attributes = kernel === 'packFilter' ? { ...made.attributes, pair: 2 } : made.attributes
        const inputs = made.inputs.map((input, i) =>
          input && stored.includes(i) && input.data instanceof Float32Array ? rounded(input) : input,
        )
        if (attributes.packed === true) {
          const slot = kernel === 'separableConv2d' ? 2 : 1
          const [k, cout] = [inputs[slot]!.shape[1]!, attributes.cout as number]
          const plain = rounded({ shape: [k, cout], data: Float32Array.from(unpackFilter(inputs[slot]!, k, cout)) })
          inputs[slot] = reference({ kernel: 'packFilter', inputs: [plain], attributes: { panel, pair: 2 } })[0]!
        }
        return { inputs, attributes }
      },
    ]),
  )
}
