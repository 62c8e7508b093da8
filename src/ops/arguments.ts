/**
 * Checks that the shape rules of convolution, normalisation, pooling and reduction share. Each throws a SepconvError that names
 * the op, the argument, what was expected and what was given. Types come in as `TensorType`, so the rules also hold for saved graphs.
 */

import { SepconvError } from '../errors.js'
import type { Value } from '../graph/graph.js'
import type { HostTensor } from '../graph/op.js'
import { formatShape, formatType, type Shape, sameShape, type TensorType } from '../graph/types.js'

/** `op` with the layer's path before it, for checks that run before a node is emitted. */
export const subjectOf = (x: Value, op: string): string => (x.graph.scope ? `${x.graph.scope}: ${op}` : op)

/** The type of a required input. */
export function required(op: string, inputs: readonly (TensorType | null)[], index: number, argument: string): TensorType {
  const type = inputs[index]
  if (!type) throw new SepconvError('ERR_ARGUMENT', `${op}: argument '${argument}' is missing`, { subject: op, expected: argument })
  return type
}

/** Storage of real numbers: float32 or bfloat16. */
export function expectFloat(op: string, argument: string, type: TensorType): void {
  if (type.dtype === 'float32' || type.dtype === 'bfloat16') return
  throw new SepconvError('ERR_DTYPE', `${op}: ${argument} must be float32 or bfloat16, got ${formatType(type)}`, {
    subject: op,
    expected: ['float32', 'bfloat16'],
    given: type.dtype,
    hint: 'Convert it with cast()',
  })
}

/** `layout` such as `[n, h, w, c]` gives the rank and explains it. */
export function expectRank(op: string, argument: string, type: TensorType, layout: string): void {
  const rank = layout.split(',').length
  if (type.shape.length === rank) return
  throw new SepconvError('ERR_SHAPE', `${op}: ${argument} must be ${layout}, got ${formatShape(type.shape)}`, {
    subject: op,
    expected: layout,
    given: type.shape,
    hint: layout === '[n, h, w, c]' && type.shape.length === 3 ? 'Add the batch axis with reshape()' : undefined,
  })
}

/** At least two axes, the last of which holds the channels. */
export function expectRows(op: string, argument: string, type: TensorType): void {
  if (type.shape.length >= 2) return
  throw new SepconvError('ERR_SHAPE', `${op}: ${argument} must have at least two axes [..., c], got ${formatShape(type.shape)}`, {
    subject: op,
    expected: '[..., c]',
    given: type.shape,
  })
}

/** Exactly this shape and element type; `null` (an absent optional input) passes. */
export function expectType(op: string, argument: string, type: TensorType | null | undefined, expected: TensorType, why: string): void {
  if (!type) return
  if (!sameShape(type.shape, expected.shape))
    throw new SepconvError(
      'ERR_SHAPE',
      `${op}: ${argument} must be ${formatShape(expected.shape)} (${why}), got ${formatShape(type.shape)}`,
      {
        subject: op,
        expected: expected.shape,
        given: type.shape,
      },
    )
  if (type.dtype !== expected.dtype)
    throw new SepconvError('ERR_DTYPE', `${op}: ${argument} must be ${expected.dtype} (${why}), got ${formatType(type)}`, {
      subject: op,
      expected: expected.dtype,
      given: type.dtype,
    })
}

/** One float32 value per channel; `null` passes. */
export const expectChannels = (op: string, argument: string, type: TensorType | null | undefined, channels: number): void =>
  expectType(op, argument, type, { shape: [channels], dtype: 'float32' }, 'one value per channel')

/** The filter of a convolution is stored like its activations. */
export function expectSameDtype(op: string, argument: string, type: TensorType, like: TensorType): void {
  if (type.dtype !== like.dtype)
    throw new SepconvError('ERR_DTYPE', `${op}: ${argument} must be ${like.dtype} like the activations, got ${formatType(type)}`, {
      subject: op,
      expected: like.dtype,
      given: type.dtype,
    })
}

/** Product of all sizes but the last: the rows of the matrix [rows, c] that a tensor is when leading axes are merged. */
export const rowCount = (shape: Shape): number => shape.slice(0, -1).reduce((product, size) => product * size, 1)
export const lastSize = (shape: Shape): number => shape.at(-1) ?? 1

/** A required tensor of a reference call. */
export const tensorAt = (tensors: readonly (HostTensor | null)[], index: number): HostTensor => {
  const tensor = tensors[index]
  if (!tensor) throw new SepconvError('ERR_INTERNAL', `reference call without tensor ${index}`)
  return tensor
}

/** Whether the node reads a fused prologue or epilogue, for which no gradient rule is needed: passes fuse after differentiation. */
export function refuseFused(
  op: string,
  inputs: readonly (Value | null)[],
  plainInputs: number,
  attributes: Readonly<Record<string, unknown>>,
): void {
  const active = (name: string) => attributes[name] !== undefined && attributes[name] !== 'none' && attributes[name] !== false
  const fused =
    inputs.slice(plainInputs).some((input) => input) ||
    ['inputActivation', 'intermediateActivation', 'activation', 'packed', 'statistics'].some(active)
  if (fused)
    throw new SepconvError('ERR_INTERNAL', `${op}: only the plain op is differentiated, this node is already fused`, { subject: op })
}
