/** `sepconv evaluate DIR --weights FILE`: top-1, top-5 and loss over labelled pictures; every picture counts exactly once. */

import { Command } from 'commander'
import type { Dataset, Sample } from '../../data/folder.js'
import { SepconvError } from '../../errors.js'
import { addMapOptions, type MapSettings, mapOptions } from '../mapOptions.js'
import { deviceOption, jsonOption, oneOf, threadsOption, wholeNumber } from '../options.js'
import { percent } from '../table.js'
import { Progress, say, writeJson, writeText } from '../ui.js'
import { describeDevice, openWeights, type WeightsSettings } from '../weights.js'

interface Settings extends WeightsSettings, MapSettings {
  batch: number
  size?: number
  split: 'validation' | 'train' | 'all'
  strict?: boolean
  json?: boolean
}

export function evaluateCommand(): Command {
  const command = new Command('evaluate')
    .summary('measure top-1, top-5 and loss on labelled pictures')
    .description(
      'Measures trained weights on the validation pictures of a folder: those in DIR/val, or, where DIR holds only class folders, the\nsame fifth that `sepconv train` holds out.',
    )
    .argument('<dir>', 'labelled pictures in any form that `sepconv train` takes')
    .option('--weights <file>', 'trained weights')
    .option('--model <name>', "the architecture (default: what the weights' metadata says, else xception)")
    .option('--split <part>', 'validation, train or all', oneOf('validation', 'train', 'all'), 'validation')
    .option('--batch <n>', 'pictures per batch; the result does not depend on it', wholeNumber(), 32)
    .option('--size <pixels>', "side of the pictures (default: the weights')", wholeNumber())
    .option('--strict', 'fail on a picture that cannot be read instead of skipping it')
  return addMapOptions(command)
    .addOption(deviceOption())
    .addOption(threadsOption())
    .addOption(jsonOption())
    .addHelpText(
      'after',
      '\nExamples:\n  $ sepconv evaluate pets/ --weights runs/pets/best.safetensors\n  $ sepconv evaluate scenes/ --weights runs/scenes/best.safetensors --metric map@100 --class-weights weights.json',
    )
    .action(evaluateFolder)
}

async function evaluateFolder(directory: string, settings: Settings): Promise<void> {
  using model = await openWeights('evaluate', settings)
  const [{ openDataset }, { evaluate }] = await Promise.all([import('../../data/open.js'), import('../../train/evaluate.js')])
  const data = await openDataset(directory, { strict: settings.strict === true })
  const samples = relabel(pick(data, settings.split), data.classes, model.labels, directory)
  const progress = new Progress({ label: 'evaluating', total: samples.length, unit: 'img' })
  const { batch, size, strict } = settings
  const map = await mapOptions(settings, model.labels ?? data.classes)
  const evaluation = await evaluate(model, samples, {
    ...(map && { map }),
    batch,
    size,
    strict,
    cacheBytes: 0,
    onProgress: ({ done }) => progress.update(done),
  })
  progress.finish()
  const { images, top1, top5, loss, skipped } = evaluation
  for (const [name, reason] of skipped) say(`skipped ${name}: ${reason}`)
  if (settings.json) return writeJson({ images, top1, top5, loss, ...(evaluation.map && { map: evaluation.map }) })
  writeText(
    `${images} pictures   top-1 ${percent(top1)}   top-5 ${percent(top5)}   loss ${loss.toFixed(4)}${evaluation.map ? `   MAP@${map?.k ?? 100} ${percent(evaluation.map.map)}` : ''}`,
  )
  if (skipped.size > 0) say(`${skipped.size} pictures skipped; --strict makes that an error`)
  say(`on ${await describeDevice(model.device)}`)
}

function pick(data: Dataset, split: Settings['split']): readonly Sample[] {
  return split === 'all' ? [...data.train, ...data.validation] : data[split]
}

/** Class folders are matched with the weights' labels by name where those exist, else by their order. */
function relabel(
  samples: readonly Sample[],
  classes: readonly string[],
  labels: readonly string[] | undefined,
  directory: string,
): readonly Sample[] {
  if (!labels) return samples
  const index = classes.map((name) => labels.indexOf(name))
  const unknown = classes.filter((_, i) => index[i] === -1)
  if (unknown.length > 0)
    throw new SepconvError('ERR_DATA', `${directory} has class ${unknown.slice(0, 3).join(', ')}, which the weights do not know`, {
      subject: directory,
      expected: labels,
      given: unknown,
      hint: 'Class folders must bear the names of the labels that the model was trained with',
    })
  return samples.map((sample) => ({
    ...sample,
    label: index[sample.label] ?? -1,
    ...(sample.labels && { labels: sample.labels.map((label) => index[label]!) }),
  }))
}
