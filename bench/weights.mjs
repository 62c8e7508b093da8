// Speed of everything around weights: opening files, preparing pictures beside inference, the example server beside the library.
//
//     npm run build && node bench/weights.mjs [--only load,pictures,server] [--out bench/results/weights.json]
//
// Each measurement runs in a process of its own, in turns with what it is compared with. Files are in the page cache.

import { spawn } from 'node:child_process'
import { mkdir, mkdtemp, open, readFile, rm, writeFile } from 'node:fs/promises'
import { Agent, request } from 'node:http'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import { origin } from '../dist/bench/machine.js'
import { imageFolder, loadImage, loadModel, tensor, xception } from '../dist/index.js'

const CLIENTS = 64
const self = fileURLToPath(import.meta.url)
const median = (values) => [...values].sort((a, b) => a - b)[values.length >> 1]
const round = (x, digits = 1) => Number(x.toFixed(digits))
/** Not getrusage's, which begins with what the parent had. */
const peakMiB = async () => Number(/VmHWM:\s+(\d+) kB/.exec(await readFile('/proc/self/status', 'utf8'))[1]) / 1024

/** What a child process prints as its last line. */
async function child(part, ...args) {
  const running = spawn(process.execPath, [self, '--part', part, '--', ...args.map(String)], { stdio: ['ignore', 'pipe', 'inherit'] })
  let text = ''
  for await (const piece of running.stdout) text += piece
  const status = running.exitCode ?? (await new Promise((resolve) => running.on('close', resolve)))
  if (status !== 0) throw new Error(`${part} ended with ${status}`)
  return JSON.parse(text.trim().split('\n').at(-1))
}

const timed = async (body) => {
  const since = performance.now()
  await body()
  return performance.now() - since
}

const parts = {
  /** The bytes alone, into one new buffer. */
  async read(path) {
    const ms = await timed(async () => {
      const file = await open(path)
      const { size } = await file.stat()
      const bytes = Buffer.allocUnsafeSlow(size)
      for (let at = 0; at < size; ) at += (await file.read(bytes, at, size - at, at)).bytesRead
      await file.close()
    })
    return { ms, peakMiB: await peakMiB() }
  },
  /** Everything but the weights: what their memory comes on top of. */
  async model() {
    const model = xception()
    return { ms: 0, peakMiB: await peakMiB(), variables: model.variables.size }
  },
  async load(path) {
    const model = xception()
    const ms = await timed(() => model.loadWeights(path))
    return { ms, peakMiB: await peakMiB() }
  },
  /** Inference alone, preparation alone, and both at once, in pictures per second. */
  async pictures(folder, seconds) {
    const { ImageLoader } = await import('../dist/data/loader.js')
    const model = xception()
    const batch = 8
    const x = tensor(new Uint8Array(batch * 299 * 299 * 3).fill(90), [batch, 299, 299, 3], { device: model.device })
    const infer = async () => (await model.run(x)).dispose()
    await infer()
    const { train, validation } = await imageFolder(folder)
    const samples = [...train, ...validation]
    const options = { size: 299, batch, preprocess: { resize: 333, crop: 'center', interpolation: 'bicubic' }, cacheBytes: 0 }
    const rates = async (both) => {
      const until = performance.now() + 1000 * seconds
      const count = { inference: 0, preparation: 0 }
      const running = async () => {
        while (performance.now() < until) {
          await infer()
          count.inference += batch
        }
      }
      const preparing = async () => {
        while (performance.now() < until)
          for await (const { count: n } of new ImageLoader(samples, options)) {
            count.preparation += n
            if (performance.now() >= until) break
          }
      }
      const ms = await timed(() => Promise.all(both.map((name) => (name === 'inference' ? running() : preparing()))))
      return Object.fromEntries(both.map((name) => [name, (1000 * count[name]) / ms]))
    }
    await rates(['preparation'])
    return {
      alone: { ...(await rates(['inference'])), ...(await rates(['preparation'])) },
      together: await rates(['inference', 'preparation']),
    }
  },
  /** Decoding and classifying the same pictures, batch after batch, in pictures per second. */
  async library(weights, picture, batch, seconds) {
    const model = await loadModel(weights)
    const bytes = await readFile(picture)
    const turn = async () => model.classify(await Promise.all(Array.from({ length: Number(batch) }, () => loadImage(bytes))))
    await turn()
    let [count, next] = [0, Promise.all(Array.from({ length: Number(batch) }, () => loadImage(bytes)))]
    const ms = await timed(async () => {
      for (const until = performance.now() + 1000 * seconds; performance.now() < until; count += Number(batch)) {
        const images = await next
        next = Promise.all(images.map(() => loadImage(bytes)))
        await model.classify(images)
      }
    })
    return { imagesPerSecond: (1000 * count) / ms }
  },
}

/** Requests of {@link CLIENTS} clients on kept connections, for a while. */
async function load(url, body, seconds) {
  const agent = new Agent({ keepAlive: true, maxSockets: CLIENTS })
  const statuses = {}
  const latencies = []
  const post = () =>
    new Promise((resolve, reject) => {
      const sent = request(`${url}/predict`, { method: 'POST', agent, headers: { 'content-length': body.length } }, (response) => {
        response.resume().on('end', () => resolve(response.statusCode))
      })
      sent.on('error', reject).end(body)
    })
  await Promise.all(Array.from({ length: CLIENTS }, post))
  let count = 0
  const since = performance.now()
  const until = since + 1000 * seconds
  await Promise.all(
    Array.from({ length: CLIENTS }, async () => {
      while (performance.now() < until) {
        const start = performance.now()
        const status = await post()
        statuses[status] = (statuses[status] ?? 0) + 1
        latencies.push(performance.now() - start)
        if (status === 200) count++
      }
    }),
  )
  const ms = performance.now() - since
  agent.destroy()
  return { imagesPerSecond: (1000 * count) / ms, medianMs: median(latencies), statuses }
}

async function server(weights, picture, seconds) {
  const process_ = spawn(process.execPath, [join(dirname(self), '../examples/serve.mjs'), weights, '0'], {
    stdio: ['ignore', 'pipe', 'inherit'],
  })
  try {
    const url = await new Promise((resolve, reject) => {
      process_.stdout.once('data', (text) => resolve(String(text).trim()))
      process_.once('exit', (code) => reject(new Error(`the server ended with ${code}`)))
    })
    return await load(url, await readFile(picture), seconds)
  } finally {
    process_.kill()
  }
}

/** Pictures with edges and texture, as JPEG of quality 90. */
async function writePictures(folder, count) {
  const { default: sharp } = await import('sharp')
  await mkdir(join(folder, 'a'), { recursive: true })
  for (let n = 0; n < count; n++) {
    const [width, height] = [400, 299]
    const data = Buffer.alloc(width * height * 3)
    for (let i = 0; i < data.length; i++) {
      const [x, y, c] = [Math.floor(i / 3) % width, Math.floor(i / 3 / width), i % 3]
      data[i] = 128 + 60 * Math.sin((x * (n + 3)) / 40 + c) + 40 * Math.cos((y * (c + 1)) / 9) + 24 * Math.sin(x * y * 0.07 + n)
    }
    await sharp(data, { raw: { width, height, channels: 3 } })
      .jpeg({ quality: 90 })
      .toFile(join(folder, 'a', `${n}.jpg`))
  }
}

async function main(only) {
  const folder = await mkdtemp(join(tmpdir(), 'sepconv-bench-'))
  const results = {}
  try {
    const [safetensors, keras] = [join(folder, 'x.safetensors'), join(folder, 'x.h5')]
    const model = xception({ seed: 1 })
    await model.saveWeights(safetensors)
    if (only.includes('load')) await model.saveWeights(keras)
    model.dispose()
    if (only.includes('load')) {
      const bytes = (await readFile(safetensors)).length
      const runs = { read: [], model: [], safetensors: [], h5: [] }
      for (let i = 0; i < 7; i++) {
        runs.read.push(await child('read', safetensors))
        runs.safetensors.push(await child('load', safetensors))
        runs.h5.push(await child('load', keras))
        runs.model.push(await child('model'))
      }
      const of = (name, key) => median(runs[name].map((run) => run[key]))
      results.load = {
        bytes,
        readMs: round(of('read', 'ms')),
        safetensorsMs: round(of('safetensors', 'ms')),
        safetensorsPerRead: round(of('safetensors', 'ms') / of('read', 'ms'), 2),
        safetensorsPeakMiB: round(of('safetensors', 'peakMiB') - of('model', 'peakMiB')),
        h5Ms: round(of('h5', 'ms')),
        h5PeakMiB: round(of('h5', 'peakMiB') - of('model', 'peakMiB')),
      }
      console.log(JSON.stringify(results.load))
    }
    await writePictures(join(folder, 'pictures'), 64)
    if (only.includes('pictures')) {
      const { alone, together } = await child('pictures', join(folder, 'pictures'), 6)
      const rounded = (rates) => Object.fromEntries(Object.entries(rates).map(([name, rate]) => [name, round(rate)]))
      results.pictures = { alone: rounded(alone), together: rounded(together) }
      console.log(JSON.stringify(results.pictures))
    }
    if (only.includes('server')) {
      const picture = join(folder, 'pictures', 'a', '0.jpg')
      const runs = []
      for (let i = 0; i < 3; i++)
        runs.push({ library: await child('library', safetensors, picture, 16, 8), server: await server(safetensors, picture, 8) })
      const [library, served] = [
        median(runs.map((run) => run.library.imagesPerSecond)),
        median(runs.map((run) => run.server.imagesPerSecond)),
      ]
      results.server = {
        clients: CLIENTS,
        library: round(library),
        server: round(served),
        share: round(served / library, 3),
        medianMs: round(median(runs.map((run) => run.server.medianMs)), 0),
        statuses: runs.map((run) => run.server.statuses),
      }
      console.log(JSON.stringify(results.server))
    }
  } finally {
    await rm(folder, { recursive: true })
  }
  return results
}

const { values, positionals } = parseArgs({
  options: { part: { type: 'string' }, only: { type: 'string', default: 'load,pictures,server' }, out: { type: 'string' } },
  allowPositionals: true,
})
if (values.part !== undefined) {
  console.log(JSON.stringify(await parts[values.part](...positionals)))
  process.exit(0)
}
const results = await main(values.only.split(','))
if (values.out !== undefined) {
  let before = {}
  try {
    before = JSON.parse(await readFile(values.out, 'utf8')).results
  } catch {}
  await writeFile(values.out, `${JSON.stringify({ ...origin(null), results: { ...before, ...results } }, null, 2)}\n`)
}
