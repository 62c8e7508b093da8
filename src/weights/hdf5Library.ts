/**
 * h5wasm in a thread of its own (hdf5Worker.js). The library throws its errors through its own frames, which loses a piece of its stack
 * and leaves the file open each time: after some 2,300 damaged files of one process it crashed. A thread that met a few errors is
 * therefore replaced, one that crashes or gives no answer at once; what it held goes with it.
 */

import { Worker } from 'node:worker_threads'
import { SepconvError } from '../errors.js'

/** Errors after which a thread takes no further file. */
const MAX_ERRORS = 256
/** A file that keeps the library busy for so long is refused. */
const ANSWER_MS = 60_000
/** An idle thread goes after so long: it holds some 20 MB. */
const IDLE_MS = 2000

/** What is in a group. */
export interface Hdf5Group {
  readonly names: readonly string[]
  readonly attributes: Readonly<Record<string, { readonly count: number; readonly bytes: number }>>
}

interface Pending {
  resolve(result: unknown): void
  reject(error: Error): void
  readonly timer: NodeJS.Timeout
}

interface Answer {
  readonly id: number
  readonly result?: unknown
  readonly reason?: string
  readonly fatal?: boolean
}

class Thread {
  // Without the options of this process, of which some hold for a main program alone (--input-type).
  readonly #worker = new Worker(new URL('./hdf5Worker.js', import.meta.url), { execArgv: [], stdout: true, stderr: true })
  readonly #pending = new Map<number, Pending>()
  #next = 0
  #errors = 0
  #idle: NodeJS.Timeout | undefined
  #ended: string | undefined
  files = 0

  constructor() {
    this.#worker.on('message', (answer: Answer) => this.#receive(answer))
    this.#worker.on('error', (error) => this.end(error.message))
    this.#worker.on('exit', () => this.end('the HDF5 library ended'))
    this.#worker.unref()
  }

  /** Whether another file may be opened in it. */
  get fresh(): boolean {
    return this.#ended === undefined && this.#errors < MAX_ERRORS
  }

  async ask<T>(operation: string, ...given: unknown[]): Promise<T> {
    if (this.#ended !== undefined) throw new Error(this.#ended)
    clearTimeout(this.#idle)
    this.#worker.ref()
    const id = ++this.#next
    return await new Promise<T>((resolve, reject) => {
      const timer = setTimeout(() => this.end(`no answer for ${ANSWER_MS / 1000} s`), ANSWER_MS)
      this.#pending.set(id, { resolve: resolve as (result: unknown) => void, reject, timer })
      this.#worker.postMessage({ id, operation, given })
    })
  }

  #receive({ id, result, reason, fatal }: Answer): void {
    const pending = this.#pending.get(id)
    if (!pending) return
    this.#pending.delete(id)
    clearTimeout(pending.timer)
    if (this.#pending.size === 0) this.#worker.unref()
    if (reason === undefined) {
      pending.resolve(result)
      return
    }
    this.#errors++
    pending.reject(new Error(reason))
    if (fatal) this.end(reason)
  }

  /** Called when a file of it was closed. */
  rest(): void {
    if (this.files > 0) return
    if (this.fresh) this.#idle = setTimeout(() => this.end('idle'), IDLE_MS).unref()
    else this.end('replaced')
  }

  end(reason: string): void {
    if (this.#ended !== undefined) return
    this.#ended = reason
    clearTimeout(this.#idle)
    for (const { reject, timer } of this.#pending.values()) {
      clearTimeout(timer)
      reject(new Error(reason))
    }
    this.#pending.clear()
    void this.#worker.terminate()
  }
}

let current: Thread | undefined

/** An HDF5 file open in the library's thread. Every method throws ERR_FORMAT, under the file's name, for what the library refuses. */
export class Hdf5File {
  #open = true

  private constructor(
    private readonly thread: Thread,
    private readonly id: number,
    private readonly name: string,
  ) {}

  /** @param path of the file. @param name what messages call it. */
  static async open(path: string, name: string): Promise<Hdf5File> {
    if (!current?.fresh) current = new Thread()
    const thread = current
    thread.files++
    try {
      return new Hdf5File(thread, await thread.ask<number>('open', path), name)
    } catch (error) {
      thread.files--
      thread.rest()
      throw damaged(name, error)
    }
  }

  /** The group of that path, `''` being the root; null where there is none. */
  group = (path: string): Promise<Hdf5Group | null> => this.#ask('group', path)
  attribute = (path: string, name: string): Promise<unknown> => this.#ask('attribute', path, name)
  /** The shape of a dataset; null where there is none. */
  shape = (path: string): Promise<readonly number[] | null> => this.#ask('shape', path)
  /** The numbers of a dataset; null where it holds something else. */
  read = (path: string): Promise<ArrayBufferView | null> => this.#ask('read', path)

  async #ask<T>(operation: string, ...given: unknown[]): Promise<T> {
    if (!this.#open) throw new SepconvError('ERR_DISPOSED', `${this.name} was closed`, { subject: this.name })
    try {
      return await this.thread.ask<T>(operation, this.id, ...given)
    } catch (error) {
      throw damaged(this.name, error, String(given[0]))
    }
  }

  async close(): Promise<void> {
    if (!this.#open) return
    this.#open = false
    // A library that cannot close the file either is replaced like any other that failed.
    await this.thread.ask('close', this.id).catch(() => {})
    this.thread.files--
    this.thread.rest()
  }
}

const damaged = (name: string, error: unknown, place = '') =>
  new SepconvError('ERR_FORMAT', `${name}: damaged HDF5 file${place && ` at '${place.slice(0, 80)}'`} (${reasonOf(error)})`, {
    subject: name,
    cause: error,
  })

/** Of the library's stack of errors the innermost says what is wrong. */
function reasonOf(error: unknown): string {
  const text = error instanceof Error ? error.message : String(error)
  const innermost = [...text.matchAll(/^ *#\d+: .*\): (.*)$/gm)].at(-1)?.[1]
  return innermost ?? text.split('\n')[0]!.trim()
}
