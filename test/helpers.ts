/**
 * Running graphs without a runtime: node by node on the ops' reference loops, with every float32 tensor held in float64, so that
 * gradients can be compared with central differences to about nine digits.
 */

import { expect } from 'vitest'
import { differentiate } from '../src/graph/differentiate.js'
import { definitionOf, type Graph, type Value } from '../src/graph/graph.js'
import { type HostTensor, opDefinition } from '../src/graph/op.js'
import { emit, trace } from '../src/graph/trace.js'
import { elements, type Shape, type TensorType } from '../src/graph/types.js'
import '../src/ops/index.js'

/** A tensor with its values; float32 unless said. */
export interface Filled {
  readonly type: TensorType
  readonly data: ArrayLike<number>
}

/** mulberry32: a repeatable uniform generator in [0, 1). */
export function generator(seed: number): () => number {
  let state = seed >>> 0
  return () => {
    state = (state + 0x6d2b79f5) >>> 0
    let t = Math.imul(state ^ (state >>> 15), state | 1)
    t = (t + Math.imul(t ^ (t >>> 7), t | 61)) ^ t
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296
  }
}

/** A whole number from `low` to `high`, both included. */
export const whole = (random: () => number, low: number, high: number): number => low + Math.floor(random() * (high - low + 1))

export const filled = (shape: Shape, data: ArrayLike<number>, dtype: TensorType['dtype'] = 'float32'): Filled => ({
  type: { shape, dtype },
  data,
})

/** Uniform in [-1, 1), exact in float32. */
export const uniform = (random: () => number, shape: Shape): Filled =>
  filled(
    shape,
    Float32Array.from({ length: elements(shape) }, () => random() * 2 - 1),
  )

/** Uniform in [0.5, 1.5). */
export const positive = (random: () => number, shape: Shape): Filled =>
  filled(
    shape,
    Float32Array.from({ length: elements(shape) }, () => random() + 0.5),
  )

function storage(type: TensorType): HostTensor['data'] {
  const length = elements(type.shape)
  if (type.dtype === 'int32') return new Int32Array(length)
  if (type.dtype === 'uint8') return new Uint8Array(length)
  return new Float64Array(length) as unknown as Float32Array
}

/** The value of every node's outputs, given the inputs in order. States are not supported: feed them as inputs. */
export function evaluate(graph: Graph, inputs: readonly Filled[]): Map<Value, HostTensor> {
  const values = new Map<Value, HostTensor>()
  const put = (value: Value, data: ArrayLike<number>) => {
    const tensor: HostTensor = { shape: value.shape, data: storage(value.type) }
    if (data.length !== tensor.data.length) throw new Error(`expected ${tensor.data.length} values, got ${data.length}`)
    tensor.data.set(data)
    values.set(value, tensor)
  }
  for (const [i, value] of graph.inputs.entries()) put(value, inputs[i]!.data)
  for (const node of graph.nodes) {
    if (node.kind === 'constant') put(node.outputs[0]!, node.data!)
    if (node.kind !== 'op') continue
    const outputs = node.outputs.map((value): HostTensor => ({ shape: value.shape, data: storage(value.type) }))
    definitionOf(node).reference({ inputs: node.inputs.map((value) => value && values.get(value)!), outputs, attributes: node.attributes })
    for (const [i, value] of node.outputs.entries()) values.set(value, outputs[i]!)
  }
  return values
}

type Build = (...inputs: Value[]) => Value | readonly Value[]

function traced(build: Build, inputs: readonly Filled[]): { graph: Graph; arguments: Value[]; results: readonly Value[] } {
  const values: Value[] = []
  let results: readonly Value[] = []
  const graph = trace((graph) => {
    for (const [i, input] of inputs.entries()) values.push(graph.input(`input${i}`, input.type))
    const result = build(...values)
    results = Array.isArray(result) ? (result as readonly Value[]) : [result as Value]
    for (const [i, value] of results.entries()) graph.output(`output${i}`, value)
  })
  return { graph, arguments: values, results }
}

/** Traces `build` and evaluates its results. */
export function run(build: Build, inputs: readonly Filled[]): HostTensor[] {
  const { graph, results } = traced(build, inputs)
  const values = evaluate(graph, inputs)
  return results.map((value) => values.get(value)!)
}

/** The first result of {@link run} as plain numbers. */
export const numbers = (build: Build, inputs: readonly Filled[]): number[] => [...run(build, inputs)[0]!.data]

/** Calls an op by its name without a graph of its own: for fused forms that no public function emits. */
export function runOp(name: string, inputs: readonly (Filled | null)[], attributes: Record<string, unknown> = {}): HostTensor[] {
  const present = inputs.filter((input): input is Filled => input !== null)
  return run((...values) => {
    let next = 0
    return values[0]!.graph.emit(
      opDefinition(name),
      inputs.map((input) => (input ? values[next++]! : null)),
      attributes as never,
    )
  }, present)
}

/** The shape that tracing `build` gives, without evaluating it. */
export const shapeOf = (build: Build, ...shapes: readonly Shape[]): Shape =>
  traced(
    build,
    shapes.map((shape) => filled(shape, [])),
  ).results[0]!.shape

/** The gradient of a scalar result with respect to the first input. */
export function gradientOf(build: Build, inputs: readonly Filled[]): number[] {
  const { graph, arguments: values, results } = traced(build, inputs)
  const [gradient] = differentiate(graph, results[0]!, values.slice(0, 1))
  return [...evaluate(graph, inputs).get(gradient!)!.data]
}

export function expectClose(actual: ArrayLike<number>, expected: ArrayLike<number>, tolerance = 1e-9): void {
  expect(actual.length).toBe(expected.length)
  const scale = Math.max(1, ...Array.from(expected, Math.abs))
  let worst = 0
  for (let i = 0; i < expected.length; i++) worst = Math.max(worst, Math.abs(actual[i]! - expected[i]!) / scale)
  expect(worst).toBeLessThan(tolerance)
}

/**
 * Compares the gradient that `differentiate` gives with central differences. The loss is a fixed random combination of all float32
 * results; every float32 input listed in `wanted` (default: all) is checked in up to `samples` places.
 */
export function expectGradients(
  build: Build,
  inputs: readonly Filled[],
  options: { wanted?: readonly number[]; samples?: number; tolerance?: number; step?: number } = {},
): void {
  const { samples = 24, tolerance = 1e-6, step = 1e-5 } = options
  const wanted = options.wanted ?? inputs.flatMap((input, i) => (input.type.dtype === 'float32' ? [i] : []))
  const random = generator(4711)
  const { graph, arguments: values, results } = traced(build, inputs)
  const losses = results
    .filter((value) => value.dtype === 'float32')
    .map((value) => {
      const weights = graph.constant(
        value.type,
        Float32Array.from({ length: elements(value.shape) }, () => random() * 2 - 1),
      )
      const product = emit(opDefinition('binary'), [value, weights], { function: 'multiply' })
      return emit(opDefinition('reduce'), [product], { function: 'sum', axes: value.shape.map((_, axis) => axis), keepDims: false })
    })
  const loss = losses.reduce((a, b) => emit(opDefinition('binary'), [a, b], { function: 'add' }))
  const forward = graph.nodes.length
  const gradients = differentiate(
    graph,
    loss,
    wanted.map((i) => values[i]!),
  )
  const analytic = evaluate(graph, inputs)
  const lossOnly = { nodes: graph.nodes.slice(0, forward), inputs: graph.inputs } as unknown as Graph
  const lossAt = (input: number, place: number, delta: number) => {
    const data = Float64Array.from(inputs[input]!.data)
    data[place]! += delta
    return evaluate(
      lossOnly,
      inputs.map((other, i) => (i === input ? { ...other, data } : other)),
    ).get(loss)!.data[0]!
  }
  wanted.forEach((input, k) => {
    const gradient = gradients[k]
    expect(gradient, `gradient of input ${input}`).not.toBeNull()
    expect(gradient!.type).toEqual(inputs[input]!.type)
    const size = inputs[input]!.data.length
    const places =
      size <= samples ? Array.from({ length: size }, (_, i) => i) : Array.from({ length: samples }, () => whole(random, 0, size - 1))
    for (const place of places) {
      const numeric = (lossAt(input, place, step) - lossAt(input, place, -step)) / (2 * step)
      const value = analytic.get(gradient!)!.data[place]!
      expect(Math.abs(value - numeric), `input ${input}[${place}]: gradient ${value}, central difference ${numeric}`).toBeLessThan(
        tolerance * Math.max(1, Math.abs(numeric)),
      )
    }
  })
}
