/**
 * Conversion between float32 and the 16-bit float formats of weight files, on whole arrays. Node 20 has no Float16Array, so both
 * formats travel as the 16 bits of a Uint16Array. Rounding is to nearest even; NaN stays NaN, overflow becomes infinity.
 */

const bits = new Uint32Array(1)
const value = new Float32Array(bits.buffer)

/** All 65,536 float16 values, made on first use: 256 KiB that turn conversion into one load per element. */
let halfTable: Float32Array | undefined

/** Widens float16 bits `source[i]` into `target[offset + i]`. */
export function float16ToFloat32(source: Uint16Array, target: Float32Array, offset = 0): void {
  halfTable ??= Float32Array.from({ length: 65536 }, (_, half) => widenHalf(half))
  for (let i = 0; i < source.length; i++) target[offset + i] = halfTable[source[i]!]!
}

function widenHalf(half: number): number {
  const sign = half & 0x8000 ? -1 : 1
  const exponent = (half >> 10) & 31
  const fraction = half & 1023
  if (exponent === 31) return fraction ? Number.NaN : sign * Number.POSITIVE_INFINITY
  if (exponent === 0) return sign * fraction * 2 ** -24
  return sign * (1024 + fraction) * 2 ** (exponent - 25)
}

/** Widens bfloat16 bits `source[i]` into `target[offset + i]`. */
export function bfloat16ToFloat32(source: Uint16Array, target: Float32Array, offset = 0): void {
  const words = new Uint32Array(target.buffer, target.byteOffset, target.length)
  for (let i = 0; i < source.length; i++) words[offset + i] = source[i]! << 16
}

/** Rounds float32 to bfloat16 bits. */
export function float32ToBfloat16(source: Float32Array, target: Uint16Array): void {
  const words = new Uint32Array(source.buffer, source.byteOffset, source.length)
  for (let i = 0; i < words.length; i++) {
    const word = words[i]!
    target[i] = (word & 0x7fffffff) > 0x7f800000 ? (word >>> 16) | 0x40 : (word + 0x7fff + ((word >>> 16) & 1)) >>> 16
  }
}

/** Rounds float32 to float16 bits. */
export function float32ToFloat16(source: Float32Array, target: Uint16Array): void {
  for (let i = 0; i < source.length; i++) {
    value[0] = source[i]!
    const word = bits[0]!
    const sign = (word >>> 16) & 0x8000
    const magnitude = word & 0x7fffffff
    if (magnitude > 0x7f800000) target[i] = sign | 0x7e00
    else if (magnitude >= 0x477ff000) target[i] = sign | 0x7c00
    else if (magnitude >= 0x38800000) target[i] = sign | ((magnitude - 0x38000000 + 0xfff + ((magnitude >>> 13) & 1)) >>> 13)
    else target[i] = sign | roundHalfEven(Math.abs(value[0]) * 2 ** 24) // below 2^-14: whole multiples of 2^-24
  }
}

function roundHalfEven(x: number): number {
  const low = Math.floor(x)
  const rest = x - low
  return rest > 0.5 || (rest === 0.5 && low % 2 === 1) ? low + 1 : low
}
