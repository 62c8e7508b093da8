/**
 * Weights by name from the network: `timm/legacy_xception.tf_in1k`, `keras/xception`, `hf:owner/name[/file]` or an https address
 * download once into a cache, of which everything later reads.
 *
 * A download goes to a `.part` file that a later try goes on with, is checked (length, and SHA-256 or MD5 where one is known) and then
 * renamed, so the cache never holds half a file under a whole one's name. Proxies come from HTTPS_PROXY, HTTP_PROXY and NO_PROXY.
 */

import { createHash } from 'node:crypto'
import { createReadStream, existsSync } from 'node:fs'
import { mkdir, open, readFile, rename, rm, stat, writeFile } from 'node:fs/promises'
import { homedir } from 'node:os'
import { basename, dirname, join } from 'node:path'
import { SepconvError } from '../errors.js'
import { fileError, lockFolder } from '../files.js'

interface Source {
  readonly url: string
  readonly sha256?: string | undefined
  readonly md5?: string
  /** The hub's description of the model, which says how pictures are prepared; a hub need not have one. */
  readonly config?: string
}

const timm = (name: string): Source => ({ url: `https://huggingface.co/timm/${name}/resolve/main/model.safetensors` })

/** Published weights by the names that their authors give them. */
const PUBLISHED: Readonly<Record<string, Source>> = {
  'keras/xception': {
    url: 'https://storage.googleapis.com/tensorflow/keras-applications/xception/xception_weights_tf_dim_ordering_tf_kernels.h5',
    md5: '0a58e3b7378bc2990ea3b43d5981f1f6',
  },
  'keras/xception-notop': {
    url: 'https://storage.googleapis.com/tensorflow/keras-applications/xception/xception_weights_tf_dim_ordering_tf_kernels_notop.h5',
    md5: 'b0042744bf5b25fce3cb969f33bebb97',
  },
  ...Object.fromEntries(
    [
      ...['legacy_xception.tf_in1k', 'xception41.tf_in1k', 'xception65.tf_in1k', 'xception71.tf_in1k'],
      ...['xception65.ra3_in1k', 'xception41p.ra3_in1k', 'xception65p.ra3_in1k'],
    ].map((name) => [`timm/${name}`, timm(name)]),
  ),
  'lucid/xception': {
    url: 'https://huggingface.co/lucid-dl/xception/resolve/main/TF_IN1K/model.safetensors',
    sha256: '8143bf6634e62129c20d48f0cb81ce45c67069709c1370ce7612506c4f8b5dc6',
  },
}

/** Options of a download. */
export interface FetchOptions {
  /** Folder of downloads. Default SEPCONV_CACHE, else ~/.cache/sepconv. */
  cache?: string
  signal?: AbortSignal
  /** Called as bytes arrive. `total` is undefined where the server does not say. */
  onProgress?: (progress: { readonly done: number; readonly total: number | undefined }) => void
  /** Milliseconds without a byte after which the server counts as stalled. Default 30,000. */
  stallMs?: number
  /** SHA-256 that the file must have, in hexadecimal. Default: what the list of published weights or the hub says, if either does. */
  sha256?: string
  /** Most bytes of a file. Default 8 GiB. */
  maxBytes?: number
  /** The address that stands for https://huggingface.co. Default SEPCONV_HUB, else that. */
  hub?: string
  /** Allows http: addresses, which anyone on the way may change. Default false. */
  allowHttp?: boolean
}

/** Whether `weights` names something to download rather than a file. Files come first. */
export const isRemote = (weights: string): boolean =>
  !existsSync(weights) && (Object.hasOwn(PUBLISHED, weights) || /^(hf:|https?:\/\/)/.test(weights))

/** The address behind a name. @throws ERR_ARGUMENT for malformed names. */
export function resolveSource(weights: string, options: FetchOptions = {}): Source {
  const hub = options.hub ?? process.env.SEPCONV_HUB ?? 'https://huggingface.co'
  const published = Object.hasOwn(PUBLISHED, weights) ? PUBLISHED[weights] : undefined
  if (published) return described({ ...published, url: published.url.replace('https://huggingface.co', hub) }, hub)
  if (weights.startsWith('hf:')) {
    const [owner, name, ...path] = weights.slice(3).split('/')
    const parts = [owner, name, ...path]
    if (!owner || !name || parts.some((part) => part === '' || part === '.' || part === '..' || !/^[\w.-]+$/.test(part!)))
      throw new SepconvError('ERR_ARGUMENT', `${weights}: expected hf:owner/name or hf:owner/name/file`, {
        subject: 'weights',
        given: weights,
      })
    return described({ url: `${hub}/${owner}/${name}/resolve/main/${path.length > 0 ? path.join('/') : 'model.safetensors'}` }, hub)
  }
  const plain = weights.startsWith('http:') && options.allowHttp !== true
  if (plain)
    throw new SepconvError('ERR_ARGUMENT', `${weights}: weights are fetched over https only`, { subject: 'weights', given: weights })
  return { url: weights }
}

/** With the description beside it, where the file lies at the root of a repository of the hub. */
function described(source: Source, hub: string): Source {
  const root = /^(.*\/resolve\/main\/)[^/]+$/.exec(source.url)?.[1]
  return root !== undefined && source.url.startsWith(`${hub}/`) ? { ...source, config: `${root}config.json` } : source
}

export const cacheFolder = (options: FetchOptions = {}): string =>
  options.cache ?? process.env.SEPCONV_CACHE ?? join(homedir(), '.cache', 'sepconv')

/**
 * The path of weights in the cache, downloaded first where they are not there yet.
 * @throws ERR_FILE when there is no network, the server refuses, stalls, ends early or sends something else than it promised;
 *   a later call goes on where this one stopped. AbortError when the signal fires.
 */
export async function fetchWeights(weights: string, options: FetchOptions = {}): Promise<string> {
  const source = resolveSource(weights, options)
  const digest = createHash('sha256').update(source.url).digest('hex').slice(0, 16)
  const name = basename(new URL(source.url).pathname).replace(/[^\w.-]/g, '_') || 'weights'
  const folder = join(cacheFolder(options), digest)
  const path = join(folder, name)
  if (existsSync(path)) return path
  try {
    await mkdir(folder, { recursive: true })
  } catch (error) {
    throw fileError(error, folder, 'create')
  }
  await using lock = await lockFolder(folder)
  void lock
  if (existsSync(path)) return path
  // First, so that weights in the cache always have what belongs to them.
  if (source.config !== undefined) await downloadConfig(source.config, join(folder, 'config.json'), options)
  if (path.endsWith('.index.json')) await downloadShards(source, path, options)
  else await download(source, path, options)
  return path
}

/** The files that an index names, from beside it; the index comes to its place last, so that one in the cache is complete. */
async function downloadShards(source: Source, path: string, { sha256, ...options }: FetchOptions): Promise<void> {
  const { readIndex } = await import('./sharded.js')
  const index = `${path}.new`
  await download(source, index, { ...options, sha256 })
  for (const shard of new Set((await readIndex(index)).values())) {
    const place = join(dirname(path), shard)
    if (!existsSync(place)) await download({ url: new URL(encodeURIComponent(shard), source.url).href }, place, options)
  }
  await rename(index, path)
}

/** @throws what a download throws, unless the server has no such file. */
async function downloadConfig(url: string, path: string, { onProgress: _, sha256: __, ...options }: FetchOptions): Promise<void> {
  try {
    await download({ url }, path, { ...options, maxBytes: MAX_CONFIG_BYTES })
  } catch (error) {
    if (!(error instanceof SepconvError && error.given === 404)) throw error
  }
}

/** What a part file belongs to: a server's word that the rest is of the same file. */
interface Partial {
  readonly url: string
  readonly etag: string | null
}

async function download(source: Source, path: string, options: FetchOptions): Promise<void> {
  const [part, note] = [`${path}.part`, `${path}.part.json`]
  const known = await readFile(note, 'utf8').then(
    (text) => JSON.parse(text) as Partial,
    () => undefined,
  )
  const have =
    known?.url === source.url && known.etag
      ? await stat(part).then(
          ({ size }) => size,
          () => 0,
        )
      : 0
  const refuse = (reason: string, hint?: string, cause?: unknown, status?: number): SepconvError =>
    new SepconvError('ERR_FILE', `cannot download ${source.url}: ${reason}`, { subject: source.url, hint, cause, given: status })
  const headers: Record<string, string> = { 'user-agent': 'sepconv' }
  if (have > 0) Object.assign(headers, { range: `bytes=${have}-`, 'if-range': known!.etag! })
  let linked: string | undefined
  const stall = new Stall(options.stallMs ?? 30_000, options.signal)
  const { EnvHttpProxyAgent, fetch } = await import('undici')
  const dispatcher = new EnvHttpProxyAgent()
  try {
    const get = async (url: string) =>
      await fetch(url, { headers, dispatcher, signal: stall.signal, redirect: 'manual' }).catch((error: Error) => {
        throw options.signal?.aborted ? error : refuse(stall.fired ? 'the server does not answer' : networkReason(error), OFFLINE, error)
      })
    let response = await get(source.url)
    for (let hop = 0; response.status >= 300 && response.status < 400 && response.headers.has('location'); hop++) {
      stall.touch()
      // The hub names the content's SHA-256 where it sends on to its storage.
      linked ??= /^"?([0-9a-f]{64})"?$/.exec(response.headers.get('x-linked-etag') ?? '')?.[1]
      const next = new URL(response.headers.get('location')!, response.url || source.url)
      if (hop >= MAX_REDIRECTS) throw refuse(`it redirects more than ${MAX_REDIRECTS} times`)
      if (next.protocol !== 'https:' && !(next.protocol === 'http:' && options.allowHttp === true))
        throw refuse(`it redirects to ${next.href}, which is not https`)
      response = await get(next.href)
    }
    stall.touch()
    if (response.status === 416) {
      await rm(part, { force: true })
      throw refuse('the server no longer has the file that was begun', 'Try again: it starts from the beginning')
    }
    if (!response.ok || !response.body)
      throw refuse(
        `the server answers ${response.status} ${response.statusText}`,
        response.status === 404 ? 'Check the name; hf:owner/name/file names another file than model.safetensors' : undefined,
        undefined,
        response.status,
      )
    if (/^text\/html/.test(response.headers.get('content-type') ?? '')) throw refuse('the server sends a web page in place of the file')
    const start = response.status === 206 ? have : 0
    if (response.status === 206 && !response.headers.get('content-range')?.startsWith(`bytes ${have}-`))
      throw refuse('the server continues at another place than asked')
    const total = totalOf(response.headers, start)
    const limit = options.maxBytes ?? 8 * 2 ** 30
    if ((total ?? 0) > limit) throw refuse(`${total} bytes are more than the limit of ${limit}`)
    const etag = response.headers.get('etag')
    await writeFile(note, JSON.stringify({ url: source.url, etag } satisfies Partial))
    const done = await receive(response.body, part, start, { limit, total, stall, options, refuse })
    if (total !== undefined && done !== total)
      throw refuse(`it ended after ${done} of ${total} bytes`, 'Try again: it goes on where it stopped')
  } catch (error) {
    throw fileError(error, part, 'write')
  } finally {
    stall.clear()
    // Not close(), which waits for an answer that is not read to its end.
    await dispatcher.destroy().catch(() => {})
  }
  await verify({ ...source, sha256: options.sha256 ?? source.sha256 ?? linked }, part, note, refuse)
  await rename(part, path)
  await rm(note, { force: true })
}

const MAX_REDIRECTS = 10
const MAX_CONFIG_BYTES = 1 << 20
const OFFLINE = 'Check the network and HTTPS_PROXY; a file that is on this machine works without: --weights FILE'

interface Receiving {
  readonly limit: number
  readonly total: number | undefined
  readonly stall: Stall
  readonly options: FetchOptions
  readonly refuse: (reason: string, hint?: string, cause?: unknown) => SepconvError
}

async function receive(body: AsyncIterable<Uint8Array>, part: string, start: number, receiving: Receiving): Promise<number> {
  const { limit, total, stall, options, refuse } = receiving
  const file = await open(part, start > 0 ? 'a' : 'w')
  let done = start
  try {
    for await (const piece of body) {
      stall.touch()
      done += piece.length
      if (done > limit || (total !== undefined && done > total)) {
        await file.truncate(0)
        throw refuse(`the server sends more than the ${total ?? limit} bytes that it promised`)
      }
      await file.write(piece)
      options.onProgress?.({ done, total })
    }
    await file.sync()
  } catch (error) {
    if (error instanceof SepconvError || options.signal?.aborted) throw error
    // A broken connection: what came is kept for the next try.
    throw refuse(
      stall.fired ? `nothing came for ${stall.milliseconds / 1000} s` : `the connection broke after ${done} bytes`,
      'Try again: it goes on where it stopped',
      error,
    )
  } finally {
    await file.close()
  }
  return done
}

function totalOf(headers: { get(name: string): string | null }, start: number): number | undefined {
  const range = /\/(\d+)$/.exec(headers.get('content-range') ?? '')
  if (range) return Number(range[1])
  const length = headers.get('content-length')
  // The length of compressed content says nothing of the file's.
  return length === null || headers.get('content-encoding') ? undefined : start + Number(length)
}

async function verify(source: Source, part: string, note: string, refuse: Receiving['refuse']): Promise<void> {
  for (const algorithm of ['sha256', 'md5'] as const) {
    const expected = source[algorithm]
    if (expected === undefined) continue
    const hash = createHash(algorithm)
    for await (const piece of createReadStream(part)) hash.update(piece as Uint8Array)
    const found = hash.digest('hex')
    if (found === expected) continue
    await rm(part, { force: true })
    await rm(note, { force: true })
    throw refuse(`its ${algorithm} is ${found}, not ${expected}`, 'The file was changed on the way or on the server')
  }
}

function networkReason(error: Error): string {
  const cause = error.cause as NodeJS.ErrnoException | undefined
  const code = cause?.code ?? ''
  const reasons: Record<string, string> = {
    ENOTFOUND: 'the name of the server is not known: no network?',
    EAI_AGAIN: 'the name of the server cannot be looked up: no network?',
    ECONNREFUSED: 'the connection is refused',
    ECONNRESET: 'the connection broke',
    ENETUNREACH: 'the network is not reachable',
    UND_ERR_CONNECT_TIMEOUT: 'the server does not answer',
  }
  return `${reasons[code] ?? cause?.message ?? error.message}${code ? ` (${code})` : ''}`
}

/** Aborts when nothing happened for a while, or with the caller's signal. */
class Stall {
  readonly #controller = new AbortController()
  readonly signal: AbortSignal
  fired = false
  #timer: NodeJS.Timeout | undefined

  constructor(
    readonly milliseconds: number,
    outer: AbortSignal | undefined,
  ) {
    this.signal = outer ? AbortSignal.any([outer, this.#controller.signal]) : this.#controller.signal
    this.touch()
  }
  touch(): void {
    clearTimeout(this.#timer)
    this.#timer = setTimeout(() => {
      this.fired = true
      this.#controller.abort()
    }, this.milliseconds)
  }
  clear(): void {
    clearTimeout(this.#timer)
  }
}
