/**
 * MAP@k, the metric of the paper's JFT experiments (k = 100), streamed: of each image only the k best classes and its labels are kept,
 * never all scores (14,000 images × 17,000 classes would be 952 MB).
 *
 * The paper weights each class by how common it is and publishes neither weights nor formula, so both readings are here:
 *
 *     by image  AP = Σ_j w(c_j)·P(j)·[c_j ∈ Y] / D, j = 1 … k over the image's best classes c_j, P(j) the share of labels among the
 *               first j; D = Σ_{c ∈ Y} w(c), or, with divisor 'min', the sum of the k largest of these weights. MAP = mean over images.
 *     by class  AP(c) = Σ P(r)·[image r has label c] / D, r over the images that have c among their best k, by falling score;
 *               D = images with label c, or, with divisor 'min', at most as many as are ranked. MAP = Σ w(c)·AP(c) / Σ w(c).
 */

import { checkOptions, SepconvError } from './errors.js'

/** Options of {@link MeanAveragePrecisionMeter}. */
export interface MeanAveragePrecisionOptions {
  /** Best classes of each image that count. Default 100. */
  k?: number
  /** Over what precision is averaged. Default `'image'`. */
  average?: 'image' | 'class'
  /**
   * `'labels'` (default): by all labels, so that an image of more than k labels cannot reach 1. `'min'`: by as many hits as were possible.
   */
  divisor?: 'labels' | 'min'
  /** One weight per class, at least 0. Default 1 each. */
  classWeights?: ArrayLike<number>
  /** The classes that count, as scores and as labels; FastEval14k has 6,000 of 17,000. Default all. */
  classes?: readonly number[]
}

/** Mean average precision and over what it was taken. */
export interface MeanAveragePrecision {
  /** From 0 to 1. */
  readonly map: number
  /** Images with at least one label that counts; the others are left out. */
  readonly images: number
  /** Classes with at least one image. */
  readonly classes: number
  /** Mean labels per image that counts. */
  readonly labelsPerImage: number
}

const OPTIONS = ['k', 'average', 'divisor', 'classWeights', 'classes']

/** MAP@k over any number of batches; of each image only its k best classes are kept. */
export class MeanAveragePrecisionMeter {
  readonly #k: number
  readonly #average: 'image' | 'class'
  readonly #divisor: 'labels' | 'min'
  readonly #weights: Float64Array
  /** The classes that count, rising; null for all. */
  readonly #subset: Int32Array | null
  readonly #counts: Uint8Array | null
  #images = 0
  #labels = 0
  #sum = 0
  /** Images per class. */
  readonly #positives: Uint32Array
  /** Of `'class'`: the ranked images of each class. */
  readonly #ranked: Ranking[]
  readonly #bestClasses: Int32Array
  readonly #bestScores: Float32Array

  /**
   * @param classes number of scores per image.
   * @throws ERR_ARGUMENT for weights of another number or below 0, classes out of range or twice, and bad options.
   */
  constructor(
    readonly classes: number,
    options: MeanAveragePrecisionOptions = {},
  ) {
    checkOptions('MAP', options, OPTIONS)
    const { k = 100, average = 'image', divisor = 'labels', classWeights, classes: subset } = options
    const refuse = (subject: string, message: string, given: unknown): never => {
      throw new SepconvError('ERR_ARGUMENT', `MAP: ${message}`, { subject, given })
    }
    if (!Number.isInteger(k) || k < 1) refuse('k', `k must be a whole number of at least 1, got ${k}`, k)
    if (average !== 'image' && average !== 'class') refuse('average', `average must be image or class, got ${String(average)}`, average)
    if (divisor !== 'labels' && divisor !== 'min') refuse('divisor', `divisor must be labels or min, got ${String(divisor)}`, divisor)
    if (classWeights && classWeights.length !== classes)
      refuse('classWeights', `expected ${classes} class weights, got ${classWeights.length}`, classWeights.length)
    this.#weights = classWeights ? Float64Array.from(classWeights) : new Float64Array(classes).fill(1)
    const bad = this.#weights.findIndex((weight) => !(weight >= 0 && weight < Infinity))
    if (bad >= 0) refuse('classWeights', `the weight of class ${bad} must be at least 0, got ${this.#weights[bad]}`, this.#weights[bad])
    const sorted = subset && Int32Array.from(subset).sort()
    sorted?.forEach((c, i) => {
      if (!(c >= 0 && c < classes) || c === sorted[i - 1]) refuse('classes', `class ${c} is out of range or listed twice`, c)
    })
    if (sorted?.length === 0) refuse('classes', 'the subset of classes is empty', subset)
    this.#subset = sorted ?? null
    this.#counts = sorted ? new Uint8Array(classes) : null
    for (const c of sorted ?? []) this.#counts![c] = 1
    this.#k = Math.min(k, sorted?.length ?? classes)
    this.#average = average
    this.#divisor = divisor
    this.#positives = new Uint32Array(classes)
    this.#ranked = average === 'class' ? Array.from({ length: classes }, () => new Ranking()) : []
    this.#bestClasses = new Int32Array(this.#k)
    this.#bestScores = new Float32Array(this.#k)
  }

  /**
   * Adds rows of scores.
   * @param scores [n, classes], row-major; logits do, only their order counts. Among equals the lower class comes first.
   * @param labels the classes of each row; `null` for rows that do not count.
   * @throws ERR_DATA for a label out of range.
   */
  add(scores: Float32Array, labels: readonly (readonly number[] | null)[]): void {
    for (const [row, own] of labels.entries()) {
      if (!own) continue
      const outside = own.find((c) => !(Number.isInteger(c) && c >= 0 && c < this.classes))
      if (outside !== undefined)
        throw new SepconvError('ERR_DATA', `MAP: label ${outside} is no class of ${this.classes}`, { subject: 'labels', given: outside })
      const positives = new Set(this.#counts ? own.filter((c) => this.#counts![c]) : own)
      const found = this.#best(scores.subarray(row * this.classes, (row + 1) * this.classes))
      for (const c of positives) this.#positives[c]!++
      if (this.#average === 'class') {
        for (let j = 0; j < found; j++) this.#ranked[this.#bestClasses[j]!]!.add(this.#bestScores[j]!, positives.has(this.#bestClasses[j]!))
      }
      if (positives.size === 0) continue
      this.#images++
      this.#labels += positives.size
      if (this.#average === 'image') this.#sum += this.#imagePrecision(found, positives)
    }
  }

  /** The mean over everything added. @throws ERR_DATA when no image had a label that counts. */
  result(): MeanAveragePrecision {
    if (this.#images === 0)
      throw new SepconvError('ERR_DATA', 'MAP: no image has a label that counts, so there is nothing to average', { subject: 'labels' })
    const classes = this.#positives.reduce((count, positives) => count + (positives > 0 ? 1 : 0), 0)
    const map = this.#average === 'image' ? this.#sum / this.#images : this.#classMean()
    return { map, images: this.#images, classes, labelsPerImage: this.#labels / this.#images }
  }

  #imagePrecision(found: number, positives: ReadonlySet<number>): number {
    let [hits, sum] = [0, 0]
    for (let j = 0; j < found; j++) {
      const c = this.#bestClasses[j]!
      if (!positives.has(c)) continue
      hits++
      sum += (this.#weights[c]! * hits) / (j + 1)
    }
    const weights = Array.from(positives, (c) => this.#weights[c]!)
    if (this.#divisor === 'min' && weights.length > this.#k) weights.sort((a, b) => b - a).length = this.#k
    const total = weights.reduce((all, weight) => all + weight, 0)
    return total > 0 ? sum / total : 0
  }

  #classMean(): number {
    let [sum, total] = [0, 0]
    this.#ranked.forEach((ranking, c) => {
      const positives = this.#positives[c]!
      if (positives === 0) return
      const divisor = this.#divisor === 'min' ? Math.min(positives, ranking.length) : positives
      sum += this.#weights[c]! * (divisor > 0 ? ranking.precisionSum() / divisor : 0)
      total += this.#weights[c]!
    })
    return total > 0 ? sum / total : 0
  }

  /** Puts the best classes of a row into `#bestClasses`, best first. A heap whose root is the worst kept: few scores get past it. */
  #best(scores: Float32Array): number {
    const [classes, values, k] = [this.#bestClasses, this.#bestScores, this.#k]
    const worse = (a: number, b: number) => values[a]! < values[b]! || (values[a] === values[b] && classes[a]! > classes[b]!)
    const swap = (a: number, b: number) => {
      ;[classes[a], classes[b]] = [classes[b]!, classes[a]!]
      ;[values[a], values[b]] = [values[b]!, values[a]!]
    }
    const sink = (from: number, size: number) => {
      for (let at = from; ; ) {
        let least = at
        if (2 * at + 1 < size && worse(2 * at + 1, least)) least = 2 * at + 1
        if (2 * at + 2 < size && worse(2 * at + 2, least)) least = 2 * at + 2
        if (least === at) return
        swap(at, least)
        at = least
      }
    }
    const total = this.#subset?.length ?? scores.length
    let size = 0
    let threshold = -Infinity
    for (let i = 0; i < total; i++) {
      const c = this.#subset ? this.#subset[i]! : i
      const score = scores[c]!
      // Classes come in rising order, so an equal score is never better than what is kept; NaN never enters a full heap.
      if (size === k) {
        if (!(score > threshold)) continue
        classes[0] = c
        values[0] = score
        sink(0, k)
        threshold = values[0]!
      } else {
        classes[size] = c
        values[size] = Number.isNaN(score) ? -Infinity : score
        if (++size === k) {
          for (let at = (k >> 1) - 1; at >= 0; at--) sink(at, k)
          threshold = values[0]!
        }
      }
    }
    for (let at = (size >> 1) - 1; at >= 0; at--) sink(at, size)
    for (let end = size - 1; end > 0; end--) {
      swap(0, end)
      sink(0, end)
    }
    return size
  }
}

/** The images that have a class among their best, with their scores: five bytes each. */
class Ranking {
  #scores = new Float32Array(4)
  #hits = new Uint8Array(4)
  length = 0

  add(score: number, hit: boolean): void {
    if (this.length === this.#scores.length) {
      const [scores, hits] = [this.#scores, this.#hits]
      this.#scores = new Float32Array(2 * this.length)
      this.#hits = new Uint8Array(2 * this.length)
      this.#scores.set(scores)
      this.#hits.set(hits)
    }
    this.#scores[this.length] = score
    this.#hits[this.length++] = hit ? 1 : 0
  }

  /** Σ P(r) over the hits, by falling score; among equals the earlier image comes first. */
  precisionSum(): number {
    const order = Array.from({ length: this.length }, (_, i) => i).sort((a, b) => this.#scores[b]! - this.#scores[a]! || a - b)
    let [hits, sum] = [0, 0]
    order.forEach((image, rank) => {
      if (this.#hits[image]) sum += ++hits / (rank + 1)
    })
    return sum
  }
}
