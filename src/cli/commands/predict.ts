/** `sepconv predict IMAGE… --weights FILE`: the most probable classes of pictures. */

import { Command } from 'commander'
import type { RgbImage } from '../../data/image.js'
import { SepconvError } from '../../errors.js'
import type { Prediction } from '../../models/model.js'
import { addInferenceOptions, wholeNumber } from '../options.js'
import { milliseconds, percent } from '../table.js'
import { Progress, say, writeJson, writeText } from '../ui.js'
import { describeDevice, openWeights, type WeightsSettings } from '../weights.js'

interface Settings extends WeightsSettings {
  top: number
  strict?: boolean
  json?: boolean
}

interface Row {
  image: string
  predictions: Prediction[]
}

/** Pictures that are decoded and classified together. */
const BATCH = 32

export const predictCommand = (): Command =>
  addInferenceOptions(
    new Command('predict')
      .summary('name the most probable classes of pictures')
      .description('Classifies pictures (JPEG, PNG, WebP, GIF, TIFF, AVIF) with trained weights.')
      .argument('<image...>', 'picture files')
      .option('--weights <file>', 'trained weights: a file, or a name such as timm/legacy_xception.tf_in1k (see docs/weights.md)')
      .option('--model <name>', 'the architecture (default: what the weights say)')
      .option('--top <n>', 'how many classes', wholeNumber(), 5)
      .option('--labels <file>', 'names of the classes: one per line, or JSON (default: those in the weights)')
      .option('--strict', 'fail on the first picture that cannot be read instead of skipping it'),
  )
    .addHelpText(
      'after',
      '\nExamples:\n  $ sepconv predict cat.jpg --weights runs/pets/best.safetensors\n  $ sepconv predict photos/*.jpg --weights best.safetensors --top 1 --json',
    )
    .action(predict)

async function predict(images: readonly string[], settings: Settings): Promise<void> {
  using model = await openWeights('predict', settings)
  const { loadImage } = await import('../../data/image.js')
  const progress = new Progress({ label: 'predicting', total: images.length, unit: 'img' })
  const rows: Row[] = []
  const skipped: string[] = []
  let computing = 0
  for (let start = 0; start < images.length; start += BATCH) {
    const names = images.slice(start, start + BATCH)
    const loaded = await Promise.all(names.map((name) => readable(() => loadImage(name), settings.strict === true)))
    const usable = loaded.flatMap((image, i) => (image instanceof Error ? [] : [{ name: names[i]!, image }]))
    for (const outcome of loaded) if (outcome instanceof Error) skipped.push(outcome.message)
    if (usable.length > 0) {
      const since = performance.now()
      const results = await model.classify(
        usable.map(({ image }) => image),
        { top: settings.top },
      )
      computing += performance.now() - since
      rows.push(...usable.map(({ name }, i) => ({ image: name, predictions: results[i]! })))
    }
    progress.update(Math.min(start + BATCH, images.length))
  }
  progress.finish()
  for (const message of skipped) say(`skipped ${message}`)
  if (rows.length === 0)
    throw new SepconvError('ERR_DATA', `none of the ${images.length} pictures could be read`, { subject: 'images', given: skipped })
  if (settings.json) writeJson(rows)
  else writeText(formatPredictions(rows))
  if (skipped.length > 0) say(`${skipped.length} of ${images.length} pictures skipped; --strict makes that an error`)
  const each = rows.length > 1 ? `${milliseconds(computing / rows.length)} per picture` : milliseconds(computing)
  if (!settings.json) say(`${each} on ${await describeDevice(model.device)}`)
}

/** The picture, or the error that says why it is none. */
async function readable(load: () => Promise<RgbImage>, strict: boolean): Promise<RgbImage | SepconvError> {
  try {
    return await load()
  } catch (error) {
    if (strict || !(error instanceof SepconvError) || (error.code !== 'ERR_DATA' && error.code !== 'ERR_FILE')) throw error
    return error
  }
}

export function formatPredictions(rows: readonly Row[]): string {
  const width = Math.max(...rows.map(({ image }) => image.length))
  const cell = ({ label, score }: Prediction) => `${label} ${percent(score)}`
  return rows.map(({ image, predictions }) => `${image.padEnd(width)}   ${predictions.map(cell).join('   ')}`).join('\n')
}
