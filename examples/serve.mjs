// Predictions over HTTP, with a page to drop a picture on: node serve.mjs [weights] [port] [limits as JSON]
// POST /predict takes a picture's bytes. Requests that wait are computed together (dynamic batching); a full queue answers 503,
// too large a body 413, too slow a one 408.
import { createServer } from 'node:http'
import { readFile } from 'node:fs/promises'
import { loadImage, loadModel } from 'sepconv'

const LIMITS = { queue: 256, batch: 16, bytes: 16 << 20, bodyMs: 10_000, pixels: 50_000_000 }

export async function serve(weights, { port = 0, host = '127.0.0.1', limits = {} } = {}) {
  const { queue: most, batch, bytes, bodyMs, pixels } = { ...LIMITS, ...limits }
  const model = await loadModel(weights)
  const page = await readFile(new URL('serve.html', import.meta.url))
  const waiting = []
  let busy = false
  let open = 0

  async function drain() {
    if (busy) return
    busy = true
    while (waiting.length > 0) {
      const jobs = waiting.splice(0, batch)
      try {
        const results = await model.classify(jobs.map(({ image }) => image))
        jobs.forEach(({ resolve }, i) => resolve(results[i]))
      } catch (error) {
        for (const { reject } of jobs) reject(error)
      }
    }
    busy = false
  }

  const predict = (image) =>
    new Promise((resolve, reject) => {
      waiting.push({ image, resolve, reject })
      drain()
    })

  const server = createServer(async (request, response) => {
    const answer = (status, value, type = 'application/json') => {
      if (response.headersSent || response.destroyed) return
      response.writeHead(status, { 'content-type': type, ...(status >= 400 && { connection: 'close' }) })
      response.end(type === 'application/json' ? JSON.stringify(value) : value, () => status >= 400 && request.destroy())
    }
    if (request.method === 'GET' && request.url === '/') return answer(200, page, 'text/html; charset=utf-8')
    if (request.method !== 'POST' || request.url !== '/predict') return answer(404, { error: 'POST a picture to /predict' })
    if (open >= most) return answer(503, { error: 'busy, try again' })
    open++
    try {
      const body = await read(request, bytes, bodyMs)
      answer(200, await predict(await loadImage(body, { maxPixels: pixels, maxBytes: bytes })))
    } catch (error) {
      answer(error.status ?? (error.code === 'ERR_DATA' ? 400 : 500), {
        error: error.status || error.code ? error.message : 'internal error',
      })
    } finally {
      open--
    }
  })
  await new Promise((resolve, reject) => server.once('error', reject).listen(port, host, resolve))
  const close = async () => {
    server.closeAllConnections()
    await new Promise((resolve) => server.close(resolve))
    model.dispose()
  }
  return { url: `http://${host}:${server.address().port}`, model, close }
}

async function read(request, limit, milliseconds) {
  const refuse = (status, message) => Object.assign(new Error(message), { status })
  if (Number(request.headers['content-length'] ?? 0) > limit) throw refuse(413, `a picture may have ${limit} bytes`)
  const collect = async () => {
    const pieces = []
    let size = 0
    for await (const piece of request) {
      size += piece.length
      if (size > limit) throw refuse(413, `a picture may have ${limit} bytes`)
      pieces.push(piece)
    }
    return Buffer.concat(pieces)
  }
  let timer
  const late = new Promise((_, reject) => (timer = setTimeout(() => reject(refuse(408, 'the picture came too slowly')), milliseconds)))
  const body = collect()
  body.catch(() => {}) // after a timeout nobody waits for it any more
  return Promise.race([body, late]).finally(() => clearTimeout(timer))
}

if (process.argv[1] === new URL(import.meta.url).pathname) {
  const [weights = 'timm/legacy_xception.tf_in1k', port = '8080', limits = '{}'] = process.argv.slice(2)
  const { url } = await serve(weights, { port: Number(port), limits: JSON.parse(limits) })
  console.log(url)
}
