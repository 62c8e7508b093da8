/** Random calls of every op that reaches an executor: shapes odd and even, all attributes, prologues and epilogues on and off. */

import { PhiloxStream } from '../../src/ops/philox.js'
import { opDefinition } from '../../src/graph/op.js'
import type { Attributes } from '../../src/graph/graph.js'
import { elements, type TensorType } from '../../src/graph/types.js'
import type { HostTensor } from '../../src/graph/op.js'
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
export const CUDA_ONLY: ReadonlySet<string> = new Set(['separableConv2dPointwiseGradient'])

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

/** Draws the operands and attributes of a call. */
export type Maker = (c: Cases) => Omit<Case, 'kernel'>

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
