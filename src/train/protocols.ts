/** What evaluation measures beyond one label and one crop: ten crops, who is taken for whom. */

import type { Sample } from '../data/folder.js'
import type { RgbImage } from '../data/image.js'
import type { Model } from '../models/model.js'

/** counts[truth · classes + predicted]. */
export class ConfusionMatrix {
  readonly counts: Float64Array

  constructor(readonly classes: number) {
    this.counts = new Float64Array(classes * classes)
  }

  add(scores: Float32Array, label: number): void {
    this.counts[label * this.classes + scores.reduce((best, score, c) => (score > scores[best]! ? c : best), 0)]!++
  }

  /** Rows are what pictures show, columns what they were taken for. */
  toCsv(names: readonly string[]): string {
    const quoted = names.map((name) => (/[",\n]/.test(name) ? `"${name.replaceAll('"', '""')}"` : name))
    const row = (i: number) => Array.from(this.counts.subarray(i * this.classes, (i + 1) * this.classes)).join(',')
    return [`,${quoted.join(',')}`, ...quoted.map((name, i) => `${name},${row(i)}`)].join('\n').concat('\n')
  }
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
