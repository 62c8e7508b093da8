/**
 * What an op must say of itself, once, for every part of the system: its shape rule, its gradient, its reference loops, its
 * cost. An executor implements ops by their names; it knows nothing else of them. One file per op family in src/ops.
 */

import { SepconvError } from '../errors.js'
import type { Attributes, Value } from './graph.js'
import type { Shape, TensorType } from './types.js'

/** A tensor in host memory. In reference loops `data` is never bfloat16: the executor widens and rounds around the call. */
export interface HostTensor {
  readonly shape: Shape
  readonly data: Float32Array | Int32Array | Uint8Array
  /** Where `data` holds widened values: what they are stored in. Default: what the class of `data` says. */
  readonly dtype?: 'bfloat16'
}

export interface ReferenceCall {
  readonly inputs: readonly (HostTensor | null)[]
  /** Zero-filled before the call. */
  readonly outputs: readonly HostTensor[]
  readonly attributes: Attributes
}

export interface GradientCall {
  readonly inputs: readonly (Value | null)[]
  readonly outputs: readonly Value[]
  readonly attributes: Attributes
  /** The gradient of the loss with respect to each output; `null` where the output does not matter. */
  readonly gradients: readonly (Value | null)[]
  /** Whether the gradient with respect to each input is wanted. */
  readonly needs: readonly boolean[]
}

export interface OpDefinition {
  readonly name: string
  /** Names in order; a trailing `?` marks an optional input (`null` where absent), a leading `...` a repeated last group. */
  readonly inputs: readonly string[]
  readonly outputs: readonly string[]
  /** The shape and dtype rule: throws a SepconvError that says what was expected and what was given. */
  infer(inputs: readonly (TensorType | null)[], attributes: Attributes): TensorType[]
  /** One gradient per input (`null`: none). Emits ops into the same graph. Absent: the op is not differentiable. */
  gradient?(call: GradientCall): (Value | null)[]
  /** The specification: plain loops, float64 accumulation, shapes in the comments. */
  reference(call: ReferenceCall): void
  /** Multiply-adds, counted as in the literature: convolutions and products only. */
  macs?(inputs: readonly (TensorType | null)[], outputs: readonly TensorType[], attributes: Attributes): number
  /** Inputs whose memory the first output may take over element by element, when nobody reads them afterwards. */
  readonly inPlace?: readonly number[]
  /**
   * Where all outputs are, of ops on lists: `'inputs'`: each is the memory of the input at its place. `'bucket'`: side by side in one
   * block, which takes the place of inputs that nobody else reads.
   */
  readonly memory?: 'inputs' | 'bucket'
  /** The output has the same bytes in the same order as the input: no call, no memory (reshape). */
  readonly alias?: boolean
  /**
   * Inputs that run along the batch with the outputs: sample i of every output (index i of its first axis) depends on sample i of
   * these inputs, and otherwise on inputs that have nothing to do with the batch. Absent: samples depend on each other.
   */
  samples?(attributes: Attributes, inputs: readonly (TensorType | null)[]): readonly number[]
  /** Cheap enough to be computed again in the backward pass rather than kept (src/graph/passes/recompute.ts). */
  readonly recompute?: boolean
}

const definitions = new Map<string, OpDefinition>()

/** Registers an op under its name; every src/ops file calls it once per op. */
export function defineOp(definition: OpDefinition): OpDefinition {
  if (definitions.has(definition.name)) throw new SepconvError('ERR_INTERNAL', `op '${definition.name}' is defined twice`)
  definitions.set(definition.name, definition)
  return definition
}

export function opDefinition(name: string): OpDefinition {
  const definition = definitions.get(name)
  if (!definition) throw new SepconvError('ERR_INTERNAL', `op '${name}' is not defined`)
  return definition
}

/** All registered ops in the order of their registration. */
export const opDefinitions = (): OpDefinition[] => [...definitions.values()]
