/**
 * `sepconv bench kernels`: each separable layer as regular convolution, depthwise alone, pointwise alone, the unfused pair and
 * the fused kernel; forward, data gradient and filter gradient. Every kernel is compared with the reference before it is timed.
 * Weights are packed once, as in a model; what is timed is the kernels' own calls.
 */

import { SepconvError } from '../errors.js'
import { type DeviceName, openDevice } from '../runtime/device.js'
import type { Executor } from '../runtime/executor.js'
import { NativeCpuExecutor } from '../runtime/executors/native.js'
import { costs } from './costs.js'
import { LayerKernel } from './layerKernel.js'
import { type Layer, nearestFast, XCEPTION_LAYERS } from './layers.js'
import { type Origin, origin, Roofline, round } from './machine.js'
import { type KernelOp, makeOperands, type Pass } from './operands.js'
import type { Precision } from '../graph/passes/storage.js'
import { checkPrecision } from './precision.js'
import { type SamplingOptions, sampleRounds, type Timing } from './sampling.js'

export interface KernelResult {
  readonly op: KernelOp
  readonly layer: string
  readonly pass: Pass
  readonly device: string
  readonly precision: Precision
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
  readonly wrong: readonly { readonly op: KernelOp; readonly layer: string; readonly pass: Pass; readonly maxError: number }[]
}

export interface KernelBenchOptions extends SamplingOptions {
  /** Default: Xception's ten. */
  readonly layers?: readonly Layer[]
  readonly ops?: readonly KernelOp[]
  /** Default all three; gradients have no fused kernel. */
  readonly passes?: readonly Pass[]
  readonly device?: DeviceName
  /** Default 1. */
  readonly batch?: number
  /** Default: the device's own. */
  readonly threads?: number
  /** Default `'float32'`. */
  readonly precision?: string
  /** Measure each layer beside the nearest fast one. Default `false`. */
  readonly nearest?: boolean
  readonly onProgress?: (progress: { readonly done: number; readonly total: number; readonly layer: string }) => void
}

export const KERNEL_OPS: readonly KernelOp[] = ['regular', 'depthwise', 'pointwise', 'unfused', 'fused']
export const PASSES: readonly Pass[] = ['forward', 'data', 'filter']

/** Of float32 sums in another order than the reference's. */
const TOLERANCE = 1e-4

export async function benchKernels(options: KernelBenchOptions = {}): Promise<KernelReport> {
  const { layers = XCEPTION_LAYERS, ops = KERNEL_OPS, passes = PASSES, batch = 1 } = options
  const executor = openDevice(options.device)
  const precision = checkPrecision(executor, options.precision ?? 'float32')
  const { isa, threads } = useThreads(executor, options.threads)
  const roofline = Roofline.measure(executor, isa, threads)
  const results: KernelResult[] = []
  const wrong: KernelReport['wrong'][number][] = []
  const total = layers.length * passes.length
  let done = 0
  for (const layer of layers) {
    const operands = [layer, ...(options.nearest ? [nearestFast(layer)] : [])].map((each) => makeOperands(each, batch))
    for (const pass of passes) {
      options.onProgress?.({ done: done++, total, layer: layer.name })
      const kernels = operands.flatMap((each) =>
        ops.filter((op) => pass === 'forward' || op !== 'fused').map((op) => new LayerKernel(executor, op, pass, each)),
      )
      try {
        const errors = new Map(kernels.map((kernel) => [kernel, kernel.verify()]))
        const right = kernels.filter((kernel) => errors.get(kernel)! <= TOLERANCE)
        for (const kernel of kernels)
          if (!right.includes(kernel)) wrong.push({ op: kernel.op, layer: kernel.operands.layer.name, pass, maxError: errors.get(kernel)! })
        const nameOf = (kernel: LayerKernel) => `${kernel.op} ${right.indexOf(kernel)}`
        const timings = await sampleRounds(
          right.map((kernel) => ({ name: nameOf(kernel), run: () => kernel.run() })),
          options,
        )
        const measured = right.map((kernel) => {
          const timing = timings.get(nameOf(kernel))!
          return { kernel, timing, rates: rates(kernel, timing, batch, roofline) }
        })
        for (const { kernel, timing, rates: own } of measured) {
          if (kernel.operands !== operands[0]) continue
          const near = measured.find((other) => other.kernel.op === kernel.op && other.kernel !== kernel)
          results.push({
            ...{ op: kernel.op, layer: layer.name, pass, device: executor.name, precision, batch, threads },
            ...{ ms: round(timing.ms), least: round(timing.least), ...own, maxError: round(errors.get(kernel)!), samples: timing.samples },
            ...(near && { nearest: { layer: near.kernel.operands.layer.name, share: round(rateShare(own, near.rates)) } }),
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

type Rates = Pick<KernelResult, 'gflops' | 'gbps' | 'rooflineShare'>

function rates({ op, pass, operands }: LayerKernel, { ms }: Timing, batch: number, roofline: Roofline | null): Rates {
  const parts = costs(op, pass, operands.layer, batch)
  const [flops, bytes] = [parts.reduce((sum, part) => sum + part.flops, 0), parts.reduce((sum, part) => sum + part.bytes, 0)]
  const floor = roofline && parts.reduce((sum, part) => sum + roofline.floor(part.flops, part.bytes), 0)
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
