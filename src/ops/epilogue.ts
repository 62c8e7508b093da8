/**
 * The options that all convolutions take for what follows the sum of products, and the nodes that they become: scaleShift for bias,
 * scale and shift, binary add for the residual, unary for the activation. Passes fuse them into the convolution again.
 */

import { SepconvError } from '../errors.js'
import type { Value } from '../graph/graph.js'
import { emit } from '../graph/trace.js'
import { formatShape, sameShape } from '../graph/types.js'
import { type Activation, applyActivation, checkActivation } from './activation.js'
import { expectChannels, lastSize, subjectOf } from './arguments.js'
import { binary } from './builders.js'
import { scaleShiftDefinition } from './scaleShift.js'

/** What all convolutions do after the sum of products: `activation((sum + bias) * scale + shift + residual)`. */
export interface EpilogueOptions {
  /** [cout] float32, added to the sums of products. Default none. */
  readonly bias?: Value
  /** [cout] float32, multiplies the result per channel (after the bias). Default 1. */
  readonly scale?: Value
  /** [cout] float32, added per channel (after `scale`). Default 0. */
  readonly shift?: Value
  /** Shaped like the output, added before the activation. Default 0. */
  readonly residual?: Value
  /** Applied last: `'none'` (default), `'relu'` or `'elu'`. */
  readonly activation?: Activation
}

export const EPILOGUE_OPTIONS = ['bias', 'scale', 'shift', 'residual', 'activation'] as const

/** Emits bias, scale and shift, residual and activation after `sum`, in this order and each only where given. */
export function applyEpilogue(op: string, sum: Value, { bias, scale, shift, residual, activation }: EpilogueOptions): Value {
  const subject = subjectOf(sum, op)
  checkActivation(subject, 'activation', activation)
  for (const [name, value] of Object.entries({ bias, scale, shift })) expectChannels(subject, name, value?.type, lastSize(sum.shape))
  let y = sum
  if (bias) y = emit(scaleShiftDefinition, [y, null, bias], { activation: 'none' })
  if (scale || shift) y = emit(scaleShiftDefinition, [y, scale ?? null, shift ?? null], { activation: 'none' })
  if (residual) {
    // Addition would broadcast; a residual must not.
    if (!sameShape(residual.shape, y.shape))
      throw new SepconvError(
        'ERR_SHAPE',
        `${subject}: residual must be ${formatShape(y.shape)} like the output, got ${formatShape(residual.shape)}`,
        {
          subject,
          expected: y.shape,
          given: residual.shape,
        },
      )
    y = binary(y, residual, 'add')
  }
  return applyActivation(y, activation)
}
