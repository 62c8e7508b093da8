/**
 * Random numbers for data: functions of (seed, stream, index, row), so that any sample's numbers can be had at any time, in any
 * order, on any worker. Philox4x32-10 counts four words at a time: counter = (block, row, index low, index high), key = (seed,
 * stream); a seed beyond 32 bits is folded into the stream.
 */

import { philox4x32 } from '../ops/philox.js'

/** One key per use of randomness, so that no two uses ever see the same numbers. */
export const STREAMS = { order: 0x6f726465, augment: 0x6175676d, mix: 0x6d697875, shapes: 0x73686170, patterns: 0x70617474 } as const

export class SampleRandom {
  private readonly counter: Uint32Array
  private readonly key: Uint32Array
  private readonly words = new Uint32Array(4)
  private used = 4

  /**
   * @param seed whole number from 0 to 2^53 - 1.
   * @param index global sample index, epoch or picture number.
   * @param row separates numbers of one index that serve different ends.
   */
  constructor(seed: number, stream: number, index: number, row = 0) {
    this.counter = Uint32Array.of(0, row, index, Math.floor(index / 2 ** 32))
    this.key = Uint32Array.of(seed, stream ^ Math.floor(seed / 2 ** 32))
  }

  /** The next 32 bits. */
  word(): number {
    if (this.used === 4) {
      philox4x32(this.counter, this.key, this.words)
      this.counter[0] = this.counter[0]! + 1
      this.used = 0
    }
    return this.words[this.used++]!
  }

  /** Even on [0, 1), a multiple of 2^-32. */
  uniform(): number {
    return this.word() * 2 ** -32
  }

  /** An even whole number from 0 to `count` - 1; its bias is below count / 2^32. */
  below(count: number): number {
    return Math.min(count - 1, Math.floor(this.uniform() * count))
  }
}
