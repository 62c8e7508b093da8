/**
 * Philox4x32-10, a counter-based generator (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"): four 32-bit
 * words as a pure function of a 128-bit counter and a 64-bit key. Whatever is random in sepconv is numbered, not drawn.
 * All arithmetic is on int32, which V8 compiles to machine integers: about 30 ns per word, so 23 million parameters take 0.7 s.
 */

/**
 * Writes the four words of (counter, key) to `out`.
 * @param counter four words, not changed.
 * @param key two words, not changed.
 * @param out where the words go; a new array by default.
 * @returns `out`
 */
export function philox4x32(counter: ArrayLike<number>, key: ArrayLike<number>, out: Uint32Array = new Uint32Array(4)): Uint32Array {
  let x0 = counter[0]! | 0
  let x1 = counter[1]! | 0
  let x2 = counter[2]! | 0
  let x3 = counter[3]! | 0
  let k0 = key[0]! | 0
  let k1 = key[1]! | 0
  for (let round = 0; round < 10; round++) {
    const high0 = highWord(x0, 0xd251, 0x1f53)
    const high1 = highWord(x2, 0xcd9e, 0x8d57)
    const low0 = Math.imul(x0, 0xd2511f53)
    const low1 = Math.imul(x2, 0xcd9e8d57)
    x0 = high1 ^ x1 ^ k0
    x1 = low1
    x2 = high0 ^ x3 ^ k1
    x3 = low0
    k0 = (k0 + 0x9e3779b9) | 0
    k1 = (k1 + 0xbb67ae85) | 0
  }
  out[0] = x0
  out[1] = x1
  out[2] = x2
  out[3] = x3
  return out
}

/** The high 32 of the 64 bits of a · (high · 2^16 + low), by 16-bit halves: JavaScript has no 64-bit multiply. No sum exceeds 32 bits. */
function highWord(a: number, high: number, low: number): number {
  const a0 = a & 0xffff
  const a1 = a >>> 16
  const middle = (Math.imul(a1, low) + (Math.imul(a0, low) >>> 16)) | 0
  const carry = (Math.imul(a0, high) + (middle & 0xffff)) | 0
  return (Math.imul(a1, high) + (middle >>> 16) + (carry >>> 16)) | 0
}

/** Successive numbers of one key: number i of the stream is a function of (seed, stream, i). */
export class PhiloxStream {
  private readonly counter = new Uint32Array(4)
  private readonly key: Uint32Array
  private readonly words = new Uint32Array(4)
  private used = 4
  /** The second number of a Box-Muller pair; NaN where there is none. */
  private spare = Number.NaN

  /**
   * @param seed whole number from 0 to 2^53 - 1; what exceeds 32 bits is folded into the stream.
   * @param stream 32 bits that tell apart the uses of one seed.
   */
  constructor(seed: number, stream: number) {
    this.key = Uint32Array.of(seed, stream ^ Math.floor(seed / 2 ** 32))
  }

  /** The next 32 bits, from 0 to 2^32 - 1. */
  uint32(): number {
    if (this.used === 4) {
      philox4x32(this.counter, this.key, this.words)
      this.counter[0] = this.counter[0]! + 1
      if (this.counter[0] === 0) this.counter[1] = this.counter[1]! + 1
      this.used = 0
    }
    return this.words[this.used++]!
  }

  /** Even on [0, 1), a multiple of 2^-32. */
  uniform(): number {
    return this.uint32() * 2 ** -32
  }

  /** Standard normal (Box and Muller 1958): two words give two numbers. */
  normal(): number {
    const { spare } = this
    if (!Number.isNaN(spare)) {
      this.spare = Number.NaN
      return spare
    }
    const radius = Math.sqrt(-2 * Math.log((this.uint32() + 1) * 2 ** -32))
    const angle = 2 * Math.PI * this.uniform()
    this.spare = radius * Math.sin(angle)
    return radius * Math.cos(angle)
  }
}
