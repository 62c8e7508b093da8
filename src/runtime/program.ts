/**
 * A Program is plain data: buffers with their places, and an ordered list of kernel calls. It refers to state by name and
 * never embeds it, so it can be printed, compared, saved as JSON, and replayed on any executor.
 */

import type { Attributes } from '../graph/graph.js'
import type { DType, Shape } from '../graph/types.js'

/**
 * Where a buffer lives. `arena`: at `offset` in the one planned block; `input` / `output`: handed over per run, in the order of
 * `Program.inputs` / `outputs`; `state`: a variable's memory, bound once; `prepared`: made by the prepare program out of state
 * (folded or packed weights), bound once; `constant`: data of the program itself.
 */
export type Place = 'arena' | 'input' | 'output' | 'state' | 'prepared' | 'constant'

/** A typed block of a program's memory. */
export interface ProgramBuffer {
  readonly place: Place
  readonly dtype: DType
  readonly shape: Shape
  readonly bytes: number
  /** Bytes from the start of the arena; 64-byte aligned. Only for `arena`. */
  readonly offset?: number
  /** Of an input, output, state or prepared buffer. */
  readonly name?: string
  /** Of a constant: base64 of its bytes. */
  readonly data?: string
  /** Of a view: the index of the buffer whose memory this is in another shape. Views are never bound themselves. */
  readonly view?: number
}

/** One kernel call of a program. */
export interface Call {
  /** The op's name: an executor finds its kernel by it. */
  readonly kernel: string
  /** Buffer indices; `null` for an absent optional input. */
  readonly inputs: readonly (number | null)[]
  readonly outputs: readonly number[]
  readonly attributes: Attributes
  /** Path of the layer, for messages and reports. */
  readonly scope: string
  /** Scratch in the arena for this call alone. */
  readonly workspace?: { readonly offset: number; readonly bytes: number }
}

/** A compiled graph as plain data. */
export interface Program {
  readonly format: 'sepconv-program'
  readonly version: 1
  /** The executor that it was planned for; any other can replay it. */
  readonly target: string
  readonly buffers: readonly ProgramBuffer[]
  readonly calls: readonly Call[]
  /** Indices into `buffers`. */
  readonly inputs: readonly number[]
  readonly outputs: readonly number[]
  readonly arenaBytes: number
  /** Index of the first call that writes state (the number of calls when none does): an abort is obeyed before it, never after. */
  readonly updateStart: number
}
