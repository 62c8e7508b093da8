/**
 * `sepconv bench kernels`: each separable layer as regular 3 × 3 convolution, depthwise alone, pointwise alone, the unfused pair and
 * the fused kernel; forward, data gradient and filter gradient. Every kernel is compared with the reference before it is timed.
 * Weights are packed once, as in a model; what is timed is the kernels' own calls.
 */

import { SepconvError } from '../errors.js'
import { compileGraph } from '../graph/compile.js'
import type { Attributes, Graph, Value } from '../graph/graph.js'
import { type HostTensor, opDefinition } from '../graph/op.js'
import { emit, trace } from '../graph/trace.js'
import type { TensorType } from '../graph/types.js'
import { Variable } from '../graph/variable.js'
import { conv2d, depthwiseConv2d, pointwiseConv2d, separableConv2d } from '../ops/index.js'
import { type DeviceName, openDevice } from '../runtime/device.js'
import { Executable } from '../runtime/executable.js'
import type { Executor } from '../runtime/executor.js'
import { NativeCpuExecutor } from '../runtime/executors/native.js'
import { releaseState, writeState } from '../runtime/state.js'
import { type Tensor, upload } from '../runtime/tensor.js'
import { relativeError } from '../runtime/verify.js'
import { type Layer, XCEPTION_LAYERS } from './layers.js'
import { type Origin, origin, Roofline, round } from './machine.js'
import { compareSamples, type KernelOp, makeOperands, type Operands, type Pass } from './operands.js'
import { type SamplingOptions, sampleRounds } from './sampling.js'

export interface KernelResult {
  readonly op: KernelOp
  readonly layer: string
  readonly pass: Pass
  readonly device: string
  readonly precision: 'float32'
  readonly batch: number
  readonly threads: number
  /** Median. */
  readonly ms: number
  readonly gflops: number
  /** Bytes that must be read and written at least, per second. */
  readonly gbps: number
  /** Shortest time that the machine's peak and bandwidth allow, over the time taken; `null` where the limits are not measured. */
  readonly rooflineShare: number | null
  /** Largest difference from the reference over the largest value, on samples. */
  readonly maxError: number
  readonly samples: number
}

export interface KernelReport extends Origin {
  readonly roofline: Roofline | null
  readonly results: readonly KernelResult[]
  /** Kernels whose results disagree with the reference; they are not timed. */
  readonly wrong: readonly { readonly op: KernelOp; readonly layer: string; readonly pass: Pass; readonly maxError: number }[]
}

export interface KernelBenchOptions extends SamplingOptions {
  /** Default: Xception's ten. */
  readonly layers?: readonly Layer[]
  readonly ops?: readonly KernelOp[]
  /** Default `['forward']`. */
  readonly passes?: readonly Pass[]
  readonly device?: DeviceName
  /** Default 1. */
  readonly batch?: number
  /** Default: the device's own. */
  readonly threads?: number
  readonly onProgress?: (progress: { readonly done: number; readonly total: number; readonly layer: string }) => void
}

export const KERNEL_OPS: readonly KernelOp[] = ['regular', 'depthwise', 'pointwise', 'unfused', 'fused']
export const PASSES: readonly Pass[] = ['forward', 'data', 'filter']

/** Of float32 sums in another order than the reference's. */
const TOLERANCE = 1e-4

export async function benchKernels(options: KernelBenchOptions = {}): Promise<KernelReport> {
  const { layers = XCEPTION_LAYERS, ops = KERNEL_OPS, passes = ['forward'], batch = 1 } = options
  const executor = openDevice(options.device)
  const { isa, threads } = useThreads(executor, options.threads)
  const roofline = Roofline.measure(executor, isa, threads)
  const results: KernelResult[] = []
  const wrong: KernelReport['wrong'][number][] = []
  const total = layers.length * passes.length
  let done = 0
  for (const layer of layers) {
    const operands = makeOperands(layer, batch)
    for (const pass of passes) {
      options.onProgress?.({ done: done++, total, layer: layer.name })
      const kernels = ops.filter((op) => pass === 'forward' || op !== 'fused').map((op) => new LayerKernel(executor, op, pass, operands))
      try {
        const errors = new Map(kernels.map((kernel) => [kernel, kernel.verify(operands)]))
        const right = kernels.filter((kernel) => errors.get(kernel)! <= TOLERANCE)
        for (const kernel of kernels)
          if (!right.includes(kernel)) wrong.push({ op: kernel.op, layer: layer.name, pass, maxError: errors.get(kernel)! })
        const timings = await sampleRounds(
          right.map((kernel) => ({ name: kernel.op, run: () => kernel.run() })),
          options,
        )
        for (const kernel of right) {
          const { ms, samples } = timings.get(kernel.op)!
          const parts = costs(kernel.op, pass, layer, batch)
          const [flops, bytes] = [parts.reduce((sum, part) => sum + part.flops, 0), parts.reduce((sum, part) => sum + part.bytes, 0)]
          const floor = roofline && parts.reduce((sum, part) => sum + roofline.floor(part.flops, part.bytes), 0)
          results.push({
            ...{ op: kernel.op, layer: layer.name, pass, device: executor.name, precision: 'float32', batch, threads },
            ...{ ms: round(ms), gflops: round(flops / ms / 1e6), gbps: round(bytes / ms / 1e6) },
            ...{ rooflineShare: floor === null ? null : round(floor / ms), maxError: round(errors.get(kernel)!), samples },
          })
        }
      } finally {
        for (const kernel of kernels) kernel.dispose()
      }
    }
  }
  options.onProgress?.({ done: total, total, layer: '' })
  return { ...origin(isa), roofline, results, wrong }
}

/** Sets the number of threads of a device that has them. @returns what it computes with. */
export function useThreads(executor: Executor, threads: number | undefined): { isa: string | null; threads: number } {
  if (executor instanceof NativeCpuExecutor) {
    if (threads !== undefined && threads !== executor.threads) executor.setThreads(threads)
    return { isa: executor.info.isa ?? null, threads: executor.threads }
  }
  if (threads !== undefined && threads !== 1)
    throw new SepconvError('ERR_ARGUMENT', `device '${executor.name}' has no threads to set`, {
      subject: 'threads',
      given: threads,
      expected: 1,
    })
  return { isa: null, threads: 1 }
}

interface Cost {
  readonly flops: number
  /** Operands and results, each moved once. */
  readonly bytes: number
}

/** Arithmetic and least traffic of a kernel; of an unfused pair, of both halves. */
export function costs(op: KernelOp, pass: Pass, { cin, cout, size }: Layer, batch: number): Cost[] {
  const pixels = batch * size * size
  const depthwise: Cost = { flops: 2 * 9 * pixels * cin, bytes: 4 * (2 * pixels * cin + 9 * cin) }
  const pointwise: Cost = { flops: 2 * pixels * cin * cout, bytes: 4 * (pixels * (cin + cout) + cin * cout) }
  switch (op) {
    case 'regular':
      return [{ flops: 9 * pointwise.flops, bytes: 4 * (pixels * (cin + cout) + 9 * cin * cout) }]
    case 'depthwise':
      return [depthwise]
    case 'pointwise':
      return [pointwise]
    case 'unfused':
      return [depthwise, pointwise]
    case 'fused':
      if (pass !== 'forward') throw new SepconvError('ERR_INTERNAL', 'gradients are not fused')
      return [{ flops: depthwise.flops + pointwise.flops, bytes: 4 * (pixels * (cin + cout) + 9 * cin + cin * cout) }]
  }
}

/** One kernel (or unfused pair) of a layer on a device, with its operands in place. */
class LayerKernel {
  readonly #executable: Executable
  readonly #inputs: Tensor[]
  readonly #variables: Variable[] = []

  constructor(
    executor: Executor,
    readonly op: KernelOp,
    readonly pass: Pass,
    operands: Operands,
  ) {
    const sources: HostTensor[] = []
    const graph = trace((traced) => {
      const input = (name: keyof Operands): Value => {
        sources.push(operands[name])
        return traced.input(name, typeOf(operands[name]))
      }
      const weights = (name: 'depthwise' | 'pointwise' | 'regular'): Value => this.#weights(traced, name, operands, executor)
      const outputs =
        pass === 'forward' ? forward(op, input, weights) : pass === 'data' ? dataGradient(op, input, weights) : filterGradient(op, input)
      for (const [i, output] of outputs.entries()) traced.output(String(i), output)
    })
    const target = { ...executor.target, fusesSeparable: () => op === 'fused' }
    this.#executable = new Executable(executor, compileGraph(graph, target))
    this.#inputs = sources.map((source) => upload(executor, typeOf(source), source.data as Float32Array))
  }

  /** Largest error on samples; also the first run, which packs the weights. */
  verify(operands: Operands): number {
    const outputs = this.#executable.runSync(this.#inputs)
    const host = outputs.map((tensor): HostTensor => ({ shape: tensor.shape, data: tensor.dataSync() as Float32Array }))
    for (const tensor of outputs) tensor.dispose()
    const { actual, expected } = compareSamples(this.op, this.pass, operands, host)
    return relativeError(actual, expected)
  }

  /** Milliseconds of the kernels' calls in one run. */
  run(): number {
    return this.#executable.profile(this.#inputs).reduce((sum, ns) => sum + ns, 0) / 1e6
  }

  dispose(): void {
    this.#executable.dispose()
    for (const tensor of this.#inputs) tensor.dispose()
    for (const variable of this.#variables) releaseState(variable)
  }

  #weights(graph: Graph, name: 'depthwise' | 'pointwise' | 'regular', operands: Operands, executor: Executor): Value {
    const { shape, data } = operands[name]
    const variable = new Variable(name, { shape, dtype: 'float32' }, { name: 'given', fill: (out) => out.set(data as Float32Array) })
    writeState(variable, data as Float32Array, executor)
    this.#variables.push(variable)
    return graph.state(variable)
  }
}

const typeOf = ({ shape }: HostTensor): TensorType => ({ shape, dtype: 'float32' })

type Input = (name: keyof Operands) => Value
type Weights = (name: 'depthwise' | 'pointwise' | 'regular') => Value

function forward(op: KernelOp, input: Input, weights: Weights): Value[] {
  switch (op) {
    case 'regular':
      return [conv2d(input('x'), weights('regular'))]
    case 'depthwise':
      return [depthwiseConv2d(input('x'), weights('depthwise'))]
    case 'pointwise':
      return [pointwiseConv2d(input('between'), weights('pointwise'))]
    default:
      return [separableConv2d(input('x'), weights('depthwise'), weights('pointwise'))]
  }
}

const SAME = { strides: [1, 1], dilations: [1, 1], padding: [1, 1, 1, 1], inputActivation: 'none' } satisfies Attributes

function dataGradient(op: KernelOp, input: Input, weights: Weights): Value[] {
  const inputSize = (value: Value) => value.shape.slice(1, 3)
  const pointwise = () =>
    emit(opDefinition('pointwiseConv2dInputGradient'), [input('gradient'), weights('pointwise'), null], { inputActivation: 'none' })
  if (op === 'pointwise') return [pointwise()]
  if (op === 'regular') {
    const dy = input('gradient')
    return [emit(opDefinition('conv2dInputGradient'), [dy, weights('regular'), null], { ...SAME, groups: 1, inputSize: inputSize(dy) })]
  }
  const dy = op === 'depthwise' ? input('between') : pointwise()
  return [
    emit(opDefinition('depthwiseConv2dInputGradient'), [dy, weights('depthwise'), null, null, null], { ...SAME, inputSize: inputSize(dy) }),
  ]
}

function filterGradient(op: KernelOp, input: Input): Value[] {
  const depthwise = (between: Value) =>
    emit(opDefinition('depthwiseConv2dFilterGradient'), [input('x'), between, null, null], { ...SAME, kernelSize: [3, 3] })
  const pointwise = (between: Value) =>
    emit(opDefinition('pointwiseConv2dFilterGradient'), [between, input('gradient')], { inputActivation: 'none' })
  if (op === 'regular')
    return [emit(opDefinition('conv2dFilterGradient'), [input('x'), input('gradient')], { ...SAME, groups: 1, kernelSize: [3, 3] })]
  if (op === 'depthwise') return [depthwise(input('between'))]
  if (op === 'pointwise') return [pointwise(input('between'))]
  const between = input('between')
  return [pointwise(between), depthwise(between)]
}
