/** Which classes are taken for which, and the mistakes that a model was surest of, as thumbnails. */

import type { Sample } from '../data/folder.js'
import { loadImage, loadSharp } from '../data/image.js'
import { readSample } from '../data/loader.js'
import { openDataset } from '../data/open.js'
import type { Predictions, ReportedRun } from './run.js'

/** counts[label · classes + predicted]; pictures with other than one label are left out. */
export function confusion({ classes, pictures }: Predictions): Uint32Array {
  const counts = new Uint32Array(classes.length ** 2)
  for (const { labels, predicted } of pictures) if (labels.length === 1) counts[labels[0]! * classes.length + predicted]!++
  return counts
}

export interface Mistake {
  readonly name: string
  readonly labels: readonly string[]
  readonly predicted: string
  readonly confidence: number
  /** A JPEG as a data URL; absent where the picture is no longer there. */
  readonly thumbnail?: string
}

/** Side of a thumbnail in pixels. */
const SIDE = 112

/** The wrong predictions with the highest confidence. */
export async function worstMistakes(run: ReportedRun, count: number): Promise<Mistake[]> {
  const { predictions } = run
  if (!predictions) return []
  const { classes } = predictions
  const wrong = predictions.pictures.filter(({ labels, predicted }) => !labels.includes(predicted))
  const worst = wrong.sort((a, b) => b.confidence - a.confidence || (a.name < b.name ? -1 : 1)).slice(0, count)
  if (worst.length === 0) return []
  const data = await openDataset(run.config.data.root).catch(() => undefined)
  const samples = new Map(data?.validation.map((sample) => [sample.name, sample]))
  return Promise.all(
    worst.map(async ({ name, labels, predicted, confidence }) => {
      const sample = samples.get(name)
      const thumbnail = sample && (await makeThumbnail(sample).catch(() => undefined))
      return {
        ...{ name, labels: labels.map((label) => classes[label]!), predicted: classes[predicted]!, confidence },
        ...(thumbnail !== undefined && { thumbnail }),
      }
    }),
  )
}

async function makeThumbnail(sample: Sample): Promise<string> {
  const { data, width, height } = sample.load
    ? await sample.load()
    : await loadImage(await readSample(sample), { name: sample.path, shorterSide: SIDE })
  const sharp = await loadSharp()
  const jpeg = await sharp(data, { raw: { width, height, channels: 3 } })
    .resize(SIDE, SIDE, { fit: 'cover' })
    .jpeg({ quality: 80 })
    .toBuffer()
  return `data:image/jpeg;base64,${jpeg.toString('base64')}`
}
