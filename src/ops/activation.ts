/**
 * What convolutions do to their input and output on the way. Prologue: inputActivation(x * inputScale[c] + inputShift[c]), before
 * zero padding. Epilogue: activation(acc * scale[c] + shift[c] + residual). Public functions emit both as separate nodes, so that each
 * has a gradient; passes fuse them into the convolution afterwards, and the loops here say what the fused op must compute.
 */

import { SepconvError } from '../errors.js'
import type { Attributes, Value } from '../graph/graph.js'
import type { HostTensor } from '../graph/op.js'
import type { TensorType } from '../graph/types.js'
import { expectChannels, expectType, lastSize } from './arguments.js'
import { unary } from './builders.js'

/** `'elu'` has alpha 1: x for x > 0, exp(x) - 1 otherwise. */
export type Activation = 'none' | 'relu' | 'elu'

const ACTIVATIONS: readonly string[] = ['none', 'relu', 'elu']

/** NaN passes through. */
export function activate(activation: Activation, x: number): number {
  if (activation === 'relu') return Math.max(x, 0)
  if (activation === 'elu') return x > 0 ? x : Math.expm1(x)
  return x
}

/** The derivative at `x`; that of relu at 0 is 0. */
export function activationSlope(activation: Activation, x: number): number {
  if (activation === 'relu') return x > 0 ? 1 : 0
  if (activation === 'elu') return x > 0 ? 1 : Math.exp(x)
  return 1
}

/** An activation among a node's attributes; absent means none. */
export const activationOf = (attributes: Attributes, name: 'activation' | 'inputActivation' | 'intermediateActivation'): Activation =>
  (attributes[name] ?? 'none') as Activation

/** x[..., c] in float64 after scale, shift and activation; the input itself where there is nothing to do. */
export function prologue(x: HostTensor, activation: Activation, scale?: HostTensor | null, shift?: HostTensor | null): ArrayLike<number> {
  if (activation === 'none' && !scale && !shift) return x.data
  const c = lastSize(x.shape)
  const z = Float64Array.from(x.data)
  for (let i = 0; i < z.length; i++)
    z[i] = activate(activation, z[i]! * (scale ? scale.data[i % c]! : 1) + (shift ? shift.data[i % c]! : 0))
  return z
}

/** y[..., c] = activation(acc * scale[c] + shift[c] + residual[..., c]) */
export function epilogue(
  acc: Float64Array,
  y: HostTensor,
  activation: Activation,
  scale?: HostTensor | null,
  shift?: HostTensor | null,
  residual?: HostTensor | null,
): void {
  const c = lastSize(y.shape)
  for (let i = 0; i < acc.length; i++)
    y.data[i] = activate(
      activation,
      acc[i]! * (scale ? scale.data[i % c]! : 1) + (shift ? shift.data[i % c]! : 0) + (residual ? residual.data[i]! : 0),
    )
}

/** Checks scale?[c], shift?[c] and residual? (like y). */
export function checkEpilogue(
  op: string,
  y: TensorType,
  scale?: TensorType | null,
  shift?: TensorType | null,
  residual?: TensorType | null,
): void {
  const channels = lastSize(y.shape)
  expectChannels(op, 'scale', scale, channels)
  expectChannels(op, 'shift', shift, channels)
  expectType(op, 'residual', residual, y, 'like the output')
}

/** Checks that a gradient with an activation before it comes with the activation's own input. */
export function checkMask(op: string, activation: Activation, x: TensorType | null | undefined, expected: TensorType): void {
  if ((activation === 'none') === !!x)
    throw new SepconvError('ERR_INTERNAL', `${op}: x must be given exactly where inputActivation is set, which is '${activation}'`, {
      subject: op,
    })
  expectType(op, 'x', x, expected, 'the input of the forward op')
}

export function checkActivation(op: string, name: string, value: unknown): void {
  if (value !== undefined && !ACTIVATIONS.includes(value as string))
    throw new SepconvError('ERR_ARGUMENT', `${op}: ${name} must be 'none', 'relu' or 'elu', got ${JSON.stringify(value)}`, {
      subject: op,
      expected: ACTIVATIONS,
      given: value,
    })
}

/** Emits an activation as a node of its own. */
export function applyActivation(x: Value, activation: Activation | undefined): Value {
  return activation === undefined || activation === 'none' ? x : unary(x, activation)
}
