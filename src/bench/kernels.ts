/**
 * `sepconv bench kernels`: each separable layer as regular convolution, depthwise alone, pointwise alone, the unfused pair and
 * the fused kernel; forward, data gradient and filter gradient. Every kernel is compared with the reference before it is timed.
 * On a host, weights are packed once, as in a model; what is timed is the kernels' own calls, in float32 or bfloat16. On a GPU every
 * precision is measured, and NVIDIA's libraries where they are found, as deviceKernels.ts says.
 */

import { SepconvError } from '../errors.js'
import { PRECISIONS, type Precision } from '../graph/precision.js'
import { type DeviceName, openDevice } from '../runtime/device.js'
import type { Executor } from '../runtime/executor.js'
import { NativeCpuExecutor, NativeDeviceExecutor } from '../runtime/executors/native.js'
import { loadNative } from '../runtime/native.js'
import { type Cost, costs } from './costs.js'
import { DeviceKernel, type Library, TOLERANCE } from './deviceKernels.js'
import { LayerKernel } from './layerKernel.js'
import { type Layer, nearestFast, XCEPTION_LAYERS } from './layers.js'
import { type GpuState, gpuState, type Origin, origin, Roofline, round } from './machine.js'
import { type KernelOp, makeOperands, type Operands, type Pass } from './operands.js'
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
  /** Of the fastest run. */
  readonly least: number
  readonly gflops: number
  /** Bytes that must be read and written at least, per second. */
  readonly gbps: number
  /** Shortest time that the machine's peak and bandwidth allow, over the time taken; `null` where the limits are not measured. */
  readonly rooflineShare: number | null
  /** Largest difference from the reference over the largest value, on samples. */
  readonly maxError: number
  readonly samples: number
  /** Where asked for: the nearest fast layer, measured in the same rounds, and this kernel's share of the roofline over that one's (of GFLOP/s where there is no roofline). */
  readonly nearest?: { readonly layer: string; readonly share: number }
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
  /** Default all three; gradients have no fused kernel. */
  readonly passes?: readonly Pass[]
  readonly device?: DeviceName
  /** Default: all three on a GPU, `float32` elsewhere, where `bfloat16` is the other one. */
  readonly precisions?: readonly Precision[]
  /** Default 1. */
  readonly batch?: number
  /** Default: the device's own. */
  readonly threads?: number
  /** Measure each layer beside the nearest fast one. Default `false`. */
  readonly nearest?: boolean
  readonly onProgress?: (progress: { readonly done: number; readonly total: number; readonly layer: string }) => void
}

export const KERNEL_OPS: readonly KernelOp[] = ['regular', 'depthwise', 'pointwise', 'unfused', 'fused']
export const PASSES: readonly Pass[] = ['forward', 'data', 'filter']
const LIBRARIES: readonly Library[] = ['cudnn', 'cublasLt', 'cudnn+cublasLt']

/** @throws ERR_ARGUMENT for precisions, layers and thread counts that the device does not have. */
export async function benchKernels(options: KernelBenchOptions = {}): Promise<KernelReport> {
  const { layers = XCEPTION_LAYERS, ops = KERNEL_OPS, passes = PASSES, batch = 1 } = options
  const executor = openDevice(options.device)
  const { isa, threads } = useThreads(executor, options.threads)
  const gpu = executor instanceof NativeDeviceExecutor && executor.target.name === 'cuda' ? executor : undefined
  const precisions = options.precisions ?? (gpu ? PRECISIONS : ['float32'])
  checkCases(executor, gpu !== undefined, precisions, layers)
  const roofline = Roofline.measure(executor, isa, threads)
  const libraries = gpu && (loadNative().addon?.cudaLibraries() ?? []).filter(({ name }) => name !== 'nccl')
  const found = (libraries ?? []).filter(({ version }) => version !== undefined).map(({ name }) => name)
  const owners: Library[] = ['sepconv', ...LIBRARIES.filter((library) => library.split('+').every((name) => found.includes(name)))]
  const results: KernelResult[] = []
  const wrong: KernelReport['wrong'][number][] = []
  const refused: NonNullable<KernelReport['refused']>[number][] = []
  const total = layers.length * passes.length
  let done = 0
  for (const layer of layers) {
    const operands = [layer, ...(options.nearest ? [nearestFast(layer)] : [])].map((each) => makeOperands(each, batch))
    for (const pass of passes) {
      options.onProgress?.({ done: done++, total, layer: layer.name })
      const wanted = ops.filter((op) => pass === 'forward' || op !== 'fused')
      const candidates: Candidate[] = []
      try {
        for (const each of operands)
          for (const op of wanted)
            if (gpu) candidates.push(...deviceCandidates(gpu, { op, pass, operands: each }, precisions, owners, refused))
            else candidates.push(...precisions.map((precision) => hostCandidate(executor, { op, pass, operands: each }, precision)))
        for (const candidate of candidates) candidate.check()
        for (const { name, maxError, right } of candidates) if (!right) wrong.push({ ...name, maxError })
        const timed = candidates.filter(({ right }) => right)
        const timings = await sampleRounds(
          timed.map(({ kernel }, i) => ({ name: String(i), run: () => kernel.run() })),
          options,
        )
        const measured = timed.map((candidate, i) => {
          const timing = timings.get(String(i))!
          return { candidate, timing, rates: rates(candidate, timing.ms, batch, roofline) }
        })
        for (const { candidate, timing, rates: own } of measured) {
          if (candidate.operands !== operands[0]) continue
          const { op, precision, library } = candidate.name
          const near = measured.find(({ candidate: other }) => other.operands !== operands[0] && other.key === candidate.key)
          results.push({
            ...{ op, layer: layer.name, pass, device: executor.name, precision, library, batch, threads },
            ...{ ms: round(timing.ms), least: round(timing.least), ...own },
            ...{ maxError: round(candidate.maxError), samples: timing.samples },
            ...(near && { nearest: { layer: near.candidate.name.layer, share: round(rateShare(own, near.rates)) } }),
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

function checkCases(executor: Executor, gpu: boolean, precisions: readonly Precision[], layers: readonly Layer[]): void {
  const stored: readonly string[] = executor.target.dtypes
  const available = gpu ? PRECISIONS : PRECISIONS.filter((precision) => stored.includes(precision))
  const unknown = precisions.find((precision) => !available.includes(precision))
  if (unknown !== undefined)
    throw new SepconvError('ERR_ARGUMENT', `precision '${unknown}' is not measured on device '${executor.name}'`, {
      subject: 'precisions',
      expected: available,
      given: unknown,
    })
  const other = layers.find(({ kernel, stride, dilation, multiplier }) => kernel !== 3 || stride * dilation * multiplier !== 1)
  if (gpu && other)
    throw new SepconvError('ERR_ARGUMENT', `layer '${other.name}' is measured on the host only`, {
      subject: 'layers',
      expected: '3 × 3, with stride, dilation and multiplier 1',
      given: other.name,
    })
}

interface Problem {
  readonly op: KernelOp
  readonly pass: Pass
  readonly operands: Operands
}

function hostCandidate(executor: Executor, { op, pass, operands }: Problem, precision: Precision): Candidate {
  const kernel = new LayerKernel(executor, op, pass, operands, precision)
  const name: KernelName = { op, layer: operands.layer.name, pass, precision, library: 'sepconv' }
  return new Candidate(name, operands, kernel, () => {
    const maxError = kernel.verify()
    return { maxError, right: maxError <= TOLERANCE[precision] }
  })
}

function deviceCandidates(
  gpu: NativeDeviceExecutor,
  { op, pass, operands }: Problem,
  precisions: readonly Precision[],
  owners: readonly Library[],
  refused: (KernelName & { readonly reason: string })[],
): Candidate[] {
  return precisions.flatMap((precision) =>
    owners.flatMap((library) => {
      const name: KernelName = { op, layer: operands.layer.name, pass, precision, library }
      try {
        const kernel = DeviceKernel.make(gpu, { op, pass, precision, library, operands })
        return kernel ? [new Candidate(name, operands, kernel, () => kernel.verify(), kernel.footprint)] : []
      } catch (error) {
        if (library === 'sepconv') throw error
        refused.push({ ...name, reason: (error as Error).message })
        return []
      }
    }),
  )
}

/** A kernel among those that take turns. */
class Candidate {
  maxError = Number.NaN
  right = false

  constructor(
    readonly name: KernelName,
    readonly operands: Operands,
    readonly kernel: { run(): number; dispose(): void },
    private readonly verify: () => { maxError: number; right: boolean },
    readonly footprint?: number,
  ) {}

  /** The same for the same kernel of another layer. */
  get key(): string {
    return `${this.name.op} ${this.name.precision} ${this.name.library}`
  }

  check(): void {
    Object.assign(this, this.verify())
  }
}

type Rates = Pick<KernelResult, 'gflops' | 'gbps' | 'rooflineShare'>

function rates({ name, operands, footprint }: Candidate, ms: number, batch: number, roofline: Roofline | null): Rates {
  const parts = costs(name.op, name.pass, operands.layer, batch, name.precision === 'bfloat16' ? 2 : 4)
  const [flops, bytes] = [parts.reduce((sum, part) => sum + part.flops, 0), parts.reduce((sum, part) => sum + part.bytes, 0)]
  // Depthwise convolutions run on the SIMT units, whatever the products do.
  const unit = (part: Cost): Precision => (part.simt ? 'float32' : name.precision)
  const floor = roofline && parts.reduce((sum, part) => sum + roofline.floor(part.flops, part.bytes, unit(part), footprint), 0)
  return { gflops: round(flops / ms / 1e6), gbps: round(bytes / ms / 1e6), rooflineShare: floor === null ? null : round(floor / ms) }
}

/** How much of another layer's efficiency is kept: what bounds the two, arithmetic or traffic, is the roofline's to say. */
const rateShare = (own: Rates, near: Rates): number =>
  own.rooflineShare !== null && near.rooflineShare !== null ? own.rooflineShare / near.rooflineShare : own.gflops / near.gflops

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
