/**
 * Ops that end a training step. The updates write state: their outputs are the memory of the inputs that they update, and they
 * do nothing where `flag` is 0, so that a non-finite loss or gradient leaves everything as it was. Multi-tensor: one call for all.
 */

import { SepconvError } from '../errors.js'
import { defineOp } from '../graph/op.js'
import { formatType, sameType, type TensorType } from '../graph/types.js'
import { required, tensorAt } from './arguments.js'

const SCALAR: TensorType = { shape: [], dtype: 'float32' }

/** Checks that all inputs are float32; the result of both reductions is a scalar. */
function inferScalar(op: string, inputs: readonly (TensorType | null)[]): TensorType[] {
  inputs.forEach((type, i) => {
    if (type?.dtype !== 'float32')
      throw new SepconvError('ERR_DTYPE', `${op}: input ${i} must be float32, got ${type ? formatType(type) : 'nothing'}`, {
        subject: op,
        expected: 'float32',
        given: type?.dtype,
      })
  })
  return [SCALAR]
}

/** Checks that an attribute has one number per group. */
export function checkPerGroup(op: string, name: string, value: unknown, groups: number): void {
  if (!Array.isArray(value) || value.length !== groups)
    throw new SepconvError('ERR_ARGUMENT', `${op}: ${name} must hold ${groups} numbers, got ${JSON.stringify(value)}`, {
      subject: name,
      expected: groups,
      given: value,
    })
}

export const allFiniteDefinition = defineOp({
  name: 'allFinite',
  inputs: ['...xs'],
  outputs: ['flag'],
  infer: (inputs) => inferScalar('allFinite', inputs),
  reference({ inputs, outputs }) {
    outputs[0]!.data[0] = inputs.every((x) => (x!.data as Float32Array).every(Number.isFinite)) ? 1 : 0
  },
})

export const globalNormDefinition = defineOp({
  name: 'globalNorm',
  inputs: ['...xs'],
  outputs: ['norm'],
  infer: (inputs) => inferScalar('globalNorm', inputs),
  reference({ inputs, outputs }) {
    let sum = 0
    for (const x of inputs) for (const value of x!.data) sum += value * value
    outputs[0]!.data[0] = Math.sqrt(sum)
  },
})

/** Checks `scalars` leading scalars and groups of `size` tensors of one type; returns the groups. */
export function groupsOf(op: string, inputs: readonly (TensorType | null)[], scalars: number, size: number): TensorType[][] {
  for (let i = 0; i < scalars; i++)
    if (!sameType(required(op, inputs, i, `scalar ${i}`), SCALAR))
      throw new SepconvError('ERR_SHAPE', `${op}: input ${i} must be a float32 scalar, got ${formatType(inputs[i]!)}`, { subject: op })
  const rest = inputs.slice(scalars) as TensorType[]
  if (rest.length % size !== 0) throw new SepconvError('ERR_INTERNAL', `${op}: ${rest.length} tensors are no groups of ${size}`)
  return Array.from({ length: rest.length / size }, (_, i) => {
    const group = rest.slice(i * size, (i + 1) * size)
    if (group.some((type) => type.dtype !== 'float32' || !sameType(type, group[0]!)))
      throw new SepconvError(
        'ERR_SHAPE',
        `${op}: group ${i} must be float32 tensors of one shape, got ${group.map(formatType).join(', ')}`,
        { subject: op },
      )
    return group
  })
}

export const averageUpdateDefinition = defineOp({
  name: 'averageUpdate',
  inputs: ['decay', 'flag', '...averageValue'],
  outputs: ['...average'],
  infer(inputs, attributes) {
    const groups = groupsOf('averageUpdate', inputs, 2, 2)
    checkPerGroup('averageUpdate', 'factor', attributes.factor, groups.length)
    return groups.map(([average]) => average!)
  },
  reference({ inputs, outputs, attributes }) {
    const [decay, flag] = [tensorAt(inputs, 0).data[0]!, tensorAt(inputs, 1).data[0]!]
    for (const [group, factor] of (attributes.factor as readonly number[]).entries()) {
      const [average, value] = [tensorAt(inputs, 2 + group * 2).data, tensorAt(inputs, 3 + group * 2).data]
      for (let i = 0; i < average.length; i++)
        outputs[group]!.data[i] = flag === 0 ? average[i]! : decay * average[i]! + (1 - decay) * value[i]! * factor
    }
  },
})
