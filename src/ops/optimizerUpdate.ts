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
 */

import { defineOp, type HostTensor } from '../graph/op.js'
import { tensorAt } from './arguments.js'
import { checkPerGroup, groupsOf } from './update.js'

export const sgdUpdateDefinition = defineOp({
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

export const rmspropUpdateDefinition = defineOp({
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

export const adamUpdateDefinition = defineOp({
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
