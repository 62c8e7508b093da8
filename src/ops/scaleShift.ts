/**
 * scaleShift(x[..., c], scale?[c], shift?[c], residual?[..., c]) -> y = activation(x * scale + shift + residual).
 * The affine step of batch norm, and bias and residual of convolutions where they stand alone. Memory-bound: passes fuse it
 * into its neighbours where they can, and it may be recomputed rather than kept.
 */

import { defineOp } from '../graph/op.js'
import { emit } from '../graph/trace.js'
import { activationOf, checkEpilogue, epilogue } from './activation.js'
import { expectFloat, expectRows, required, tensorAt } from './arguments.js'
import { binary, castTo, sumOverRows, unaryGradient } from './builders.js'

export const scaleShiftDefinition = defineOp({
  name: 'scaleShift',
  samples: () => [0, 3],
  inputs: ['x', 'scale?', 'shift?', 'residual?'],
  outputs: ['y'],
  inPlace: [0],
  recompute: true,
  infer(inputs) {
    const x = required('scaleShift', inputs, 0, 'x')
    expectFloat('scaleShift', 'x', x)
    expectRows('scaleShift', 'x', x)
    checkEpilogue('scaleShift', x, inputs[1], inputs[2], inputs[3])
    return [x]
  },
  gradient({ inputs, outputs, attributes, gradients, needs }) {
    const [x, scale, shift, residual] = [inputs[0]!, inputs[1] ?? null, inputs[2] ?? null, inputs[3] ?? null]
    const activation = activationOf(attributes, 'activation')
    let dz = gradients[0]!
    // y > 0 exactly where relu's argument is, so y serves as the mask; elu needs the argument itself.
    if (activation === 'relu') dz = unaryGradient(dz, outputs[0]!, 'relu')
    if (activation === 'elu') dz = unaryGradient(dz, emit(scaleShiftDefinition, [x, scale, shift, residual], { activation: 'none' }), 'elu')
    return [
      needs[0] ? (scale ? emit(scaleShiftDefinition, [dz, scale], { activation: 'none' }) : dz) : null,
      needs[1] && scale ? castTo(sumOverRows(binary(dz, x, 'multiply')), scale.dtype) : null,
      needs[2] && shift ? castTo(sumOverRows(dz), shift.dtype) : null,
      needs[3] && residual ? dz : null,
    ]
  },
  reference({ inputs, outputs, attributes }) {
    epilogue(
      Float64Array.from(tensorAt(inputs, 0).data),
      tensorAt(outputs, 0),
      activationOf(attributes, 'activation'),
      inputs[1],
      inputs[2],
      inputs[3],
    )
  },
})
