/**
 * A run's log: events as JSON lines, and as TensorBoard scalars. Both are written together at most once a second and before every
 * checkpoint, from a buffer, so that a step costs no system call; what a crash loses are lines, never the run.
 */

import { type FileHandle, open } from 'node:fs/promises'
import { join } from 'node:path'
import { fileError } from '../files.js'
import type { FitEvent } from './events.js'
import { eventRecord, fileVersionRecord, type Scalars } from './tensorboard.js'

export const LOG = 'log.jsonl'
const INTERVAL = 1000

export class RunLog {
  #lines: string[] = []
  #records: Uint8Array[] = []
  #flushed = performance.now()

  private constructor(
    private readonly folder: string,
    private readonly json: FileHandle,
    private readonly board: FileHandle,
  ) {}

  /** Opens the log of a run; a line that a crash tore is closed, and each start has a TensorBoard file of its own, as is usual there. */
  static async open(folder: string): Promise<RunLog> {
    try {
      const json = await open(join(folder, LOG), 'a+')
      const { size } = await json.stat()
      const last = Buffer.alloc(1)
      if (size > 0) await json.read(last, 0, 1, size - 1)
      if (size > 0 && last[0] !== 0x0a) await json.appendFile('\n')
      const now = Date.now() / 1000
      const board = await open(join(folder, `events.out.tfevents.${Math.floor(now)}.${process.pid}`), 'a')
      await board.appendFile(fileVersionRecord(now))
      return new RunLog(folder, json, board)
    } catch (error) {
      throw fileError(error, join(folder, LOG), 'write')
    }
  }

  /** @returns a promise where lines are being written now, else nothing: most steps wait for no disk. */
  add(event: FitEvent): Promise<void> | undefined {
    const time = new Date()
    this.#lines.push(JSON.stringify({ time: time.toISOString(), ...event }))
    const scalars = scalarsOf(event)
    if (scalars && 'step' in event) this.#records.push(eventRecord(time.getTime() / 1000, event.step, scalars))
    return event.type !== 'step' || performance.now() - this.#flushed > INTERVAL ? this.flush() : undefined
  }

  async flush(): Promise<void> {
    const [lines, records] = [this.#lines, this.#records]
    ;[this.#lines, this.#records] = [[], []]
    this.#flushed = performance.now()
    try {
      if (lines.length > 0) await this.json.appendFile(`${lines.join('\n')}\n`)
      if (records.length > 0) await this.board.appendFile(Buffer.concat(records))
    } catch (error) {
      throw fileError(error, join(this.folder, LOG), 'append to')
    }
  }

  async close(): Promise<void> {
    try {
      await this.flush()
    } finally {
      await this.json.close()
      await this.board.close()
    }
  }
}

/** What TensorBoard plots of an event. */
function scalarsOf(event: FitEvent): Scalars | undefined {
  if (event.type === 'step') {
    const { loss, rate, imagesPerSecond, waitShare } = event
    return { 'train/loss': loss, 'train/rate': rate, 'throughput/images_per_second': imagesPerSecond, 'throughput/wait_share': waitShare }
  }
  if (event.type !== 'epoch') return undefined
  const { images: _, ...scores } = event.validation ?? { images: 0 }
  return {
    'epoch/loss': event.loss,
    'epoch/top1': event.top1,
    ...Object.fromEntries(Object.entries(scores).map(([name, value]) => [`validation/${name}`, value])),
  }
}
