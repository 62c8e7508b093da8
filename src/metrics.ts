/** Classification metrics from logits, accumulated batch by batch in float64. */

export interface Classification {
  readonly images: number
  /** Share of images whose label has the highest logit. */
  readonly top1: number
  /** Share of images whose label is among the five highest logits. */
  readonly top5: number
  /** Mean cross entropy in nats. */
  readonly loss: number
}

/** Counts rows of logits against labels; rows with a negative label are padding and do not count. */
export class ClassificationMeter {
  #images = 0
  #first = 0
  #fifth = 0
  #loss = 0

  /** @param logits [n, classes], row-major. @param labels [n]. */
  add(logits: Float32Array, labels: ArrayLike<number>): void {
    const classes = logits.length / labels.length
    for (let row = 0; row < labels.length; row++) {
      const label = labels[row]!
      if (label < 0) continue
      const scores = logits.subarray(row * classes, (row + 1) * classes)
      const own = scores[label]!
      let highest = -Infinity
      let above = 0
      for (let c = 0; c < classes; c++) {
        const score = scores[c]!
        if (score > highest) highest = score
        // Among equals the lower index comes first, as in a stable sort.
        if (score > own || (score === own && c < label)) above++
      }
      let sum = 0
      for (let c = 0; c < classes; c++) sum += Math.exp(scores[c]! - highest)
      this.#images++
      if (above < 1) this.#first++
      if (above < 5) this.#fifth++
      this.#loss += Math.log(sum) + highest - own
    }
  }

  result(): Classification {
    const mean = (total: number) => (this.#images > 0 ? total / this.#images : Number.NaN)
    return { images: this.#images, top1: mean(this.#first), top5: mean(this.#fifth), loss: mean(this.#loss) }
  }
}
