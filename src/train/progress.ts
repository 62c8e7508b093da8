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
  #marks: { at: number; images: number; wait: number }[] = []
  #began = 0
  #waited = 0

  constructor() {
    this.reset()
  }
  reset(): void {
    this.#began = performance.now()
    this.#waited = 0
    this.#marks = [{ at: this.#began, images: 0, wait: 0 }]
  }
  add(images: number, waitMs: number): { imagesPerSecond: number; waitShare: number } {
    this.#waited += waitMs
    this.#marks.push({ at: performance.now(), images, wait: waitMs })
    if (this.#marks.length > WINDOW) this.#marks.shift()
    const seconds = (this.#marks.at(-1)!.at - this.#marks[0]!.at) / 1e3
    let [total, wait] = [0, 0]
    for (const mark of this.#marks.slice(1)) {
      total += mark.images
      wait += mark.wait
    }
    return { imagesPerSecond: total / seconds, waitShare: wait / 1e3 / seconds }
  }
  /** Share of the time since the reset. */
  get waitShare(): number {
    return this.#waited / (performance.now() - this.#began)
  }
}
