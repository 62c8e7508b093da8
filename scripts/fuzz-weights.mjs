// Opens mutated weights files by the thousand: each must open or be refused with an error of ours, soon and without much memory.
//
//     npm run build && node scripts/fuzz-weights.mjs [mutations per format, default 100000] [seed] [formats…]
//
// One process per processor and format shares the mutations out. Whatever crashes, hangs, grows or fails otherwise is kept and named.

import { spawn } from 'node:child_process'
import { existsSync } from 'node:fs'
import { mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { availableParallelism, tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath, pathToFileURL } from 'node:url'
import { crc32 } from 'node:zlib'

/** Most milliseconds and bytes that one file may take; generous, for machines under load. */
const LIMITS = { ms: 5000, bytes: 1 << 30 }
/** A process that says nothing for so long hangs in one file. */
const HANG_MS = 60_000
/** Bytes from the start and from the end that are mutated: headers, indices and pickles, not the numbers between. */
const HEAD = 16 << 10
const TAIL = 4 << 10

/** xorshift32 in [0, 1). */
function generator(seed) {
  let state = Math.imul(seed, 0x9e3779b1) | 1
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
 * @param path a well-formed file. @param count how many mutations of it. @param onProgress called now and then.
 * @returns how many opened and were refused, the slowest in milliseconds, the most memory of the process in bytes.
 * @throws when a mutation ends in an error that is none of ours, or takes too long or too much memory.
 */
export async function fuzz(open, path, count, seed = 1, { folder, onProgress } = {}) {
  const original = await readFile(path)
  const random = generator(seed)
  const place = folder ?? (await mkdtemp(join(tmpdir(), 'sepconv-fuzz-')))
  const file = join(place, 'mutated')
  const result = { opened: 0, refused: 0, slowest: 0, rss: 0 }
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
    if (i % 64 === 0) {
      result.rss = Math.max(result.rss, process.memoryUsage.rss())
      onProgress?.()
    }
    if (result.rss > LIMITS.bytes + original.length) throw new Error(`${file}: memory grew beyond ${LIMITS.bytes} bytes`)
  }
  await rm(place, { recursive: true })
  return result
}

/** A zip of stored entries. @param entries content by name. */
export function storedZip(entries) {
  const [pieces, central] = [[], []]
  let offset = 0
  for (const [name, data] of Object.entries(entries)) {
    const local = Buffer.alloc(30)
    local.writeUInt32LE(0x04034b50, 0)
    local.writeUInt16LE(20, 4)
    local.writeUInt32LE(crc32(data), 14)
    local.writeUInt32LE(data.length, 18)
    local.writeUInt32LE(data.length, 22)
    local.writeUInt16LE(Buffer.byteLength(name), 26)
    const record = Buffer.alloc(46)
    record.writeUInt32LE(0x02014b50, 0)
    record.writeUInt16LE(20, 6)
    local.copy(record, 16, 14, 28)
    record.writeUInt32LE(offset, 42)
    central.push(record, Buffer.from(name))
    pieces.push(local, Buffer.from(name), Buffer.from(data))
    offset += 30 + Buffer.byteLength(name) + data.length
  }
  const size = central.reduce((sum, { length }) => sum + length, 0)
  const end = Buffer.alloc(22)
  end.writeUInt32LE(0x06054b50, 0)
  end.writeUInt16LE(Object.keys(entries).length, 8)
  end.writeUInt16LE(Object.keys(entries).length, 10)
  end.writeUInt32LE(size, 12)
  end.writeUInt32LE(offset, 16)
  return Buffer.concat([...pieces, ...central, end])
}

/** Layers of each kind, small: what is mutated is structure, and the time goes into it. */
const LAYERS = {
  'conv2d#0': { kernel: [3, 3, 3, 2], bias: [2] },
  block2_sepconv1: { depthwise_kernel: [3, 3, 2, 1], pointwise_kernel: [1, 1, 2, 4] },
  block2_sepconv1_bn: { gamma: [4], beta: [4], moving_mean: [4], moving_variance: [4] },
  predictions: { kernel: [4, 3], bias: [3] },
}
const KINDS = ['conv2d', 'separable_conv2d', 'batch_normalization', 'dense']
const numbers = (shape) => Float32Array.from({ length: shape.reduce((a, b) => a * b, 1) }, (_, i) => i / 8)

/**
 * Well-formed files of every format, made in `folder`.
 * @param api `writeSafetensors` and `writeKeras` of the package, and `fixture`, the path of a file of test/weights/fixtures.
 */
export async function samples(folder, { writeSafetensors, writeKeras, fixture }) {
  const at = (name) => join(folder, name)
  const tensors = Object.entries(LAYERS).flatMap(([layer, weights]) =>
    Object.entries(weights).map(([name, shape]) => [`${layer}.${name}`, { dtype: 'F32', shape, data: numbers(shape) }]),
  )
  await writeSafetensors(at('a.safetensors'), new Map(tensors), { metadata: { format: 'pt' } })
  const keras = Object.entries(LAYERS).map(([layer, weights]) => [
    layer,
    Object.entries(weights).map(([weight, shape]) => ({ weight, shape, data: async () => numbers(shape) })),
  ])
  await writeKeras(at('a.h5'), new Map(keras))
  const h5wasm = await import('h5wasm/node')
  const file = new h5wasm.File(at('a.weights.h5'), 'w')
  const layers = file.create_group('layers')
  for (const [i, weights] of Object.values(LAYERS).entries()) {
    const vars = layers.create_group(KINDS[i]).create_group('vars')
    for (const [j, shape] of Object.values(weights).entries())
      vars.create_dataset({ name: String(j), data: numbers(shape), shape, dtype: '<f' })
  }
  file.close()
  await writeFile(
    at('a.keras'),
    storedZip({ 'config.json': Buffer.from('{"class_name":"Functional"}'), 'model.weights.h5': await readFile(at('a.weights.h5')) }),
  )
  return {
    ...{ safetensors: at('a.safetensors'), pickle: fixture('kinds-legacy.pt'), zip: fixture('kinds.pt') },
    ...{ hdf5: at('a.h5'), 'hdf5-by-class': at('a.weights.h5'), keras: at('a.keras') },
  }
}

/** Runs a share of the mutations in a process of its own. @returns its result. @throws when it ends without one, or hangs. */
function share(format, path, count, seed, folder) {
  return new Promise((resolve, reject) => {
    const child = spawn(process.execPath, [fileURLToPath(import.meta.url), '--child', path, count, seed, folder], {
      stdio: ['ignore', 'pipe', 'inherit'],
    })
    let output = ''
    const hang = () => {
      child.kill('SIGKILL')
      reject(new Error(`${format}: nothing for ${HANG_MS / 1000} s over ${join(folder, 'mutated')}`))
    }
    let timer = setTimeout(hang, HANG_MS)
    child.stdout.on('data', (piece) => {
      clearTimeout(timer)
      timer = setTimeout(hang, HANG_MS)
      output = (output + piece).slice(-1000)
    })
    child.on('close', (code, signal) => {
      clearTimeout(timer)
      const line = /\{.*\}/.exec(output)?.[0]
      if (code === 0 && line) resolve(JSON.parse(line))
      else reject(new Error(`${format}: the process ended with ${signal ?? code} over ${join(folder, 'mutated')}`))
    })
  })
}

async function main([count = 100_000, seed = 1, ...only]) {
  const [{ writeSafetensors }, { writeKeras }] = await Promise.all([
    import('../dist/weights/safetensors.js'),
    import('../dist/weights/kerasWriter.js'),
  ])
  // In memory where there is such a place: a hundred thousand files wear a disk for nothing.
  const folder = await mkdtemp(join(existsSync('/dev/shm') ? '/dev/shm' : tmpdir(), 'sepconv-fuzz-'))
  const fixture = (name) => new URL(`../test/weights/fixtures/${name}`, import.meta.url).pathname
  const shares = availableParallelism()
  let bad = false
  for (const [format, path] of Object.entries(await samples(folder, { writeSafetensors, writeKeras, fixture }))) {
    if (only.length > 0 && !only.includes(format)) continue
    const since = performance.now()
    const runs = await Promise.allSettled(
      Array.from({ length: shares }, async (_, i) => {
        const own = join(folder, `${format}-${i}`)
        await mkdir(own)
        const part = Math.floor(((i + 1) * count) / shares) - Math.floor((i * count) / shares)
        return await share(format, path, part, seed * 1000 + i, own)
      }),
    )
    for (const { reason } of runs.filter(({ status }) => status === 'rejected')) {
      bad = true
      console.error(reason.message)
    }
    const results = runs.flatMap(({ value }) => (value ? [value] : []))
    const sum = (key) => results.reduce((total, result) => total + result[key], 0)
    const most = (key) => Math.max(0, ...results.map((result) => result[key]))
    console.log(
      `${format}: ${sum('opened') + sum('refused')} mutations in ${((performance.now() - since) / 1000).toFixed(0)} s, ` +
        `${sum('opened')} opened, ${sum('refused')} refused, slowest ${most('slowest').toFixed(0)} ms, ` +
        `at most ${(most('rss') / 2 ** 20).toFixed(0)} MiB`,
    )
  }
  if (bad) process.exitCode = 1
  else await rm(folder, { recursive: true })
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? '').href) {
  if (process.argv[2] === '--child') {
    const [path, count, seed, folder] = process.argv.slice(3)
    const { openWeightsFile } = await import('../dist/weights/file.js')
    const onProgress = () => process.stdout.write('.')
    console.log(JSON.stringify(await fuzz(openWeightsFile, path, Number(count), Number(seed), { folder, onProgress })))
  } else {
    const [count, seed, ...formats] = process.argv.slice(2)
    await main([...(count === undefined ? [] : [Number(count)]), ...(seed === undefined ? [] : [Number(seed)]), ...formats])
  }
}
