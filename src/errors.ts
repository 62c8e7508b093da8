/**
 * Every error that sepconv throws on purpose is a {@link SepconvError} with a stable `code`, so that callers can branch on it
 * and a reader learns what was expected, what was given and what to do.
 */

/** Stable codes; the text of an error may change between versions, its code does not. */
export type ErrorCode =
  | 'ERR_SHAPE' // shapes that do not fit together, or an axis, kernel or size out of range
  | 'ERR_DTYPE' // an element type that the operation does not take
  | 'ERR_ARGUMENT' // any other bad value, and option names that do not exist
  | 'ERR_DEVICE' // a device that does not exist, is unavailable, or tensors on different devices
  | 'ERR_DISPOSED' // a tensor, model or executable used after dispose()
  | 'ERR_MEMORY' // not enough memory, or a memoryLimit that no plan meets
  | 'ERR_FILE' // a file that is missing, unreadable, unwritable, truncated or corrupt
  | 'ERR_FORMAT' // a file whose content is not what its format promises
  | 'ERR_WEIGHTS' // weights that do not belong to this model
  | 'ERR_DATA' // a data set without usable samples
  | 'ERR_DIVERGED' // the loss became NaN or infinite
  | 'ERR_BUSY' // another process owns the output folder
  | 'ERR_NATIVE' // the native addon is missing, of another version, or failed
  | 'ERR_MPI' // no MPI library, one that does not fit, or one that failed
  | 'ERR_RANK' // a rank of the job left it, or differs from the others
  | 'ERR_INTERNAL' // a defect of sepconv itself

/** What an error can say besides its message; each field lands on the error object for programs to read. */
export interface ErrorDetails {
  /** The layer, operation, option or file concerned. */
  subject?: string
  expected?: unknown
  given?: unknown
  /** One sentence on what to do. */
  hint?: string
  cause?: unknown
}

/** The one error class of the package: `code` for programs, the message for people. */
export class SepconvError extends Error {
  readonly code: ErrorCode
  readonly subject?: string
  readonly expected?: unknown
  readonly given?: unknown
  readonly hint?: string

  constructor(code: ErrorCode, message: string, details: ErrorDetails = {}) {
    super(details.hint ? `${message}. ${details.hint}` : message, details.cause === undefined ? undefined : { cause: details.cause })
    this.name = 'SepconvError'
    this.code = code
    if (details.subject !== undefined) this.subject = details.subject
    if (details.expected !== undefined) this.expected = details.expected
    if (details.given !== undefined) this.given = details.given
    if (details.hint !== undefined) this.hint = details.hint
  }
}

/** Throws `ERR_ARGUMENT` when `options` holds a key that is not in `known`, with the nearest known name as a suggestion. */
export function checkOptions(subject: string, options: object | undefined, known: readonly string[]): void {
  for (const key of Object.keys(options ?? {})) {
    if (known.includes(key)) continue
    const near = nearest(key, known)
    throw new SepconvError('ERR_ARGUMENT', `${subject}: unknown option '${key}'`, {
      subject,
      expected: known,
      given: key,
      hint: near ? `Did you mean '${near}'?` : `Known options: ${known.join(', ')}`,
    })
  }
}

/** Throws `ERR_ARGUMENT` unless `value` is one of `choices`. */
export function checkChoice(subject: string, name: string, value: unknown, choices: readonly unknown[]): void {
  if (choices.includes(value)) return
  throw new SepconvError('ERR_ARGUMENT', `${subject}: ${name} must be one of ${choices.join(', ')}, got ${String(value)}`, {
    subject: name,
    expected: choices,
    given: value,
  })
}

/** The entry of `words` within an edit distance of two (one for short words) of `word`, if there is one. */
export function nearest(word: string, words: readonly string[]): string | undefined {
  let best: string | undefined
  let least = word.length <= 4 ? 2 : 3
  for (const candidate of words) {
    const distance = editDistance(word.toLowerCase(), candidate.toLowerCase())
    if (distance < least) [best, least] = [candidate, distance]
  }
  return best
}

function editDistance(a: string, b: string): number {
  let row = Array.from({ length: b.length + 1 }, (_, j) => j)
  for (let i = 1; i <= a.length; i++) {
    const next = [i]
    for (let j = 1; j <= b.length; j++) next[j] = Math.min(row[j]! + 1, next[j - 1]! + 1, row[j - 1]! + (a[i - 1] === b[j - 1] ? 0 : 1))
    row = next
  }
  return row[b.length]!
}
