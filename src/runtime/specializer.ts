/** Tracing and caching that compiled functions and training steps share: one executable per form and types of the arguments. */

import { SepconvError } from '../errors.js'
import { type Compiled, compileGraph } from '../graph/compile.js'
import type { Graph } from '../graph/graph.js'
import { independentSamples, samplesAtOnce } from '../graph/samples.js'
import type { Target } from '../graph/target.js'
import { trace, type TraceContext } from '../graph/trace.js'
import { formatType, sameShape, type TensorType } from '../graph/types.js'
import { ExecutableCache } from './cache.js'
import { openDevice } from './device.js'
import { Executable } from './executable.js'
import type { Executor } from './executor.js'
import type { CompileOptions } from './function.js'
import { flatten, formOf, isTensorLeaf, isValue, unflatten } from './structure.js'
import type { Tensor } from './tensor.js'

export const typeText = (leaf: Tensor): string => formatType(leaf.type)

export class Specializer {
  readonly cache = new ExecutableCache()
  /** What the function returned while each executable was traced: the form of its results. */
  readonly #forms = new WeakMap<Executable, unknown>()
  #executor: Executor | undefined

  constructor(
    private readonly options: CompileOptions,
    /** Emits everything after the inputs; returns the structure whose leaves become the outputs. */
    private readonly build: (graph: Graph, context: TraceContext, args: unknown[]) => unknown,
  ) {}

  get executor(): Executor {
    this.#executor ??= openDevice(this.options.device)
    return this.#executor
  }

  specialize(args: readonly unknown[]): Executable {
    return this.cache.get(formOf(args, typeText, isTensorLeaf), () => {
      let form: unknown
      const graph = this.#trace(args, (result) => {
        form = result
      })
      const executable =
        this.#samplewise(args, graph) ?? new Executable(this.executor, compileGraph(graph, this.executor.target, this.options))
      this.#forms.set(executable, form)
      return executable
    })
  }

  /** @param samples of the batch in the graph. Default: all. */
  #trace(args: readonly unknown[], done: (result: unknown) => void, samples?: number): Graph {
    const { training = false, substitute } = this.options
    const typeOf = ({ shape, dtype }: TensorType) => ({ shape: samples === undefined ? shape : [samples, ...shape.slice(1)], dtype })
    return trace(
      (traced, context) => {
        const values = flatten(args, isTensorLeaf).map(({ name, leaf }) => traced.input(name, typeOf(leaf.type)))
        const result = this.build(traced, context, unflatten(args, isTensorLeaf, values.values()) as unknown[])
        const outputs = flatten(result, isValue)
        if (outputs.length === 0)
          throw new SepconvError('ERR_ARGUMENT', 'compile: the function returned no values', {
            subject: 'compile',
            hint:
              result instanceof Promise ? 'It must not be async: it only builds the graph' : 'Return a value, or a list or object of them',
          })
        for (const { name, leaf } of outputs) traced.output(name || 'value', leaf)
        done(result)
      },
      { training, ...(substitute && { substitute }) },
    )
  }

  /** The program for as many samples as fit into the target's cache, repeated over the batch; undefined where that does not pay. */
  #samplewise(args: readonly unknown[], whole: Graph): Executable | undefined {
    const { target } = this.executor
    const batch = target.cacheBytes > 0 && this.options.optimise !== false ? independentSamples(whole) : 0
    if (batch === 0) return undefined
    const compiled = (samples: number): Compiled | undefined => {
      let graph: Graph
      try {
        graph = this.#trace(args, () => {}, samples)
      } catch {
        return undefined // a function that counts on the size of its batch
      }
      const same = graph.outputs.every(({ value }, i) => sameShape(value.shape, [samples, ...whole.outputs[i]!.value.shape.slice(1)]))
      return same && graph.nodes.length === whole.nodes.length ? compileGraph(graph, target, this.options) : undefined
    }
    const one = compiled(1)
    const samples = one ? samplesAtOnce(batch, one.main.program.arenaBytes, target.cacheBytes) : batch
    const chosen = samples === batch ? undefined : samples === 1 ? one : compiled(samples)
    return chosen && new Executable(this.executor, chosen, batch / samples)
  }

  /** What these arguments compile to for a target; nothing is loaded. */
  plan(args: readonly unknown[], target: Target): Compiled {
    return compileGraph(
      this.#trace(args, () => {}),
      target,
      this.options,
    )
  }

  structure(executable: Executable, outputs: readonly Tensor[]): unknown {
    return unflatten(this.#forms.get(executable), isValue, outputs.values())
  }
}
