/**
 * Losses per sample and their gradients with respect to the logits, in the numerically stable forms
 *   softmax:  log Σ exp(l) − Σ q·l       sigmoid:  max(l, 0) − l·t + log(1 + exp(−|l|))
 * Label smoothing s: q ← (1 − s)·q + s / k (Szegedy et al. 2016), t ← (1 − s)·t + s / 2. Negative integer labels are ignored; labels
 * of k or more make their row NaN, since a run on a device cannot throw. The gradient is that of the formula: p · Σ q − q.
 */

import { checkOptions, SepconvError } from '../errors.js'
import type { Attributes, Value } from '../graph/graph.js'
import { defineOp, type HostTensor } from '../graph/op.js'
import { emit, operation } from '../graph/trace.js'
import { formatType, type TensorType } from '../graph/types.js'
import { expectRank, expectType, required, tensorAt } from './arguments.js'
import { castTo } from './builders.js'

const smoothing = (attributes: Attributes): number => (attributes.labelSmoothing as number | undefined) ?? 0

function requiredFloat32(op: string, inputs: readonly (TensorType | null)[], at: number, argument: string): TensorType {
  const type = required(op, inputs, at, argument)
  expectType(op, argument, type, { shape: type.shape, dtype: 'float32' }, 'losses are float32')
  return type
}

/** Checks logits and labels at `at`; returns the type of the logits. */
function checkSoftmax(op: string, inputs: readonly (TensorType | null)[], at: number): TensorType {
  const logits = requiredFloat32(op, inputs, at, 'logits')
  expectRank(op, 'logits', logits, '[n, classes]')
  const labels = required(op, inputs, at + 1, 'labels')
  if (labels.dtype === 'int32') expectType(op, 'labels', labels, { shape: [logits.shape[0]!], dtype: 'int32' }, 'one class per row')
  else if (labels.dtype === 'float32') expectType(op, 'labels', labels, { shape: logits.shape, dtype: 'float32' }, 'a distribution per row')
  else
    throw new SepconvError('ERR_DTYPE', `${op}: labels must be int32 [n] or float32 [n, classes], got ${formatType(labels)}`, {
      subject: 'labels',
      given: labels.dtype,
    })
  return logits
}

/** The target distribution of a row, or `null` for an ignored one; NaN for a label that is no class. */
function target(labels: HostTensor, row: number, k: number, s: number): ((c: number) => number) | null {
  if (labels.data instanceof Int32Array) {
    const label = labels.data[row]!
    if (label >= k) return () => Number.NaN
    return label < 0 ? null : (c) => (1 - s) * (c === label ? 1 : 0) + s / k
  }
  return (c) => (1 - s) * labels.data[row * k + c]! + s / k
}

function logSumExp(x: HostTensor, row: number, k: number): number {
  let [highest, sum] = [-Infinity, 0]
  for (let c = 0; c < k; c++) highest = Math.max(highest, x.data[row * k + c]!)
  for (let c = 0; c < k; c++) sum += Math.exp(x.data[row * k + c]! - highest)
  return highest + Math.log(sum)
}

export const softmaxCrossEntropyDefinition = defineOp({
  name: 'softmaxCrossEntropy',
  inputs: ['logits', 'labels'],
  outputs: ['loss'],
  infer: (inputs) => [{ shape: [checkSoftmax('softmaxCrossEntropy', inputs, 0).shape[0]!], dtype: 'float32' }],
  gradient: ({ inputs, gradients, attributes }) => [
    emit(softmaxCrossEntropyGradientDefinition, [gradients[0]!, inputs[0]!, inputs[1]!], attributes),
    null,
  ],
  reference({ inputs, outputs, attributes }) {
    const [logits, labels] = [tensorAt(inputs, 0), tensorAt(inputs, 1)]
    const [n, k] = logits.shape as [number, number]
    for (let row = 0; row < n; row++) {
      const q = target(labels, row, k, smoothing(attributes))
      if (!q) continue
      let [expected, total] = [0, 0]
      for (let c = 0; c < k; c++) {
        if (q(c) !== 0) expected += q(c) * logits.data[row * k + c]! // a class masked by −Infinity may have no share
        total += q(c)
      }
      outputs[0]!.data[row] = total * logSumExp(logits, row, k) - expected
    }
  },
})

export const softmaxCrossEntropyGradientDefinition = defineOp({
  name: 'softmaxCrossEntropyGradient',
  inputs: ['dloss', 'logits', 'labels'],
  outputs: ['dlogits'],
  infer(inputs) {
    const logits = checkSoftmax('softmaxCrossEntropyGradient', inputs, 1)
    expectType('softmaxCrossEntropyGradient', 'dloss', inputs[0], { shape: [logits.shape[0]!], dtype: 'float32' }, 'one value per row')
    return [logits]
  },
  reference({ inputs, outputs, attributes }) {
    const [dloss, logits, labels] = [tensorAt(inputs, 0), tensorAt(inputs, 1), tensorAt(inputs, 2)]
    const [n, k] = logits.shape as [number, number]
    for (let row = 0; row < n; row++) {
      const q = target(labels, row, k, smoothing(attributes))
      if (!q) continue
      const norm = logSumExp(logits, row, k)
      let total = 0
      for (let c = 0; c < k; c++) total += q(c)
      for (let c = 0; c < k; c++)
        outputs[0]!.data[row * k + c] = dloss.data[row]! * (total * Math.exp(logits.data[row * k + c]! - norm) - q(c))
    }
  },
})

function checkSigmoid(op: string, inputs: readonly (TensorType | null)[], at: number): TensorType {
  const logits = requiredFloat32(op, inputs, at, 'logits')
  expectType(op, 'targets', required(op, inputs, at + 1, 'targets'), logits, 'like the logits')
  return logits
}

export const sigmoidCrossEntropyDefinition = defineOp({
  name: 'sigmoidCrossEntropy',
  inputs: ['logits', 'targets'],
  outputs: ['loss'],
  infer: (inputs) => [checkSigmoid('sigmoidCrossEntropy', inputs, 0)],
  gradient: ({ inputs, gradients, attributes }) => [
    emit(sigmoidCrossEntropyGradientDefinition, [gradients[0]!, inputs[0]!, inputs[1]!], attributes),
    null,
  ],
  reference({ inputs, outputs, attributes }) {
    const [logits, targets] = [tensorAt(inputs, 0), tensorAt(inputs, 1)]
    const s = smoothing(attributes)
    logits.data.forEach((l, i) => {
      const t = (1 - s) * targets.data[i]! + s / 2
      outputs[0]!.data[i] = Math.max(l, 0) - l * t + Math.log1p(Math.exp(-Math.abs(l)))
    })
  },
})

export const sigmoidCrossEntropyGradientDefinition = defineOp({
  name: 'sigmoidCrossEntropyGradient',
  inputs: ['dloss', 'logits', 'targets'],
  outputs: ['dlogits'],
  infer(inputs) {
    const logits = checkSigmoid('sigmoidCrossEntropyGradient', inputs, 1)
    expectType('sigmoidCrossEntropyGradient', 'dloss', inputs[0], logits, 'like the logits')
    return [logits]
  },
  reference({ inputs, outputs, attributes }) {
    const [dloss, logits, targets] = [tensorAt(inputs, 0), tensorAt(inputs, 1), tensorAt(inputs, 2)]
    const s = smoothing(attributes)
    logits.data.forEach((l, i) => {
      outputs[0]!.data[i] = dloss.data[i]! * (1 / (1 + Math.exp(-l)) - ((1 - s) * targets.data[i]! + s / 2))
    })
  },
})

/** Options of both cross entropies. */
export interface CrossEntropyOptions {
  /** Share of every label spread evenly, in [0, 1). Default 0. */
  readonly labelSmoothing?: number
}

function resolve(op: string, options: CrossEntropyOptions): { labelSmoothing: number } {
  checkOptions(op, options, ['labelSmoothing'])
  const { labelSmoothing = 0 } = options
  if (!(labelSmoothing >= 0 && labelSmoothing < 1))
    throw new SepconvError('ERR_ARGUMENT', `${op}: labelSmoothing must be in [0, 1), got ${labelSmoothing}`, {
      subject: 'labelSmoothing',
      given: labelSmoothing,
    })
  return { labelSmoothing }
}

const widened = (logits: Value): Value => (logits.dtype === 'bfloat16' ? castTo(logits, 'float32') : logits)

/**
 * Cross entropy of a softmax, in nats per row; the mean is the caller's.
 * @param logits [n, classes], float32, or bfloat16, which is widened
 * @param labels int32 [n] (negative: ignored, loss 0; `classes` or more: NaN) or float32 [n, classes], a distribution per row
 * @param options `labelSmoothing` 0 by default
 * @returns [n], float32
 * @throws ERR_SHAPE, ERR_DTYPE; ERR_ARGUMENT for labelSmoothing outside [0, 1) and unknown options
 */
export const softmaxCrossEntropy = operation(
  'softmaxCrossEntropy',
  (logits: Value, labels: Value, options: CrossEntropyOptions = {}): Value =>
    emit(softmaxCrossEntropyDefinition, [widened(logits), labels], resolve('softmaxCrossEntropy', options)),
)

/**
 * Cross entropy of independent sigmoids (multi-label), in nats per element.
 * @param logits any shape, float32, or bfloat16, which is widened
 * @param targets the same shape, float32, from 0 to 1
 * @param options `labelSmoothing` 0 by default
 * @returns the same shape, float32
 * @throws ERR_SHAPE, ERR_DTYPE; ERR_ARGUMENT for labelSmoothing outside [0, 1) and unknown options
 */
export const sigmoidCrossEntropy = operation(
  'sigmoidCrossEntropy',
  (logits: Value, targets: Value, options: CrossEntropyOptions = {}): Value =>
    emit(sigmoidCrossEntropyDefinition, [widened(logits), targets], resolve('sigmoidCrossEntropy', options)),
)
