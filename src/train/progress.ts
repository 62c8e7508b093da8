/** Running means over an epoch and over the last steps. */

import type { TrainingState } from './checkpoint.js'

/** Mean loss and accuracy of the epoch under way. */
export class EpochMeter {
  #loss = 0
  #correct = 0
  #images = 0

  add(loss: number, correct: number, images: number): void {
    this.#loss += loss * images
    this.#correct += correct
    this.#images += images
  }
  restore(state: TrainingState): void {
    this.#loss = state.epochLoss
    this.#correct = state.epochCorrect
    this.#images = state.epochImages
  }
  get sums() {
    return { epochLoss: this.#loss, epochCorrect: this.#correct, epochImages: this.#images }
  }
  get loss(): number {
    return this.#loss / this.#images
  }
  get top1(): number {
    return this.#correct / this.#images
  }
}

const WINDOW = 50

/** Images per second over the last steps, and the share of the time that was spent waiting for pictures, there and over the epoch. */
export class Speed {
  /** A ring of the last steps' ends, images and waits, with their running sums. */
  readonly #at = new Float64Array(WINDOW)
  readonly #images = new Float64Array(WINDOW)
  readonly #waits = new Float64Array(WINDOW)
  #count = 0
  #began = 0
  #waited = 0
  #windowImages = 0
  #windowWait = 0

  constructor() {
    this.reset()
  }
  reset(): void {
    this.#began = performance.now()
    this.#waited = this.#count = this.#windowImages = this.#windowWait = 0
    this.#images.fill(0)
    this.#waits.fill(0)
  }
  add(images: number, waitMs: number): { imagesPerSecond: number; waitShare: number } {
    const now = performance.now()
    const slot = this.#count % WINDOW
    const since = this.#count < WINDOW ? this.#began : this.#at[slot]!
    this.#windowImages += images - this.#images[slot]!
    this.#windowWait += waitMs - this.#waits[slot]!
    this.#waited += waitMs
    this.#at[slot] = now
    this.#images[slot] = images
    this.#waits[slot] = waitMs
    this.#count++
    const seconds = (now - since) / 1e3
    return { imagesPerSecond: this.#windowImages / seconds, waitShare: Math.max(0, this.#windowWait) / 1e3 / seconds }
  }
  /** Share of the time since the reset. */
  get waitShare(): number {
    return this.#waited / (performance.now() - this.#began)
  }
}
