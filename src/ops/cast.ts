/**
 * cast(x) -> y: another dtype, after x · scale + offset in float32. To integers: nearest, ties to even, saturating; to bfloat16:
 * nearest, ties to even. Pictures become normalised inputs by one such op.
 */

import { checkOptions, SepconvError } from '../errors.js'
import type { Value } from '../graph/graph.js'
import { defineOp } from '../graph/op.js'
import { emit, operation } from '../graph/trace.js'
import type { DType } from '../graph/types.js'
import { required, tensorAt } from './arguments.js'

const DTYPES: readonly string[] = ['float32', 'bfloat16', 'int32', 'uint8']

const RANGE: Partial<Record<DType, readonly [number, number]>> = { uint8: [0, 255], int32: [-(2 ** 31), 2 ** 31 - 1] }

/** Nearest whole number, ties to even; NaN becomes 0. */
function roundEven(x: number): number {
  if (Number.isNaN(x)) return 0
  const floor = Math.floor(x)
  const part = x - floor
  return part > 0.5 || (part === 0.5 && floor % 2 !== 0) ? floor + 1 : floor
}

export const castDefinition = defineOp({
  name: 'cast',
  samples: () => [0],
  inputs: ['x'],
  outputs: ['y'],
  recompute: true,
  infer(inputs, attributes) {
    const { dtype } = attributes
    if (!DTYPES.includes(dtype as string))
      throw new SepconvError('ERR_DTYPE', `cast: dtype '${String(dtype)}' does not exist`, {
        subject: 'dtype',
        expected: DTYPES,
        given: dtype,
      })
    return [{ shape: required('cast', inputs, 0, 'x').shape, dtype: dtype as DType }]
  },
  gradient({ inputs, gradients, attributes }) {
    const [x, g] = [inputs[0]!, gradients[0]!]
    if (x.dtype !== 'float32' && x.dtype !== 'bfloat16') return [null]
    if (g.dtype !== 'float32' && g.dtype !== 'bfloat16') return [null]
    return [emit(castDefinition, [g], { dtype: x.dtype, scale: attributes.scale ?? 1, offset: 0 })]
  },
  reference({ inputs, outputs, attributes }) {
    const [scale, offset] = [Math.fround((attributes.scale as number) ?? 1), Math.fround((attributes.offset as number) ?? 0)]
    const range = RANGE[attributes.dtype as DType]
    const plain = scale === 1 && offset === 0 // whole int32 values survive
    tensorAt(inputs, 0).data.forEach((x, i) => {
      const value = plain ? x : x * scale + offset
      outputs[0]!.data[i] = range ? Math.min(range[1], Math.max(range[0], roundEven(plain ? x : Math.fround(value)))) : value
    })
  },
})

/**
 * Converts to another dtype, after `x · scale + offset` in float32.
 * @param x any shape and dtype
 * @param dtype to integers: nearest (ties to even), saturating, NaN becomes 0; to bfloat16: nearest (ties to even)
 * @param options `scale` 1, `offset` 0 by default
 * @returns the same shape; gradients pass between float32 and bfloat16 only
 * @throws ERR_DTYPE for an unknown dtype; ERR_ARGUMENT for unknown options or a scale that is not finite
 */
export const cast = operation('cast', (x: Value, dtype: DType, options: { scale?: number; offset?: number } = {}): Value => {
  checkOptions('cast', options, ['scale', 'offset'])
  const { scale = 1, offset = 0 } = options
  for (const [name, value] of Object.entries({ scale, offset }))
    if (!Number.isFinite(value))
      throw new SepconvError('ERR_ARGUMENT', `cast: ${name} must be a finite number, got ${String(value)}`, { subject: name, given: value })
  return emit(castDefinition, [x], { dtype, scale, offset })
})
