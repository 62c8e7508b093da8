/**
 * What passes and the memory planner may ask about the device that a graph is compiled for. Plain data and pure functions, so
 * that the choice of kernels can be printed and tested without the device.
 */

import type { Attributes } from './graph.js'
import type { DType, TensorType } from './types.js'

/** A depthwise convolution and the pointwise one that reads it. */
export interface SeparableShape {
  /** Of the product: `'float32'` is exact, `'bfloat16'` is what feature maps are stored in too. */
  readonly precision: 'float32' | 'tf32' | 'bfloat16'
  readonly kernel: readonly [number, number]
  readonly strides: readonly [number, number]
  readonly cin: number
  readonly multiplier: number
  readonly cout: number
  /** Of the result. */
  readonly height: number
  readonly width: number
}

export interface Target {
  readonly name: 'reference' | 'cpu' | 'cuda'
  /** Storage types that its kernels take for activations and weights. */
  readonly dtypes: readonly DType[]
  /** Whether its products can be computed in tf32. */
  readonly tensorFloat?: boolean
  /**
   * Bytes of the cache that activations should stay in. Inference on a batch whose activations exceed it runs on some of the samples
   * at a time, where they are independent. `0`: the whole batch at once.
   */
  readonly cacheBytes: number
  /** Columns per panel of a packed right-hand operand, `0` where weights are used as they are. */
  readonly panel: number
  /** Whether depthwise and pointwise of this shape run faster as one kernel. */
  fusesSeparable(shape: SeparableShape): boolean
  /**
   * Whether they do in training too, where the gradient of the pointwise filter then computes the depthwise result again. Absent: the
   * target has no such kernel, nor one that emits batch statistics out of separableConv2d.
   */
  recomputesSeparable?(shape: SeparableShape): boolean
  /** Storage types of which one kernel makes both gradients of a depthwise convolution faster (depthwiseConv2dGradients). */
  readonly fusesDepthwiseGradients?: readonly DType[]
  /** Whether a float32 product y[rows, n] over k runs faster by one level of Strassen's algorithm. Absent: never. */
  strassenPays?(rows: number, k: number, n: number): boolean
  /** Whether an optimizer's update takes the averages of its parameters in the same call. */
  readonly fusesAverage?: boolean
  /** The tile that was measured to be fastest for a call, where the device tunes; becomes its attribute `tile`. */
  tile?(kernel: string, inputs: readonly (TensorType | null)[], outputs: readonly TensorType[], attributes: Attributes): string | undefined
  /** Bytes of scratch that a call needs; the planner gives them a place in the arena. */
  workspaceBytes(kernel: string, inputs: readonly (TensorType | null)[], outputs: readonly TensorType[], attributes: Attributes): number
}
