/**
 * Labelled pictures in class folders: DIR/<class>/**.{jpg,png,webp}, or the same under DIR/train and DIR/val.
 *
 * Everything that training depends on is a function of the names alone: classes and samples are sorted by code units (the order
 * that other frameworks' weights use), never taken in the order of the disk; without a `val` folder the split ranks each class's
 * pictures by a hash of their names, so that every class gives the same share and the same pictures on every machine.
 */

import { createHash } from 'node:crypto'
import type { Dirent } from 'node:fs'
import { readdir, stat } from 'node:fs/promises'
import { extname, join } from 'node:path'
import { checkOptions, SepconvError } from '../errors.js'
import { fileError } from '../files.js'
import type { RgbImage } from './resample.js'

/** One labelled picture. */
export interface Sample {
  /** Where its file is. */
  readonly path: string
  /** Its path below the data set's folder with `/` between parts, the same on every machine. */
  readonly name: string
  /** Index into the data set's classes; −1 where `labels` says more. */
  readonly label: number
  /** Of data with several labels per picture: indices into the classes. */
  readonly labels?: readonly number[]
  /** Where its encoded bytes come from, if not the file at `path`. */
  read?(): Promise<Uint8Array>
  /** Where its pixels come from, if there is nothing to decode. */
  load?(): RgbImage | Promise<RgbImage>
}

/** Labelled pictures in two halves; what {@link imageFolder} gives. */
export interface Dataset {
  readonly root: string
  /** Class names in the order of their labels. */
  readonly classes: readonly string[]
  readonly train: readonly Sample[]
  readonly validation: readonly Sample[]
  /** How the validation pictures came about: from a folder or file of their own, or split off by name. */
  readonly split: 'folders' | 'files' | 'hash'
  /** Pictures have several labels each, or none. */
  readonly multiLabel?: boolean
  /** The order in which an epoch visits the training pictures; default a shuffle of them all. Must depend on nothing but its arguments. */
  order?(seed: number, epoch: number): Uint32Array
  /** Files that are no pictures by their extension: how many, and the first few names. */
  readonly ignored: { readonly count: number; readonly examples: readonly string[] }
}

/** Options of {@link imageFolder}. */
export interface ImageFolderOptions {
  /** Share of each class that is held out where there is no `val` folder, 0 to 0.9. Default 0.2; 0 holds out nothing. */
  validation?: number
  /** Refuse files that are no pictures instead of counting them. Default false. */
  strict?: boolean
}

const EXTENSIONS = new Set(['.jpg', '.jpeg', '.png', '.webp'])
const VALIDATION_NAMES = ['val', 'validation', 'valid']
/** Files that systems leave in every folder. */
const JUNK = new Set(['thumbs.db', 'desktop.ini', '__macosx'])
/** Folders below a class folder; links can make circles. */
const MAX_DEPTH = 16
const EXAMPLES = 5

/**
 * Lists a folder of labelled pictures; opens none of them.
 *
 * `train` and `val` (also `validation`, `valid`) inside are taken as the two halves where both exist and hold class folders, else every
 * folder is a class. Folders inside a class folder belong to the class. Hidden files are left out.
 *
 * @returns classes, and samples sorted by class and name.
 * @throws SepconvError `ERR_DATA` for a folder without classes, a class without pictures, a class of `val` that `train` lacks, and,
 * when strict, files that are no pictures; `ERR_FILE` for what cannot be read; `ERR_ARGUMENT` for bad options.
 */
export async function imageFolder(directory: string, options: ImageFolderOptions = {}): Promise<Dataset> {
  checkOptions('imageFolder', options, ['validation', 'strict'])
  const { validation: share = 0.2, strict = false } = options
  if (typeof directory !== 'string')
    throw new SepconvError('ERR_ARGUMENT', `imageFolder: expected the path of a folder, got ${typeof directory}`, { subject: 'directory' })
  if (!(share >= 0 && share <= 0.9)) {
    throw new SepconvError('ERR_ARGUMENT', `imageFolder: validation must be a share from 0 to 0.9, got ${share}`, {
      subject: 'validation',
      given: share,
    })
  }
  const ignored = new Ignored(strict)
  const folders = await subfolders(directory)
  const held = VALIDATION_NAMES.find((name) => folders.includes(name))
  const layout =
    folders.includes('train') && (held !== undefined || folders.length === 1) && (await subfolders(join(directory, 'train'))).length > 0
  const trainRoot = layout ? 'train' : ''
  const classes = layout ? await subfolders(join(directory, 'train')) : folders
  if (classes.length === 0) {
    throw new SepconvError('ERR_DATA', `${directory} has no class folders`, {
      subject: directory,
      expected: 'one folder per class, with pictures inside',
      hint: 'Put the pictures of each class into a folder named after it',
    })
  }
  const all: Sample[][] = []
  for (const [label, name] of classes.entries()) {
    const samples = await pictures(directory, [trainRoot, name].filter(Boolean).join('/'), label, ignored)
    if (samples.length === 0) {
      throw new SepconvError('ERR_DATA', `class folder ${join(directory, trainRoot, name)} has no pictures`, {
        subject: name,
        expected: [...EXTENSIONS].join(', '),
        hint: 'Add pictures or remove the folder',
      })
    }
    all.push(samples)
  }
  const found = (): Dataset['ignored'] => ({ count: ignored.count, examples: ignored.examples })
  if (layout && held !== undefined) {
    const validation: Sample[] = []
    for (const name of await subfolders(join(directory, held))) {
      const label = classes.indexOf(name)
      if (label < 0) {
        throw new SepconvError('ERR_DATA', `class '${name}' of ${join(directory, held)} is not in ${join(directory, 'train')}`, {
          subject: name,
          expected: classes,
          hint: 'Both folders must name the same classes',
        })
      }
      validation.push(...(await pictures(directory, `${held}/${name}`, label, ignored)))
    }
    return { root: directory, classes, train: all.flat(), validation, split: 'folders', ignored: found() }
  }
  const parts = all.map((samples) => splitByName(samples, share))
  return {
    root: directory,
    classes,
    train: parts.flatMap((part) => part.train),
    validation: parts.flatMap((part) => part.validation),
    split: 'hash',
    ignored: found(),
  }
}

/**
 * Splits the samples of one class: those whose names hash lowest are held out, round(share * n) of them but at least one where
 * there are two, and never all. A picture that is added moves at most one other across the line.
 */
export function splitByName(samples: readonly Sample[], share: number): { train: Sample[]; validation: Sample[] } {
  const count = share === 0 ? 0 : Math.min(samples.length - 1, Math.max(1, Math.round(share * samples.length)))
  const ranked = samples.map((sample) => ({ sample, rank: hashName(sample.name.slice(sample.name.lastIndexOf('/') + 1)) }))
  ranked.sort((a, b) => a.rank - b.rank || compare(a.sample.name, b.sample.name))
  const held = new Set(ranked.slice(0, count).map(({ sample }) => sample))
  return { train: samples.filter((sample) => !held.has(sample)), validation: samples.filter((sample) => held.has(sample)) }
}

/** 32-bit FNV-1a with a final mix over the composed form of the name: one file system stores letters with accents whole, another apart. */
function hashName(name: string): number {
  let hash = 0x811c9dc5
  for (const byte of Buffer.from(name.normalize('NFC'))) hash = Math.imul(hash ^ byte, 0x01000193)
  hash = Math.imul(hash ^ (hash >>> 16), 0x85ebca6b)
  hash = Math.imul(hash ^ (hash >>> 13), 0xc2b2ae35)
  return (hash ^ (hash >>> 16)) >>> 0
}

/** A SHA-256 over classes, names and labels: a resumed run compares it, to refuse data that changed. Hexadecimal, 64 digits. */
export function dataFingerprint(dataset: Pick<Dataset, 'classes' | 'train' | 'validation'>): string {
  const hash = createHash('sha256').update(JSON.stringify(dataset.classes))
  for (const samples of [dataset.train, dataset.validation]) {
    hash.update(`\n${samples.length}\n`)
    for (const { name, label, labels } of samples) hash.update(`${labels?.join(',') ?? label} ${name}\n`)
  }
  return hash.digest('hex')
}

const compare = (a: string, b: string): number => (a < b ? -1 : a > b ? 1 : 0)
const isHidden = (name: string): boolean => name.startsWith('.') || JUNK.has(name.toLowerCase())

class Ignored {
  count = 0
  readonly examples: string[] = []

  constructor(private readonly strict: boolean) {}

  add(path: string): void {
    if (this.strict) {
      throw new SepconvError('ERR_DATA', `${path} is no picture`, {
        subject: path,
        expected: [...EXTENSIONS].join(', '),
        hint: 'Remove it, or do not ask for strict',
      })
    }
    this.count++
    if (this.examples.length < EXAMPLES) this.examples.push(path)
  }
}

/** Entries sorted by name, without hidden ones; links are what they point to. */
async function entries(directory: string): Promise<{ name: string; folder: boolean }[]> {
  let list: Dirent[]
  try {
    list = await readdir(directory, { withFileTypes: true })
  } catch (error) {
    throw fileError(error, directory, 'read')
  }
  const visible = list.filter((entry) => !isHidden(entry.name)).sort((a, b) => compare(a.name, b.name))
  return Promise.all(
    visible.map(async (entry) => {
      if (!entry.isSymbolicLink()) return { name: entry.name, folder: entry.isDirectory() }
      // A link to nowhere counts as a file: loading it says what is wrong.
      const target = await stat(join(directory, entry.name)).catch(() => undefined)
      return { name: entry.name, folder: target?.isDirectory() ?? false }
    }),
  )
}

const subfolders = async (directory: string): Promise<string[]> =>
  (await entries(directory)).filter((entry) => entry.folder).map((entry) => entry.name)

/** Names of all pictures below a folder, at any depth, sorted by code units within each folder. @throws ERR_FILE. */
export const listPictures = async (directory: string): Promise<string[]> =>
  (await pictures(directory, '', 0, new Ignored(false))).map(({ name }) => name)

async function pictures(root: string, name: string, label: number, ignored: Ignored, depth = 0): Promise<Sample[]> {
  if (depth > MAX_DEPTH) {
    throw new SepconvError('ERR_DATA', `${join(root, name)}: folders are nested deeper than ${MAX_DEPTH}`, {
      subject: name,
      hint: 'A link that points back to a folder above it makes a circle: remove it',
    })
  }
  const samples: Sample[] = []
  for (const entry of await entries(join(root, name))) {
    const inner = name === '' ? entry.name : `${name}/${entry.name}`
    if (entry.folder) samples.push(...(await pictures(root, inner, label, ignored, depth + 1)))
    else if (EXTENSIONS.has(extname(entry.name).toLowerCase())) samples.push({ path: join(root, inner), name: inner, label })
    else ignored.add(join(root, inner))
  }
  return samples
}
