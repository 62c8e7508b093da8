/** Host-side operands of a layer's benchmark, and the reference's answer for samples of its results, borders included. */

import { type HostTensor, opDefinition } from '../graph/op.js'
import type { Attributes } from '../graph/graph.js'
import { elements, type Shape } from '../graph/types.js'
import { type Layer, outputSide, paddingOf } from './layers.js'

export type Pass = 'forward' | 'data' | 'filter'
export type KernelOp = 'regular' | 'depthwise' | 'pointwise' | 'unfused' | 'fused'

/** Everything that any of a layer's kernels reads, float32 in [-1, 1). `s` is the input's side, `o` the output's, `k` the kernel's. */
export interface Operands {
  readonly layer: Layer
  /** [n, s, s, cin] */
  readonly x: HostTensor
  /** [k, k, cin, m] */
  readonly depthwise: HostTensor
  /** [cin · m, cout] */
  readonly pointwise: HostTensor
  /** [k, k, cin, cout] */
  readonly regular: HostTensor
  /** [n, o, o, cout]: the gradient of the layer's output. */
  readonly gradient: HostTensor
  /** [n, o, o, cin · m]: stands for the depthwise result, and for its gradient. */
  readonly between: HostTensor
}

export type OperandName = Exclude<keyof Operands, 'layer'>

export function makeOperands(layer: Layer, batch: number): Operands {
  const { cin, cout, size, kernel, multiplier } = layer
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
  const map = (side: number, channels: number): Shape => [batch, side, side, channels]
  const out = outputSide(layer)
  return {
    layer,
    x: random(map(size, cin)),
    depthwise: random([kernel, kernel, cin, multiplier]),
    pointwise: random([cin * multiplier, cout]),
    regular: random([kernel, kernel, cin, cout]),
    gradient: random(map(out, cout)),
    between: random(map(out, cin * multiplier)),
  }
}

/** How the window of a layer moves, as its kernels' attributes say it. */
export function geometryOf(layer: Layer) {
  const { stride, dilation } = layer
  const [before, after] = paddingOf(layer)
  return { strides: [stride, stride], dilations: [dilation, dilation], padding: [before, after, before, after] } satisfies Attributes
}

const plain = { strides: [1, 1], dilations: [1, 1], inputActivation: 'none' } satisfies Attributes
/** A patch as large as the kernel gives one output without padding. */
const VALID = { ...plain, padding: [0, 0, 0, 0], activation: 'none' } satisfies Attributes

/** Runs an op's reference loops; absent optional inputs are filled up. */
function reference(name: string, inputs: readonly HostTensor[], shape: Shape, attributes: Attributes): HostTensor {
  const definition = opDefinition(name)
  const arity = Math.max(definition.inputs.length, inputs.length)
  const output: HostTensor = { shape, data: new Float32Array(elements(shape)) }
  definition.reference({ inputs: Array.from({ length: arity }, (_, i) => inputs[i] ?? null), outputs: [output], attributes })
  return output
}

/** What a window reads: `at` says for each tap which row (or column) of the map it finds, and -1 where there is none; the rest is zero. */
function gather({ shape, data }: HostTensor, n: number, rows: readonly number[], at: readonly number[]): HostTensor {
  const [, height, width, channels] = shape as [number, number, number, number]
  const out = new Float32Array(rows.length * at.length * channels)
  for (const [i, y] of rows.entries())
    for (const [j, x] of at.entries()) {
      if (y < 0 || x < 0) continue
      const from = ((n * height + y) * width + x) * channels
      out.set(data.subarray(from, from + channels), (i * at.length + j) * channels)
    }
  return { shape: [1, rows.length, at.length, channels], data: out }
}

/** Input rows under the taps of an output row. */
function inputsOf(layer: Layer, output: number): number[] {
  const first = output * layer.stride - paddingOf(layer)[0]
  return Array.from({ length: layer.kernel }, (_, tap) => first + tap * layer.dilation).map((row) => (row < layer.size ? row : -1))
}

/** Output rows that read an input row, by tap, the last tap first: what a convolution with the whole kernel adds up to its gradient. */
function outputsOf(layer: Layer, input: number): number[] {
  return Array.from({ length: layer.kernel }, (_, i) => {
    const distance = input + paddingOf(layer)[0] - (layer.kernel - 1 - i) * layer.dilation
    const output = distance / layer.stride
    return Number.isInteger(output) && output < outputSide(layer) ? output : -1
  })
}

function pixel({ shape, data }: HostTensor, n: number, row: number, column: number): HostTensor {
  const [, height, width, channels] = shape as [number, number, number, number]
  const from = ((n * height + row) * width + column) * channels
  return { shape: [1, 1, 1, channels], data: data.slice(from, from + channels) }
}

/** Some entries of an axis, counted from the end if negative. */
function take({ shape, data }: HostTensor, axis: number, chosen: readonly number[]): HostTensor {
  const at = axis < 0 ? shape.length + axis : axis
  const inner = elements(shape.slice(at + 1))
  const [length, outer] = [shape[at]!, elements(shape.slice(0, at))]
  const out = new Float32Array(outer * chosen.length * inner)
  let to = 0
  for (let i = 0; i < outer; i++)
    for (const entry of chosen) {
      const from = (i * length + entry) * inner
      for (let j = 0; j < inner; j++) out[to++] = data[from + j]!
    }
  return { shape: shape.with(at, chosen.length), data: out }
}

/** Channels of the depthwise result that come from these channels of the input. */
const outputsOfChannels = ({ multiplier }: Layer, inputs: readonly number[]): number[] =>
  inputs.flatMap((input) => Array.from({ length: multiplier }, (_, i) => input * multiplier + i))

/** `count` of `size`, the first and the last among them. */
function spread(size: number, count: number): number[] {
  if (size <= count) return Array.from({ length: size }, (_, i) => i)
  return Array.from({ length: count }, (_, i) => Math.round((i * (size - 1)) / (count - 1)))
}

/** Corners, edges, their neighbours and insides of the first and the last picture. */
function positions(batch: number, size: number): [n: number, row: number, column: number][] {
  const steps = [...new Set([...spread(size, 4), Math.min(1, size - 1), Math.max(0, size - 2)])]
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
    const actual = take(pixel(y, n, row, column), -1, chosen)
    comparison.expected.push(...expected.data)
    comparison.actual.push(...actual.data)
  }
  return comparison
}

function forwardAt(op: KernelOp, operands: Operands, chosen: readonly number[], n: number, row: number, column: number): HostTensor {
  const { layer, x, depthwise, pointwise, regular, between } = operands
  const product = (input: HostTensor) =>
    reference('pointwiseConv2d', [input, take(pointwise, -1, chosen)], [1, 1, 1, chosen.length], {
      inputActivation: 'none',
      activation: 'none',
      packed: false,
      cout: chosen.length,
    })
  if (op === 'pointwise') return product(pixel(between, n, row, column))
  const input = gather(x, n, inputsOf(layer, row), inputsOf(layer, column))
  if (op === 'regular') {
    const kernelSize = [layer.kernel, layer.kernel]
    const attributes = { ...VALID, groups: 1, kernelSize, packed: false }
    return reference('conv2d', [input, take(regular, -1, chosen)], [1, 1, 1, chosen.length], attributes)
  }
  const d = reference('depthwiseConv2d', [input, depthwise], [1, 1, 1, between.shape[3]!], VALID)
  return op === 'depthwise' ? take(d, -1, chosen) : product(d)
}

function dataGradientAt(op: KernelOp, operands: Operands, chosen: readonly number[], n: number, row: number, column: number): HostTensor {
  const { layer, depthwise, pointwise, regular, between, gradient } = operands
  /** The gradient of some channels of the depthwise result. */
  const backThrough = (y: HostTensor, channels: readonly number[]) =>
    reference('pointwiseConv2dInputGradient', [y, take(pointwise, 0, channels)], [...y.shape.slice(0, 3), channels.length], {
      inputActivation: 'none',
    })
  if (op === 'pointwise') return backThrough(pixel(gradient, n, row, column), chosen)
  const around = (y: HostTensor) => gather(y, n, outputsOf(layer, row), outputsOf(layer, column))
  // A one-pixel input, padded so that every tap meets it once, has just that neighbourhood as its output.
  const border = layer.kernel - 1
  const attributes = { ...plain, padding: [border, border, border, border], inputSize: [1, 1] } satisfies Attributes
  const dx = [1, 1, 1, chosen.length]
  if (op === 'regular')
    return reference('conv2dInputGradient', [around(gradient), take(regular, 2, chosen)], dx, { ...attributes, groups: 1 })
  const channels = outputsOfChannels(layer, chosen)
  const dy = op === 'unfused' ? backThrough(around(gradient), channels) : take(around(between), -1, channels)
  return reference('depthwiseConv2dInputGradient', [dy, take(depthwise, 2, chosen)], dx, attributes)
}

const FILTER_CHANNELS = 6

function compareFilter(op: 'regular' | 'pointwise' | 'depthwise', operands: Operands, result: HostTensor, into: Comparison): void {
  const { layer, x, between, gradient } = operands
  const { kernel, multiplier, cin, cout } = layer
  const outputs = spread(cout, FILTER_CHANNELS)
  const dy = take(gradient, -1, outputs)
  if (op === 'pointwise') {
    const inputs = spread(cin * multiplier, FILTER_CHANNELS)
    const shape = [inputs.length, outputs.length]
    into.expected.push(
      ...reference('pointwiseConv2dFilterGradient', [take(between, -1, inputs), dy], shape, { inputActivation: 'none' }).data,
    )
    into.actual.push(...take(take(result, 0, inputs), 1, outputs).data)
    return
  }
  const inputs = spread(cin, FILTER_CHANNELS)
  const attributes = { ...geometryOf(layer), inputActivation: 'none', kernelSize: [kernel, kernel] } satisfies Attributes
  const chosen = take(result, 2, inputs)
  if (op === 'depthwise') {
    const d = take(between, -1, outputsOfChannels(layer, inputs))
    into.expected.push(...reference('depthwiseConv2dFilterGradient', [take(x, -1, inputs), d], chosen.shape, attributes).data)
    into.actual.push(...chosen.data)
  } else {
    const some = take(chosen, 3, outputs)
    into.expected.push(...reference('conv2dFilterGradient', [take(x, -1, inputs), dy], some.shape, { ...attributes, groups: 1 }).data)
    into.actual.push(...some.data)
  }
}
