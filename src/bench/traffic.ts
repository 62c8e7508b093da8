/**
 * What the kernel calls of a program move through a GPU's memory: every operand once per launch that reads it, every result once, scratch
 * once each way. That is the least that memory must move where caches keep nothing from one launch to the next, and what a kernel moves
 * that is bound by memory; what crosses the caches more often (halos, operands once per tile) is not counted. The emulator counts the same
 * of the kernels' own accesses (test/cuda/budget.test.ts).
 */

import type { Attributes } from '../graph/graph.js'
import { byteLength, type TensorType } from '../graph/types.js'
import { requireNative } from '../runtime/native.js'
import type { Program } from '../runtime/program.js'
import { type TunedCall, tunedCalls } from '../runtime/tuner.js'

/** Bytes of one call. */
export interface Traffic {
  readonly read: number
  readonly written: number
}

/** A program's calls with what they move. */
export interface TrafficReport {
  readonly bytes: number
  readonly calls: readonly { readonly kernel: string; readonly scope: string; readonly bytes: number }[]
  /** By kernel, most bytes first. */
  readonly kernels: readonly { readonly kernel: string; readonly calls: number; readonly bytes: number }[]
}

/** A GPU's size; default an H100 or H200. */
export interface TrafficDevice {
  readonly multiprocessors?: number
  /** First number of the compute capability. */
  readonly major?: number
}

/** Operands that a kernel's launches read more than once. */
const READ_TWICE: Readonly<Record<string, readonly number[]>> = { batchNormGradient: [0, 1] }

/** @param workspaceBytes of the call: what its launches hand to each other. */
export function trafficOf([kernel, inputs, outputs, attributes]: TunedCall, workspaceBytes: number): Traffic {
  const operand = (type: TensorType | null | undefined, index: number): number =>
    type ? byteLength(type) * shareRead(kernel, index, attributes) : 0
  const again = (READ_TWICE[kernel] ?? []).reduce((sum, index) => sum + operand(inputs[index], index), 0)
  return {
    read: inputs.reduce((sum, type, index) => sum + operand(type, index), again) + workspaceBytes,
    written: outputs.reduce((sum, type) => sum + byteLength(type), 0) + workspaceBytes,
  }
}

/** A window of 1x1 with strides passes over pixels; pixels of 16 channels of bfloat16 and more are whole sectors. */
function shareRead(kernel: string, index: number, attributes: Attributes): number {
  const strided = (kernel === 'conv2d' || kernel === 'conv2dFilterGradient') && index === 0
  const [kh, kw] = (attributes.kernelSize as readonly [number, number] | undefined) ?? [0, 0]
  if (!strided || kh !== 1 || kw !== 1) return 1
  const [down, across] = attributes.strides as unknown as readonly [number, number]
  return 1 / (down * across)
}

/**
 * Counts a program.
 * @throws ERR_DEVICE where the addon was built without CUDA kernels: their choice of tiles decides how large partial sums are.
 */
export function traffic(program: Program, { multiprocessors = 132, major = 9 }: TrafficDevice = {}): TrafficReport {
  const counted = tunedCalls(program).map((call, i) => {
    const { workspaceBytes } = requireNative().describeKernel(...call, multiprocessors, major)
    const { read, written } = trafficOf(call, workspaceBytes)
    return { kernel: call[0], scope: program.calls[i]!.scope, bytes: read + written }
  })
  const byKernel = new Map<string, { calls: number; bytes: number }>()
  for (const { kernel, bytes } of counted) {
    const sum = byKernel.get(kernel) ?? { calls: 0, bytes: 0 }
    byKernel.set(kernel, { calls: sum.calls + 1, bytes: sum.bytes + bytes })
  }
  return {
    bytes: counted.reduce((sum, { bytes }) => sum + bytes, 0),
    calls: counted,
    kernels: [...byKernel].map(([kernel, sum]) => ({ kernel, ...sum })).sort((a, b) => b.bytes - a.bytes),
  }
}
