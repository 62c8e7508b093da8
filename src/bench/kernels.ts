/**
 * `sepconv bench kernels`: each separable layer as regular 3 × 3 convolution, depthwise alone, pointwise alone, the unfused pair and
 * the fused kernel; forward, data gradient and filter gradient. Every kernel is compared with the reference before it is timed.
 * On a host, weights are packed once, as in a model; what is timed is the kernels' own calls. On a GPU every precision is measured, and
 * NVIDIA's libraries where they are found, as deviceKernels.ts says.
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
import { NativeCpuExecutor, NativeDeviceExecutor } from '../runtime/executors/native.js'
import { loadNative } from '../runtime/native.js'
import { releaseState, writeState } from '../runtime/state.js'
import { type Tensor, upload } from '../runtime/tensor.js'
import { relativeError } from '../runtime/verify.js'
import { DeviceKernel, type Library } from './deviceKernels.js'
import type { Precision } from './devicePeaks.js'
import { type Layer, XCEPTION_LAYERS } from './layers.js'
import { type GpuState, gpuState, type Origin, origin, Roofline, round } from './machine.js'
import { compareSamples, type KernelOp, makeOperands, type Operands, type Pass } from './operands.js'
import { type SamplingOptions, sampleRounds } from './sampling.js'

export interface KernelResult {
  readonly op: KernelOp
  readonly layer: string
  readonly pass: Pass
  readonly device: string
  readonly precision: Precision
  /** `sepconv`, or whose kernel was measured beside ours. */
  readonly library: Library
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
  readonly wrong: readonly (KernelName & { readonly maxError: number })[]
  /** On a GPU: as its driver described it at the end. */
  readonly gpu?: GpuState | null
  /** On a GPU: NVIDIA's libraries, with the version or the reason why it was not measured. */
  readonly libraries?: readonly { readonly name: string; readonly version?: string; readonly reason?: string }[]
  /** Kernels of a library that is there, but does not take the layer. */
  readonly refused?: readonly (KernelName & { readonly reason: string })[]
}

/** Which kernel a row is about. */
export interface KernelName {
  readonly op: KernelOp
  readonly layer: string
  readonly pass: Pass
  readonly precision: Precision
  readonly library: Library
}

export interface KernelBenchOptions extends SamplingOptions {
  /** Default: Xception's ten. */
  readonly layers?: readonly Layer[]
  readonly ops?: readonly KernelOp[]
  /** Default `['forward']`. */
  readonly passes?: readonly Pass[]
  readonly device?: DeviceName
  /** Default: all three on a GPU; `float32` is the only one elsewhere. */
  readonly precisions?: readonly Precision[]
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

/** @throws ERR_ARGUMENT for precisions that the device does not have. */
export async function benchKernels(options: KernelBenchOptions = {}): Promise<KernelReport> {
  const { layers = XCEPTION_LAYERS, ops = KERNEL_OPS, passes = ['forward'], batch = 1 } = options
  const executor = openDevice(options.device)
  const { isa, threads } = useThreads(executor, options.threads)
  const gpu = executor instanceof NativeDeviceExecutor && executor.target.name === 'cuda' ? executor : undefined
  const precisions = options.precisions ?? (gpu ? PRECISIONS : ['float32'])
  if (!gpu && precisions.some((precision) => precision !== 'float32'))
    throw new SepconvError('ERR_ARGUMENT', `device '${executor.name}' is measured in float32 only`, {
      subject: 'precisions',
      expected: ['float32'],
      given: precisions,
    })
  const roofline = Roofline.measure(executor, isa, threads)
  const libraries = gpu && (loadNative().addon?.cudaLibraries() ?? [])
  const results: KernelResult[] = []
  const wrong: KernelReport['wrong'][number][] = []
  const refused: NonNullable<KernelReport['refused']>[number][] = []
  const total = layers.length * passes.length
  let done = 0
  for (const layer of layers) {
    const operands = makeOperands(layer, batch)
    for (const pass of passes) {
      options.onProgress?.({ done: done++, total, layer: layer.name })
      const wanted = ops.filter((op) => pass === 'forward' || op !== 'fused')
      const candidates: Candidate[] = []
      try {
        if (gpu) {
          const found = (libraries ?? []).filter(({ version }) => version !== undefined).map(({ name }) => name)
          const owners: Library[] = ['sepconv', ...LIBRARIES.filter((library) => library.split('+').every((name) => found.includes(name)))]
          for (const op of wanted)
            for (const precision of precisions)
              for (const library of owners) {
                const name: KernelName = { op, layer: layer.name, pass, precision, library }
                try {
                  const kernel = DeviceKernel.make(gpu, { op, pass, precision, library, operands })
                  if (kernel) candidates.push(new Candidate(name, kernel, () => kernel.verify(), kernel.footprint))
                } catch (error) {
                  if (library === 'sepconv') throw error
                  refused.push({ ...name, reason: (error as Error).message })
                }
              }
        } else
          for (const op of wanted) {
            const kernel = new LayerKernel(executor, op, pass, operands)
            const name: KernelName = { op, layer: layer.name, pass, precision: 'float32', library: 'sepconv' }
            const verify = () => {
              const maxError = kernel.verify(operands)
              return { maxError, right: maxError <= TOLERANCE }
            }
            candidates.push(new Candidate(name, kernel, verify))
          }
        for (const candidate of candidates) candidate.check()
        for (const { name, maxError, right } of candidates) if (!right) wrong.push({ ...name, maxError })
        const timed = candidates.filter(({ right }) => right)
        const timings = await sampleRounds(
          timed.map(({ key, kernel }) => ({ name: key, run: () => kernel.run() })),
          options,
        )
        for (const { name, key, maxError, footprint } of timed) {
          const { ms, samples } = timings.get(key)!
          const parts = costs(name.op, pass, layer, batch, name.precision === 'bfloat16' ? 2 : 4)
          const [flops, bytes] = [parts.reduce((sum, part) => sum + part.flops, 0), parts.reduce((sum, part) => sum + part.bytes, 0)]
          // Depthwise convolutions run on the SIMT units, whatever the products do.
          const unit = (part: Cost): Precision => (part.simt ? 'float32' : name.precision)
          const floor = roofline && parts.reduce((sum, part) => sum + roofline.floor(part.flops, part.bytes, unit(part), footprint), 0)
          results.push({
            ...{ op: name.op, layer: layer.name, pass, device: executor.name, precision: name.precision, library: name.library },
            ...{ batch, threads, ms: round(ms), gflops: round(flops / ms / 1e6), gbps: round(bytes / ms / 1e6) },
            ...{ rooflineShare: floor === null ? null : round(floor / ms), maxError: round(maxError), samples },
          })
        }
      } finally {
        for (const { kernel } of candidates) kernel.dispose()
      }
    }
  }
  options.onProgress?.({ done: total, total, layer: '' })
  const device = gpu && { gpu: gpuState(Number(gpu.name.split(':')[1] ?? 0)), libraries, refused }
  return { ...origin(isa), ...device, roofline, results, wrong }
}

const PRECISIONS: readonly Precision[] = ['float32', 'tf32', 'bfloat16']
const LIBRARIES: readonly Library[] = ['cudnn', 'cublasLt', 'cudnn+cublasLt']

/** A kernel among those that take turns. */
class Candidate {
  maxError = Number.NaN
  right = false

  constructor(
    readonly name: KernelName,
    readonly kernel: { run(): number; dispose(): void },
    private readonly verify: () => { maxError: number; right: boolean },
    readonly footprint?: number,
  ) {}

  get key(): string {
    return `${this.name.op} ${this.name.precision} ${this.name.library}`
  }

  check(): void {
    Object.assign(this, this.verify())
  }
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
  /** Computed on the SIMT units whatever the precision of products. */
  readonly simt?: boolean
}

/** Arithmetic and least traffic of a kernel; of an unfused pair, of both halves. */
export function costs(op: KernelOp, pass: Pass, { cin, cout, size }: Layer, batch: number, bytesPerElement = 4): Cost[] {
  const pixels = batch * size * size
  const depthwise: Cost = { flops: 2 * 9 * pixels * cin, bytes: bytesPerElement * (2 * pixels * cin + 9 * cin), simt: true }
  const pointwise: Cost = { flops: 2 * pixels * cin * cout, bytes: bytesPerElement * (pixels * (cin + cout) + cin * cout) }
  switch (op) {
    case 'regular':
      return [{ flops: 9 * pointwise.flops, bytes: bytesPerElement * (pixels * (cin + cout) + 9 * cin * cout) }]
    case 'depthwise':
      return [depthwise]
    case 'pointwise':
      return [pointwise]
    case 'unfused':
      return [depthwise, pointwise]
    case 'fused':
      if (pass !== 'forward') throw new SepconvError('ERR_INTERNAL', 'gradients are not fused')
      return [{ flops: depthwise.flops + pointwise.flops, bytes: bytesPerElement * (pixels * (cin + cout) + 9 * cin + cin * cout) }]
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
