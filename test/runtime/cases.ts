/** Random calls of every op that reaches an executor: shapes odd and even, all attributes, prologues and epilogues on and off. */

import { PhiloxStream } from '../../src/ops/philox.js'
import { opDefinition } from '../../src/graph/op.js'
import type { Attributes } from '../../src/graph/graph.js'
import { elements, type TensorType } from '../../src/graph/types.js'
import type { HostTensor } from '../../src/graph/op.js'
import { unpackFilter } from '../../src/ops/packFilter.js'
import { fromBfloat16, toBfloat16 } from '../../src/runtime/tensor.js'
import '../../src/ops/index.js'

export interface Case {
  readonly kernel: string
  readonly inputs: readonly (HostTensor | null)[]
  readonly attributes: Attributes
}

export class Cases {
  readonly #random: PhiloxStream
  constructor(seed: number) {
    this.#random = new PhiloxStream(seed, 99)
  }

  whole(low: number, high: number): number {
    return low + Math.floor(this.#random.uniform() * (high - low + 1))
  }
  pick<T>(...options: readonly T[]): T {
    return options[this.whole(0, options.length - 1)]!
  }
  maybe<T>(make: () => T): T | null {
    return this.#random.uniform() < 0.5 ? make() : null
  }
  float(...shape: number[]): HostTensor {
    return { shape, data: Float32Array.from({ length: elements(shape) }, () => 2 * this.#random.uniform() - 1) }
  }
  positive(...shape: number[]): HostTensor {
    return { shape, data: Float32Array.from({ length: elements(shape) }, () => 0.5 + this.#random.uniform()) }
  }
  ints(high: number, ...shape: number[]): HostTensor {
    return { shape, data: Int32Array.from({ length: elements(shape) }, () => this.whole(-1, high - 1)) }
  }
  bytes(...shape: number[]): HostTensor {
    return { shape, data: Uint8Array.from({ length: elements(shape) }, () => this.whole(0, 255)) }
  }
  activation(): string {
    return this.pick('none', 'relu', 'elu')
  }

  /** A window that fits: [n, h, w], kernel, geometry and output size. */
  window() {
    const [kh, kw] = this.pick([3, 3], [3, 3], [1, 1], [5, 5], [2, 3], [1, 7], [7, 7])
    const [dh, dw] = this.pick([1, 1], [1, 1], [2, 2], [1, 3])
    const [sh, sw] = this.pick([1, 1], [1, 1], [2, 2], [3, 1])
    const padding = this.pick([0, 0, 0, 0], [1, 1, 1, 1], [0, 1, 0, 1], [2, 1, 3, 0], [3, 3, 3, 3])
    const [eh, ew] = [(kh! - 1) * dh! + 1, (kw! - 1) * dw! + 1]
    const h = Math.max(1, eh - padding[0]! - padding[1]!) + this.whole(0, 9)
    const w = Math.max(1, ew - padding[2]! - padding[3]!) + this.whole(0, 9)
    const oh = Math.floor((h + padding[0]! + padding[1]! - eh) / sh!) + 1
    const ow = Math.floor((w + padding[2]! + padding[3]! - ew) / sw!) + 1
    return { n: this.whole(1, 2), h, w, kh: kh!, kw: kw!, oh, ow, geometry: { strides: [sh!, sw!], dilations: [dh!, dw!], padding } }
  }
  /** A window for pools: not dilated, padding smaller than it. */
  pool(): ReturnType<Cases['window']> {
    const made = this.window()
    const { kh, kw, geometry } = made
    const fits = String(geometry.dilations) === '1,1' && geometry.padding.every((p, i) => p < (i < 2 ? kh : kw))
    return fits ? made : this.pool()
  }
  channels(): number {
    return this.pick(1, 3, 4, 7, 8, 16, 17, 24, 33, 64, 72)
  }
}

/** Ops that random calls in one process cannot cover: passes replace the first two, the others need ranks (test/distributed). */
export const NEVER_ALONE: ReadonlySet<string> = new Set(['batchNorm', 'reshape', 'allReduce', 'allReduceStart', 'allReduceWait'])

/** Ops that passes make for the CUDA executor alone. */
export const CUDA_ONLY: ReadonlySet<string> = new Set([
  'separableConv2dPointwiseGradient',
  'depthwiseConv2dGradients',
  'batchNormInputGradient',
])

/** Inputs that are stored like the activations; the others are float32 per channel. */
export const STORED: Readonly<Record<string, readonly number[]>> = {
  conv2d: [0, 1, 4],
  conv2dInputGradient: [0, 1, 2],
  conv2dFilterGradient: [0, 1],
  depthwiseConv2d: [0, 1, 6],
  depthwiseConv2dInputGradient: [0, 1, 2],
  depthwiseConv2dFilterGradient: [0, 1],
  depthwiseConv2dGradients: [0, 1, 2, 5],
  pointwiseConv2d: [0, 1, 4],
  pointwiseConv2dInputGradient: [0, 1, 2],
  pointwiseConv2dFilterGradient: [0, 1],
  separableConv2d: [0, 1, 2, 8],
  separableConv2dPointwiseGradient: [0, 1, 2],
  packFilter: [0],
  batchNormStatistics: [0],
  scaleShift: [0, 3],
  batchNormGradient: [0, 1],
  batchNormInputGradient: [0, 1],
  unary: [0],
  unaryGradient: [0, 1],
  binary: [0, 1],
  select: [1, 2],
  dropout: [0],
  maxPool2d: [0, 1],
  maxPool2dGradient: [0, 1],
  avgPool2d: [0],
  avgPool2dGradient: [0],
  reduce: [0],
  softmax: [0],
  softmaxGradient: [0, 1],
  concat: [0, 1, 2],
  slice: [0],
  pad: [0],
  transpose: [0],
  broadcastTo: [0],
  copy: [0],
}

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

type Maker = (c: Cases) => Omit<Case, 'kernel'>

const outputsOf = (kernel: string, inputs: readonly (HostTensor | null)[], attributes: Attributes): TensorType[] =>
  opDefinition(kernel).infer(inputs.map(typeOf), attributes)

export const typeOf = (tensor: HostTensor | null): TensorType | null =>
  tensor && {
    shape: tensor.shape,
    dtype: tensor.dtype ?? (tensor.data instanceof Int32Array ? 'int32' : tensor.data instanceof Uint8Array ? 'uint8' : 'float32'),
  }

/** The reference's outputs of a case. */
export function reference({ kernel, inputs, attributes }: Case): HostTensor[] {
  const outputs = outputsOf(kernel, inputs, attributes).map(({ shape, dtype }): HostTensor => {
    const length = elements(shape)
    return {
      shape,
      ...(dtype === 'bfloat16' && { dtype }),
      data: dtype === 'int32' ? new Int32Array(length) : dtype === 'uint8' ? new Uint8Array(length) : new Float32Array(length),
    }
  })
  opDefinition(kernel).reference({ inputs, outputs, attributes })
  return outputs
}

const packed = (filter: HostTensor, panel: number): HostTensor =>
  reference({ kernel: 'packFilter', inputs: [filter], attributes: { panel } })[0]!
const flat = ({ shape, data }: HostTensor): HostTensor => ({ shape: [data.length / shape.at(-1)!, shape.at(-1)!], data })

const scalar = (x: number): HostTensor => ({ shape: [], data: Float32Array.of(x) })

/** Rate, flag and gradient scale of an update, then two groups of tensors. */
const twoGroups = (c: Cases, group: (n: number) => HostTensor[]): HostTensor[] => {
  const [a, b] = [c.whole(1, 300), c.whole(1, 40)]
  return [scalar(0.1), scalar(c.whole(0, 1)), scalar(0.5), ...group(a), ...group(b)]
}

/** One maker per kernel; `panel` is the executor's. */
export const makers = (panel: number): Readonly<Record<string, Maker>> => ({
  conv2d(c) {
    const { n, h, w, kh, kw, oh, ow, geometry } = c.window()
    const groups = c.pick(1, 1, 2, 4, 11)
    const [cin, cout] = [groups * c.pick(1, 3, 4, 8, 9), groups * c.pick(1, 2, 5, 8, 16, 19)]
    const filter = c.float(kh, kw, cin / groups, cout)
    const pack = groups === 1 && panel > 0 && c.pick(true, false)
    return {
      inputs: [
        c.float(n, h, w, cin),
        pack ? packed(flat(filter), panel) : filter,
        c.maybe(() => c.float(cout)),
        c.maybe(() => c.float(cout)),
        c.maybe(() => c.float(n, oh, ow, cout)),
      ],
      attributes: {
        ...geometry,
        groups,
        inputActivation: c.activation(),
        activation: c.activation(),
        packed: pack,
        kernelSize: [kh, kw],
        cout,
      },
    }
  },
  conv2dInputGradient(c) {
    const { n, h, w, kh, kw, oh, ow, geometry } = c.window()
    const groups = c.pick(1, 1, 2, 3, 11)
    const [cin, cout] = [groups * c.pick(1, 3, 4, 8), groups * c.pick(1, 2, 5, 8, 19)]
    const inputActivation = c.activation()
    return {
      inputs: [c.float(n, oh, ow, cout), c.float(kh, kw, cin / groups, cout), inputActivation === 'none' ? null : c.float(n, h, w, cin)],
      attributes: { ...geometry, groups, inputActivation, inputSize: [h, w], kernelSize: [kh, kw] },
    }
  },
  conv2dFilterGradient(c) {
    const { n, h, w, kh, kw, oh, ow, geometry } = c.window()
    const groups = c.pick(1, 1, 2, 3, 11)
    const [cin, cout] = [groups * c.pick(1, 3, 4, 8), groups * c.pick(1, 2, 5, 8, 19)]
    return {
      inputs: [c.float(n, h, w, cin), c.float(n, oh, ow, cout)],
      attributes: { ...geometry, groups, inputActivation: c.activation(), kernelSize: [kh, kw] },
    }
  },
  depthwiseConv2d(c) {
    const { n, h, w, kh, kw, oh, ow, geometry } = c.window()
    const [ch, m] = [c.channels(), c.pick(1, 1, 1, 2, 3)]
    return {
      inputs: [
        c.float(n, h, w, ch),
        c.float(kh, kw, ch, m),
        c.maybe(() => c.float(ch)),
        c.maybe(() => c.float(ch)),
        c.maybe(() => c.float(ch * m)),
        c.maybe(() => c.float(ch * m)),
        c.maybe(() => c.float(n, oh, ow, ch * m)),
      ],
      attributes: { ...geometry, inputActivation: c.activation(), activation: c.activation() },
    }
  },
  depthwiseConv2dInputGradient(c) {
    const { n, h, w, kh, kw, oh, ow, geometry } = c.window()
    const [ch, m] = [c.channels(), c.pick(1, 1, 2)]
    const inputActivation = c.activation()
    const x = inputActivation === 'none' ? null : c.float(n, h, w, ch)
    return {
      inputs: [c.float(n, oh, ow, ch * m), c.float(kh, kw, ch, m), x, x && c.maybe(() => c.float(ch)), x && c.maybe(() => c.float(ch))],
      attributes: { ...geometry, inputActivation, inputSize: [h, w] },
    }
  },
  depthwiseConv2dFilterGradient(c) {
    const { n, h, w, kh, kw, oh, ow, geometry } = c.window()
    const [ch, m] = [c.channels(), c.pick(1, 1, 2)]
    return {
      inputs: [c.float(n, h, w, ch), c.float(n, oh, ow, ch * m), c.maybe(() => c.float(ch)), c.maybe(() => c.float(ch))],
      attributes: { ...geometry, inputActivation: c.activation(), kernelSize: [kh, kw] },
    }
  },
  depthwiseConv2dGradients(c) {
    const [n, h, w, ch] = [c.whole(1, 2), c.whole(2, 21), c.whole(2, 21), 8 * c.whole(1, 9)]
    const [top, left, bottom, right] = [c.whole(0, 2), c.whole(0, 2), c.whole(0, 2), c.whole(0, 2)]
    const [oh, ow] = [h + top + bottom - 2, w + left + right - 2]
    if (oh < 1 || ow < 1) return this.depthwiseConv2dGradients!(c)
    const statistics = c.pick(true, false)
    const inputActivation = c.activation()
    return {
      inputs: [
        c.float(n, h, w, ch),
        c.float(n, oh, ow, ch),
        c.float(3, 3, ch, 1),
        c.maybe(() => c.float(ch)),
        c.maybe(() => c.float(ch)),
        c.maybe(() => c.float(n, h, w, ch)),
        ...(statistics ? [c.float(ch), c.positive(ch)] : []),
      ],
      attributes: {
        ...{ strides: [1, 1], dilations: [1, 1], padding: [top, bottom, left, right], inputActivation },
        ...{ masked: c.pick('none', 'own', 'sum'), epsilon: c.pick(1e-3, 0.1) },
      },
    }
  },
  pointwiseConv2d(c) {
    const [rows, cin, cout] = [c.whole(1, 130), c.channels(), c.channels()]
    const filter = c.float(cin, cout)
    const pack = panel > 0 && c.pick(true, false)
    const statistics = c.pick(true, false, false) && rows > 1
    const residual = statistics ? null : c.maybe(() => c.float(rows, cout))
    return {
      inputs: [
        c.float(rows, cin),
        pack ? packed(filter, panel) : filter,
        c.maybe(() => c.float(cout)),
        c.maybe(() => c.float(cout)),
        residual,
      ],
      attributes: {
        inputActivation: c.activation(),
        activation: statistics ? 'none' : c.activation(),
        packed: pack,
        cout,
        ...(statistics && { statistics }),
      },
    }
  },
  pointwiseConv2dInputGradient(c) {
    const [rows, cin, cout] = [c.whole(1, 130), c.channels(), c.channels()]
    const inputActivation = c.activation()
    return {
      inputs: [c.float(rows, cout), c.float(cin, cout), inputActivation === 'none' ? null : c.float(rows, cin)],
      attributes: { inputActivation },
    }
  },
  pointwiseConv2dFilterGradient(c) {
    const [rows, cin, cout] = [c.whole(1, 300), c.channels(), c.channels()]
    return { inputs: [c.float(rows, cin), c.float(rows, cout)], attributes: { inputActivation: c.activation() } }
  },
  separableConv2d(c) {
    const { n, h, w, kh, kw, oh, ow, geometry } = c.window()
    const [ch, m, cout] = [c.channels(), c.pick(1, 1, 1, 2), c.channels()]
    const pointwise = c.float(ch * m, cout)
    const pack = panel > 0 && c.pick(true, false)
    const optional = (size: number) => c.maybe(() => c.float(size))
    return {
      inputs: [
        c.float(n, h, w, ch),
        c.float(kh, kw, ch, m),
        pack ? packed(pointwise, panel) : pointwise,
        optional(ch),
        optional(ch),
        optional(ch * m),
        optional(cout),
        optional(cout),
        c.maybe(() => c.float(n, oh, ow, cout)),
      ],
      attributes: {
        ...geometry,
        inputActivation: c.activation(),
        intermediateActivation: c.activation(),
        activation: c.activation(),
        packed: pack,
        cout,
      },
    }
  },
  separableConv2dPointwiseGradient(c) {
    const { n, h, w, kh, kw, oh, ow, geometry } = c.window()
    const [ch, m, cout] = [c.channels(), c.pick(1, 1, 1, 2), c.channels()]
    const optional = (size: number) => c.maybe(() => c.float(size))
    return {
      inputs: [c.float(n, h, w, ch), c.float(kh, kw, ch, m), c.float(n, oh, ow, cout), optional(ch), optional(ch), optional(ch * m)],
      attributes: { ...geometry, inputActivation: c.activation(), intermediateActivation: c.activation() },
    }
  },
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
