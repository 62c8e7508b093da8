/**
 * Label files: names of classes in the order of their indices. Read as a JSON array, a JSON object from index to name (or to
 * [identifier, name], as Keras publishes them), or one name per line.
 */

import { checkOptions, SepconvError } from '../errors.js'
import { readText } from '../files.js'

export interface LabelsOptions {
  /** How many labels there must be; default any number. */
  count?: number
}

/**
 * Reads the class names of a label file.
 *
 * @throws SepconvError `ERR_FILE` when it cannot be read, `ERR_FORMAT` for content that is no list of labels, an index that is
 * missing, an empty label, or another number than `count`.
 */
export async function readLabels(path: string, options: LabelsOptions = {}): Promise<string[]> {
  checkOptions('readLabels', options, ['count'])
  const text = await readText(path)
  const labels = parseLabels(text, path)
  if (options.count !== undefined && labels.length !== options.count) {
    throw new SepconvError('ERR_FORMAT', `${path} has ${labels.length} labels, the model has ${options.count} classes`, {
      subject: path,
      expected: options.count,
      given: labels.length,
    })
  }
  return labels
}

/** Class names from the content of a label file; see {@link readLabels}. */
export function parseLabels(text: string, subject = 'labels'): string[] {
  const content = text.replace(/^\uFEFF/, '').trimEnd()
  const labels = /^\s*[[{]/.test(content) ? fromJson(content, subject) : content.split(/\r?\n/).map((line) => line.trim())
  const empty = labels.indexOf('')
  if (content === '' || labels.length === 0) throw new SepconvError('ERR_FORMAT', `${subject} has no labels`, { subject })
  if (empty >= 0) throw new SepconvError('ERR_FORMAT', `${subject}: label ${empty} is empty`, { subject, given: empty })
  return labels
}

function fromJson(content: string, subject: string): string[] {
  let value: unknown
  try {
    value = JSON.parse(content)
  } catch (cause) {
    throw new SepconvError('ERR_FORMAT', `${subject} starts like JSON and is not (${(cause as Error).message})`, { subject, cause })
  }
  if (Array.isArray(value)) return value.map((label, i) => asLabel(label, String(i), subject))
  const entries = value as Record<string, unknown>
  const count = Object.keys(entries).length
  return Array.from({ length: count }, (_, i) => {
    if (!Object.hasOwn(entries, String(i))) {
      throw new SepconvError('ERR_FORMAT', `${subject}: ${count} labels and none for index ${i}`, {
        subject,
        expected: `the indices 0 to ${count - 1}`,
        given: Object.keys(entries).slice(0, 5),
      })
    }
    return asLabel(entries[String(i)], String(i), subject)
  })
}

function asLabel(value: unknown, index: string, subject: string): string {
  const label = Array.isArray(value) ? value.at(-1) : value
  if (typeof label === 'string') return label.trim()
  throw new SepconvError('ERR_FORMAT', `${subject}: label ${index} is not a text`, { subject, given: value })
}
