/** Classification metrics from logits, accumulated batch by batch in float64. */

import { checkChoice } from './errors.js'

/** What the meters below give. */
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

  /** Adds rows. @param logits [n, classes], row-major. @param labels [n]. */
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

  /** Means over everything added. */
  result(): Classification {
    const mean = (total: number) => (this.#images > 0 ? total / this.#images : Number.NaN)
    return { images: this.#images, top1: mean(this.#first), top5: mean(this.#fifth), loss: mean(this.#loss) }
  }
}

/** Options of {@link MultiLabelMeter}. */
export interface MultiLabelOptions {
  /**
   * `'sigmoid'` (default): mean binary cross entropy over the classes, for models trained with several labels per picture.
   * `'softmax'`: minus the logarithm of the probability that the classes that are right have together, for models trained with one
   * label per picture (ImageNet-ReaL, Beyer et al. 2020); the cross entropy where one class is right.
   */
  readonly loss?: 'sigmoid' | 'softmax'
}

/** The same of pictures with several right labels each: a hit is any of them; the loss is in nats. */
export class MultiLabelMeter {
  readonly #loss: 'sigmoid' | 'softmax'
  #images = 0
  #first = 0
  #fifth = 0
  #total = 0

  /** @throws ERR_ARGUMENT for another loss. */
  constructor({ loss = 'sigmoid' }: MultiLabelOptions = {}) {
    checkChoice('MultiLabelMeter', 'loss', loss, ['sigmoid', 'softmax'])
    this.#loss = loss
  }

  /** Adds rows. @param logits [n, classes], row-major. @param labels the classes of each row; `null` for rows that do not count. */
  add(logits: Float32Array, labels: readonly (readonly number[] | null)[]): void {
    const classes = logits.length / labels.length
    for (const [row, own] of labels.entries()) {
      if (!own) continue
      const scores = logits.subarray(row * classes, (row + 1) * classes)
      const best = rank(scores, own)
      this.#images++
      if (best < 1) this.#first++
      if (best < 5) this.#fifth++
      this.#total += this.#loss === 'sigmoid' ? binaryCrossEntropy(scores, own) : logSumExp(scores) - logSumExp(scores, own)
    }
  }

  /** Means over everything added. */
  result(): Classification {
    const mean = (total: number) => (this.#images > 0 ? total / this.#images : Number.NaN)
    return { images: this.#images, top1: mean(this.#first), top5: mean(this.#fifth), loss: mean(this.#total) }
  }
}

function binaryCrossEntropy(scores: Float32Array, labels: readonly number[]): number {
  let loss = 0
  for (let c = 0; c < scores.length; c++) loss += Math.max(scores[c]!, 0) + Math.log1p(Math.exp(-Math.abs(scores[c]!)))
  for (const c of new Set(labels)) loss -= scores[c]!
  return loss / scores.length
}

/** log Σ exp over all classes, or over some. */
function logSumExp(scores: Float32Array, classes?: readonly number[]): number {
  const some = classes ? Array.from(new Set(classes), (c) => scores[c]!) : scores
  let [highest, sum] = [-Infinity, 0]
  for (const score of some) highest = Math.max(highest, score)
  for (const score of some) sum += Math.exp(score - highest)
  return highest + Math.log(sum)
}

/** How many classes stand before the best of `labels`; among equals the lower index comes first. */
function rank(scores: Float32Array, labels: readonly number[]): number {
  if (labels.length === 0) return scores.length
  const own = labels.reduce((best, c) => (scores[c]! > scores[best]! || (scores[c] === scores[best] && c < best) ? c : best))
  let above = 0
  for (let c = 0; c < scores.length; c++) if (scores[c]! > scores[own]! || (scores[c] === scores[own] && c < own)) above++
  return above
}

/** Rows whose highest logit is a label of theirs; cheap enough for every training step. */
export function countTop1(logits: Float32Array, labels: Int32Array | readonly (number | readonly number[])[]): number {
  const classes = logits.length / labels.length
  let hits = 0
  for (let row = 0; row < labels.length; row++) {
    const own = labels[row]!
    let best = row * classes
    for (let i = best + 1; i < (row + 1) * classes; i++) if (logits[i]! > logits[best]!) best = i
    const c = best - row * classes
    if (typeof own === 'number' ? own === c : own.includes(c)) hits++
  }
  return hits
}
