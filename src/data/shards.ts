/**
 * WebDataset shards: tar archives in which the files of one sample stand together and share everything before the first dot of their
 * names: `0001.jpg` with `0001.cls` (a class, by index or name) or `0001.json` ({"label": …} or {"labels": […]}).
 *
 * Headers are indexed once; pictures are read by position when their turn comes, so no shard is ever held or unpacked, and a resumed run
 * goes on at the exact sample. An epoch visits the shards in random order, one after the other, and draws from a buffer of samples ahead:
 * reads stay close together on the disk.
 */

import { existsSync, readdirSync, statSync } from 'node:fs'
import { type FileHandle, open } from 'node:fs/promises'
import { basename, dirname, join } from 'node:path'
import { checkOptions, SepconvError } from '../errors.js'
import { fileError } from '../files.js'
import { type Dataset, type Sample, splitByName } from './folder.js'
import { readLabels } from './labels.js'
import { SampleRandom, STREAMS } from './random.js'
import { indexTar, type TarEntry } from './tar.js'

/** Options of {@link webDataset}. */
export interface ShardOptions {
  /** Share of the samples held out where no shard's name begins with `val`. Default 0.2. */
  validation?: number
  /** Refuse corrupt shards and samples without a label instead of counting them. Default false. */
  strict?: boolean
  /** Samples among which the next is drawn in training. Default 4096. */
  buffer?: number
}

const PICTURES = ['jpg', 'jpeg', 'png', 'webp']
const LABELS = ['cls', 'json']
const BUFFER = 4096

/** The shards at a path: a folder's `.tar` files, one file, or a pattern such as `train-{000..015}.tar`; sorted by name. */
export function findShards(path: string): string[] {
  const braces = /^(.*)\{(\d+)\.\.(\d+)\}(.*)$/.exec(path)
  if (braces) {
    const [, before, first, last, after] = braces as unknown as [string, string, string, string, string]
    return Array.from(
      { length: Number(last) - Number(first) + 1 },
      (_, i) => `${before}${String(Number(first) + i).padStart(first.length, '0')}${after}`,
    )
  }
  if (path.endsWith('.tar')) return [path]
  if (!existsSync(path) || !statSync(path).isDirectory()) return []
  return readdirSync(path)
    .filter((name) => name.endsWith('.tar'))
    .sort()
    .map((name) => join(path, name))
}

/** What is known of a sample before the classes are. */
interface Found {
  readonly shard: string
  readonly key: string
  readonly picture: TarEntry
  /** As the file says: one class, or several. */
  readonly label: number | string | readonly (number | string)[]
}

/**
 * Opens a data set of shards; reads headers and labels, no picture.
 *
 * Shards whose names begin with `val` hold the held-out samples. `classes.txt` or `classes.json` beside the shards names the classes;
 * without it they are the names that occur, or the indices up to the largest.
 * @throws ERR_DATA for shards without samples, labels out of range and, when strict, corrupt shards; ERR_FILE, ERR_FORMAT.
 */
export async function webDataset(path: string, options: ShardOptions = {}): Promise<Dataset> {
  checkOptions('webDataset', options, ['validation', 'strict', 'buffer'])
  const { validation: share = 0.2, strict = false, buffer = BUFFER } = options
  if (!(Number.isInteger(buffer) && buffer >= 1))
    throw new SepconvError('ERR_ARGUMENT', `webDataset: buffer must be a whole number of at least 1, got ${buffer}`, {
      subject: 'buffer',
      given: buffer,
    })
  const shards = findShards(path)
  if (shards.length === 0) throw new SepconvError('ERR_DATA', `${path} holds no .tar shards`, { subject: path })
  const problems: string[] = []
  const found: Found[] = []
  for (const shard of shards) found.push(...(await readShard(shard, strict, problems)))
  if (found.length === 0)
    throw new SepconvError('ERR_DATA', `${path}: the shards hold no labelled pictures`, {
      subject: path,
      expected: '0001.jpg with 0001.cls or 0001.json',
      given: problems.slice(0, 3),
    })
  const several = found.some(({ label }) => Array.isArray(label))
  const classes = await classesOf(dirname(shards[0]!), found)
  const samples = found.map((one) => sampleOf(one, several, classes))
  const isHeld = ({ path: shard }: Sample) => /^val/i.test(basename(shard))
  const held = samples.filter(isHeld)
  const { train, validation } =
    held.length > 0 ? { train: samples.filter((sample) => !isHeld(sample)), validation: held } : splitByName(samples, share)
  if (train.length === 0) throw new SepconvError('ERR_DATA', `${path} has no training shards`, { subject: path })
  return {
    ...{ root: path, classes, train, validation, split: held.length > 0 ? 'files' : 'hash' },
    ...(several && { multiLabel: true }),
    ignored: { count: problems.length, examples: problems.slice(0, 5) },
    order: (seed, epoch) => shardOrder(train, seed, epoch, buffer),
  }
}

async function readShard(shard: string, strict: boolean, problems: string[]): Promise<Found[]> {
  const complain = (message: string) => {
    if (strict) throw new SepconvError('ERR_DATA', message, { subject: shard, hint: 'Repair it, or do not ask for strict' })
    problems.push(message)
  }
  const { entries, problem } = await indexTar(shard)
  if (problem !== undefined) complain(`${shard}: ${problem}; ${entries.length} files before that are used`)
  const groups = new Map<string, Map<string, TarEntry>>()
  for (const entry of entries) {
    const folder = entry.name.lastIndexOf('/') + 1
    const dot = entry.name.indexOf('.', folder)
    if (dot < 0 || dot === folder) continue
    const key = entry.name.slice(0, dot)
    if (!groups.has(key)) groups.set(key, new Map())
    groups.get(key)!.set(entry.name.slice(dot + 1).toLowerCase(), entry)
  }
  const found: Found[] = []
  const file = await open(shard, 'r').catch((error: unknown) => {
    throw fileError(error, shard, 'read')
  })
  try {
    for (const [key, parts] of groups) {
      const picture = PICTURES.map((extension) => parts.get(extension)).find(Boolean)
      const kind = LABELS.find((extension) => parts.has(extension))
      // What has no picture and is no sample (a README, say) is nobody's fault.
      if (!picture) continue
      const label = kind && (await readLabel(file, kind, parts.get(kind)!))
      if (label === undefined || label === '') complain(`${shard}: sample ${key} has no label that can be read`)
      else found.push({ shard, key, picture, label })
    }
  } finally {
    await file.close()
  }
  return found
}

async function readLabel(file: FileHandle, kind: string, { offset, size }: TarEntry): Promise<Found['label'] | undefined> {
  const bytes = Buffer.alloc(size)
  await file.read(bytes, 0, size, offset)
  const text = bytes.toString('utf8').trim()
  const asClass = (value: unknown) => (typeof value === 'string' && /^\d+$/.test(value) ? Number(value) : (value as string | number))
  if (kind === 'cls') return asClass(text)
  try {
    const { label, labels } = JSON.parse(text) as { label?: unknown; labels?: unknown }
    if (Array.isArray(labels)) return labels.map(asClass)
    return typeof label === 'string' || typeof label === 'number' ? asClass(label) : undefined
  } catch {
    return undefined
  }
}

async function classesOf(folder: string, found: readonly Found[]): Promise<string[]> {
  const file = ['classes.txt', 'classes.json'].map((name) => join(folder, name)).find((candidate) => existsSync(candidate))
  if (file !== undefined) return readLabels(file)
  const all = [...new Set(found.flatMap(({ label }) => label as string | number | (string | number)[]))]
  if (all.every((label) => typeof label === 'number')) {
    const most = all.reduce((largest, label) => Math.max(largest, label), 0)
    const width = String(most).length
    return Array.from({ length: most + 1 }, (_, i) => String(i).padStart(width, '0'))
  }
  return all.map(String).sort((a, b) => (a < b ? -1 : a > b ? 1 : 0))
}

function sampleOf({ shard, key, picture, label }: Found, several: boolean, classes: readonly string[]): Sample {
  const indexOf = (one: number | string) => {
    const index = typeof one === 'number' ? one : classes.indexOf(one)
    if (!(Number.isInteger(index) && index >= 0 && index < classes.length))
      throw new SepconvError('ERR_DATA', `${shard}: sample ${key} has label '${one}', and there are ${classes.length} classes`, {
        subject: key,
        given: one,
      })
    return index
  }
  const own = (Array.isArray(label) ? label : [label as number | string]).map(indexOf)
  const { offset, size } = picture
  return {
    path: shard,
    name: `${basename(shard)}/${picture.name}`,
    label: several ? -1 : own[0]!,
    ...(several && { labels: [...new Set(own)].sort((a, b) => a - b) }),
    read: () => readPart(shard, offset, size),
  }
}

/** The bytes of one file in a shard. Opening costs little beside decoding, and no handle waits for its end. */
async function readPart(shard: string, offset: number, size: number): Promise<Uint8Array> {
  try {
    const file = await open(shard, 'r')
    try {
      const bytes = new Uint8Array(size)
      const { bytesRead } = await file.read(bytes, 0, size, offset)
      return bytes.subarray(0, bytesRead)
    } finally {
      await file.close()
    }
  } catch (error) {
    throw fileError(error, shard, 'read')
  }
}

/** Shards in random order, and within that order always one of the next `buffer` samples. */
export function shardOrder(samples: readonly Sample[], seed: number, epoch: number, buffer: number): Uint32Array {
  const random = new SampleRandom(seed, STREAMS.order, epoch)
  const shards = new Map<string, number[]>()
  samples.forEach(({ path }, i) => {
    const own = shards.get(path)
    if (own) own.push(i)
    else shards.set(path, [i])
  })
  const lists = [...shards.values()]
  for (let i = lists.length - 1; i > 0; i--) {
    const j = random.below(i + 1)
    ;[lists[i], lists[j]] = [lists[j]!, lists[i]!]
  }
  const order = new Uint32Array(samples.length)
  const waiting: number[] = []
  let at = 0
  const draw = () => {
    const j = random.below(waiting.length)
    order[at++] = waiting[j]!
    waiting[j] = waiting.at(-1)!
    waiting.pop()
  }
  for (const list of lists)
    for (const sample of list) {
      waiting.push(sample)
      if (waiting.length >= buffer) draw()
    }
  while (waiting.length > 0) draw()
  return order
}
