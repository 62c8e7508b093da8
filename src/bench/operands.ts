/** Host-side operands of a layer's benchmark, and the reference's answer for samples of its results, borders included. */

import { type HostTensor, opDefinition } from '../graph/op.js'
import type { Attributes } from '../graph/graph.js'
import { elements, type Shape } from '../graph/types.js'
import type { Layer } from './layers.js'

export type Pass = 'forward' | 'data' | 'filter'
export type KernelOp = 'regular' | 'depthwise' | 'pointwise' | 'unfused' | 'fused'

/** Everything that any of a layer's kernels reads, float32 in [-1, 1). */
export interface Operands {
  /** [n, s, s, cin] */
  readonly x: HostTensor
  /** [3, 3, cin, 1] */
  readonly depthwise: HostTensor
  /** [cin, cout] */
  readonly pointwise: HostTensor
  /** [3, 3, cin, cout] */
  readonly regular: HostTensor
  /** [n, s, s, cout]: the gradient of the layer's output. */
  readonly gradient: HostTensor
  /** [n, s, s, cin]: stands for the depthwise result, and for its gradient. */
  readonly between: HostTensor
}

export function makeOperands({ cin, cout, size }: Layer, batch: number): Operands {
  let state = 0x2545f491
  const random = (shape: Shape): HostTensor => {
    const data = new Float32Array(elements(shape))
    for (let i = 0; i < data.length; i++) {
      // xorshift32
      state ^= state << 13
      state ^= state >>> 17
      state ^= state << 5
      data[i] = state / 2 ** 31
    }
    return { shape, data }
  }
  const map = (channels: number): Shape => [batch, size, size, channels]
  return {
    x: random(map(cin)),
    depthwise: random([3, 3, cin, 1]),
    pointwise: random([cin, cout]),
    regular: random([3, 3, cin, cout]),
    gradient: random(map(cout)),
    between: random(map(cin)),
  }
}

const plain = { strides: [1, 1], dilations: [1, 1], inputActivation: 'none' } satisfies Attributes
/** A 3 × 3 patch gives one output without padding. */
const VALID = { ...plain, padding: [0, 0, 0, 0], activation: 'none' } satisfies Attributes

/** Runs an op's reference loops; absent optional inputs are filled up. */
function reference(name: string, inputs: readonly HostTensor[], shape: Shape, attributes: Attributes): HostTensor {
  const definition = opDefinition(name)
  const arity = Math.max(definition.inputs.length, inputs.length)
  const output: HostTensor = { shape, data: new Float32Array(elements(shape)) }
  definition.reference({ inputs: Array.from({ length: arity }, (_, i) => inputs[i] ?? null), outputs: [output], attributes })
  return output
}

/** The 3 × 3 neighbourhood of a pixel, zero beyond the border. */
function patch({ shape, data }: HostTensor, n: number, row: number, column: number): HostTensor {
  const [, height, width, channels] = shape as [number, number, number, number]
  const out = new Float32Array(9 * channels)
  for (let dy = 0; dy < 3; dy++)
    for (let dx = 0; dx < 3; dx++) {
      const [y, x] = [row + dy - 1, column + dx - 1]
      if (y < 0 || x < 0 || y >= height || x >= width) continue
      const from = ((n * height + y) * width + x) * channels
      out.set(data.subarray(from, from + channels), (dy * 3 + dx) * channels)
    }
  return { shape: [1, 3, 3, channels], data: out }
}

function pixel({ shape, data }: HostTensor, n: number, row: number, column: number): HostTensor {
  const [, height, width, channels] = shape as [number, number, number, number]
  const from = ((n * height + row) * width + column) * channels
  return { shape: [1, 1, 1, channels], data: data.slice(from, from + channels) }
}

/** Some of the last axis' entries. */
function columns({ shape, data }: HostTensor, chosen: readonly number[]): HostTensor {
  const width = shape.at(-1)!
  const rows = data.length / width
  const out = new Float32Array(rows * chosen.length)
  for (let i = 0; i < rows; i++) for (const [j, column] of chosen.entries()) out[i * chosen.length + j] = data[i * width + column]!
  return { shape: [...shape.slice(0, -1), chosen.length], data: out }
}

/** `count` of `size`, the first and the last among them. */
function spread(size: number, count: number): number[] {
  if (size <= count) return Array.from({ length: size }, (_, i) => i)
  return Array.from({ length: count }, (_, i) => Math.round((i * (size - 1)) / (count - 1)))
}

/** Corners, edges and insides of the first and the last picture. */
function positions(batch: number, size: number): [n: number, row: number, column: number][] {
  const steps = spread(size, 4)
  const all = steps.flatMap((row) => steps.map((column) => [row, column] as const))
  return [...new Set([0, batch - 1])].flatMap((n) => all.map(([row, column]) => [n, row, column] as [number, number, number]))
}

/** Entries of a result at chosen places: what was computed, and what the reference says. */
export interface Comparison {
  readonly actual: number[]
  readonly expected: number[]
}

const CHANNELS = 24

/**
 * Compares samples of a kernel's result with the reference's loops: for forward and data passes single pixels of the first and last
 * picture (corners, edges, insides) and some two dozen channels; for filter gradients, which are sums over all pixels, all
 * taps of six input and six output channels.
 *
 * @param results the outputs of the kernel: one, or the pointwise and the depthwise filter's gradient of an unfused filter pass.
 */
export function compareSamples(op: KernelOp, pass: Pass, operands: Operands, results: readonly HostTensor[]): Comparison {
  const comparison: Comparison = { actual: [], expected: [] }
  if (pass === 'filter') {
    const chosen = op === 'unfused' ? (['pointwise', 'depthwise'] as const) : [op as 'regular' | 'pointwise' | 'depthwise']
    for (const [i, name] of chosen.entries()) compareFilter(name, operands, results[i]!, comparison)
    return comparison
  }
  const y = results[0]!
  const [batch, size, , channels] = y.shape as [number, number, number, number]
  const chosen = spread(channels, CHANNELS)
  const answer = pass === 'forward' ? forwardAt : dataGradientAt
  for (const [n, row, column] of positions(batch, size)) {
    const expected = answer(op, operands, chosen, n, row, column)
    const actual = columns(pixel(y, n, row, column), chosen)
    comparison.expected.push(...expected.data)
    comparison.actual.push(...actual.data)
  }
  return comparison
}

function forwardAt(op: KernelOp, operands: Operands, chosen: readonly number[], n: number, row: number, column: number): HostTensor {
  const { x, depthwise, pointwise, regular, between } = operands
  const product = (input: HostTensor) =>
    reference('pointwiseConv2d', [input, columns(pointwise, chosen)], [1, 1, 1, chosen.length], {
      inputActivation: 'none',
      activation: 'none',
      packed: false,
      cout: chosen.length,
    })
  if (op === 'pointwise') return product(pixel(between, n, row, column))
  const input = patch(x, n, row, column)
  if (op === 'regular') {
    const filter = columns(regular, chosen)
    return reference('conv2d', [input, filter], [1, 1, 1, chosen.length], { ...VALID, groups: 1, kernelSize: [3, 3], packed: false })
  }
  const d = reference('depthwiseConv2d', [input, depthwise], [1, 1, 1, x.shape[3]!], VALID)
  return op === 'depthwise' ? columns(d, chosen) : product(d)
}

/** dx at a pixel reads dy around it: a one-pixel input padded by two on each side has just that neighbourhood as its output. */
const AROUND = { ...plain, padding: [2, 2, 2, 2], inputSize: [1, 1] } satisfies Attributes

function dataGradientAt(op: KernelOp, operands: Operands, chosen: readonly number[], n: number, row: number, column: number): HostTensor {
  const { depthwise, pointwise, regular, between, gradient } = operands
  const cin = pointwise.shape[0]!
  if (op === 'pointwise') {
    const dx = reference('pointwiseConv2dInputGradient', [pixel(gradient, n, row, column), pointwise], [1, 1, 1, cin], {
      inputActivation: 'none',
    })
    return columns(dx, chosen)
  }
  if (op === 'regular') {
    const dx = reference('conv2dInputGradient', [patch(gradient, n, row, column), regular], [1, 1, 1, cin], { ...AROUND, groups: 1 })
    return columns(dx, chosen)
  }
  let around = patch(between, n, row, column)
  if (op === 'unfused')
    around = reference('pointwiseConv2dInputGradient', [patch(gradient, n, row, column), pointwise], [1, 3, 3, cin], {
      inputActivation: 'none',
    })
  return columns(reference('depthwiseConv2dInputGradient', [around, depthwise], [1, 1, 1, cin], AROUND), chosen)
}

const FILTER_CHANNELS = 6
const SAME = { ...plain, padding: [1, 1, 1, 1], kernelSize: [3, 3] } satisfies Attributes

function compareFilter(op: 'regular' | 'pointwise' | 'depthwise', operands: Operands, result: HostTensor, into: Comparison): void {
  const { x, between, gradient } = operands
  const [inputs, outputs] = [spread(x.shape[3]!, FILTER_CHANNELS), spread(gradient.shape[3]!, FILTER_CHANNELS)]
  const width = result.shape.at(-1)!
  if (op === 'depthwise') {
    const shape = [3, 3, inputs.length, 1]
    const expected = reference('depthwiseConv2dFilterGradient', [columns(x, inputs), columns(between, inputs)], shape, SAME)
    const cin = x.shape[3]!
    into.expected.push(...expected.data)
    for (let tap = 0; tap < 9; tap++) for (const input of inputs) into.actual.push(result.data[tap * cin + input]!)
    return
  }
  const taps = op === 'regular' ? 9 : 1
  const expected =
    op === 'regular'
      ? reference('conv2dFilterGradient', [columns(x, inputs), columns(gradient, outputs)], [3, 3, inputs.length, outputs.length], {
          ...SAME,
          groups: 1,
        })
      : reference(
          'pointwiseConv2dFilterGradient',
          [columns(between, inputs), columns(gradient, outputs)],
          [inputs.length, outputs.length],
          {
            inputActivation: 'none',
          },
        )
  into.expected.push(...expected.data)
  const cin = x.shape[3]!
  for (let tap = 0; tap < taps; tap++)
    for (const input of inputs) for (const output of outputs) into.actual.push(result.data[(tap * cin + input) * width + output]!)
}
