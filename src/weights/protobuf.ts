/**
 * The writing half of protocol buffers' wire format: varints, 32-bit floats and length-delimited fields. Messages keep their pieces
 * apart, so that tensors of megabytes are never copied on the way to the file.
 */

const encoder = new TextEncoder()

export class Message {
  readonly #pieces: Uint8Array[] = []
  #length = 0

  /** Bytes of the encoded message. */
  get length(): number {
    return this.#length
  }

  /** The encoded message, in order. */
  pieces(): readonly Uint8Array[] {
    return this.#pieces
  }

  /** An integer of at least 0 and at most 2^53 − 1; negative ones as 64-bit two's complement. */
  int(field: number, value: number): this {
    return this.#varint(field * 8).#varint(value)
  }

  float(field: number, value: number): this {
    const bytes = new Uint8Array(4)
    new DataView(bytes.buffer).setFloat32(0, value, true)
    return this.#varint(field * 8 + 5).#append(bytes)
  }

  bytes(field: number, value: string | Uint8Array): this {
    const bytes = typeof value === 'string' ? encoder.encode(value) : value
    return this.#varint(field * 8 + 2)
      .#varint(bytes.length)
      .#append(bytes)
  }

  message(field: number, value: Message): this {
    this.#varint(field * 8 + 2).#varint(value.length)
    for (const piece of value.pieces()) this.#append(piece)
    return this
  }

  #varint(value: number): this {
    const bytes: number[] = []
    let rest = BigInt.asUintN(64, BigInt(value))
    while (rest >= 128n) {
      bytes.push(Number(rest & 127n) | 128)
      rest >>= 7n
    }
    bytes.push(Number(rest))
    return this.#append(Uint8Array.from(bytes))
  }

  #append(bytes: Uint8Array): this {
    this.#pieces.push(bytes)
    this.#length += bytes.length
    return this
  }
}
