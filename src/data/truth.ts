/**
 * Label files for flat folders of pictures: what each picture shows. One picture per line (`ILSVRC2012_val_00000001.JPEG 65` or `cat.jpg,cat`), or
 * JSON: an object from picture to label, or a list of labels in the order of the pictures' names, as ImageNet-ReaL is published.
 * A label is a class's index, name or synset; a list of labels means that each of them is right, an empty list that none counts.
 */

import { basename, join } from 'node:path'
import { SepconvError } from '../errors.js'
import { readText } from '../files.js'
import { listPictures, type Sample } from './folder.js'
import { IMAGENET_SYNSETS } from './imagenet.js'

export interface LabelledPictures {
  /** One per picture that counts; its label is the first of its labels. */
  readonly samples: readonly Sample[]
  /** All right labels, sample by sample. */
  readonly truth: readonly (readonly number[])[]
  /** Pictures whose list of labels is empty. */
  readonly unlabelled: number
}

export interface TruthClasses {
  readonly count: number
  readonly labels?: readonly string[] | undefined
}

/**
 * The pictures below a folder with the labels of a file.
 * @throws ERR_FORMAT for a file that is none of the forms above; ERR_DATA for pictures without a label and unknown labels.
 */
export async function labelledPictures(directory: string, file: string, classes: TruthClasses): Promise<LabelledPictures> {
  const names = await listPictures(directory)
  if (names.length === 0) throw new SepconvError('ERR_DATA', `${directory} has no pictures`, { subject: directory })
  const text = await readText(file)
  const labelOf = parseTruth(text, file, names)
  const samples: Sample[] = []
  const truth: number[][] = []
  for (const name of names) {
    const labels = labelOf(name).map((label) => indexOf(label, name, file, classes))
    if (labels.length === 0) continue
    samples.push({ path: join(directory, name), name, label: labels[0]! })
    truth.push(labels)
  }
  return { samples, truth, unlabelled: names.length - samples.length }
}

type Label = string | number

function parseTruth(text: string, file: string, names: readonly string[]): (name: string) => Label[] {
  const refuse = (problem: string): never => {
    throw new SepconvError('ERR_FORMAT', `${file}: ${problem}`, { subject: file })
  }
  const missing = (name: string): never => {
    throw new SepconvError('ERR_DATA', `${file} has no label for ${name}`, { subject: name })
  }
  const list = (value: unknown): Label[] => {
    const labels = Array.isArray(value) ? value : [value]
    return labels.every((label) => typeof label === 'string' || typeof label === 'number')
      ? labels
      : refuse('a label is neither text nor number')
  }
  if (/^\s*[[{]/.test(text)) {
    let value: unknown
    try {
      value = JSON.parse(text)
    } catch (error) {
      return refuse(`it starts like JSON and is not (${(error as Error).message})`)
    }
    if (Array.isArray(value)) {
      if (value.length !== names.length) refuse(`${value.length} entries for ${names.length} pictures`)
      const place = new Map(names.map((name, i) => [name, i]))
      return (name) => list((value as unknown[])[place.get(name)!])
    }
    const entries = new Map(Object.entries(value as Record<string, unknown>))
    return (name) => list(entries.get(name) ?? entries.get(basename(name)) ?? missing(name))
  }
  const lines = text.split(/\r?\n/).filter((line) => line.trim() !== '' && !line.startsWith('#'))
  const entries = new Map<string, Label[]>()
  for (const line of lines) {
    const [, name, label] = /^(.+?)[\s,;]+(\S.*?)\s*$/.exec(line) ?? []
    if (name === undefined) refuse(`expected "picture label", got ${JSON.stringify(line.slice(0, 80))}`)
    entries.set(name!, [label!])
  }
  return (name) => entries.get(name) ?? entries.get(basename(name)) ?? missing(name)
}

function indexOf(label: Label, name: string, file: string, { count, labels }: TruthClasses): number {
  const text = String(label)
  const index = /^\d+$/.test(text) ? Number(text) : (labels?.indexOf(text) ?? -1)
  const found = index === -1 && count === IMAGENET_SYNSETS.length ? IMAGENET_SYNSETS.indexOf(text) : index
  if (found >= 0 && found < count) return found
  throw new SepconvError('ERR_DATA', `${file}: label ${JSON.stringify(label)} of ${name} is none of the ${count} classes`, {
    subject: name,
    given: label,
    expected: labels ?? count,
  })
}
