// Downloads from a server that truncates, redirects, stalls, lies about the length and changes files.

import { createHash } from 'node:crypto'
import { existsSync } from 'node:fs'
import { mkdtemp, readdir, readFile, rm } from 'node:fs/promises'
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest'
import { fetchWeights, isRemote, resolveSource } from '../../src/weights/fetch.js'

const FILE = Buffer.from(Array.from({ length: 100_000 }, (_, i) => (i * 7) % 251))
const ETAG = '"one"'

let server: Server
let base: string
let cache: string
let handler: (request: IncomingMessage, response: ServerResponse) => void
const requests: IncomingMessage[] = []

beforeAll(async () => {
  server = createServer((request, response) => {
    requests.push(request)
    handler(request, response)
  })
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  base = `http://127.0.0.1:${(server.address() as AddressInfo).port}`
})
afterAll(() => server.close())
beforeEach(async () => {
  cache = await mkdtemp(join(tmpdir(), 'sepconv-fetch-'))
  requests.length = 0
})
afterEach(() => rm(cache, { recursive: true }))

const get = (path = '/model.safetensors', options = {}) =>
  fetchWeights(`${base}${path}`, { cache, allowHttp: true, stallMs: 300, ...options })
const whole = (response: ServerResponse, body = FILE, etag = ETAG) =>
  response.writeHead(200, { 'content-length': body.length, etag }).end(body)
const files = async () => (await readdir(cache, { recursive: true })).map(String)

/** Serves ranges as a well-behaved server does. */
function ranged(request: IncomingMessage, response: ServerResponse): void {
  const from = Number(/bytes=(\d+)-/.exec(request.headers.range ?? '')?.[1] ?? Number.NaN)
  if (Number.isNaN(from) || request.headers['if-range'] !== ETAG) return void whole(response)
  const rest = FILE.subarray(from)
  response
    .writeHead(206, { 'content-length': rest.length, 'content-range': `bytes ${from}-${FILE.length - 1}/${FILE.length}`, etag: ETAG })
    .end(rest)
}

describe('fetchWeights', () => {
  it('downloads once, with progress, and reads the cache afterwards', async () => {
    handler = (_, response) => whole(response)
    const seen: number[] = []
    const path = await get(undefined, { onProgress: ({ done, total }: { done: number; total: number }) => seen.push(done, total) })
    expect(await readFile(path)).toEqual(FILE)
    expect(seen.at(-2)).toBe(FILE.length)
    expect(seen.at(-1)).toBe(FILE.length)
    expect(await get()).toBe(path)
    expect(requests).toHaveLength(1)
    expect((await files()).filter((name) => /part|lock/.test(name))).toEqual([])
  })

  it("the hub's config.json comes with the weights; a hub without one is none the worse", async () => {
    const config = Buffer.from('{"pretrained_cfg":{}}')
    handler = (request, response) => (request.url!.endsWith('config.json') ? void response.writeHead(404).end() : whole(response))
    const options = { cache, allowHttp: true, hub: base }
    const without = await fetchWeights('hf:someone/plain', options)
    expect(await readdir(join(without, '..'))).toEqual(['model.safetensors'])
    handler = (request, response) => whole(response, request.url!.endsWith('config.json') ? config : FILE)
    const path = await fetchWeights('timm/xception65.ra3_in1k', options)
    expect(await readFile(join(path, '..', 'config.json'))).toEqual(config)
    expect(await readFile(path)).toEqual(FILE)
    const last = requests.length
    expect(await fetchWeights('timm/xception65.ra3_in1k', options)).toBe(path)
    expect(requests).toHaveLength(last)
    handler = (request, response) => (request.url!.endsWith('config.json') ? void response.writeHead(503).end() : whole(response))
    await expect(fetchWeights('hf:someone/else', options)).rejects.toMatchObject({ message: expect.stringContaining('503') })
  })

  it('an index brings the files that it names, and is there only when they are', async () => {
    const index = Buffer.from(JSON.stringify({ weight_map: { a: 'one.safetensors', b: 'two.safetensors', c: 'one.safetensors' } }))
    const paths: string[] = []
    let broken = true
    handler = (request, response) => {
      paths.push(request.url!)
      if (request.url!.endsWith('.json')) whole(response, index)
      else if (request.url!.includes('two') && broken) response.writeHead(503).end()
      else whole(response)
    }
    await expect(get('/x/model.safetensors.index.json')).rejects.toMatchObject({ message: expect.stringContaining('503') })
    broken = false
    const path = await get('/x/model.safetensors.index.json')
    expect(await readFile(path)).toEqual(index)
    expect((await readdir(join(path, '..'))).sort()).toEqual(['model.safetensors.index.json', 'one.safetensors', 'two.safetensors'])
    expect(paths.filter((name) => name === '/x/one.safetensors')).toHaveLength(1)
    handler = (_, response) => whole(response, Buffer.from('{"weight_map":{"a":"../../evil"}}'))
    await expect(get('/y/model.safetensors.index.json')).rejects.toMatchObject({
      code: 'ERR_FORMAT',
      message: expect.stringContaining('same folder'),
    })
  })

  it('a truncated body is an error, and the next call goes on where it stopped', async () => {
    handler = (_, response) => {
      response.writeHead(200, { 'content-length': FILE.length, etag: ETAG })
      response.write(FILE.subarray(0, 40_000), () => setTimeout(() => response.destroy(), 50))
    }
    await expect(get()).rejects.toMatchObject({ code: 'ERR_FILE', message: expect.stringContaining('broke after 40000 bytes') })
    handler = ranged
    expect(await readFile(await get())).toEqual(FILE)
    expect(requests.at(-1)!.headers.range).toBe('bytes=40000-')
  })

  it('a file that changed in between starts from the beginning', async () => {
    handler = (_, response) => {
      response.writeHead(200, { 'content-length': FILE.length, etag: '"old"' })
      response.write(FILE.subarray(0, 1000), () => setTimeout(() => response.destroy(), 50))
    }
    await expect(get()).rejects.toMatchObject({ code: 'ERR_FILE' })
    handler = ranged
    expect(await readFile(await get())).toEqual(FILE)
  })

  it('a server that stalls, before or within the body', async () => {
    handler = () => {}
    await expect(get()).rejects.toMatchObject({ code: 'ERR_FILE', message: expect.stringContaining('does not answer') })
    handler = (_, response) => void response.writeHead(200, { 'content-length': FILE.length, etag: ETAG }).write(FILE.subarray(0, 10))
    await expect(get()).rejects.toMatchObject({ code: 'ERR_FILE', message: expect.stringContaining('nothing came for 0.3 s') })
  })

  it('more bytes than promised, without a length, and over the limit', async () => {
    handler = (_, response) => {
      // A header of its own, since Node refuses to lie.
      response.socket!.end(Buffer.concat([Buffer.from('HTTP/1.1 200 OK\r\ncontent-length: 10\r\nconnection: close\r\n\r\n'), FILE]))
    }
    // What is beyond the length is no part of the answer: the file has ten bytes, whose content the reader refuses.
    const short = await get('/a').then(
      (path) => readFile(path),
      (error: { code: string }) => error,
    )
    expect(Buffer.isBuffer(short) ? short.length : short.code).toSatisfy((x: unknown) => x === 10 || x === 'ERR_FILE')
    handler = (_, response) => void response.writeHead(200, { etag: ETAG }).end(FILE)
    expect(await readFile(await get('/b'))).toEqual(FILE)
    await expect(get('/c', { maxBytes: 1000 })).rejects.toMatchObject({ code: 'ERR_FILE', message: expect.stringContaining('1000 bytes') })
    handler = (_, response) => whole(response)
    await expect(get('/d', { maxBytes: 1000 })).rejects.toMatchObject({
      code: 'ERR_FILE',
      message: expect.stringContaining('more than the limit'),
    })
  })

  it('a length that is a lie: the body ends early', async () => {
    handler = (_, response) => void response.socket!.end('HTTP/1.1 200 OK\r\ncontent-length: 5000\r\nconnection: close\r\n\r\nfew bytes')
    await expect(get()).rejects.toMatchObject({ code: 'ERR_FILE' })
    expect(existsSync(join(cache, 'model.safetensors'))).toBe(false)
  })

  it('redirects are followed, not in circles, and not to http unless allowed', async () => {
    handler = (request, response) => {
      if (request.url === '/model.safetensors') response.writeHead(302, { location: '/elsewhere' }).end()
      else whole(response)
    }
    expect(await readFile(await get())).toEqual(FILE)
    handler = (_, response) => response.writeHead(302, { location: '/again' }).end()
    await expect(get('/circle')).rejects.toMatchObject({ code: 'ERR_FILE' })
    await expect(fetchWeights(`${base}/x`, { cache })).rejects.toMatchObject({
      code: 'ERR_ARGUMENT',
      message: expect.stringContaining('https only'),
    })
  })

  it('errors, web pages and a server that is not there', async () => {
    handler = (_, response) => response.writeHead(404).end()
    await expect(get()).rejects.toMatchObject({ code: 'ERR_FILE', message: expect.stringContaining('404') })
    handler = (_, response) => response.writeHead(200, { 'content-type': 'text/html' }).end('<html>')
    await expect(get()).rejects.toMatchObject({ code: 'ERR_FILE', message: expect.stringContaining('web page') })
    await expect(fetchWeights('http://127.0.0.1:1/x', { cache, allowHttp: true })).rejects.toMatchObject({
      code: 'ERR_FILE',
      hint: expect.stringContaining('HTTPS_PROXY'),
    })
  })

  it('a proxy from the environment is used', async () => {
    handler = (_, response) => whole(response)
    const before = process.env.HTTP_PROXY
    process.env.HTTP_PROXY = 'http://127.0.0.1:1'
    try {
      await expect(get('/proxied')).rejects.toMatchObject({ code: 'ERR_FILE' })
      expect(requests).toHaveLength(0)
    } finally {
      if (before === undefined) delete process.env.HTTP_PROXY
      else process.env.HTTP_PROXY = before
    }
  })

  it('an abort leaves what came for the next try', async () => {
    const stop = new AbortController()
    handler = (_, response) => {
      response.writeHead(200, { 'content-length': FILE.length, etag: ETAG })
      response.write(FILE.subarray(0, 5000), () => setTimeout(() => stop.abort(), 50))
    }
    await expect(get(undefined, { signal: stop.signal, stallMs: 5000 })).rejects.toMatchObject({ name: 'AbortError' })
    handler = ranged
    expect(await readFile(await get())).toEqual(FILE)
  })

  it('knows the published names, and refuses crooked ones', async () => {
    expect(isRemote('timm/legacy_xception.tf_in1k')).toBe(true)
    expect(isRemote('runs/best.safetensors')).toBe(false)
    expect(resolveSource('keras/xception').md5).toBe('0a58e3b7378bc2990ea3b43d5981f1f6')
    expect(resolveSource('hf:lucid-dl/xception/TF_IN1K/model.safetensors', { hub: 'https://h' }).url).toBe(
      'https://h/lucid-dl/xception/resolve/main/TF_IN1K/model.safetensors',
    )
    for (const name of ['hf:x', 'hf:a/../b', 'hf:a/b/../../c', 'hf:a b/c']) expect(() => resolveSource(name)).toThrow(/owner\/name/)
  })

  it('a file of another checksum is refused and forgotten: the caller’s, and what the hub says', async () => {
    handler = (_, response) => whole(response)
    await expect(get(undefined, { sha256: '0'.repeat(64) })).rejects.toMatchObject({
      code: 'ERR_FILE',
      message: expect.stringContaining('sha256'),
    })
    expect((await files()).filter((name) => name.includes('.safetensors'))).toEqual([])
    let sum = createHash('sha256').update(FILE).digest('hex')
    handler = (request, response) => {
      if (request.url!.startsWith('/storage')) whole(response)
      else response.writeHead(302, { location: '/storage', 'x-linked-etag': `"${sum}"` }).end()
    }
    const hub = () => fetchWeights('timm/legacy_xception.tf_in1k', { cache, hub: base, allowHttp: true, stallMs: 300 })
    expect(await readFile(await hub())).toEqual(FILE)
    await rm(cache, { recursive: true })
    sum = '1'.repeat(64)
    await expect(hub()).rejects.toMatchObject({ code: 'ERR_FILE', message: expect.stringContaining(sum) })
  })
})
