/** NumPy's `.npy` format, version 1.0, for what programs elsewhere read. */

/** A float32 array in C order. */
export function encodeNpy(data: Float32Array, shape: readonly number[]): Uint8Array {
  const description = `{'descr': '<f4', 'fortran_order': False, 'shape': (${shape.join(', ')}${shape.length === 1 ? ',' : ''}), }`
  // Magic, version and length take 10 bytes; the header is padded so that the data begins at a multiple of 64.
  const header = `${description.padEnd(Math.ceil((10 + description.length + 1) / 64) * 64 - 11)}\n`
  const bytes = Buffer.alloc(10 + header.length + data.byteLength)
  bytes.write('\x93NUMPY\x01\x00', 'latin1')
  bytes.writeUInt16LE(header.length, 8)
  bytes.write(header, 10, 'latin1')
  bytes.set(new Uint8Array(data.buffer, data.byteOffset, data.byteLength), 10 + header.length)
  return bytes
}
