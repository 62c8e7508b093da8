/**
 * Compiled functions: ordinary TypeScript on values becomes one program per signature (shapes, dtypes, form of the arguments),
 * kept in a bounded cache. With an optimizer, forward pass, loss, backward pass and update are one program and one native call.
 */

import { checkOptions, SepconvError } from '../errors.js'
import type { Compiled } from '../graph/compile.js'
import { differentiate } from '../graph/differentiate.js'
import type { Graph, Value } from '../graph/graph.js'
import { opDefinition } from '../graph/op.js'
import { checkPrecision } from '../graph/passes/storage.js'
import type { Precision } from '../graph/precision.js'
import type { Target } from '../graph/target.js'
import { emit, type Lifted, registerEager } from '../graph/trace.js'
import { formatType, type TensorType } from '../graph/types.js'
import type { Variable } from '../graph/variable.js'
import type { DeviceName } from './device.js'
import { runEager } from './eager.js'
import type { Executable } from './executable.js'
import type { Executor, RunOptions } from './executor.js'
import type { Program } from './program.js'
import { Specializer } from './specializer.js'
import { releaseState } from './state.js'
import { flatten, isTensorLeaf, isValue, type Structure, unflatten } from './structure.js'
import { type Tensor, upload } from './tensor.js'
import {
  accumulate,
  checkRanks,
  gradientScale,
  meanOf,
  overRanks,
  runningValues,
  shareOf,
  updateAverages,
  updateWeightAverage,
} from './update.js'

/** How an optimizer changes parameters; see src/train/optimizer.ts for the ones that ship. */
export interface Optimizer {
  readonly name: string
  /** The rate used by `step.run` when none is given. */
  readonly rate: number
  /** Emits the update of all parameters: reads `rate` (scalar), does nothing where `flag` is 0, multiplies gradients by `scale`. */
  update(call: {
    readonly graph: Graph
    readonly rate: Value
    readonly flag: Value
    readonly scale: Value
    readonly parameters: readonly ParameterGradient[]
  }): ParameterValue[]
}
/** A parameter and the gradient of the loss with respect to it. */
export interface ParameterGradient {
  readonly variable: Variable
  readonly gradient: Value
}
/** A parameter's new value after the update. */
export interface ParameterValue {
  readonly variable: Variable
  readonly value: Value
}

/** A second copy of every parameter that follows the first slowly, for evaluation (Polyak and Juditsky 1992). */
export interface WeightAverage {
  /** The averaged copy of a variable. */
  variable(of: Variable): Variable
}

/** Options of {@link compile} for functions and training steps. */
export interface CompileOptions {
  /** Default `'auto'`; tensors passed in must be on this device. */
  device?: DeviceName
  /** Most bytes of scratch memory; values that are cheap to compute again are then recomputed. Default: no limit. */
  memoryLimit?: number
  /** Off: no fusion, one call per op. Default on. */
  optimise?: boolean
  /**
   * What feature maps and the filters that meet them are stored in: with `'bfloat16'` half the bytes, and products at twice the rate where
   * the processor multiplies pairs. `'tf32'` stores float32 and multiplies on a GPU's tensor cores, operands rounded to 10 bits of mantissa.
   * Sums, parameters, statistics, losses and outputs stay float32. Default `'float32'`, products exact.
   * @throws ERR_DEVICE when traced for a device that does not take it.
   */
  precision?: Precision
  /**
   * Off: every product is the plain sum over k. On: large float32 products on the `cpu` device may be computed by one level of Strassen's
   * algorithm, an eighth fewer multiplications with an error a few times as large as that of a float32 sum (docs/kernels.md). Default on.
   */
  fastProducts?: boolean
  /** Layers behave as in training (batch statistics, dropout). Default: whether `train` is given. */
  training?: boolean
  /** Reads another variable in place of one, such as its average. */
  substitute?: (variable: Variable) => Variable
}

const COMPILE_OPTIONS = [
  'device',
  'memoryLimit',
  'optimise',
  'precision',
  'fastProducts',
  'training',
  'substitute',
  'train',
  'average',
  'clipNorm',
  'accumulate',
  'rateOf',
  'ranks',
  'seed',
]

/** How a training step shares its work with the other ranks of a job. */
export interface RankOptions {
  /** How many there are: the communicator's size. */
  size: number
  /** `'local'`: batch norm takes the statistics of the rank's own rows; `'synchronised'`: of all ranks' rows. Default `'local'`. */
  batchNorm?: 'local' | 'synchronised'
  /**
   * Gradients are summed in buckets of about so many bytes, each while the backward pass goes on. Default 512 KiB. Given for a single rank,
   * that one goes through the exchange too, which shows what it costs.
   */
  bucketBytes?: number
}

/** Options of {@link compile} that make a training step. */
export interface TrainOptions extends CompileOptions {
  /** The optimizer that the step applies to every trainable variable that the loss depends on. */
  train: Optimizer
  /** An average of the weights kept beside them; its decay is an argument of each run. */
  average?: WeightAverage
  /** Gradients are scaled down so that their global norm is at most this. Default: no limit. */
  clipNorm?: number
  /** Runs per update: gradients are averaged over so many runs, the last of which updates the parameters. Default 1. */
  accumulate?: number
  /** A factor of the learning rate for each variable. Default 1. */
  rateOf?: (variable: Variable) => number
  /** One rank of a data parallel job: losses and gradients are means over all ranks. Every rank runs the same steps. Default: alone. */
  ranks?: RankOptions
  /** What the random generator of the step's layers (dropout) is keyed with; a whole number of at least 0. Default 0. */
  seed?: number
}

/** What changes from step to step without a new program. */
export interface StepOptions extends RunOptions {
  /** Learning rate of this step. Default: the optimizer's. */
  rate?: number
  /** Global index of the batch's first sample, which the random generator is keyed with. Default: counts up by itself. */
  sample?: number
  /** Decay of the weight average at this step. Default 0.999. */
  decay?: number
  /** Which of the `accumulate` runs this is, from 0. Default: counts up by itself. */
  part?: number
}

/** A compiled function of tensors; one program per signature of its arguments. */
export interface CompiledFunction<A extends readonly unknown[], R> {
  /** The same as `run`. */
  (...args: A): Promise<R>
  /** Runs on the device and resolves when the result is complete; the event loop stays free. */
  run(...args: A): Promise<R>
  /** {@link run} on the calling thread. */
  runSync(...args: A): R
  /** The program for these arguments; nothing runs. */
  program(...args: A): Program
  /** The executable behind these arguments: for profiles and verification. */
  executable(...args: A): Executable
  /** Drops every compiled program. */
  dispose(): void
}

/** A compiled training step: forward, loss, backward and update in one native call. */
export interface TrainStep<B, R> {
  /** One step: outputs of the function, and `finite` (1, or 0 when a loss or gradient was not and nothing was changed). */
  run(batch: B, options?: StepOptions): Promise<R & { loss: Tensor; finite: Tensor }>
  /** Every trainable variable that the loss depends on; known after the first run or `executable()`. */
  readonly parameters: readonly Variable[]
  /** The executable behind a batch of this form: for profiles and verification. */
  executable(batch: B): Executable
  /** What the step compiles to for a target, present or not; nothing is loaded: for counting and tuning. */
  plan(batch: B, target: Target): Compiled
  /** Drops every compiled program; parameters and slots stay. */
  dispose(): void
}

type Inputs<A extends readonly unknown[]> = { [K in keyof A]: Lifted<A[K]> }

/**
 * Compiles a function of values, or a whole training step.
 *
 * `compile(f)` gives an asynchronous function on tensors. `compile(f, { train: sgd({ rate }) })` gives a step: `f` takes one
 * batch (a structure of values) and returns the loss (scalar, or per sample, then averaged), alone or as `{ loss, … }`.
 * @throws whatever `f` throws when it is traced, with the layer's name: ERR_SHAPE, ERR_DTYPE, ERR_ARGUMENT.
 * @example const f = compile((x) => relu(x)); const y = await f(x)
 */
// The narrower forms stand first, so that parameters without a type are values.
export function compile<B extends Readonly<Record<string, Value>>, R extends Value | ({ loss: Value } & Record<string, Structure>)>(
  fn: (batch: B) => R,
  options: TrainOptions,
): TrainStep<Lifted<B>, R extends Value ? unknown : Lifted<R>>
export function compile<B extends Structure, R extends Value | ({ loss: Value } & Record<string, Structure>)>(
  fn: (batch: B) => R,
  options: TrainOptions,
): TrainStep<Lifted<B>, R extends Value ? unknown : Lifted<R>>
export function compile<A extends readonly Value[], R extends Structure>(
  fn: (...args: A) => R,
  options?: CompileOptions,
): CompiledFunction<Inputs<A>, Lifted<R>>
export function compile<A extends readonly Structure[], R extends Structure>(
  fn: (...args: A) => R,
  options?: CompileOptions,
): CompiledFunction<Inputs<A>, Lifted<R>>
export function compile(fn: (...args: never[]) => Structure, options: CompileOptions | TrainOptions = {}): unknown {
  checkOptions('compile', options, COMPILE_OPTIONS)
  if (typeof fn !== 'function')
    throw new SepconvError('ERR_ARGUMENT', 'compile: expected a function of values', { subject: 'compile', given: typeof fn })
  for (const name of ['memoryLimit', 'clipNorm'] as const) {
    const value = (options as Partial<TrainOptions>)[name]
    if (value !== undefined && !(Number.isFinite(value) && value > 0))
      throw new SepconvError('ERR_ARGUMENT', `compile: ${name} must be a positive number, got ${String(value)}`, {
        subject: name,
        given: value,
      })
  }
  checkPrecision('compile', options.precision)
  return 'train' in options && options.train ? trainStep(fn as (batch: never) => Structure, options) : compiledFunction(fn, options)
}

function compiledFunction(fn: (...args: never[]) => Structure, options: CompileOptions): CompiledFunction<readonly unknown[], unknown> {
  const specializer = new Specializer(options, (_graph, { averages }, args) => {
    const result = fn(...(args as never[]))
    averages.length = 0
    return result
  })
  const run = async (...args: readonly unknown[]) => {
    const executable = specializer.specialize(args)
    return specializer.structure(executable, await executable.run(flatten(args, isTensorLeaf).map(({ leaf }) => leaf)))
  }
  const runSync = (...args: readonly unknown[]) => {
    const executable = specializer.specialize(args)
    return specializer.structure(executable, executable.runSync(flatten(args, isTensorLeaf).map(({ leaf }) => leaf)))
  }
  const executable = (...args: readonly unknown[]) => specializer.specialize(args)
  return Object.assign(run, {
    run,
    runSync,
    executable,
    program: (...args: readonly unknown[]) => executable(...args).program,
    dispose: () => specializer.cache.clear(),
  })
}

function trainStep(fn: (batch: never) => Structure, options: CompileOptions & Partial<TrainOptions>): TrainStep<unknown, unknown> {
  const optimizer = options.train!
  const partCount = options.accumulate ?? 1
  if (!Number.isInteger(partCount) || partCount < 1)
    throw new SepconvError('ERR_ARGUMENT', `compile: accumulate must be a whole number of at least 1, got ${partCount}`, {
      subject: 'accumulate',
      given: partCount,
    })
  const seed = keyOf(options.seed ?? 0)
  let trainable: readonly Variable[] = []
  const means = new Map<Variable, Variable>()
  const ranks = checkRanks(options.ranks)
  const specializer = new Specializer({ training: true, ...options }, (graph, context, [batch]) => {
    const { user, rate, decay, sample, part, apply } = batch as { user: never } & Record<
      'rate' | 'decay' | 'sample' | 'part' | 'apply',
      Value
    >
    Object.assign(context, {
      random: { counter: sample, seed, streams: 0 },
      ...(ranks.batchNorm === 'synchronised' && { synchronise: ranks.size }),
    })
    const result = fn(user)
    const outputs = (isValue(result) ? { loss: result } : { ...result }) as Record<string, Structure>
    // Each rank's share of the mean over all ranks: so are then the gradients of it.
    const own = shareOf(meanOf(outputs.loss), ranks.size)
    const trained = graph.nodes.flatMap(({ variable, outputs: [value] }) => (variable?.trainable ? [{ variable, value: value! }] : []))
    const gradients = differentiate(
      graph,
      own,
      trained.map(({ value }) => value),
    )
    const computed = trained.flatMap(({ variable }, i) => (gradients[i] ? [{ variable, gradient: gradients[i] }] : []))
    const { loss, pairs, averages } = overRanks(own, computed, context.averages, ranks)
    if (pairs.length === 0)
      throw new SepconvError('ERR_ARGUMENT', 'compile: the loss depends on no trainable variable', {
        hint: 'Call at least one layer, and freeze not everything',
      })
    trainable = pairs.map(({ variable }) => variable)
    const flag = emit(opDefinition('allFinite'), [loss, ...pairs.map(({ gradient }) => gradient)])
    updateAverages(graph, flag, averages)
    const { gradients: parameters, flag: due } =
      partCount > 1 ? accumulate(graph, flag, part, apply, pairs, means) : { gradients: pairs, flag }
    const scale = gradientScale(graph, parameters, options.clipNorm)
    const updated = byFactor(parameters, options.rateOf).flatMap(([factor, group]) =>
      optimizer.update({ graph, rate: factor === 1 ? rate : multiplied(rate, factor), flag: due, scale, parameters: group }),
    )
    if (options.average) updateWeightAverage(graph, due, decay, options.average, [...updated, ...runningValues(graph, context)])
    return { ...outputs, loss, finite: flag }
  })
  const scalars = new StepScalars(() => specializer.executor)
  let samples = 0
  let runs = 0
  const inputs = (batch: unknown, step: StepOptions) => {
    const count = flatten(batch, isTensorLeaf)[0]?.leaf.shape[0] ?? 1
    const sample = step.sample ?? samples
    samples = sample + count
    const at = step.part ?? runs++ % partCount
    return {
      user: batch,
      rate: scalars.set('rate', step.rate ?? optimizer.rate),
      decay: scalars.set('decay', step.decay ?? 0.999),
      sample: scalars.set('sample', sample | 0, Math.floor(sample / 2 ** 32)),
      ...(partCount > 1 && { part: scalars.set('part', at / (at + 1)), apply: scalars.set('apply', at === partCount - 1 ? 1 : 0) }),
    }
  }
  return {
    get parameters() {
      return trainable
    },
    async run(batch, step = {}) {
      checkOptions('step.run', step, ['rate', 'sample', 'decay', 'part', 'signal'])
      for (const [name, value] of Object.entries({ rate: step.rate, decay: step.decay, sample: step.sample }))
        if (value !== undefined && !Number.isFinite(value))
          throw new SepconvError('ERR_ARGUMENT', `step.run: ${name} must be a finite number, got ${value}`, { subject: name, given: value })
      const args = inputs(batch, step)
      const executable = specializer.specialize([args])
      const leaves = flatten([args], isTensorLeaf).map(({ leaf }) => leaf)
      return specializer.structure(executable, await executable.run(leaves, step)) as { loss: Tensor; finite: Tensor }
    },
    executable: (batch) => specializer.specialize([inputs(batch, { sample: 0, part: 0 })]),
    plan: (batch, target) => specializer.plan([inputs(batch, { sample: 0, part: 0 })], target),
    dispose() {
      specializer.cache.clear()
      scalars.dispose()
      for (const mean of means.values()) releaseState(mean)
    },
  }
}

/**
 * What changes from step to step, in tensors that every run reads: a write is ordered after the runs before it and before those to
 * come. Made anew for each run they would cost a third of a small step's JavaScript.
 */
class StepScalars {
  readonly #tensors = new Map<string, { readonly tensor: Tensor; readonly data: Float32Array | Int32Array; readonly bytes: Uint8Array }>()

  constructor(private readonly executor: () => Executor) {}

  /** A scalar, float32; with `high` a counter's two words, int32. */
  set(name: string, value: number, high?: number): Tensor {
    let entry = this.#tensors.get(name)
    if (!entry || entry.tensor.disposed) {
      const data = high === undefined ? new Float32Array(1) : new Int32Array(2)
      const type: TensorType = high === undefined ? { shape: [], dtype: 'float32' } : { shape: [2], dtype: 'int32' }
      entry = { tensor: upload(this.executor(), type, data), data, bytes: new Uint8Array(data.buffer) }
      this.#tensors.set(name, entry)
    }
    const { tensor, data, bytes } = entry
    data[0] = value
    if (high !== undefined) data[1] = high
    const { memory, offset } = tensor.binding
    memory.executor.write(memory, offset, bytes)
    return tensor
  }

  dispose(): void {
    for (const { tensor } of this.#tensors.values()) tensor.dispose()
    this.#tensors.clear()
  }
}

/** A seed of up to 53 bits in the 32 that the generator's key has room for. @throws ERR_ARGUMENT for anything else. */
export function keyOf(seed: number): number {
  if (!Number.isSafeInteger(seed) || seed < 0)
    throw new SepconvError('ERR_ARGUMENT', `compile: seed must be a whole number of at least 0, got ${String(seed)}`, {
      subject: 'seed',
      given: seed,
    })
  return (seed ^ Math.imul(Math.floor(seed / 2 ** 32), 0x9e3779b9)) >>> 0
}

/** Parameters that share a factor of the learning rate are updated in one call. */
export function byFactor(pairs: readonly ParameterGradient[], rateOf: TrainOptions['rateOf'] = () => 1): [number, ParameterGradient[]][] {
  const groups = new Map<number, ParameterGradient[]>()
  for (const pair of pairs) {
    const factor = rateOf(pair.variable)
    groups.set(factor, [...(groups.get(factor) ?? []), pair])
  }
  return [...groups]
}

export const multiplied = (rate: Value, factor: number): Value =>
  emit(opDefinition('binary'), [rate, rate.graph.constant({ shape: [], dtype: 'float32' }, Float32Array.of(factor))], {
    function: 'multiply',
  })

/** Options of {@link valueAndGrad}. */
export interface ValueAndGradOptions extends CompileOptions {
  /** Variables whose gradients are wanted too, by name in the result's `variables`. */
  variables?: readonly Variable[]
}

type GradientFunction<A extends readonly unknown[]> = CompiledFunction<
  Inputs<A>,
  { value: Tensor; gradients: Inputs<A>; variables: Record<string, Tensor> }
>

/**
 * The value of a scalar function together with its gradients, without the trainer.
 * @param fn takes values, returns a float32 scalar.
 * @returns an asynchronous function of tensors giving `{ value, gradients, variables }`: one gradient per argument (with the
 *   argument's own structure) and one per variable asked for, by name. Where the value does not depend on one, it is zero.
 * @throws ERR_SHAPE when the result is no scalar; ERR_DTYPE when an argument is not float32.
 * @example const { value, gradients: [dx] } = await valueAndGrad((x) => sum(square(x)))(x)
 */
export function valueAndGrad<A extends readonly Value[]>(fn: (...args: A) => Value, options?: ValueAndGradOptions): GradientFunction<A>
export function valueAndGrad<A extends readonly Structure[]>(fn: (...args: A) => Value, options?: ValueAndGradOptions): GradientFunction<A>
export function valueAndGrad<A extends readonly Structure[]>(
  fn: (...args: A) => Value,
  options: ValueAndGradOptions = {},
): GradientFunction<A> {
  const { variables = [], ...rest } = options
  checkOptions('valueAndGrad', rest, COMPILE_OPTIONS)
  checkPrecision('valueAndGrad', rest.precision)
  return compiledFunction((...args: never[]) => {
    const value = fn(...(args as unknown as A))
    const leaves = flatten(args, isValue).map(({ leaf }) => leaf)
    for (const leaf of leaves)
      if (leaf.dtype !== 'float32')
        throw new SepconvError('ERR_DTYPE', `valueAndGrad: arguments must be float32, got ${formatType(leaf.type)}`, {
          hint: 'Close over integer data with compile(), or cast inside',
        })
    const sources = [...leaves, ...variables.map((variable) => value.graph.state(variable))]
    const gradients = differentiate(value.graph, value, sources).map((gradient, i) => gradient ?? zeros(value.graph, sources[i]!))
    return {
      value,
      gradients: unflatten(args, isValue, gradients.values()) as Structure,
      variables: Object.fromEntries(variables.map(({ name }, i) => [name, gradients[leaves.length + i]!])),
    }
  }, rest) as never
}

function zeros(graph: Graph, like: Value): Value {
  const zero = graph.constant({ shape: [], dtype: 'float32' }, Float32Array.of(0))
  return emit(opDefinition('broadcastTo'), [zero], { shape: like.shape })
}

// Here, for whoever makes tensors of a device has this module, and bundlers drop modules that nobody takes a name from.
registerEager(runEager)
