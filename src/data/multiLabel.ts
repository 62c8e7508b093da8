/**
 * Pictures with several labels each, listed in files beside them:
 *
 *     train.jsonl   {"image": "a/1.jpg", "labels": ["cat", "indoor"]}     one per line
 *     train.csv     image,labels                                          header, then a/1.jpg,cat|indoor
 *
 * `val.jsonl` or `val.csv` holds the held-out pictures; without it a share is split off by a hash of the names. `classes.txt` (or
 * `.json`) gives the classes in order, and labels may then be indices too; without it they are what the training list names, sorted.
 */

import { existsSync, statSync } from 'node:fs'
import { basename, dirname, extname, join } from 'node:path'
import { checkOptions, nearest, SepconvError } from '../errors.js'
import { readText } from '../files.js'
import { type Dataset, type ImageFolderOptions, type Sample, splitByName } from './folder.js'
import { readLabels } from './labels.js'

const EXTENSIONS = ['.jsonl', '.ndjson', '.csv']
const VALIDATION = ['val', 'validation', 'valid']

/** The training list at a path: the file itself, or that of a folder; `undefined` where there is none. */
export function findLabelList(path: string): string | undefined {
  if (EXTENSIONS.includes(extname(path)) && existsSync(path) && statSync(path).isFile()) return path
  return EXTENSIONS.map((extension) => join(path, `train${extension}`)).find((file) => existsSync(file))
}

interface Row {
  readonly image: string
  readonly labels: readonly (string | number)[]
  readonly line: number
}

/**
 * Reads a data set with several labels per picture; opens no picture.
 * @param path a folder with `train.jsonl` or `train.csv`, or such a file by any name.
 * @throws ERR_DATA for a line that is no entry, labels that the classes lack, and an empty list, naming file and line; ERR_FILE, ERR_FORMAT.
 */
export async function multiLabelFolder(path: string, options: ImageFolderOptions = {}): Promise<Dataset> {
  checkOptions('multiLabelFolder', options, ['validation', 'strict'])
  const list = findLabelList(path)
  if (list === undefined)
    throw new SepconvError('ERR_DATA', `${path} holds no list of labels`, { subject: path, expected: EXTENSIONS.map((e) => `train${e}`) })
  const folder = dirname(list)
  const heldList = VALIDATION.map((name) => join(folder, `${name}${extname(list)}`)).find((file) => file !== list && existsSync(file))
  const [rows, heldRows, given] = await Promise.all([readList(list), heldList ? readList(heldList) : [], givenClasses(folder)])
  const classes = given ?? [...new Set(rows.flatMap(({ labels }) => labels.map(String)))].sort((a, b) => (a < b ? -1 : a > b ? 1 : 0))
  if (classes.length === 0) throw new SepconvError('ERR_DATA', `${list} names no label`, { subject: list })
  const index = new Map(classes.map((name, i) => [name, i]))
  const samples = (file: string, of: readonly Row[]) => of.map((row) => sampleOf(folder, file, row, index, classes))
  const all = samples(list, rows)
  const parts = heldList ? { train: all, validation: samples(heldList, heldRows) } : splitByName(all, options.validation ?? 0.2)
  return { root: path, classes, ...parts, multiLabel: true, split: heldList ? 'files' : 'hash', ignored: { count: 0, examples: [] } }
}

async function givenClasses(folder: string): Promise<string[] | undefined> {
  const file = ['classes.txt', 'classes.json'].map((name) => join(folder, name)).find((candidate) => existsSync(candidate))
  return file === undefined ? undefined : readLabels(file)
}

function sampleOf(folder: string, file: string, row: Row, index: ReadonlyMap<string, number>, classes: readonly string[]): Sample {
  const labels = row.labels.map((label) => {
    const at =
      typeof label === 'number' ? (Number.isInteger(label) && label >= 0 && label < classes.length ? label : undefined) : index.get(label)
    if (at !== undefined) return at
    const near = nearest(String(label), classes)
    throw new SepconvError('ERR_DATA', `${file}, line ${row.line}: '${label}' is no class`, {
      subject: row.image,
      given: label,
      hint: near
        ? `Did you mean '${near}'?`
        : `There are ${classes.length} classes; those of held-out pictures must occur in training or stand in classes.txt`,
    })
  })
  return { path: join(folder, row.image), name: row.image, label: -1, labels: [...new Set(labels)].sort((a, b) => a - b) }
}

async function readList(file: string): Promise<Row[]> {
  const text = await readText(file)
  const lines = text.replace(/^\uFEFF/, '').split(/\r?\n/)
  const rows = extname(file) === '.csv' ? fromCsv(lines, file) : fromJson(lines, file)
  if (rows.length === 0) throw new SepconvError('ERR_DATA', `${basename(file)} lists no pictures`, { subject: file })
  return rows
}

const refuse = (file: string, line: number, expected: string, given: unknown): SepconvError =>
  new SepconvError('ERR_DATA', `${file}, line ${line}: expected ${expected}`, { subject: file, expected, given })

function fromJson(lines: readonly string[], file: string): Row[] {
  return lines.flatMap((text, i) => {
    if (text.trim() === '') return []
    const expected = '{"image": "…", "labels": ["…"]}'
    let value: { image?: unknown; labels?: unknown }
    try {
      value = JSON.parse(text) as typeof value
    } catch {
      throw refuse(file, i + 1, expected, text)
    }
    const { image, labels } = value ?? {}
    const good = Array.isArray(labels) && labels.every((label) => typeof label === 'string' || typeof label === 'number')
    if (typeof image !== 'string' || !good) throw refuse(file, i + 1, expected, value)
    return [{ image, labels: labels as (string | number)[], line: i + 1 }]
  })
}

function fromCsv(lines: readonly string[], file: string): Row[] {
  const header = splitCsv(lines[0] ?? '')
  const [image, labels] = [header.indexOf('image'), header.indexOf('labels')]
  if (image < 0 || labels < 0) throw refuse(file, 1, "a header with the columns 'image' and 'labels'", lines[0])
  return lines.slice(1).flatMap((text, i) => {
    if (text.trim() === '') return []
    const fields = splitCsv(text)
    if (fields.length !== header.length || !fields[image]) throw refuse(file, i + 2, `${header.length} fields`, text)
    const own = fields[labels]!.split('|').map((label) => label.trim())
    return [{ image: fields[image], labels: own.filter((label) => label !== ''), line: i + 2 }]
  })
}

/** Fields of one line; a field in quotes may hold commas, and quotes that are doubled (RFC 4180). */
function splitCsv(line: string): string[] {
  const fields: string[] = []
  for (const [, quoted, plain] of line.matchAll(/(?:^|,)(?:"((?:[^"]|"")*)"|([^,]*))/g))
    fields.push(quoted?.replaceAll('""', '"') ?? plain!.trim())
  return fields
}
