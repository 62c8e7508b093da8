/**
 * Tracing: running ordinary TypeScript on symbolic values so that it leaves a graph behind. `operation` makes a public op out
 * of a function that emits nodes; the same function then serves traced values (at once) and real tensors (as a one-op program
 * that the runtime compiles once per signature).
 */

import { SepconvError } from '../errors.js'
import type { Tensor } from '../runtime/tensor.js'
import { type Attributes, Graph, Value } from './graph.js'
import type { OpDefinition } from './op.js'
import type { TensorType } from './types.js'
import type { Variable } from './variable.js'

/** Where a training step's random numbers come from: they are a function of (seed, stream, sample, element). */
export interface RandomSource {
  /** int32 [2], low and high word: the global index of the batch's first sample. */
  readonly counter: Value
  /** 32 bits; the run's. */
  readonly seed: number
  /** Streams given out in this trace so far: layers that draw take the next, in the order in which they are called. */
  streams: number
}

/** What a trace is for, beside its graph. */
export interface TraceContext {
  readonly graph: Graph
  /** Whether layers behave as in training (batch statistics, dropout). */
  readonly training: boolean
  /** What layers draw random numbers from; in training steps only. */
  readonly random?: RandomSource
  /** Ranks over whose rows batch norm takes its statistics; absent: this one's own. */
  readonly synchronise?: number
  /** Reads another variable in place of one (averaged weights in evaluation). */
  readonly substitute?: (variable: Variable) => Variable
  /** Logits of auxiliary towers that the loss takes in, each with its weight; filled in training only. */
  readonly auxiliary: { readonly logits: Value; readonly weight: number }[]
  /** Running averages to be updated at the end of a training step: average ← momentum·average + (1 − momentum)·value·factor. */
  readonly averages: { readonly variable: Variable; readonly value: Value; readonly momentum: number; readonly factor: number }[]
}

let current: TraceContext | undefined

/** The trace that is under way; layers read their variables through it. */
export function currentTrace(): TraceContext {
  if (!current)
    throw new SepconvError('ERR_ARGUMENT', 'a layer was called outside a trace', {
      hint: 'Call layers inside compile(), valueAndGrad() or another layer',
    })
  return current
}

/** The value of a variable in the trace that is under way. */
export function read(variable: Variable): Value {
  const { graph, substitute } = currentTrace()
  return graph.state(substitute ? substitute(variable) : variable)
}

/** Runs `body` inside a named scope of the trace. */
export const scoped = <T>(name: string, body: () => T): T => (current ? current.graph.inScope(name, body) : body())

export type TraceOptions = Partial<Omit<TraceContext, 'graph' | 'averages' | 'auxiliary' | 'random'>>

/** Builds a graph: `body` adds inputs, calls ops and layers, and names the outputs. */
export function trace(body: (graph: Graph, context: TraceContext) => void, options: TraceOptions = {}): Graph {
  const graph = new Graph()
  within({ training: false, ...options, graph, averages: [], auxiliary: [] }, () => body(graph, current!))
  return graph
}

/** Runs `body` with another context, for gradients and passes that emit into an existing graph. */
export function within<T>(context: TraceContext, body: () => T): T {
  const outer = current
  current = context
  try {
    return body()
  } finally {
    current = outer
  }
}

/** Appends an op with one output. The graph is that of the first present input. */
export function emit(definition: OpDefinition, inputs: readonly (Value | null)[], attributes: Attributes = {}): Value {
  return emitAll(definition, inputs, attributes)[0]!
}

/** Appends an op and returns all its outputs. */
export function emitAll(definition: OpDefinition, inputs: readonly (Value | null)[], attributes: Attributes = {}): readonly Value[] {
  const graph = inputs.find((input) => input !== null)?.graph ?? currentTrace().graph
  return graph.emit(definition, inputs, attributes)
}

/** A float32 scalar as a value of the graph that `like` belongs to. */
export const scalar = (like: Value, value: number): Value => like.graph.constant({ shape: [], dtype: 'float32' }, Float32Array.of(value))

/** A constant tensor in the graph that `like` belongs to. */
export const constantLike = (like: Value, type: TensorType, data: Float32Array | Int32Array): Value => like.graph.constant(type, data)

/** `T` with every traced value replaced by a tensor, in options and lists too. */
export type Lifted<T> = T extends Value
  ? Tensor
  : T extends (...args: never[]) => unknown
    ? T
    : T extends readonly (infer U)[]
      ? number extends T['length']
        ? readonly Lifted<U>[]
        : { readonly [K in keyof T]: Lifted<T[K]> }
      : T extends object
        ? { [K in keyof T]: Lifted<T[K]> }
        : T

/** A public op: on traced values it returns values at once, on tensors a promise of tensors. */
export type Operation<A extends readonly unknown[], R> = ((...args: A) => R) & ((...args: LiftedArguments<A>) => Promise<Lifted<R>>)
type LiftedArguments<A extends readonly unknown[]> = { [K in keyof A]: Lifted<A[K]> }

/** What the runtime registers so that ops run on tensors (src/runtime/eager.ts); graph code never imports the runtime. */
export type EagerHandler = (
  name: string,
  build: (...args: never[]) => Value | readonly Value[],
  args: readonly unknown[],
) => Promise<unknown>
let eager: EagerHandler | undefined
export const registerEager = (handler: EagerHandler): void => void (eager = handler)

/** Marks runtime tensors, so that this file can tell them from values without importing their class. */
export const TENSOR = Symbol.for('sepconv.tensor')
export const isTensor = (x: unknown): x is Tensor => typeof x === 'object' && x !== null && TENSOR in x

/** Whether a tensor (or `kind`) stands among arguments, their lists or their options, one level deep. */
export function contains(args: readonly unknown[], test: (x: unknown) => boolean): boolean {
  return args.some(
    (arg) =>
      test(arg) || (typeof arg === 'object' && arg !== null && !(arg instanceof Value) && !isTensor(arg) && Object.values(arg).some(test)),
  )
}

/** Makes a public op out of `build`, which takes traced values and emits nodes. */
export function operation<A extends readonly unknown[], R extends Value | readonly Value[]>(
  name: string,
  build: (...args: A) => R,
): Operation<A, R> {
  const call = (...args: unknown[]): unknown => {
    if (!contains(args, isTensor)) {
      if (!contains(args, (x) => x instanceof Value))
        throw new SepconvError('ERR_ARGUMENT', `${name}: expected a tensor or a traced value, got ${describe(args[0])}`, { subject: name })
      return build(...(args as unknown as A))
    }
    if (contains(args, (x) => x instanceof Value))
      throw new SepconvError('ERR_ARGUMENT', `${name}: tensors and traced values cannot be mixed`, {
        subject: name,
        hint: 'Pass the tensor as an argument of the compiled function',
      })
    if (!eager) throw new SepconvError('ERR_INTERNAL', `${name}: no runtime is registered`)
    return eager(name, build as unknown as (...args: never[]) => Value, args)
  }
  Object.defineProperty(call, 'name', { value: name })
  return call as Operation<A, R>
}

function describe(x: unknown): string {
  if (x === null || x === undefined) return String(x)
  return typeof x === 'object' ? (x.constructor?.name ?? 'object') : `${typeof x} ${String(x)}`
}
