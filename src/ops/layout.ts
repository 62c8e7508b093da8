/** Ops that move elements without computing: concat, slice, pad, transpose, broadcastTo, reshape, copy; any dtype. */

import { checkOptions, SepconvError } from '../errors.js'
import type { Value } from '../graph/graph.js'
import { defineOp, type HostTensor, opDefinition } from '../graph/op.js'
import { emit, operation } from '../graph/trace.js'
import { broadcastShapes, checkShape, elements, formatShape, formatType, type Shape, sameShape, type TensorType } from '../graph/types.js'
import { required, tensorAt } from './arguments.js'
import { reshaped } from './builders.js'

const stridesOf = (shape: Shape): number[] => shape.map((_, axis) => elements(shape.slice(axis + 1)))
const numbers = (value: unknown): readonly number[] => value as readonly number[]

/** Calls visit(place, index) for every element of `shape` in row-major order. */
function everywhere(shape: Shape, visit: (place: number, index: readonly number[]) => void): void {
  const index = shape.map(() => 0)
  const count = elements(shape)
  for (let place = 0; place < count; place++) {
    visit(place, index)
    for (let axis = shape.length - 1; axis >= 0; axis--) {
      if (++index[axis]! < shape[axis]!) break
      index[axis] = 0
    }
  }
}

/** A list with one whole number per axis; options of JavaScript callers and attributes of saved graphs come through here. */
function perAxis(op: string, name: string, value: unknown, x: TensorType): readonly number[] {
  if (Array.isArray(value) && value.length === x.shape.length && value.every(Number.isInteger)) return value
  throw new SepconvError(
    'ERR_ARGUMENT',
    `${op}: ${name} must hold one whole number per axis of ${formatShape(x.shape)}, got ${JSON.stringify(value)}`,
    { subject: name, given: value },
  )
}

/** An axis counted from the end where negative. */
function resolveAxis(op: string, axis: number, rank: number): number {
  if (!Number.isInteger(axis) || axis < -rank || axis >= rank)
    throw new SepconvError('ERR_SHAPE', `${op}: axis ${axis} does not exist in a tensor of ${rank} axes`, { subject: op, given: axis })
  return axis < 0 ? axis + rank : axis
}

export const concatDefinition = defineOp({
  name: 'concat',
  samples: ({ axis }, inputs) => (axis === 0 ? [] : inputs.map((_, i) => i)),
  inputs: ['...xs'],
  outputs: ['y'],
  infer(inputs, attributes) {
    const first = required('concat', inputs, 0, 'x')
    const axis = attributes.axis as number
    let size = 0
    for (const [i, x] of inputs.entries()) {
      if (
        !x ||
        x.dtype !== first.dtype ||
        x.shape.length !== first.shape.length ||
        x.shape.some((s, j) => j !== axis && s !== first.shape[j])
      )
        throw new SepconvError(
          x && x.dtype !== first.dtype ? 'ERR_DTYPE' : 'ERR_SHAPE',
          `concat: tensor ${i} ${x ? formatShape(x.shape) : ''} does not fit ${formatShape(first.shape)} along axis ${axis}`,
          { subject: 'concat', expected: first, given: x },
        )
      size += x.shape[axis]!
    }
    return [{ shape: first.shape.map((s, j) => (j === axis ? size : s)), dtype: first.dtype }]
  },
  gradient({ inputs, gradients, attributes, needs }) {
    const axis = attributes.axis as number
    let at = 0
    return inputs.map((x, i) => {
      const begin = x!.shape.map((_, j) => (j === axis ? at : 0))
      at += x!.shape[axis]!
      return needs[i] ? emit(sliceDefinition, [gradients[0]!], { begin, size: x!.shape, strides: x!.shape.map(() => 1) }) : null
    })
  },
  reference({ inputs, outputs, attributes }) {
    const axis = attributes.axis as number
    const y = outputs[0]!
    const row = elements(y.shape.slice(axis)) // elements of y per step of the axes before
    let at = 0
    for (const x of inputs as HostTensor[]) {
      const part = elements(x.shape.slice(axis))
      for (let i = 0; i < x.data.length; i++) y.data[Math.floor(i / part) * row + at + (i % part)] = x.data[i]!
      at += part
    }
  },
})

/**
 * Joins tensors along an axis.
 * @param xs at least one tensor; one dtype, and one size along all other axes
 * @param options `axis`: negative counts from the end. Default −1
 * @throws ERR_SHAPE, ERR_DTYPE; ERR_ARGUMENT for no tensors and unknown options
 */
export const concat = operation('concat', (xs: readonly Value[], options: { axis?: number } = {}): Value => {
  checkOptions('concat', options, ['axis'])
  if (!Array.isArray(xs) || xs.length === 0)
    throw new SepconvError('ERR_ARGUMENT', 'concat: expected a list of at least one tensor', { subject: 'concat' })
  return emit(concatDefinition, xs, { axis: resolveAxis('concat', options.axis ?? -1, xs[0]!.shape.length) })
})

export const sliceDefinition = defineOp({
  name: 'slice',
  samples: ({ begin, size, strides }, [x]) => {
    const whole = numbers(begin)[0] === 0 && numbers(size)[0] === x!.shape[0] && numbers(strides)[0] === 1
    return whole ? [0] : []
  },
  inputs: ['x'],
  outputs: ['y'],
  infer(inputs, attributes) {
    const x = required('slice', inputs, 0, 'x')
    const list = (name: string) => perAxis('slice', name, attributes[name], x)
    const [begin, size, strides] = [list('begin'), list('size'), list('strides')]
    const fits = x.shape.every(
      (s, j) => begin[j]! >= 0 && size[j]! >= 1 && strides[j]! >= 1 && begin[j]! + (size[j]! - 1) * strides[j]! < s,
    )
    if (!fits)
      throw new SepconvError(
        'ERR_SHAPE',
        `slice: begin ${formatShape(begin)}, size ${formatShape(size)}, strides ${formatShape(strides)} reach outside ${formatShape(x.shape)}`,
        { subject: 'slice', expected: x.shape, given: { begin, size, strides } },
      )
    return [{ shape: size, dtype: x.dtype }]
  },
  gradient({ inputs, gradients, attributes }) {
    const [begin, strides] = [numbers(attributes.begin), numbers(attributes.strides)]
    const g = spread(gradients[0]!, strides)
    return [emit(padDefinition, [g], { before: begin, after: inputs[0]!.shape.map((s, j) => s - begin[j]! - g.shape[j]!), value: 0 })]
  },
  reference({ inputs, outputs, attributes }) {
    const x = tensorAt(inputs, 0)
    const [begin, strides, step] = [numbers(attributes.begin), numbers(attributes.strides), stridesOf(x.shape)]
    everywhere(outputs[0]!.shape, (place, index) => {
      outputs[0]!.data[place] = x.data[index.reduce((sum, i, j) => sum + (begin[j]! + i * strides[j]!) * step[j]!, 0)]!
    })
  },
})

/** Puts strides − 1 zeros between neighbours along each axis: [size] → [(size − 1) · strides + 1]. */
function spread(g: Value, strides: readonly number[]): Value {
  if (strides.every((s) => s === 1)) return g
  const zeros = g.shape.map(() => 0)
  // [size] → [size, 1] → [size, stride] → [size · stride], and the zeros after the last element go
  const columns = emit(
    padDefinition,
    [
      reshaped(
        g,
        g.shape.flatMap((size) => [size, 1]),
      ),
    ],
    { before: zeros.flatMap(() => [0, 0]), after: strides.flatMap((s) => [0, s - 1]), value: 0 },
  )
  const rows = reshaped(
    columns,
    g.shape.map((size, j) => size * strides[j]!),
  )
  return emit(sliceDefinition, [rows], {
    begin: zeros,
    size: g.shape.map((size, j) => (size - 1) * strides[j]! + 1),
    strides: zeros.map(() => 1),
  })
}

/** Options of {@link slice}, one entry per axis. */
export interface SliceOptions {
  /** First element along each axis. */
  readonly begin: readonly number[]
  /** Elements of the result along each axis. */
  readonly size: readonly number[]
  /** Every how many-th element. Default 1 along each axis. */
  readonly strides?: readonly number[]
}

/**
 * A box out of a tensor.
 * @param x any shape and dtype
 * @param options `begin`, `size` and `strides` (default 1), one entry per axis
 * @returns shape `size`
 * @throws ERR_SHAPE when the box reaches outside; ERR_ARGUMENT
 */
export const slice = operation('slice', (x: Value, options: SliceOptions = {} as SliceOptions): Value => {
  checkOptions('slice', options, ['begin', 'size', 'strides'])
  return emit(sliceDefinition, [x], { begin: options.begin, size: options.size, strides: options.strides ?? x.shape.map(() => 1) })
})

export const padDefinition = defineOp({
  name: 'pad',
  samples: ({ before, after }) => (numbers(before)[0] === 0 && numbers(after)[0] === 0 ? [0] : []),
  inputs: ['x'],
  outputs: ['y'],
  infer(inputs, attributes) {
    const x = required('pad', inputs, 0, 'x')
    const [before, after] = [perAxis('pad', 'before', attributes.before, x), perAxis('pad', 'after', attributes.after, x)]
    if ([...before, ...after].some((n) => n < 0))
      throw new SepconvError(
        'ERR_ARGUMENT',
        `pad: before and after must be at least 0, got ${formatShape(before)} and ${formatShape(after)}`,
        { subject: 'pad', given: { before, after }, hint: 'Use slice() to cut' },
      )
    const value = attributes.value as number
    const [low, high] = x.dtype === 'uint8' ? [0, 255] : [-(2 ** 31), 2 ** 31 - 1]
    if (
      typeof value !== 'number' ||
      ((x.dtype === 'uint8' || x.dtype === 'int32') && !(Number.isInteger(value) && value >= low && value <= high))
    )
      throw new SepconvError('ERR_ARGUMENT', `pad: value ${String(value)} cannot stand in ${formatType(x)}`, {
        subject: 'value',
        given: value,
      })
    return [{ shape: x.shape.map((s, j) => s + before[j]! + after[j]!), dtype: x.dtype }]
  },
  gradient: ({ inputs, gradients, attributes }) => [
    emit(sliceDefinition, [gradients[0]!], { begin: attributes.before!, size: inputs[0]!.shape, strides: inputs[0]!.shape.map(() => 1) }),
  ],
  reference({ inputs, outputs, attributes }) {
    const [x, y, before] = [tensorAt(inputs, 0), outputs[0]!, numbers(attributes.before)]
    const step = stridesOf(y.shape)
    y.data.fill(attributes.value as number)
    everywhere(x.shape, (place, index) => (y.data[index.reduce((sum, i, j) => sum + (i + before[j]!) * step[j]!, 0)] = x.data[place]!))
  },
})

/** Options of {@link pad}, one entry per axis. */
export interface PadOptions {
  /** Elements added before the first along each axis. */
  readonly before: readonly number[]
  /** Elements added after the last along each axis. */
  readonly after: readonly number[]
  /** What they hold. Default 0. */
  readonly value?: number
}

/**
 * Adds elements of one value around a tensor.
 * @param x any shape and dtype
 * @param options `before` and `after`, one entry per axis; `value` 0 by default
 * @returns `x`'s shape with `before` + `after` added along each axis
 * @throws ERR_ARGUMENT
 */
export const pad = operation('pad', (x: Value, options: PadOptions = {} as PadOptions): Value => {
  checkOptions('pad', options, ['before', 'after', 'value'])
  return emit(padDefinition, [x], { before: options.before, after: options.after, value: options.value ?? 0 })
})

export const transposeDefinition = defineOp({
  name: 'transpose',
  samples: ({ permutation }) => (numbers(permutation)[0] === 0 ? [0] : []),
  inputs: ['x'],
  outputs: ['y'],
  infer(inputs, attributes) {
    const x = required('transpose', inputs, 0, 'x')
    const permutation = perAxis('transpose', 'permutation', attributes.permutation, x)
    if ([...permutation].sort((a, b) => a - b).some((axis, i) => axis !== i))
      throw new SepconvError(
        'ERR_ARGUMENT',
        `transpose: ${formatShape(permutation)} does not name every axis of ${formatShape(x.shape)} once`,
        { subject: 'permutation', given: permutation },
      )
    return [{ shape: permutation.map((axis) => x.shape[axis]!), dtype: x.dtype }]
  },
  gradient({ gradients, attributes }) {
    const permutation = numbers(attributes.permutation)
    return [emit(transposeDefinition, [gradients[0]!], { permutation: permutation.map((_, axis) => permutation.indexOf(axis)) })]
  },
  reference({ inputs, outputs, attributes }) {
    const x = tensorAt(inputs, 0)
    const step = stridesOf(x.shape)
    const permutation = numbers(attributes.permutation)
    everywhere(
      outputs[0]!.shape,
      (place, index) => (outputs[0]!.data[place] = x.data[index.reduce((sum, i, j) => sum + i * step[permutation[j]!]!, 0)]!),
    )
  },
})

/**
 * Reorders axes.
 * @param x any shape and dtype
 * @param permutation axis j of the result is axis `permutation[j]` of x; NCHW → NHWC is [0, 2, 3, 1]. Default: reversed
 * @throws ERR_ARGUMENT unless it names every axis once
 */
export const transpose = operation(
  'transpose',
  (x: Value, permutation?: readonly number[]): Value =>
    emit(transposeDefinition, [x], { permutation: permutation ?? x.shape.map((_, i) => x.shape.length - 1 - i) }),
)

export const broadcastToDefinition = defineOp({
  name: 'broadcastTo',
  inputs: ['x'],
  outputs: ['y'],
  recompute: true,
  infer(inputs, attributes) {
    const x = required('broadcastTo', inputs, 0, 'x')
    const shape = numbers(attributes.shape)
    const joint = broadcastShapes(x.shape, shape)
    if (!joint || !sameShape(joint, shape))
      throw new SepconvError('ERR_SHAPE', `broadcastTo: ${formatShape(x.shape)} does not broadcast to ${formatShape(shape)}`, {
        subject: 'broadcastTo',
        given: x.shape,
        expected: shape,
      })
    return [{ shape, dtype: x.dtype }]
  },
  gradient({ inputs, gradients }) {
    const [shape, g] = [inputs[0]!.shape, gradients[0]!]
    const offset = g.shape.length - shape.length
    const axes = g.shape.flatMap((size, axis) => (axis < offset || (shape[axis - offset] === 1 && size !== 1) ? [axis] : []))
    const sum = axes.length > 0 ? emit(opDefinition('reduce'), [g], { function: 'sum', axes, keepDims: false }) : g
    return [sameShape(sum.shape, shape) ? sum : emit(reshapeDefinition, [sum], { shape })]
  },
  reference({ inputs, outputs }) {
    const x = tensorAt(inputs, 0)
    const step = stridesOf(x.shape)
    const offset = outputs[0]!.shape.length - x.shape.length
    everywhere(
      outputs[0]!.shape,
      (place, index) =>
        (outputs[0]!.data[place] = x.data[x.shape.reduce((sum, size, j) => sum + (size === 1 ? 0 : index[j + offset]! * step[j]!), 0)]!),
    )
  },
})

/**
 * Repeats along axes of size 1 and along new leading axes.
 * @param x any shape and dtype
 * @param shape the shape of the result
 * @throws ERR_SHAPE when x does not broadcast to it
 */
export const broadcastTo = operation('broadcastTo', (x: Value, shape: Shape): Value => emit(broadcastToDefinition, [x], { shape }))

export const reshapeDefinition = defineOp({
  name: 'reshape',
  samples: ({ shape }, [x]) => (numbers(shape)[0] === x!.shape[0] ? [0] : []),
  inputs: ['x'],
  outputs: ['y'],
  alias: true,
  infer(inputs, attributes) {
    const x = required('reshape', inputs, 0, 'x')
    const shape = numbers(attributes.shape)
    if (shape.length > 0) checkShape('reshape', shape)
    if (elements(shape) !== elements(x.shape))
      throw new SepconvError(
        'ERR_SHAPE',
        `reshape: ${formatShape(x.shape)} has ${elements(x.shape)} elements, ${formatShape(shape)} would have ${elements(shape)}`,
        { subject: 'reshape', given: x.shape, expected: shape },
      )
    return [{ shape, dtype: x.dtype }]
  },
  gradient: ({ inputs, gradients }) => [emit(reshapeDefinition, [gradients[0]!], { shape: inputs[0]!.shape })],
  reference: ({ inputs, outputs }) => outputs[0]!.data.set(tensorAt(inputs, 0).data),
})

/**
 * The same elements in the same order in another shape; costs nothing.
 * @param x any shape and dtype
 * @param shape as many elements as x; one size may be −1: whatever is left
 * @throws ERR_SHAPE
 */
export const reshape = operation('reshape', (x: Value, shape: Shape): Value => {
  if (!Array.isArray(shape))
    throw new SepconvError('ERR_SHAPE', `reshape: expected a shape, got ${String(shape)}`, { subject: 'shape', given: shape })
  const rest = shape.filter((size) => size !== -1)
  return emit(reshapeDefinition, [x], { shape: shape.map((size) => (size === -1 ? elements(x.shape) / elements(rest) : size)) })
})

export const copyDefinition = defineOp({
  name: 'copy',
  inputs: ['x'],
  outputs: ['y'],
  infer: (inputs) => [required('copy', inputs, 0, 'x')],
  gradient: ({ gradients }) => [gradients[0]!],
  reference: ({ inputs, outputs }) => outputs[0]!.data.set(tensorAt(inputs, 0).data),
})
