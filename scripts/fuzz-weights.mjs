// Opens mutated weights files by the thousand: each must open or be refused with an error of ours, soon and without much memory.
//
//     npm run build && node scripts/fuzz-weights.mjs [mutations per format, default 100000] [seed]
//
// The offending file is kept and named when one does not.

import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { pathToFileURL } from 'node:url'

/** Most milliseconds and bytes that one file may take; generous, for machines under load. */
const LIMITS = { ms: 5000, bytes: 1 << 30 }
/** Bytes from the start and from the end that are mutated: headers, indices and pickles, not the numbers between. */
const HEAD = 16 << 10
const TAIL = 4 << 10

/** xorshift32 in [0, 1). */
function generator(seed) {
  let state = seed | 1
  return () => {
    state ^= state << 13
    state ^= state >>> 17
    state ^= state << 5
    return (state >>> 0) / 2 ** 32
  }
}

const INTERESTING = [0, 1, 0x7f, 0x80, 0xff, 0x28, 0x52, 0x63, 0x2e, 0x22, 0x7b]

function mutate(original, random) {
  const bytes = Buffer.from(original)
  const place = () => {
    const head = random() < 0.8 || bytes.length < HEAD
    return head ? Math.floor(random() * random() * Math.min(HEAD, bytes.length)) : bytes.length - 1 - Math.floor(random() * TAIL)
  }
  for (let edits = 1 + Math.floor(random() * 6); edits > 0; edits--) {
    const at = place()
    const kind = random()
    if (kind < 0.4) bytes[at] = Math.floor(random() * 256)
    else if (kind < 0.6) bytes[at] = INTERESTING[Math.floor(random() * INTERESTING.length)]
    else if (kind < 0.75) bytes[at] ^= 1 << Math.floor(random() * 8)
    else if (kind < 0.9) bytes.copyWithin(at, place(), Math.min(bytes.length, place() + 64))
    else bytes.writeUInt32LE(Math.floor(random() * 2 ** 32), Math.min(at, bytes.length - 4))
  }
  return random() < 0.1 ? bytes.subarray(0, Math.floor(random() * bytes.length)) : bytes
}

/**
 * @param open opens a weights file, as openWeightsFile does.
 * @param path a well-formed file. @param count how many mutations of it.
 * @returns how many opened and were refused, and the slowest in milliseconds.
 * @throws when a mutation crashes the reader, or takes too long or too much memory.
 */
export async function fuzz(open, path, count, seed = 1) {
  const original = await readFile(path)
  const random = generator(seed)
  const folder = await mkdtemp(join(tmpdir(), 'sepconv-fuzz-'))
  const file = join(folder, 'mutated')
  const result = { opened: 0, refused: 0, slowest: 0 }
  for (let i = 0; i < count; i++) {
    await writeFile(file, mutate(original, random))
    const since = performance.now()
    try {
      const weights = await open(file)
      try {
        for (const [name, { elements }] of weights.tensors)
          if (elements <= 1 << 16) await weights.readInto(name, new Float32Array(elements))
      } finally {
        await weights.close()
      }
      result.opened++
    } catch (error) {
      if (error?.name !== 'SepconvError' || error.code === 'ERR_INTERNAL')
        throw new Error(`${file}: mutation ${i} of ${path}`, { cause: error })
      result.refused++
    }
    result.slowest = Math.max(result.slowest, performance.now() - since)
    if (result.slowest > LIMITS.ms) throw new Error(`${file}: mutation ${i} of ${path} took ${Math.round(result.slowest)} ms`)
    if (process.memoryUsage.rss() > LIMITS.bytes + original.length) throw new Error(`${file}: memory grew beyond ${LIMITS.bytes} bytes`)
  }
  await rm(folder, { recursive: true })
  return result
}

/** Well-formed files of every format, made in `folder`. */
export async function samples(folder, { createModel, fixture }) {
  const model = await createModel('xception', { width: 0.05, middleRepeats: 0, classes: 3, device: 'reference' })
  const made = { safetensors: join(folder, 'a.safetensors'), hdf5: join(folder, 'a.h5') }
  await model.saveWeights(made.safetensors, { names: 'timm' })
  await model.saveWeights(made.hdf5)
  model.dispose()
  return { ...made, zip: fixture('kinds.pt'), pickle: fixture('kinds-legacy.pt') }
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? '').href) {
  const [count = 100_000, seed = 1] = process.argv.slice(2).map(Number)
  const { createModel } = await import('../dist/index.js')
  const { openWeightsFile } = await import('../dist/weights/file.js')
  const folder = await mkdtemp(join(tmpdir(), 'sepconv-fuzz-'))
  const fixture = (name) => new URL(`../test/weights/fixtures/${name}`, import.meta.url).pathname
  for (const [format, path] of Object.entries(await samples(folder, { createModel, fixture }))) {
    const { opened, refused, slowest } = await fuzz(openWeightsFile, path, count, seed)
    console.log(`${format}: ${count} mutations, ${opened} opened, ${refused} refused, slowest ${slowest.toFixed(0)} ms`)
  }
  await rm(folder, { recursive: true })
}
