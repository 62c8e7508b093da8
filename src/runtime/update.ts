/** What the end of a training step's graph is made of, besides the optimizer: accumulation, clipping, averages. */

import { checkChoice, checkOptions, SepconvError } from '../errors.js'
import type { Graph, Value } from '../graph/graph.js'
import { opDefinition } from '../graph/op.js'
import { emit, emitAll, scalar, type TraceContext } from '../graph/trace.js'
import { Variable } from '../graph/variable.js'
import { allReduce, BUCKET_BYTES } from '../ops/allReduce.js'
import type { ParameterGradient, ParameterValue, RankOptions, WeightAverage } from './function.js'
import { isValue, type Structure } from './structure.js'

export function meanOf(loss: Structure | undefined): Value {
  if (!isValue(loss))
    throw new SepconvError('ERR_ARGUMENT', 'compile: a training function must return its loss, alone or as { loss, … }', {
      subject: 'loss',
    })
  return loss.shape.length === 0
    ? loss
    : emit(opDefinition('reduce'), [loss], { function: 'mean', axes: loss.shape.map((_, i) => i), keepDims: false })
}

/** @throws ERR_ARGUMENT */
export function checkRanks(given: RankOptions | undefined): Ranks {
  checkOptions('compile', given, ['size', 'batchNorm', 'bucketBytes'])
  const { size = 1, batchNorm = 'local', bucketBytes = BUCKET_BYTES } = given ?? {}
  checkChoice('compile', 'ranks.batchNorm', batchNorm, ['local', 'synchronised'])
  for (const [name, value] of Object.entries({ size, bucketBytes }))
    if (!Number.isSafeInteger(value) || value < 1)
      throw new SepconvError('ERR_ARGUMENT', `compile: ranks.${name} must be a whole number of at least 1, got ${value}`, {
        subject: `ranks.${name}`,
        given: value,
      })
  return { size, batchNorm: size > 1 ? batchNorm : 'local', bucketBytes, exchanges: size > 1 || given?.bucketBytes !== undefined }
}

/** Complete, and whether there is something to exchange. */
export type Ranks = Required<RankOptions> & { readonly exchanges: boolean }

/** The part that one rank's mean contributes to the mean over all of them. */
export const shareOf = (loss: Value, ranks: number): Value =>
  ranks === 1 ? loss : emit(opDefinition('binary'), [loss, scalar(loss, 1 / ranks)], { function: 'multiply' })

/**
 * Loss, gradients and, where batch norm is local, the statistics that running averages follow, as means over all ranks; so averages stay
 * the same on every rank. One reduction carries all of it.
 */
export function overRanks(
  loss: Value,
  pairs: readonly ParameterGradient[],
  averages: TraceContext['averages'],
  { size, batchNorm, bucketBytes, exchanges }: Ranks,
): { loss: Value; pairs: readonly ParameterGradient[]; averages: TraceContext['averages'] } {
  if (!exchanges || pairs.length === 0) return { loss, pairs, averages }
  const local = batchNorm === 'local' ? averages : []
  const sums = allReduce([loss, ...pairs.map(({ gradient }) => gradient), ...local.map(({ value }) => value)], size, bucketBytes)
  const statistics = sums.slice(1 + pairs.length)
  return {
    loss: sums[0]!,
    pairs: pairs.map(({ variable }, i) => ({ variable, gradient: sums[1 + i]! })),
    averages: local.length > 0 ? local.map((entry, i) => ({ ...entry, value: statistics[i]!, factor: entry.factor / size })) : averages,
  }
}

/** 1, or clipNorm / norm where the global norm of the gradients exceeds it. */
export function gradientScale(graph: Graph, pairs: readonly ParameterGradient[], clipNorm: number | undefined): Value {
  const constant = (x: number) => graph.constant({ shape: [], dtype: 'float32' }, Float32Array.of(x))
  if (clipNorm === undefined) return constant(1)
  const norm = emit(
    opDefinition('globalNorm'),
    pairs.map(({ gradient }) => gradient),
  )
  const binary = (name: string, a: Value, b: Value) => emit(opDefinition('binary'), [a, b], { function: name })
  return binary('divide', constant(clipNorm), binary('maximum', norm, constant(clipNorm)))
}

/** Running statistics of layers: all that share a momentum in one call. */
export function updateAverages(graph: Graph, flag: Value, averages: TraceContext['averages']): void {
  for (const momentum of new Set(averages.map((entry) => entry.momentum))) {
    const group = averages.filter((entry) => entry.momentum === momentum)
    const decay = graph.constant({ shape: [], dtype: 'float32' }, Float32Array.of(momentum))
    const outputs = emitAll(
      opDefinition('averageUpdate'),
      [decay, flag, ...group.flatMap(({ variable, value }) => [graph.state(variable), value])],
      { factor: group.map(({ factor }) => factor) },
    )
    group.forEach(({ variable }, i) => graph.update(variable, outputs[i]!))
  }
}

export const runningValues = (graph: Graph, { averages }: TraceContext): ParameterValue[] =>
  averages.map(({ variable }) => ({ variable, value: graph.updates.find((update) => update.variable === variable)!.value }))

export function updateWeightAverage(
  graph: Graph,
  flag: Value,
  decay: Value,
  average: WeightAverage,
  values: readonly ParameterValue[],
): void {
  const averaged = values.map(({ variable }) => average.variable(variable))
  const outputs = emitAll(
    opDefinition('averageUpdate'),
    [decay, flag, ...values.flatMap(({ value }, i) => [graph.state(averaged[i]!), value])],
    { factor: values.map(() => 1) },
  )
  averaged.forEach((variable, i) => graph.update(variable, outputs[i]!))
}

const ZEROS = { name: 'zeros', fill: (data: Float32Array) => void data.fill(0) }

/**
 * Means of gradients over several runs, kept in variables: mean ← part·mean + (1 − part)·gradient, with part = i / (i + 1) at run i,
 * which forgets the update before at i = 0.
 * @param apply 1 at the last run, else 0.
 * @param kept the means by parameter, shared by all programs of a step.
 * @returns the means as gradients, and the flag that lets the optimizer update.
 */
export function accumulate(
  graph: Graph,
  flag: Value,
  part: Value,
  apply: Value,
  gradients: readonly ParameterGradient[],
  kept: Map<Variable, Variable>,
): { gradients: ParameterGradient[]; flag: Value } {
  const means = gradients.map(({ variable }) => {
    const mean = kept.get(variable) ?? new Variable(`train.gradient.${variable.name}`, variable.type, ZEROS, { trainable: false })
    kept.set(variable, mean)
    return mean
  })
  const outputs = emitAll(
    opDefinition('averageUpdate'),
    [part, flag, ...gradients.flatMap(({ gradient }, i) => [graph.state(means[i]!), gradient])],
    { factor: gradients.map(() => 1) },
  )
  means.forEach((mean, i) => graph.update(mean, outputs[i]!))
  return {
    gradients: gradients.map(({ variable }, i) => ({ variable, gradient: outputs[i]! })),
    flag: emit(opDefinition('binary'), [flag, apply], { function: 'multiply' }),
  }
}
