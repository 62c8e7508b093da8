/**
 * Batch normalisation over the last axis of x[..., c]: y = (x - mean[c]) / sqrt(variance[c] + epsilon) * gamma[c] + beta[c]. In training the
 * statistics are those of the batch (biased variance) and the op is one node until a pass splits it into batchNormStatistics,
 * batchNormCoefficients and scaleShift; in inference they are given, and the public function emits coefficients and scaleShift at once.
 * Statistics, coefficients and the gradients of gamma and beta are float32 whatever x is stored as.
 */

import { checkOptions, SepconvError } from '../errors.js'
import type { Value } from '../graph/graph.js'
import { defineOp, type HostTensor } from '../graph/op.js'
import { emit, emitAll, type Operation, operation, scalar } from '../graph/trace.js'
import { formatShape, type TensorType } from '../graph/types.js'
import { expectChannels, expectFloat, expectRows, expectType, lastSize, required, rowCount, subjectOf, tensorAt } from './arguments.js'
import { binary, broadcast, castTo, unary } from './builders.js'
import { allReduce } from './allReduce.js'
import { channelMoments } from './channelMoments.js'
import { scaleShiftDefinition } from './scaleShift.js'

const perChannel = (channels: number): TensorType => ({ shape: [channels], dtype: 'float32' })

function checkInput(op: string, x: TensorType): number {
  expectFloat(op, 'x', x)
  expectRows(op, 'x', x)
  return lastSize(x.shape)
}

/** A batch of one value per channel has variance 0: its normalised value says nothing and its gradient is 0. */
function checkTrainingRows(op: string, x: TensorType): void {
  if (rowCount(x.shape) > 1) return
  throw new SepconvError('ERR_SHAPE', `${op}: training needs more than one value per channel, got x ${formatShape(x.shape)}`, {
    subject: op,
    given: x.shape,
    hint: 'Use a larger batch or a larger picture, or running statistics (training: false)',
  })
}

export const batchNormDefinition = defineOp({
  name: 'batchNorm',
  inputs: ['x', 'gamma?', 'beta?'],
  outputs: ['y', 'mean', 'variance'],
  infer(inputs) {
    const x = required('batchNorm', inputs, 0, 'x')
    const channels = checkInput('batchNorm', x)
    checkTrainingRows('batchNorm', x)
    expectChannels('batchNorm', 'gamma', inputs[1], channels)
    expectChannels('batchNorm', 'beta', inputs[2], channels)
    return [x, perChannel(channels), perChannel(channels)]
  },
  gradient({ inputs, outputs, attributes, gradients, needs }) {
    const [x, gamma] = [inputs[0]!, inputs[1] ?? null]
    const [mean, variance] = [outputs[1]!, outputs[2]!]
    const [dy, dmean, dvariance] = gradients
    const ranks = (attributes.ranks as number | undefined) ?? 1
    if (ranks > 1 && (dmean || dvariance))
      throw new SepconvError('ERR_ARGUMENT', 'batchNorm: statistics of several ranks cannot be differentiated', { subject: 'batchNorm' })
    const share = 1 / rowCount(x.shape)
    let dx: Value | null = null
    let dgamma: Value | null = null
    let dbeta: Value | null = null
    if (dy)
      [dx, dgamma, dbeta] = emitAll(batchNormGradientDefinition, [dy, x, mean, variance, gamma], { epsilon: attributes.epsilon! }) as [
        Value,
        Value,
        Value,
      ]
    if (dx && dgamma && dbeta && ranks > 1 && needs[0])
      dx = throughAllRanks(dx, x, { mean, variance, gamma, dgamma, dbeta }, attributes.epsilon as number, ranks)
    if (needs[0] && dvariance) {
      // d variance / dx = 2 (x - mean) / rows
      const scale = binary(dvariance, scalar(x, 2 * share), 'multiply')
      dx = emit(scaleShiftDefinition, [x, scale, unary(binary(mean, scale, 'multiply'), 'negate'), dx], { activation: 'none' })
    }
    if (needs[0] && dmean) {
      // d mean / dx = 1 / rows
      const shift = binary(dmean, scalar(x, share), 'multiply')
      dx = dx ? emit(scaleShiftDefinition, [dx, null, shift], { activation: 'none' }) : castTo(broadcast(shift, x.shape), x.dtype)
    }
    return [needs[0] ? dx : null, needs[1] ? dgamma : null, needs[2] ? dbeta : null]
  },
  reference({ inputs, outputs, attributes }) {
    if (attributes.ranks !== undefined)
      throw new SepconvError('ERR_INTERNAL', 'batchNorm: statistics of several ranks are a matter of the pass that decomposes it')
    const [x, y, mean, variance] = [tensorAt(inputs, 0), tensorAt(outputs, 0), tensorAt(outputs, 1), tensorAt(outputs, 2)]
    channelMoments(x, mean, variance)
    const { scale, shift } = coefficients(mean, variance, attributes.epsilon as number, inputs[1], inputs[2])
    const c = lastSize(x.shape)
    for (let i = 0; i < x.data.length; i++) y.data[i] = x.data[i]! * scale[i % c]! + shift[i % c]!
  },
})

interface Normalised {
  readonly mean: Value
  readonly variance: Value
  readonly gamma: Value | null
  readonly dgamma: Value
  readonly dbeta: Value
}

/**
 * batchNormGradient takes dy's sums over this rank's rows; where the statistics are those of all ranks, so are the sums. Its dx is linear
 * in them, so that one pass puts it right: dx += -gamma * inv * (Δbeta + xhat * Δgamma), with Δ the mean of a sum over all rows minus
 * that over the rank's own rows.
 */
function throughAllRanks(dx: Value, x: Value, norm: Normalised, epsilon: number, ranks: number): Value {
  const { mean, variance, gamma, dgamma, dbeta } = norm
  const [allGamma, allBeta] = allReduce([dgamma, dbeta], ranks) as [Value, Value]
  const rows = rowCount(x.shape)
  const difference = (all: Value, own: Value) =>
    binary(binary(all, scalar(all, 1 / (rows * ranks)), 'multiply'), binary(own, scalar(own, 1 / rows), 'multiply'), 'subtract')
  const inverse = unary(binary(variance, scalar(variance, epsilon), 'add'), 'reciprocalSqrt')
  const factor = unary(gamma ? binary(gamma, inverse, 'multiply') : inverse, 'negate')
  // xhat = x * inverse - mean * inverse
  const slope = binary(binary(factor, inverse, 'multiply'), difference(allGamma, dgamma), 'multiply')
  const shift = binary(binary(factor, difference(allBeta, dbeta), 'multiply'), binary(slope, mean, 'multiply'), 'subtract')
  return emit(scaleShiftDefinition, [x, slope, shift, dx], { activation: 'none' })
}

/**
 * Mean and biased variance over the rows of all ranks, of which each has as many: first the mean of the means, then the mean of
 * variance + (mean - that)², which does not cancel as the mean of squares would.
 */
export function momentsOfRanks(mean: Value, variance: Value, ranks: number): [mean: Value, variance: Value] {
  const share = scalar(mean, 1 / ranks)
  const [whole] = allReduce([binary(mean, share, 'multiply')], ranks) as [Value]
  const apart = unary(binary(mean, whole, 'subtract'), 'square')
  const [spread] = allReduce([binary(binary(variance, apart, 'add'), share, 'multiply')], ranks) as [Value]
  return [whole, spread]
}

/** scale = gamma / sqrt(variance + epsilon), shift = beta - mean * scale, in float64 */
function coefficients(
  mean: HostTensor,
  variance: HostTensor,
  epsilon: number,
  gamma?: HostTensor | null,
  beta?: HostTensor | null,
): { scale: Float64Array; shift: Float64Array } {
  const scale = Float64Array.from(variance.data, (value, c) => (gamma ? gamma.data[c]! : 1) / Math.sqrt(value + epsilon))
  return { scale, shift: scale.map((factor, c) => (beta ? beta.data[c]! : 0) - mean.data[c]! * factor) }
}

/** batchNormStatistics: x[..., c] -> mean[c], variance[c] (biased) over all rows */
export const batchNormStatisticsDefinition = defineOp({
  name: 'batchNormStatistics',
  inputs: ['x'],
  outputs: ['mean', 'variance'],
  infer(inputs) {
    const channels = checkInput('batchNormStatistics', required('batchNormStatistics', inputs, 0, 'x'))
    return [perChannel(channels), perChannel(channels)]
  },
  reference({ inputs, outputs }) {
    channelMoments(tensorAt(inputs, 0), tensorAt(outputs, 0), tensorAt(outputs, 1))
  },
})

/** batchNormCoefficients: mean[c], variance[c], gamma?[c], beta?[c] -> scale[c], shift[c], so that batch norm is x * scale + shift */
export const batchNormCoefficientsDefinition = defineOp({
  name: 'batchNormCoefficients',
  inputs: ['mean', 'variance', 'gamma?', 'beta?'],
  outputs: ['scale', 'shift'],
  recompute: true,
  infer(inputs) {
    const op = 'batchNormCoefficients'
    const channels = required(op, inputs, 0, 'mean').shape[0] ?? 1
    for (const [i, argument] of ['mean', 'variance', 'gamma', 'beta'].entries())
      expectChannels(op, argument, i < 2 ? required(op, inputs, i, argument) : inputs[i], channels)
    return [perChannel(channels), perChannel(channels)]
  },
  gradient({ inputs, outputs, attributes, gradients, needs }) {
    const [mean, variance] = [inputs[0]!, inputs[1]!]
    const scale = outputs[0]!
    const [dscale, dshift] = [gradients[0] ?? null, gradients[1] ?? null]
    // shift = beta - mean * scale, so the gradient that reaches scale is dscale - mean * dshift.
    const viaShift = dshift && unary(binary(mean, dshift, 'multiply'), 'negate')
    const total = dscale && viaShift ? binary(dscale, viaShift, 'add') : (dscale ?? viaShift)
    const shifted = binary(variance, scalar(variance, attributes.epsilon as number), 'add') // variance + epsilon
    return [
      needs[0] && dshift ? unary(binary(scale, dshift, 'multiply'), 'negate') : null,
      // d scale / d variance = -scale / (2 (variance + epsilon))
      needs[1] && total ? binary(binary(binary(total, scale, 'multiply'), shifted, 'divide'), scalar(variance, -0.5), 'multiply') : null,
      needs[2] && total ? binary(total, unary(shifted, 'reciprocalSqrt'), 'multiply') : null,
      needs[3] ? dshift : null,
    ]
  },
  reference({ inputs, outputs, attributes }) {
    const { scale, shift } = coefficients(tensorAt(inputs, 0), tensorAt(inputs, 1), attributes.epsilon as number, inputs[2], inputs[3])
    tensorAt(outputs, 0).data.set(scale)
    tensorAt(outputs, 1).data.set(shift)
  },
})

/** Checks dy, x like it, then what has a value per channel, gamma last and optional. */
function gradientOperands(op: string, inputs: readonly (TensorType | null)[], perChannel: readonly string[]) {
  const dy = required(op, inputs, 0, 'dy')
  const channels = checkInput(op, dy)
  expectType(op, 'x', required(op, inputs, 1, 'x'), dy, 'like dy')
  for (const [i, name] of perChannel.entries()) expectChannels(op, name, required(op, inputs, 2 + i, name), channels)
  expectChannels(op, 'gamma', inputs[2 + perChannel.length], channels)
  return { dy, channels }
}

/**
 * batchNormGradient: dy[..., c], x[..., c], mean[c], variance[c], gamma?[c] -> dx[..., c], dgamma[c], dbeta[c]. With m rows,
 * inv = 1 / sqrt(variance + epsilon) and xhat = (x - mean) * inv:
 *   dbeta = sum dy;  dgamma = sum dy * xhat;  dx = gamma * inv * (dy - dbeta / m - xhat * dgamma / m)
 */
export const batchNormGradientDefinition = defineOp({
  name: 'batchNormGradient',
  inputs: ['dy', 'x', 'mean', 'variance', 'gamma?'],
  outputs: ['dx', 'dgamma', 'dbeta'],
  inPlace: [0],
  infer(inputs) {
    const op = 'batchNormGradient'
    const { dy, channels } = gradientOperands(op, inputs, ['mean', 'variance'])
    return [dy, perChannel(channels), perChannel(channels)]
  },
  reference({ inputs, outputs, attributes }) {
    const [dy, x, mean, variance] = [tensorAt(inputs, 0), tensorAt(inputs, 1), tensorAt(inputs, 2), tensorAt(inputs, 3)]
    const gamma = inputs[4]
    const [dx, dgamma, dbeta] = [tensorAt(outputs, 0), tensorAt(outputs, 1), tensorAt(outputs, 2)]
    const [rows, c] = [rowCount(x.shape), lastSize(x.shape)]
    for (let channel = 0; channel < c; channel++) {
      const inverse = 1 / Math.sqrt(variance.data[channel]! + (attributes.epsilon as number))
      const normalised = (i: number) => (x.data[i]! - mean.data[channel]!) * inverse
      let [sum, product] = [0, 0]
      for (let i = channel; i < rows * c; i += c) {
        sum += dy.data[i]!
        product += dy.data[i]! * normalised(i)
      }
      dbeta.data[channel] = sum
      dgamma.data[channel] = product
      const scale = (gamma ? gamma.data[channel]! : 1) * inverse
      for (let i = channel; i < rows * c; i += c) dx.data[i] = scale * (dy.data[i]! - sum / rows - (normalised(i) * product) / rows)
    }
  },
})

/**
 * batchNormInputGradient: dx of batchNormGradient where the sums over dy have been taken elsewhere: dy[..., c], x[..., c], mean[c],
 * variance[c], dgamma[c], dbeta[c], gamma?[c] -> dx[..., c]
 */
export const batchNormInputGradientDefinition = defineOp({
  name: 'batchNormInputGradient',
  inputs: ['dy', 'x', 'mean', 'variance', 'dgamma', 'dbeta', 'gamma?'],
  outputs: ['dx'],
  inPlace: [0],
  infer(inputs) {
    return [gradientOperands('batchNormInputGradient', inputs, ['mean', 'variance', 'dgamma', 'dbeta']).dy]
  },
  reference({ inputs, outputs, attributes }) {
    const [dy, x, mean, variance] = [tensorAt(inputs, 0), tensorAt(inputs, 1), tensorAt(inputs, 2), tensorAt(inputs, 3)]
    const [dgamma, dbeta, gamma, dx] = [tensorAt(inputs, 4), tensorAt(inputs, 5), inputs[6], tensorAt(outputs, 0)]
    const [rows, c] = [rowCount(x.shape), lastSize(x.shape)]
    for (let channel = 0; channel < c; channel++) {
      const inverse = 1 / Math.sqrt(variance.data[channel]! + (attributes.epsilon as number))
      const scale = (gamma ? gamma.data[channel]! : 1) * inverse
      for (let i = channel; i < rows * c; i += c) {
        const xhat = (x.data[i]! - mean.data[channel]!) * inverse
        dx.data[i] = scale * (dy.data[i]! - dbeta.data[channel]! / rows - (xhat * dgamma.data[channel]!) / rows)
      }
    }
  },
})

interface BatchNormAffine {
  /** [c] float32, default 1. */
  readonly gamma?: Value
  /** [c] float32, default 0. */
  readonly beta?: Value
  /** Added to the variance, finite and at least 0. Default 1e-3 (Keras; PyTorch and timm use 1e-5). */
  readonly epsilon?: number
}

/** Options of {@link batchNorm} with the statistics of the batch. */
export interface BatchNormTrainingOptions extends BatchNormAffine {
  readonly training: true
}

/** Options of {@link batchNorm} with given statistics. */
export interface BatchNormInferenceOptions extends BatchNormAffine {
  readonly training?: false
  /** [c] float32: the running mean. */
  readonly mean: Value
  /** [c] float32: the running variance. */
  readonly variance: Value
}

/** The two forms of {@link batchNorm}: training gives [y, mean, variance], inference y. */
export type BatchNorm = Operation<[x: Value, options: BatchNormTrainingOptions], readonly [y: Value, mean: Value, variance: Value]> &
  Operation<[x: Value, options: BatchNormInferenceOptions], Value>

function build(x: Value, options: BatchNormTrainingOptions | BatchNormInferenceOptions): Value | readonly Value[] {
  const op = subjectOf(x, 'batchNorm')
  checkOptions(op, options, ['gamma', 'beta', 'mean', 'variance', 'epsilon', 'training'])
  const {
    gamma = null,
    beta = null,
    epsilon = 1e-3,
    mean,
    variance,
    training,
  } = (options ?? {}) as Partial<Omit<BatchNormInferenceOptions, 'training'> & { training: boolean }>
  if (!Number.isFinite(epsilon) || epsilon < 0)
    throw new SepconvError('ERR_ARGUMENT', `${op}: epsilon must be finite and at least 0, got ${epsilon}`, { subject: op, given: epsilon })
  if (training === true) {
    if (mean || variance)
      throw new SepconvError('ERR_ARGUMENT', `${op}: training uses the statistics of the batch, but mean or variance was given`, {
        subject: op,
        hint: 'Leave them out, or set training: false to normalise by them',
      })
    return emitAll(batchNormDefinition, [x, gamma, beta], { epsilon })
  }
  if (!mean || !variance)
    throw new SepconvError('ERR_ARGUMENT', `${op}: mean and variance are needed without training`, {
      subject: op,
      expected: ['mean', 'variance'],
      hint: 'Pass running statistics, or training: true to use those of the batch',
    })
  const channels = checkInput(op, x.type)
  for (const [name, value] of Object.entries({ gamma, beta, mean, variance })) expectChannels(op, name, value?.type, channels)
  const [scale, shift] = emitAll(batchNormCoefficientsDefinition, [mean, variance, gamma, beta], { epsilon })
  return emit(scaleShiftDefinition, [x, scale!, shift!], { activation: 'none' })
}

/**
 * Batch normalisation over the last axis:
 *
 *     y = (x - mean) / sqrt(variance + epsilon) * gamma + beta
 *
 * With `training: true` the statistics are those of the batch and come back beside y, so that the caller can keep running averages:
 * `[y, mean, variance]`, the variance biased (divided by the number of rows, not rows - 1). Otherwise `mean` and `variance` are given
 * and the result is y alone. Differentiable in x, gamma, beta and, without training, in the given statistics.
 *
 * @param x `[..., c]`, float32 or bfloat16
 * @param options `gamma` 1, `beta` 0, `epsilon` 1e-3 by default; `mean` and `variance` exactly where `training` is not set
 * @returns `[..., c]`, or `[y [..., c], mean [c], variance [c]]` in training
 * @throws ERR_SHAPE for parameters that are not [c], or in training for one value per channel; ERR_ARGUMENT for other bad options
 * @see Ioffe and Szegedy, Batch Normalization, 2015 (arXiv 1502.03167)
 */
export const batchNorm = operation('batchNorm', build) as unknown as BatchNorm
