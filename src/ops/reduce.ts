/**
 * reduce(x) -> y: sum, mean, max or min over some axes, which are dropped or kept as size 1. Global pools are the mean and the maximum
 * over the two spatial axes. The gradient of max and min is shared equally among ties, so that it does not depend on memory order.
 */

import { checkOptions, SepconvError } from '../errors.js'
import type { Attributes, Value } from '../graph/graph.js'
import { defineOp } from '../graph/op.js'
import { emit, operation, scalar } from '../graph/trace.js'
import { elements, formatShape, type Shape } from '../graph/types.js'
import { expectFloat, expectRank, required, subjectOf, tensorAt } from './arguments.js'
import { binary, broadcast, reshaped } from './builders.js'

type Reduction = 'sum' | 'mean' | 'max' | 'min'

const axesOf = (attributes: Attributes): readonly number[] => attributes.axes as readonly number[]

/** The shape with reduced axes of size 1. */
const keptShape = (shape: Shape, axes: readonly number[]): number[] => shape.map((size, axis) => (axes.includes(axis) ? 1 : size))

const START: Record<Reduction, number> = { sum: 0, mean: 0, max: -Infinity, min: Infinity }

export const reduceDefinition = defineOp({
  name: 'reduce',
  samples: (attributes) => (axesOf(attributes).includes(0) ? [] : [0]),
  inputs: ['x'],
  outputs: ['y'],
  infer(inputs, attributes) {
    const x = required('reduce', inputs, 0, 'x')
    expectFloat('reduce', 'x', x)
    const axes = axesOf(attributes)
    const shape = attributes.keepDims === true ? keptShape(x.shape, axes) : x.shape.filter((_, axis) => !axes.includes(axis))
    return [{ shape, dtype: x.dtype }]
  },
  gradient({ inputs, outputs, attributes, gradients }) {
    const [x, y, dy] = [inputs[0]!, outputs[0]!, gradients[0]!]
    const axes = axesOf(attributes)
    const kept = keptShape(x.shape, axes)
    const dk = reshaped(dy, kept)
    const reduction = attributes.function as Reduction
    if (reduction === 'sum') return [broadcast(dk, x.shape)]
    if (reduction === 'mean') return [broadcast(binary(dk, scalar(dk, elements(kept) / elements(x.shape)), 'multiply'), x.shape)]
    const winners = binary(x, reshaped(y, kept), 'equal')
    const count = emit(reduceDefinition, [winners], { function: 'sum', axes, keepDims: true })
    return [binary(winners, binary(dk, count, 'divide'), 'multiply')]
  },
  reference({ inputs, outputs, attributes }) {
    const [x, y] = [tensorAt(inputs, 0), tensorAt(outputs, 0)]
    const reduction = attributes.function as Reduction
    const kept = keptShape(x.shape, axesOf(attributes))
    const acc = new Float64Array(y.data.length).fill(START[reduction])
    // Steps in y per step along each axis of x: none along reduced axes.
    const strides = kept.map((size, axis) => (size === 1 ? 0 : elements(kept.slice(axis + 1))))
    const index = x.shape.map(() => 0)
    let place = 0
    for (const value of x.data) {
      if (reduction === 'max') acc[place] = Math.max(acc[place]!, value)
      else if (reduction === 'min') acc[place] = Math.min(acc[place]!, value)
      else acc[place]! += value
      for (let axis = index.length - 1; axis >= 0; axis--) {
        place += strides[axis]!
        if (++index[axis]! < x.shape[axis]!) break
        place -= strides[axis]! * x.shape[axis]!
        index[axis] = 0
      }
    }
    const count = reduction === 'mean' ? x.data.length / y.data.length : 1
    y.data.set(acc.map((value) => value / count))
  },
})

/** Options of {@link sum}, {@link mean}, {@link max} and {@link min}. */
export interface ReduceOptions {
  /** One axis or several; negative ones count from the last. Default: all. */
  readonly axes?: number | readonly number[]
  /** Whether reduced axes stay with size 1. Default false. */
  readonly keepDims?: boolean
}

function resolveAxes(op: string, shape: Shape, axes: ReduceOptions['axes']): number[] {
  if (axes === undefined) return shape.map((_, axis) => axis)
  const list = (typeof axes === 'number' ? [axes] : axes).map((axis) => {
    if (!Number.isInteger(axis) || axis < -shape.length || axis >= shape.length)
      throw new SepconvError('ERR_SHAPE', `${op}: axis ${axis} does not exist in x ${formatShape(shape)}`, {
        subject: op,
        expected: `${-shape.length} to ${shape.length - 1}`,
        given: axis,
      })
    return axis < 0 ? axis + shape.length : axis
  })
  if (new Set(list).size !== list.length)
    throw new SepconvError('ERR_ARGUMENT', `${op}: axes ${JSON.stringify(axes)} name one axis twice`, { subject: op, given: axes })
  return list.sort((a, b) => a - b)
}

const reducing = (name: Reduction) =>
  operation(name, (x: Value, options: ReduceOptions = {}): Value => {
    const subject = subjectOf(x, name)
    checkOptions(subject, options, ['axes', 'keepDims'])
    return emit(reduceDefinition, [x], {
      function: name,
      axes: resolveAxes(subject, x.shape, options.axes),
      keepDims: options.keepDims ?? false,
    })
  })

/**
 * Sum over `axes` (default all), accumulated in at least float32.
 * @param x any shape, float32 or bfloat16
 * @param options `axes` all, `keepDims` false by default
 * @returns `x`'s shape without the axes, or with size 1 in their place
 * @throws ERR_SHAPE for an axis that does not exist; ERR_DTYPE; ERR_ARGUMENT for unknown options or an axis named twice
 */
export const sum = reducing('sum')

/**
 * Mean over `axes` (default all).
 * @param x any shape, float32 or bfloat16
 * @param options `axes` all, `keepDims` false by default
 * @returns `x`'s shape without the axes, or with size 1 in their place
 * @throws ERR_SHAPE for an axis that does not exist; ERR_DTYPE; ERR_ARGUMENT for unknown options or an axis named twice
 */
export const mean = reducing('mean')

/**
 * Maximum over `axes` (default all); NaN if there is one. Equal maxima share the gradient equally.
 * @param x any shape, float32 or bfloat16
 * @param options `axes` all, `keepDims` false by default
 * @returns `x`'s shape without the axes, or with size 1 in their place
 * @throws ERR_SHAPE for an axis that does not exist; ERR_DTYPE; ERR_ARGUMENT for unknown options or an axis named twice
 */
export const max = reducing('max')

/**
 * Minimum over `axes` (default all); NaN if there is one. Equal minima share the gradient equally.
 * @param x any shape, float32 or bfloat16
 * @param options `axes` all, `keepDims` false by default
 * @returns `x`'s shape without the axes, or with size 1 in their place
 * @throws ERR_SHAPE for an axis that does not exist; ERR_DTYPE; ERR_ARGUMENT for unknown options or an axis named twice
 */
export const min = reducing('min')

const globalPool = (name: string, reduction: Reduction) =>
  operation(name, (x: Value): Value => {
    expectRank(subjectOf(x, name), 'x', x.type, '[n, h, w, c]')
    return emit(reduceDefinition, [x], { function: reduction, axes: [1, 2], keepDims: false })
  })

/**
 * Mean over all positions.
 * @param x `[n, h, w, c]`, float32 or bfloat16
 * @returns `[n, c]`
 * @throws ERR_SHAPE unless x has four axes; ERR_DTYPE
 */
export const globalAveragePool = globalPool('globalAveragePool', 'mean')

/**
 * Maximum over all positions; equal maxima share the gradient equally.
 * @param x `[n, h, w, c]`, float32 or bfloat16
 * @returns `[n, c]`
 * @throws ERR_SHAPE unless x has four axes; ERR_DTYPE
 */
export const globalMaxPool = globalPool('globalMaxPool', 'max')
