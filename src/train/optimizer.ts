/**
 * Optimizers as graph builders: the update of all parameters is one multi-tensor op of the step's program (formulas in
 * src/ops/optimizerUpdate.ts). What they keep per parameter are variables under `train.`, so that a checkpoint can hold them.
 */

import { checkChoice, checkOptions, SepconvError } from '../errors.js'
import type { Attributes, Value } from '../graph/graph.js'
import { opDefinition } from '../graph/op.js'
import { emitAll } from '../graph/trace.js'
import { TRAINING_PREFIX, Variable } from '../graph/variable.js'
import { ones, zeros } from '../nn/initializers.js'
import type { Optimizer, ParameterGradient, ParameterValue } from '../runtime/function.js'
import { Companions } from './companions.js'

/** Weight decay as every optimizer here takes it. */
export interface DecayOptions {
  /** Default 0. */
  weightDecay?: number
  /**
   * Which parameters decay: `'filters'` (default) those of two and more axes, not biases and batch norm; `'no-depthwise'` these
   * without depthwise filters, as is usual for MobileNets; `'all'`.
   */
  decays?: 'filters' | 'no-depthwise' | 'all'
}

/** L2 regularisation, for optimizers that add the decay to the gradient. */
export interface L2Options extends DecayOptions {
  /**
   * What weightDecay λ means: `'half'` (default) a loss of λ/2·|w|², gradient λ·w, as PyTorch and TF-slim count; `'full'` λ·|w|²,
   * gradient 2λ·w, as Keras' l2(λ) does. The paper's 1e-5 is `'half'`.
   */
  l2?: 'half' | 'full'
}

/** Options of {@link sgd}. */
export interface SgdOptions extends L2Options {
  /** Learning rate of a step that is given none. Default 0.045, the paper's. */
  rate?: number
  /** Share of the velocity that is kept. Default 0.9. */
  momentum?: number
  /** Nesterov's form: the gradient after the velocity's step. Default false. */
  nesterov?: boolean
}

/** Options of {@link rmsprop}. */
export interface RmspropOptions extends L2Options {
  /** Default 0.001, the paper's for JFT. */
  rate?: number
  /**
   * `'tensorflow'` (default; tf.train.RMSPropOptimizer): mean squares start at 1, ε under the root, rate inside the velocity.
   * `'keras'`: the same from 0. `'pytorch'`: from 0, ε beside the root, rate outside the velocity, so that a drop of the rate acts at once.
   */
  form?: 'tensorflow' | 'keras' | 'pytorch'
  /** Share of the mean square that is kept. Default 0.9 (PyTorch's 0.99). */
  decay?: number
  /** Default 0. */
  momentum?: number
  /** Default that of the form: 1e-10, 1e-7, 1e-8. With 1.0, as Inception V3 was trained, the step is close to SGD's. */
  epsilon?: number
}

/** Options of {@link adamW}. */
export interface AdamWOptions extends DecayOptions {
  /** Default 0.001. */
  rate?: number
  /** Shares of the mean and of the mean square that are kept. Defaults 0.9, 0.999. */
  beta1?: number
  beta2?: number
  /** Beside the root. Default 1e-8. */
  epsilon?: number
}

/** Options of {@link lamb}. */
export interface LambOptions extends AdamWOptions {
  /** Default 1e-6. */
  epsilon?: number
}

/** An optimizer whose state can be kept. */
export interface TrainingOptimizer extends Optimizer {
  /** Its settings, complete, as plain data. */
  readonly options: Readonly<Record<string, unknown>>
  /** Every variable that the next step depends on. */
  state(): Variable[]
}

/** Any optimizer by name, as recipes give it. */
export type OptimizerSettings =
  | ({ kind: 'sgd' } & Omit<SgdOptions, 'rate'>)
  | ({ kind: 'rmsprop' } & Omit<RmspropOptions, 'rate'>)
  | ({ kind: 'adamw' } & Omit<AdamWOptions, 'rate'>)
  | ({ kind: 'lamb' } & Omit<LambOptions, 'rate'>)

/** @throws ERR_ARGUMENT for an unknown kind, options that it does not have, and values out of range. */
export function createOptimizer({ kind, ...options }: OptimizerSettings, rate: number): TrainingOptimizer {
  const make = { sgd, rmsprop, adamw: adamW, lamb }[kind] as ((options: object) => TrainingOptimizer) | undefined
  if (!make)
    throw new SepconvError('ERR_ARGUMENT', `optimizer: kind must be sgd, rmsprop, adamw or lamb, got ${String(kind)}`, {
      subject: 'kind',
      given: kind,
    })
  return make({ ...options, rate })
}

/**
 * Stochastic gradient descent with momentum: v ← momentum·v + g + λ·w; w ← w − rate·v (Nesterov: − rate·(g + momentum·v)).
 * @throws ERR_ARGUMENT for unknown options and values out of range.
 */
export function sgd(options: SgdOptions = {}): TrainingOptimizer {
  checkOptions('sgd', options, ['rate', 'momentum', 'nesterov', ...L2])
  const { rate = 0.045, momentum = 0.9, nesterov = false } = options
  checkRange('sgd', 'rate', rate, positive, 'positive')
  checkRange('sgd', 'momentum', momentum, share, 'in [0, 1)')
  checkChoice('sgd', 'nesterov', nesterov, [true, false])
  const decay = l2Decay('sgd', options)
  const velocities = new Companions('velocity')
  return {
    name: 'sgd',
    rate,
    options: { kind: 'sgd', momentum, nesterov, ...decay.options },
    state: () => velocities.all(),
    update: (call) => multiTensor('sgdUpdate', call, [velocities], [], { momentum, nesterov, weightDecay: call.parameters.map(decay.of) }),
  }
}

/**
 * RMSProp (Hinton 2012) in one of three forms that differ in more than their defaults; see {@link RmspropOptions}.
 * @throws ERR_ARGUMENT for unknown options and values out of range.
 */
export function rmsprop(options: RmspropOptions = {}): TrainingOptimizer {
  checkOptions('rmsprop', options, ['rate', 'form', 'decay', 'momentum', 'epsilon', ...L2])
  const { rate = 0.001, form = 'tensorflow', momentum = 0 } = options
  const defaults = {
    tensorflow: { decay: 0.9, epsilon: 1e-10 },
    keras: { decay: 0.9, epsilon: 1e-7 },
    pytorch: { decay: 0.99, epsilon: 1e-8 },
  }
  if (!Object.hasOwn(defaults, form))
    throw new SepconvError('ERR_ARGUMENT', `rmsprop: form must be tensorflow, keras or pytorch, got ${String(form)}`, {
      subject: 'form',
      given: form,
    })
  const { decay = defaults[form].decay, epsilon = defaults[form].epsilon } = options
  checkRange('rmsprop', 'rate', rate, positive, 'positive')
  checkRange('rmsprop', 'decay', decay, share, 'in [0, 1)')
  checkRange('rmsprop', 'momentum', momentum, share, 'in [0, 1)')
  checkRange('rmsprop', 'epsilon', epsilon, positive, 'positive')
  const l2 = l2Decay('rmsprop', options)
  const squares = new Companions('meanSquare', form === 'tensorflow' ? ones : zeros)
  const velocities = new Companions('velocity')
  return {
    name: 'rmsprop',
    rate,
    options: { kind: 'rmsprop', form, decay, momentum, epsilon, ...l2.options },
    state: () => [...squares.all(), ...velocities.all()],
    update: (call) =>
      multiTensor('rmspropUpdate', call, [squares, velocities], [], {
        ...{ form, decay, momentum, epsilon },
        weightDecay: call.parameters.map(l2.of),
      }),
  }
}

/**
 * Adam with decoupled weight decay (Loshchilov and Hutter 2019): the decay is rate·weightDecay·w, not scaled by the second moment.
 * @throws ERR_ARGUMENT for unknown options and values out of range.
 */
export const adamW = (options: AdamWOptions = {}): TrainingOptimizer => adam('adamw', { epsilon: 1e-8, ...options }, false)

/**
 * AdamW whose step on each decaying parameter is scaled by |w| / |step| (You et al. 2020), for large batches.
 * @throws ERR_ARGUMENT for unknown options and values out of range.
 */
export const lamb = (options: LambOptions = {}): TrainingOptimizer => adam('lamb', { epsilon: 1e-6, ...options }, true)

function adam(kind: 'adamw' | 'lamb', options: AdamWOptions, layerwise: boolean): TrainingOptimizer {
  checkOptions(kind, options, ['rate', 'beta1', 'beta2', 'epsilon', ...DECAY])
  const { rate = 0.001, beta1 = 0.9, beta2 = 0.999, epsilon = 1e-8 } = options
  checkRange(kind, 'rate', rate, positive, 'positive')
  checkRange(kind, 'beta1', beta1, share, 'in [0, 1)')
  checkRange(kind, 'beta2', beta2, share, 'in [0, 1)')
  checkRange(kind, 'epsilon', epsilon, positive, 'positive')
  const decay = decayOf(kind, options, 1)
  const means = new Companions('mean')
  const squares = new Companions('meanSquare')
  /** Updates done, for the bias correction; float32 stops counting at 2^24, where the correction has long been 1. */
  const count = new Variable(`${TRAINING_PREFIX}updates`, { shape: [], dtype: 'float32' }, zeros, { trainable: false })
  return {
    name: kind,
    rate,
    options: { kind, beta1, beta2, epsilon, ...decay.options },
    state: () => [count, ...means.all(), ...squares.all()],
    update: (call) =>
      multiTensor('adamUpdate', call, [means, squares], [count], {
        ...{ beta1, beta2, epsilon },
        weightDecay: call.parameters.map(decay.of),
        // What does not decay (biases, batch norm) steps as Adam does: a norm over a handful of values says little.
        trust: call.parameters.map(({ variable }) => (layerwise && decay.applies(variable) ? 1 : 0)),
      }),
  }
}

/** Emits an update op on (rate, flag, scale, ...scalars, ...(parameter, ...slots, gradient)) and sets state to what it gives. */
function multiTensor(
  op: string,
  { graph, rate, flag, scale, parameters }: Parameters<Optimizer['update']>[0],
  slots: readonly Companions[],
  scalars: readonly Variable[],
  attributes: Attributes,
): ParameterValue[] {
  const groups = parameters.map(({ variable }) => [variable, ...slots.map((slot) => slot.of(variable))])
  const inputs = parameters.flatMap(({ gradient }, i) => [...groups[i]!.map((variable) => graph.state(variable)), gradient])
  const updated = [...scalars, ...groups.flat()]
  const outputs = emitAll(
    opDefinition(op),
    [rate, flag, scale, ...scalars.map((scalar): Value => graph.state(scalar)), ...inputs],
    attributes,
  )
  updated.forEach((variable, i) => graph.update(variable, outputs[i]!))
  return parameters.map(({ variable }, i) => ({ variable, value: outputs[scalars.length + i * (slots.length + 1)]! }))
}

const DECAY = ['weightDecay', 'decays']
const L2 = [...DECAY, 'l2']
const positive = (x: number) => x > 0
const share = (x: number) => x >= 0 && x < 1

function l2Decay(subject: string, options: L2Options) {
  const { l2 = 'half' } = options
  checkChoice(subject, 'l2', l2, ['half', 'full'])
  const decay = decayOf(subject, options, l2 === 'full' ? 2 : 1)
  return { ...decay, options: { ...decay.options, l2 } }
}

function decayOf(subject: string, { weightDecay = 0, decays = 'filters' }: DecayOptions, factor: number) {
  checkRange(subject, 'weightDecay', weightDecay, (x) => x >= 0, 'at least 0')
  checkChoice(subject, 'decays', decays, ['filters', 'no-depthwise', 'all'])
  const applies = ({ name, type }: Variable) =>
    decays === 'all' || (type.shape.length > 1 && !(decays === 'no-depthwise' && /(^|\.)depthwise$/.test(name)))
  return {
    applies,
    options: { weightDecay, decays },
    of: ({ variable }: ParameterGradient) => (applies(variable) ? weightDecay * factor : 0),
  }
}

export function checkRange(subject: string, name: string, value: number, ok: (x: number) => boolean, expected: string): void {
  if (typeof value !== 'number' || !Number.isFinite(value) || !ok(value))
    throw new SepconvError('ERR_ARGUMENT', `${subject}: ${name} must be a finite number, ${expected}, got ${String(value)}`, {
      subject: name,
      expected,
      given: value,
    })
}
