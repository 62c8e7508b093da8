/**
 * One step of an optimizer over all parameters in one call; built by src/train/optimizer.ts. Like all that writes state, they
 * do nothing where `flag` is 0. g = gradient · scale (+ weightDecay · p, except in adamUpdate, where decay is decoupled).
 *
 *     sgd      v ← momentum·v + g;                 p ← p − rate·v (Nesterov: − rate·(g + momentum·v))
 *     rmsprop  s ← decay·s + (1 − decay)·g²
 *       TensorFlow, Keras  v ← momentum·v + rate·g / √(s + ε);    p ← p − v
 *       PyTorch            v ← momentum·v + g / (√s + ε);         p ← p − rate·v
 *     adam     m ← β₁·m + (1 − β₁)·g;  s ← β₂·s + (1 − β₂)·g²;  d = m̂ / (√ŝ + ε) + weightDecay·p;  p ← p − rate·d
 *              (AdamW, Loshchilov and Hutter 2019); with trust − rate·d·|p| / |d| (LAMB, You et al. 2020)
 *
 * With `averaged` an update also moves an average of every parameter, a ← decay·a + (1 − decay)·p: its inputs then end in
 * (decay, ...average), its outputs in (...average). A pass makes it so out of averageUpdate, where the target has such kernels.
 */

import { SepconvError } from '../errors.js'
import { defineOp, type HostTensor, type OpDefinition } from '../graph/op.js'
import { formatType, sameType } from '../graph/types.js'
import { required, tensorAt } from './arguments.js'
import { checkPerGroup, groupsOf } from './update.js'

/** An update of groups of `size` tensors behind `scalars`, whose outputs are `given` scalars and all of a group but its gradient. */
function defineUpdate(scalars: number, size: number, given: number, definition: OpDefinition): OpDefinition {
  const split = (count: number) => {
    const groups = (count - scalars - 1) / (size + 1)
    if (!Number.isInteger(groups)) throw new SepconvError('ERR_INTERNAL', `${definition.name}: ${count} inputs are no averaged groups`)
    return { groups, core: scalars + groups * size }
  }
  return defineOp({
    ...definition,
    infer(inputs, attributes) {
      if (!attributes.averaged) return definition.infer(inputs, attributes)
      const { core } = split(inputs.length)
      const outputs = definition.infer(inputs.slice(0, core), attributes)
      if (required(definition.name, inputs, core, 'average decay').shape.length > 0)
        throw new SepconvError('ERR_SHAPE', `${definition.name}: the average's decay must be a scalar`, { subject: definition.name })
      const averages = inputs.slice(core + 1).map((type, i) => {
        const parameter = outputs[given + i * (size - 1)]!
        if (!type || !sameType(type, parameter))
          throw new SepconvError('ERR_SHAPE', `${definition.name}: average ${i} must be ${formatType(parameter)}`, {
            subject: definition.name,
          })
        return type
      })
      return [...outputs, ...averages]
    },
    reference({ inputs, outputs, attributes }) {
      if (!attributes.averaged) return definition.reference({ inputs, outputs, attributes })
      const { core, groups } = split(inputs.length)
      definition.reference({ inputs: inputs.slice(0, core), outputs: outputs.slice(0, outputs.length - groups), attributes })
      const [flag, decay] = [tensorAt(inputs, 1).data[0]!, tensorAt(inputs, core).data[0]!]
      for (let group = 0; group < groups; group++) {
        const before = tensorAt(inputs, core + 1 + group).data
        const parameter = outputs[given + group * (size - 1)]!.data
        const after = outputs[outputs.length - groups + group]!.data
        for (let i = 0; i < after.length; i++) after[i] = flag === 0 ? before[i]! : decay * before[i]! + (1 - decay) * parameter[i]!
      }
    },
  })
}

export const sgdUpdateDefinition = defineUpdate(3, 3, 0, {
  name: 'sgdUpdate',
  inputs: ['rate', 'flag', 'scale', '...parameterVelocityGradient'],
  outputs: ['...parameterVelocity'],
  infer(inputs, attributes) {
    const groups = groupsOf('sgdUpdate', inputs, 3, 3)
    checkPerGroup('sgdUpdate', 'weightDecay', attributes.weightDecay, groups.length)
    return groups.flatMap(([parameter, velocity]) => [parameter!, velocity!])
  },
  reference({ inputs, outputs, attributes }) {
    const [rate, flag, scale] = [0, 1, 2].map((i) => tensorAt(inputs, i).data[0]!) as [number, number, number]
    const momentum = attributes.momentum as number
    const decays = attributes.weightDecay as readonly number[]
    for (const [group, decay] of decays.entries()) {
      const [p, v, g] = [0, 1, 2].map((i) => tensorAt(inputs, 3 + group * 3 + i).data)
      const [newP, newV] = [outputs[2 * group]!.data, outputs[2 * group + 1]!.data]
      for (let i = 0; i < newP.length; i++) {
        const gradient = g![i]! * scale + decay * p![i]!
        const velocity = momentum * v![i]! + gradient
        const step = attributes.nesterov ? gradient + momentum * velocity : velocity
        newV[i] = flag === 0 ? v![i]! : velocity
        newP[i] = flag === 0 ? p![i]! : p![i]! - rate * step
      }
    }
  },
})

export const rmspropUpdateDefinition = defineUpdate(3, 4, 0, {
  name: 'rmspropUpdate',
  inputs: ['rate', 'flag', 'scale', '...parameterMeanSquareVelocityGradient'],
  outputs: ['...parameterMeanSquareVelocity'],
  infer(inputs, attributes) {
    const groups = groupsOf('rmspropUpdate', inputs, 3, 4)
    checkPerGroup('rmspropUpdate', 'weightDecay', attributes.weightDecay, groups.length)
    return groups.flatMap(([parameter, meanSquare, velocity]) => [parameter!, meanSquare!, velocity!])
  },
  reference({ inputs, outputs, attributes }) {
    const [rate, flag, scale] = scalars(inputs, 3)
    const { decay, momentum, epsilon, form } = attributes as { decay: number; momentum: number; epsilon: number; form: string }
    for (const [group, l2] of (attributes.weightDecay as readonly number[]).entries()) {
      const [p, s, v, g] = [0, 1, 2, 3].map((i) => tensorAt(inputs, 3 + group * 4 + i).data)
      const [newP, newS, newV] = [0, 1, 2].map((i) => outputs[3 * group + i]!.data)
      for (let i = 0; i < newP!.length; i++) {
        const gradient = g![i]! * scale! + l2 * p![i]!
        const square = decay * s![i]! + (1 - decay) * gradient * gradient
        const step = form === 'pytorch' ? gradient / (Math.sqrt(square) + epsilon) : (rate! * gradient) / Math.sqrt(square + epsilon)
        const velocity = momentum * v![i]! + step
        newS![i] = flag === 0 ? s![i]! : square
        newV![i] = flag === 0 ? v![i]! : velocity
        newP![i] = flag === 0 ? p![i]! : p![i]! - (form === 'pytorch' ? rate! * velocity : velocity)
      }
    }
  },
})

export const adamUpdateDefinition = defineUpdate(4, 4, 1, {
  name: 'adamUpdate',
  inputs: ['rate', 'flag', 'scale', 'count', '...parameterMeanSquareGradient'],
  outputs: ['count', '...parameterMeanSquare'],
  infer(inputs, attributes) {
    const groups = groupsOf('adamUpdate', inputs, 4, 4)
    checkPerGroup('adamUpdate', 'weightDecay', attributes.weightDecay, groups.length)
    checkPerGroup('adamUpdate', 'trust', attributes.trust, groups.length)
    return [inputs[3]!, ...groups.flatMap(([parameter, mean, square]) => [parameter!, mean!, square!])]
  },
  reference({ inputs, outputs, attributes }) {
    const [rate, flag, scale, count] = scalars(inputs, 4)
    const { beta1, beta2, epsilon } = attributes as { beta1: number; beta2: number; epsilon: number }
    const [unbias1, unbias2] = [1 / (1 - beta1 ** (count! + 1)), 1 / (1 - beta2 ** (count! + 1))]
    outputs[0]!.data[0] = flag === 0 ? count! : count! + 1
    for (const [group, l2] of (attributes.weightDecay as readonly number[]).entries()) {
      const [p, m, s, g] = [0, 1, 2, 3].map((i) => tensorAt(inputs, 4 + group * 4 + i).data)
      const [newP, newM, newS] = [0, 1, 2].map((i) => outputs[1 + 3 * group + i]!.data)
      const direction = new Float64Array(newP!.length)
      let [parameterSquares, directionSquares] = [0, 0]
      for (let i = 0; i < direction.length; i++) {
        const gradient = g![i]! * scale!
        const mean = beta1 * m![i]! + (1 - beta1) * gradient
        const square = beta2 * s![i]! + (1 - beta2) * gradient * gradient
        direction[i] = (mean * unbias1) / (Math.sqrt(square * unbias2) + epsilon) + l2 * p![i]!
        parameterSquares += p![i]! * p![i]!
        directionSquares += direction[i]! * direction[i]!
        newM![i] = flag === 0 ? m![i]! : mean
        newS![i] = flag === 0 ? s![i]! : square
      }
      const trusted = (attributes.trust as readonly number[])[group] !== 0 && parameterSquares > 0 && directionSquares > 0
      const step = rate! * (trusted ? Math.sqrt(parameterSquares / directionSquares) : 1)
      for (let i = 0; i < direction.length; i++) newP![i] = flag === 0 ? p![i]! : p![i]! - step * direction[i]!
    }
  },
})

const scalars = (inputs: readonly (HostTensor | null)[], count: number): number[] =>
  Array.from({ length: count }, (_, i) => tensorAt(inputs, i).data[0]!)
