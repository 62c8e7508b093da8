// A sample of scripts/fuzz-weights.mjs, and hostile files made by hand.

import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, expect, it } from 'vitest'
// @ts-expect-error a script without types
import { fuzz, samples } from '../../scripts/fuzz-weights.mjs'
import { openWeightsFile } from '../../src/weights/file.js'
import { writeKeras } from '../../src/weights/kerasWriter.js'
import { readPickle } from '../../src/weights/pickle.js'
import { writeSafetensors } from '../../src/weights/safetensors.js'
import { fixture, writeLegacy, writeZip } from './keras.js'

let folder: string
let files: Record<string, string>
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'sepconv-fuzz-'))
  files = (await samples(folder, { writeSafetensors, writeKeras, fixture })) as Record<string, string>
})
afterAll(() => rm(folder, { recursive: true }))

it.each([
  ['safetensors', 1000],
  ['pickle', 1000],
  ['zip', 1000],
  ['hdf5', 500],
  ['hdf5-by-class', 500],
  ['keras', 500],
])('%s: %i mutations open or are refused', async (format, count) => {
  const { opened, refused } = (await fuzz(openWeightsFile, files[format]!, count, 7)) as { opened: number; refused: number }
  expect(opened + refused).toBe(count)
  expect(refused).toBeGreaterThan(0)
})

const pickle = (text: string) => readPickle(Buffer.from(text, 'latin1'), 'p')

it.each([
  ['a call by name', '\x80\x02cos\nsystem\nU\x02ls\x85R.', /os\.system/],
  ['a call by names on the stack', '\x80\x04\x8c\x08builtins\x8c\x04eval\x93.', /builtins\.eval/],
  ['instances', '\x80\x02(ia\nb\n.', /opcode 0x69/],
  ['an extension registry', '\x80\x02\x82\x01.', /opcode 0x82/],
  ['a text beyond the end', '\x80\x02X\xff\xff\xff\x7fa.', /ends in mid-value/],
  ['an empty stack', '\x80\x02.', /missing on the stack/],
  ['a memo of nothing', '\x80\x02h\x07.', /memo entry 7/],
  ['a name that does not end', `\x80\x02c${'a'.repeat(2000)}`, /does not end/],
])('a pickle with %s is refused', (_name, text, message) => {
  expect(() => pickle(text)).toThrow(message)
})

it('a tensor that reaches beyond its storage is refused', () => {
  const storage = '(U\x07storagectorch\nFloatStorage\nU\x010U\x03cpuK\x04tQ'
  const tensor = (offset: number, size: number, stride: number) =>
    `\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(${storage}K${String.fromCharCode(offset)}K${String.fromCharCode(size)}\x85K${String.fromCharCode(stride)}\x85\x89Ntq\x01R.`
  expect(pickle(tensor(1, 3, 1)).value).toMatchObject({ shape: [3], offset: 1 })
  for (const [offset, size, stride] of [
    [1, 4, 1],
    [0, 2, 4],
    [0, 200, 0],
  ] as const)
    expect(() => pickle(tensor(offset, size, stride))).toThrow(/beyond its storage/)
})

it('zips whose names climb out of the archive, or repeat, are refused', async () => {
  const path = join(folder, 'z')
  await writeZip(path, { '../../etc/passwd': Buffer.from('x') })
  await expect(openWeightsFile(path)).rejects.toMatchObject({ code: 'ERR_FORMAT', message: expect.stringContaining('relative path') })
})

it('a zip whose 64-bit directory lies beyond all files ends in an error, not in a crash', async () => {
  const path = join(folder, 'z')
  const locator = Buffer.alloc(20)
  locator.writeUInt32LE(0x07064b50, 0)
  locator.writeBigUInt64LE(10_528_759_511_760_505_000n, 8)
  const end = Buffer.alloc(22)
  end.writeUInt32LE(0x06054b50, 0)
  end.writeUInt32LE(0xffffffff, 16)
  await writeFile(path, Buffer.concat([Buffer.from('PK\x03\x04'), Buffer.alloc(40), locator, end]))
  await expect(openWeightsFile(path)).rejects.toMatchObject({ code: 'ERR_FORMAT', message: expect.stringContaining('points to byte') })
})

it('HDF5 that lists what is not there, or links in circles, ends at once', async () => {
  const path = join(folder, 'h.h5')
  const weights = [{ name: 'kernel', shape: [1], data: new Float32Array(1) }]
  await writeLegacy(path, [{ name: 'a', weights }])
  const h5wasm = await import('h5wasm/node')
  const file = new h5wasm.File(path, 'a')
  file.create_soft_link('/loop', 'loop')
  file.delete_attribute('layer_names')
  file.create_attribute('layer_names', ['loop'], [1], 'S4')
  file.close()
  await expect(openWeightsFile(path)).rejects.toMatchObject({ code: 'ERR_FORMAT', message: expect.stringContaining("at '/loop'") })
  await writeFile(path, Buffer.alloc(0))
})
