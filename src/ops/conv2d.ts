/**
 * conv2d: x[n, h, w, cin], filter[kh, kw, cin / groups, cout] -> y[n, oh, ow, cout], with its two gradients. Group g reads input
 * channels [g * cin / groups, ...) and makes output channels [g * cout / groups, ...); groups = 1 is the regular convolution,
 * groups = cin the depthwise one. The reference walks over (output pixel, input pixel, tap) and multiplies channels by the filter's matrix.
 */

import { checkOptions, SepconvError } from '../errors.js'
import type { Attributes, Value } from '../graph/graph.js'
import { defineOp } from '../graph/op.js'
import { emit, operation } from '../graph/trace.js'
import { elements, formatShape, type TensorType } from '../graph/types.js'
import {
  type Activation,
  activationOf,
  activationSlope,
  applyActivation,
  checkActivation,
  checkEpilogue,
  checkMask,
  epilogue,
  prologue,
} from './activation.js'
import { expectFloat, expectRank, expectSameDtype, refuseFused, required, subjectOf, tensorAt } from './arguments.js'
import { castTo } from './builders.js'
import { applyEpilogue, EPILOGUE_OPTIONS, type EpilogueOptions } from './epilogue.js'
import { forEachTap, geometryOf, outputSize, resolveGeometry, type WindowOptions } from './geometry.js'
import { checkPacked, unpackFilter } from './packFilter.js'

type Size = readonly [number, number]

/** Kernel size and channels of a filter, packed or not. */
interface FilterShape {
  readonly kernel: Size
  readonly cin: number
  readonly cout: number
}

function filterShape(op: string, x: TensorType, filter: TensorType, attributes: Attributes): FilterShape {
  const cin = x.shape[3]!
  if (attributes.packed === true) {
    const kernel = attributes.kernelSize as unknown as Size
    const cout = attributes.cout as number
    checkPacked(op, filter, kernel[0] * kernel[1] * cin, cout)
    return { kernel, cin, cout }
  }
  expectRank(op, 'filter', filter, '[kh, kw, cin / groups, cout]')
  const [kh, kw, perGroup, cout] = filter.shape as [number, number, number, number]
  checkGroups(op, cin, cout, attributes.groups as number)
  if (perGroup * (attributes.groups as number) !== cin)
    throw new SepconvError(
      'ERR_SHAPE',
      `${op}: filter ${formatShape(filter.shape)} takes ${perGroup} channels per group in ${attributes.groups} group(s), but x ${formatShape(x.shape)} has ${cin} channels`,
      { subject: op, expected: cin, given: perGroup, hint: 'Filters are [kh, kw, cin / groups, cout] and activations [n, h, w, cin]' },
    )
  return { kernel: [kh, kw], cin, cout }
}

function checkGroups(op: string, cin: number, cout: number, groups: number): void {
  if (!Number.isInteger(groups) || groups < 1)
    throw new SepconvError('ERR_ARGUMENT', `${op}: groups must be a whole number of at least 1, got ${groups}`, {
      subject: op,
      given: groups,
    })
  if (cin % groups !== 0 || cout % groups !== 0)
    throw new SepconvError(
      'ERR_SHAPE',
      `${op}: groups must divide both channel counts, but ${groups} does not divide ${cin % groups !== 0 ? `cin = ${cin}` : `cout = ${cout}`}`,
      {
        subject: op,
        given: groups,
        hint: 'Split uneven groups with slice() and join the results with concat()',
      },
    )
}

const sizeOf = (x: TensorType): Size => [x.shape[1]!, x.shape[2]!]

export const conv2dDefinition = defineOp({
  name: 'conv2d',
  samples: () => [0, 4],
  inputs: ['x', 'filter', 'scale?', 'shift?', 'residual?'],
  outputs: ['y'],
  infer(inputs, attributes) {
    const x = required('conv2d', inputs, 0, 'x')
    const filter = required('conv2d', inputs, 1, 'filter')
    expectFloat('conv2d', 'x', x)
    expectRank('conv2d', 'x', x, '[n, h, w, c]')
    expectSameDtype('conv2d', 'filter', filter, x)
    const { kernel, cout } = filterShape('conv2d', x, filter, attributes)
    const y: TensorType = { shape: [x.shape[0]!, ...outputSize('conv2d', sizeOf(x), kernel, geometryOf(attributes)), cout], dtype: x.dtype }
    checkEpilogue('conv2d', y, inputs[2], inputs[3], inputs[4])
    return [y]
  },
  gradient({ inputs, attributes, gradients, needs }) {
    refuseFused('conv2d', inputs, 2, attributes)
    const [x, filter, dy] = [inputs[0]!, inputs[1]!, gradients[0]!]
    const { strides, dilations, padding, groups, kernelSize } = attributes
    const common = { strides, dilations, padding, groups, inputActivation: 'none' } as Attributes
    return [
      needs[0] ? emit(conv2dInputGradientDefinition, [dy, filter], { ...common, inputSize: sizeOf(x.type) }) : null,
      needs[1] ? castTo(emit(conv2dFilterGradientDefinition, [x, dy], { ...common, kernelSize: kernelSize! }), filter.dtype) : null,
    ]
  },
  macs(inputs, outputs, attributes) {
    const { kernel, cin } = filterShape('conv2d', inputs[0]!, inputs[1]!, attributes)
    return elements(outputs[0]!.shape) * kernel[0] * kernel[1] * (cin / (attributes.groups as number))
  },
  reference({ inputs, outputs, attributes }) {
    const [x, filter, y] = [tensorAt(inputs, 0), tensorAt(inputs, 1), tensorAt(outputs, 0)]
    const kernel = attributes.kernelSize as unknown as Size
    const groups = attributes.groups as number
    const [cin, cout] = [x.shape[3]!, y.shape[3]!]
    const [cinGroup, coutGroup] = [cin / groups, cout / groups]
    const z = prologue(x, activationOf(attributes, 'inputActivation')) // [n, h, w, cin]
    const f = attributes.packed === true ? unpackFilter(filter, kernel[0] * kernel[1] * cin, cout) : filter.data // [kh, kw, cinGroup, cout]
    const acc = new Float64Array(y.data.length) // [n, oh, ow, cout]
    forEachTap(x.shape, kernel, geometryOf(attributes), (o, i, t) => {
      for (let g = 0; g < groups; g++)
        for (let ci = 0; ci < cinGroup; ci++) {
          const value = z[i * cin + g * cinGroup + ci]!
          const row = (t * cinGroup + ci) * cout
          for (let co = g * coutGroup; co < (g + 1) * coutGroup; co++) acc[o * cout + co]! += value * f[row + co]!
        }
    })
    epilogue(acc, y, activationOf(attributes, 'activation'), inputs[2], inputs[3], inputs[4])
  },
})

/** conv2dInputGradient: gradient[n, oh, ow, cout], filter, x?[n, h, w, cin] -> dx[n, h, w, cin] = inputActivation'(x) * transposed convolution */
export const conv2dInputGradientDefinition = defineOp({
  name: 'conv2dInputGradient',
  inputs: ['gradient', 'filter', 'x?'],
  outputs: ['dx'],
  infer(inputs, attributes) {
    const op = 'conv2dInputGradient'
    const gradient = required(op, inputs, 0, 'gradient')
    const filter = required(op, inputs, 1, 'filter')
    expectFloat(op, 'gradient', gradient)
    expectRank(op, 'gradient', gradient, '[n, oh, ow, cout]')
    expectRank(op, 'filter', filter, '[kh, kw, cin / groups, cout]')
    expectSameDtype(op, 'filter', filter, gradient)
    const size = attributes.inputSize as unknown as Size
    const dx: TensorType = {
      shape: [gradient.shape[0]!, size[0], size[1], filter.shape[2]! * (attributes.groups as number)],
      dtype: gradient.dtype,
    }
    checkForward(op, dx, filter.shape, gradient, attributes)
    checkMask(op, activationOf(attributes, 'inputActivation'), inputs[2], dx)
    return [dx]
  },
  macs: (inputs) => elements(inputs[0]!.shape) * inputs[1]!.shape[0]! * inputs[1]!.shape[1]! * inputs[1]!.shape[2]!,
  reference({ inputs, outputs, attributes }) {
    const [gradient, filter, dx] = [tensorAt(inputs, 0), tensorAt(inputs, 1), tensorAt(outputs, 0)]
    const groups = attributes.groups as number
    const [cin, cout] = [dx.shape[3]!, gradient.shape[3]!]
    const [cinGroup, coutGroup] = [cin / groups, cout / groups]
    const acc = new Float64Array(dx.data.length) // [n, h, w, cin]
    forEachTap(dx.shape, [filter.shape[0]!, filter.shape[1]!], geometryOf(attributes), (o, i, t) => {
      for (let g = 0; g < groups; g++)
        for (let ci = 0; ci < cinGroup; ci++) {
          const row = (t * cinGroup + ci) * cout
          let sum = 0
          for (let co = g * coutGroup; co < (g + 1) * coutGroup; co++) sum += gradient.data[o * cout + co]! * filter.data[row + co]!
          acc[i * cin + g * cinGroup + ci]! += sum
        }
    })
    const activation = activationOf(attributes, 'inputActivation')
    const x = inputs[2]
    for (let i = 0; i < acc.length; i++) dx.data[i] = acc[i]! * (x ? activationSlope(activation, x.data[i]!) : 1)
  },
})

/** conv2dFilterGradient: x[n, h, w, cin], gradient[n, oh, ow, cout] -> dfilter[kh, kw, cin / groups, cout], always float32 */
export const conv2dFilterGradientDefinition = defineOp({
  name: 'conv2dFilterGradient',
  inputs: ['x', 'gradient'],
  outputs: ['dfilter'],
  infer(inputs, attributes) {
    const op = 'conv2dFilterGradient'
    const x = required(op, inputs, 0, 'x')
    const gradient = required(op, inputs, 1, 'gradient')
    expectFloat(op, 'x', x)
    expectRank(op, 'x', x, '[n, h, w, c]')
    expectRank(op, 'gradient', gradient, '[n, oh, ow, cout]')
    expectSameDtype(op, 'gradient', gradient, x)
    const [kh, kw] = attributes.kernelSize as unknown as Size
    const groups = attributes.groups as number
    checkGroups(op, x.shape[3]!, gradient.shape[3]!, groups)
    const shape = [kh, kw, x.shape[3]! / groups, gradient.shape[3]!]
    checkForward(op, x, shape, gradient, attributes)
    return [{ shape, dtype: 'float32' }]
  },
  macs: (inputs, outputs) => elements(inputs[1]!.shape) * outputs[0]!.shape[0]! * outputs[0]!.shape[1]! * outputs[0]!.shape[2]!,
  reference({ inputs, outputs, attributes }) {
    const [x, gradient, dfilter] = [tensorAt(inputs, 0), tensorAt(inputs, 1), tensorAt(outputs, 0)]
    const groups = attributes.groups as number
    const [cin, cout] = [x.shape[3]!, gradient.shape[3]!]
    const [cinGroup, coutGroup] = [cin / groups, cout / groups]
    const z = prologue(x, activationOf(attributes, 'inputActivation')) // [n, h, w, cin]
    const acc = new Float64Array(dfilter.data.length) // [kh, kw, cinGroup, cout]
    forEachTap(x.shape, attributes.kernelSize as unknown as Size, geometryOf(attributes), (o, i, t) => {
      for (let g = 0; g < groups; g++)
        for (let ci = 0; ci < cinGroup; ci++) {
          const value = z[i * cin + g * cinGroup + ci]!
          const row = (t * cinGroup + ci) * cout
          for (let co = g * coutGroup; co < (g + 1) * coutGroup; co++) acc[row + co]! += value * gradient.data[o * cout + co]!
        }
    })
    dfilter.data.set(acc)
  },
})

/** Checks that the forward op would have made a tensor like `gradient`. */
function checkForward(op: string, x: TensorType, filter: readonly number[], gradient: TensorType, attributes: Attributes): void {
  const size = outputSize(op, sizeOf(x), [filter[0]!, filter[1]!], geometryOf(attributes))
  const expected = [x.shape[0]!, ...size, filter[3]!]
  if (expected.some((extent, axis) => extent !== gradient.shape[axis]))
    throw new SepconvError(
      'ERR_SHAPE',
      `${op}: gradient must be ${formatShape(expected)} like the forward output, got ${formatShape(gradient.shape)}`,
      {
        subject: op,
        expected,
        given: gradient.shape,
      },
    )
}

/** Options of {@link conv2d}. */
export interface Conv2dOptions extends WindowOptions, EpilogueOptions {
  /** Into how many independent slices the channels are cut, from 1 (default: regular convolution) to cin (depthwise). */
  readonly groups?: number
  /** Applied to `x` first: `'none'` (default), `'relu'` or `'elu'`. */
  readonly inputActivation?: Activation
}

const OPTIONS = ['strides', 'dilations', 'padding', 'groups', 'inputActivation', ...EPILOGUE_OPTIONS]

/**
 * Regular or grouped two-dimensional convolution (cross-correlation, as in every deep-learning library).
 *
 *     y = activation((conv(inputActivation(x), filter) + bias) * scale + shift + residual)
 *
 * @param x `[n, h, w, cin]`, float32 or bfloat16
 * @param filter `[kh, kw, cin / groups, cout]`, stored like `x`
 * @param options `strides` 1, `dilations` 1, `padding` `'same'`, `groups` 1, no bias, no activation by default
 * @returns `[n, oh, ow, cout]` with oh = ceil(h / stride) for `'same'` and floor((h + pads - ((kh - 1) * dilation + 1)) / stride) + 1 otherwise
 * @throws ERR_SHAPE for channels, groups or a kernel that do not fit; ERR_DTYPE; ERR_ARGUMENT for unknown options or bad values
 */
export const conv2d = operation('conv2d', (x: Value, filter: Value, options: Conv2dOptions = {}): Value => {
  const subject = subjectOf(x, 'conv2d')
  checkOptions(subject, options, OPTIONS)
  checkActivation(subject, 'inputActivation', options.inputActivation)
  expectRank(subject, 'x', x.type, '[n, h, w, c]')
  expectRank(subject, 'filter', required(subject, [filter?.type], 0, 'filter'), '[kh, kw, cin / groups, cout]')
  const kernelSize: Size = [filter.shape[0]!, filter.shape[1]!]
  const geometry = resolveGeometry(subject, sizeOf(x.type), kernelSize, options)
  const sum = emit(conv2dDefinition, [applyActivation(x, options.inputActivation), filter], {
    ...geometry,
    groups: options.groups ?? 1,
    kernelSize,
    cout: filter.shape[3]!,
    packed: false,
    inputActivation: 'none',
    activation: 'none',
  })
  return applyEpilogue('conv2d', sum, options)
})
