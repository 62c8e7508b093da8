/** What evaluation measures beyond one label and one crop: several right labels, ten crops, who is taken for whom. */

import type { Sample } from '../data/folder.js'
import type { RgbImage } from '../data/image.js'
import type { Model } from '../models/model.js'

/** Top-1 and top-5 where each picture has a set of right labels (Beyer et al. 2020, "Are we done with ImageNet?"). */
export class MultiLabelMeter {
  #images = 0
  #first = 0
  #fifth = 0

  /** @param scores one row. @param labels those that are right. */
  add(scores: Float32Array, labels: readonly number[]): void {
    if (labels.length === 0) return
    const right = new Set(labels)
    const top = highest(scores, 5)
    this.#images++
    if (right.has(top[0]!)) this.#first++
    if (top.some((index) => right.has(index))) this.#fifth++
  }

  result(): { images: number; top1: number; top5: number } {
    return { images: this.#images, top1: this.#first / this.#images, top5: this.#fifth / this.#images }
  }
}

/** counts[truth · classes + predicted]. */
export class ConfusionMatrix {
  readonly counts: Float64Array

  constructor(readonly classes: number) {
    this.counts = new Float64Array(classes * classes)
  }

  add(scores: Float32Array, label: number): void {
    this.counts[label * this.classes + highest(scores, 1)[0]!]!++
  }

  /** Rows are what pictures show, columns what they were taken for. */
  toCsv(names: readonly string[]): string {
    const quoted = names.map((name) => (/[",\n]/.test(name) ? `"${name.replaceAll('"', '""')}"` : name))
    const row = (i: number) => Array.from(this.counts.subarray(i * this.classes, (i + 1) * this.classes)).join(',')
    return [`,${quoted.join(',')}`, ...quoted.map((name, i) => `${name},${row(i)}`)].join('\n').concat('\n')
  }
}

/** Indices of the `count` highest scores, highest first; among equals the lower index. */
function highest(scores: Float32Array, count: number): number[] {
  const best: number[] = []
  for (let i = 0; i < scores.length; i++) {
    let at = best.length
    while (at > 0 && scores[best[at - 1]!]! < scores[i]!) at--
    if (at >= count) continue
    best.splice(at, 0, i)
    if (best.length > count) best.pop()
  }
  return best
}

/** Four corners and the centre, each as it is and mirrored: [10, size, size, 3] (Krizhevsky et al. 2012). */
export async function tenCrops(
  image: RgbImage,
  options: Pick<Model['config']['preprocessing'], 'size' | 'resize' | 'interpolation'>,
): Promise<Uint8Array> {
  const { resample } = await import('../data/resample.js')
  const { size, resize, interpolation } = options
  const shorter = Math.min(image.width, image.height)
  const [width, height] = [image.width, image.height].map((side) => Math.trunc((resize * side) / shorter)) as [number, number]
  const [right, bottom] = [width - size, height - size]
  const places = [
    [0, 0],
    [right, 0],
    [0, bottom],
    [right, bottom],
    [Math.floor(right / 2), Math.floor(bottom / 2)],
  ] as const
  const bytes = size * size * 3
  const crops = new Uint8Array(10 * bytes)
  for (const [i, [left, top]] of places.entries())
    for (const mirror of [false, true]) {
      const at = (2 * i + (mirror ? 1 : 0)) * bytes
      const window = { left, top, width: size, height: size }
      await resample(image, { width, height, interpolation, window, mirror }, crops.subarray(at, at + bytes))
    }
  return crops
}

/** Mean probabilities over ten crops, as logarithms: what the meters take for logits. */
export async function tenCropLogits(model: Model, sample: Sample): Promise<Float32Array> {
  const { loadImage } = await import('../data/image.js')
  const { size, resize, interpolation } = model.config.preprocessing
  const crops = await tenCrops(await loadImage(sample.path, { name: sample.name }), { size, resize, interpolation })
  const scores = await model.probabilities(crops, 10)
  const { classes } = model.network
  return Float32Array.from({ length: classes }, (_, c) => {
    let sum = 0
    for (let crop = 0; crop < 10; crop++) sum += scores[crop * classes + c]!
    return Math.log(Math.max(sum / 10, 1e-38))
  })
}
