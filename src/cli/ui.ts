/**
 * What people see while a command works: messages and progress on stderr, never on stdout. On a terminal a progress bar is one line
 * that is drawn anew ten times a second; elsewhere (logs, CI) it is a plain line every few seconds. Nothing shows for work that is
 * over within two seconds. NO_COLOR and TERM=dumb are honoured.
 */

const WIDTH = 24
/** Milliseconds between two drawings on a terminal, and between two lines elsewhere. */
const REDRAW = 100
const LINE_EVERY = 5000
/** Work that is over sooner shows no bar. */
const PATIENCE = 2000

let drawn = false

const terminal = (): boolean => process.stderr.isTTY === true && process.env.TERM !== 'dumb'
const colours = (): boolean => terminal() && !process.env.NO_COLOR

const paint = (code: number, text: string): string => (colours() ? `\x1b[${code}m${text}\x1b[0m` : text)
export const bold = (text: string): string => paint(1, text)
export const dim = (text: string): string => paint(2, text)
export const green = (text: string): string => paint(32, text)
export const red = (text: string): string => paint(31, text)

/** One line for people, on stderr; a progress bar that stands there makes room. */
export function say(text: string): void {
  clear()
  process.stderr.write(`${text}\n`)
}

/** Removes the progress bar from the terminal. */
export function clear(): void {
  if (!drawn) return
  process.stderr.write('\r\x1b[2K')
  drawn = false
}

/** One value as indented JSON on stdout: the whole output of a command under `--json`. */
export function writeJson(value: unknown): void {
  process.stdout.write(`${JSON.stringify(value, null, 2)}\n`)
}

/** One event as a line of JSON on stdout. */
export function writeJsonLine(value: unknown): void {
  process.stdout.write(`${JSON.stringify(value)}\n`)
}

/** Lines of data on stdout. */
export function writeText(text: string): void {
  clear()
  process.stdout.write(`${text}\n`)
}

export interface ProgressOptions {
  /** What is being done, at the start of the line. */
  label?: string
  /** How many there are; without it no share and no ETA. */
  total?: number
  /** What is counted, for the rate: `img` gives `21 img/s`. */
  unit?: string
  /** Of work that goes on from an earlier run. */
  done?: number
}

/** `━━━━╸───` with 24 places. */
function bar(share: number): string {
  const filled = Math.min(1, Math.max(0, share)) * WIDTH
  const whole = Math.floor(filled)
  const half = whole < WIDTH && filled - whole >= 0.5
  return green('━'.repeat(whole) + (half ? '╸' : '')) + dim('━'.repeat(WIDTH - whole - (half ? 1 : 0)))
}

/** 75 → `1:15`, 3725 → `1:02:05`. */
export function formatDuration(seconds: number): string {
  const whole = Math.max(0, Math.round(seconds))
  const [hours, minutes, rest] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60, whole % 60]
  const two = (x: number) => String(x).padStart(2, '0')
  return hours > 0 ? `${hours}:${two(minutes)}:${two(rest)}` : `${minutes}:${two(rest)}`
}

/** Three significant digits without an exponent: 0.214, 21.3, 1280. */
export const significant = (x: number): string =>
  Number.isFinite(x) ? (Math.abs(x) >= 100 ? x.toFixed(0) : String(Number(x.toPrecision(3)))) : String(x)

/** A line of progress; `update` is cheap enough to be called for every item. */
export class Progress {
  readonly #label: string
  readonly #total: number | undefined
  readonly #unit: string
  readonly #first: number
  readonly #began = performance.now()
  #shown = Number.NEGATIVE_INFINITY

  constructor(options: ProgressOptions = {}) {
    this.#label = options.label ?? ''
    this.#total = options.total
    this.#unit = options.unit ?? ''
    this.#first = options.done ?? 0
  }

  /** @param detail what else there is to say, such as `loss 0.214`. @param rate per second; default the mean since the start. */
  update(done: number, detail = '', rate?: number): void {
    const now = performance.now()
    const elapsed = now - this.#began
    if (now - this.#shown < (terminal() ? REDRAW : LINE_EVERY) || elapsed < PATIENCE) return
    this.#shown = now
    const speed = rate ?? ((done - this.#first) / elapsed) * 1000
    const parts = [this.#label]
    if (this.#total !== undefined) {
      const share = this.#total > 0 ? done / this.#total : 1
      parts.push(`${terminal() ? `${bar(share)} ` : ''}${String(Math.floor(share * 100)).padStart(3)} %`)
    } else {
      parts.push(String(done))
    }
    if (this.#unit && speed > 0) parts.push(`${significant(speed)} ${this.#unit}/s`)
    if (detail) parts.push(detail)
    if (this.#total !== undefined && done > this.#first) {
      const mean = (done - this.#first) / elapsed
      parts.push(`ETA ${formatDuration((this.#total - done) / mean / 1000)}`)
    }
    const line = parts.filter(Boolean).join('   ')
    if (!terminal()) return void process.stderr.write(`${line}\n`)
    const columns = process.stderr.columns ?? 80
    // A line that wraps cannot be drawn over: cut it, unless colours (whose codes take no room) make its length unknown.
    process.stderr.write(`\r\x1b[2K${colours() ? line : line.slice(0, columns - 1)}`)
    drawn = true
  }

  /** Removes the bar. */
  finish(): void {
    clear()
  }
}
