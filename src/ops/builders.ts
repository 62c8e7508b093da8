/** Shorthand for gradient rules and public functions that emit ops of other families; definitions are looked up when called. */

import type { Value } from '../graph/graph.js'
import { opDefinition } from '../graph/op.js'
import { emit } from '../graph/trace.js'
import { type DType, type Shape, sameShape } from '../graph/types.js'

export const unary = (x: Value, name: string): Value => emit(opDefinition('unary'), [x], { function: name })
export const unaryGradient = (dy: Value, x: Value, name: string): Value => emit(opDefinition('unaryGradient'), [dy, x], { function: name })
export const binary = (a: Value, b: Value, name: string): Value => emit(opDefinition('binary'), [a, b], { function: name })
export const reshaped = (x: Value, shape: Shape): Value => (sameShape(x.shape, shape) ? x : emit(opDefinition('reshape'), [x], { shape }))
export const broadcast = (x: Value, shape: Shape): Value =>
  sameShape(x.shape, shape) ? x : emit(opDefinition('broadcastTo'), [x], { shape })
export const castTo = (x: Value, dtype: DType): Value =>
  x.dtype === dtype ? x : emit(opDefinition('cast'), [x], { dtype, scale: 1, offset: 0 })
/** [..., c] -> [c] */
export const sumOverRows = (x: Value): Value =>
  emit(opDefinition('reduce'), [x], { function: 'sum', axes: x.shape.slice(0, -1).map((_, axis) => axis), keepDims: false })
