/** `sepconv evaluate DIR --weights FILE`: top-1, top-5 and loss over labelled pictures; every picture counts exactly once. */

import { Command } from 'commander'
import type { Dataset, Sample } from '../../data/folder.js'
import { SepconvError } from '../../errors.js'
import type { Model } from '../../models/model.js'
import type { EvaluateOptions, Evaluation } from '../../train/evaluate.js'
import type { ConfusionMatrix } from '../../train/protocols.js'
import { addMapOptions, type MapSettings, mapOptions } from '../mapOptions.js'
import { addInferenceOptions, oneOf, wholeNumber } from '../options.js'
import type { Communicator } from '../../distributed/communicator.js'
import { deviceOfRank } from '../../distributed/device.js'
import { withRanks } from '../ranks.js'
import { percent } from '../table.js'
import { Progress, say, writeJson, writeText } from '../ui.js'
import { describeDevice, openWeights, type WeightsSettings } from '../weights.js'

interface Settings extends WeightsSettings, MapSettings {
  batch: number
  size?: number
  split: 'validation' | 'train' | 'all'
  truth?: string
  crops?: 'ten'
  confusion?: string
  strict?: boolean
  json?: boolean
}

export function evaluateCommand(): Command {
  const command = new Command('evaluate')
    .summary('measure top-1, top-5 and loss on labelled pictures')
    .description(
      'Measures trained weights on the validation pictures of a folder: those in DIR/val, or, where DIR holds only class folders, the\nsame fifth that `sepconv train` holds out.',
    )
    .argument('<dir>', 'labelled pictures in any form that `sepconv train` takes; with --truth a flat folder')
    .option('--weights <file>', 'trained weights: a file, or a name such as keras/xception (see docs/weights.md)')
    .option('--model <name>', 'the architecture (default: what the weights say)')
    .option('--split <part>', 'validation, train or all', oneOf('validation', 'train', 'all'), 'validation')
    .option('--batch <n>', 'pictures per batch; the result does not depend on it', wholeNumber(), 32)
    .option('--size <pixels>', "side of the pictures (default: the weights')", wholeNumber())
    .option(
      '--truth <file>',
      'labels of a flat folder: "picture label" per line, or JSON; several right labels per picture as in ImageNet-ReaL',
    )
    .option('--crops <which>', 'ten: the mean over corners, centre and their mirror images (default: the centre)', oneOf('ten'))
    .option('--confusion <file>', 'who is taken for whom, as .csv or .svg')
    .option('--strict', 'fail on a picture that cannot be read instead of skipping it')
  return addInferenceOptions(addMapOptions(command))
    .addHelpText(
      'after',
      '\nExamples:\n  $ sepconv evaluate pets/ --weights runs/pets/best.safetensors --confusion confusion.svg\n  $ sepconv evaluate scenes/ --weights runs/scenes/best.safetensors --metric map@100\n  $ sepconv evaluate val/ --truth real.json --weights timm/legacy_xception.tf_in1k',
    )
    .action((directory: string, settings: Settings) =>
      withRanks(async (ranks) => evaluateFolder(directory, { ...settings, device: await deviceOfRank(settings.device, ranks) }, ranks)),
    )
}

async function evaluateFolder(directory: string, settings: Settings, ranks: Communicator | undefined): Promise<void> {
  using model = await openWeights('evaluate', settings)
  const { samples, truth, classes } = await labelled(directory, settings, model)
  const [{ ConfusionMatrix }, { MultiLabelMeter }] = await Promise.all([import('../../train/protocols.js'), import('../../metrics.js')])
  const names = model.labels
  const confusion = settings.confusion === undefined ? undefined : new ConfusionMatrix(model.network.classes)
  const several = truth?.some((labels) => labels.length !== 1) ? new MultiLabelMeter({ loss: 'softmax' }) : undefined
  if (settings.confusion !== undefined) checkPicture(settings.confusion, model.network.classes)
  const observe = (logits: Float32Array, i: number) => {
    confusion?.add(logits, samples[i]!.label)
    several?.add(logits, [truth![i]!])
  }
  const progress = new Progress({ label: 'evaluating', total: samples.length, unit: 'img' })
  const map = await mapOptions(settings, model.labels ?? classes)
  const single = await measure(model, samples, { ...settings, ...(map && { map }), ranks }, observe, (done) => progress.update(done))
  progress.finish()
  if (ranks && ranks.rank !== 0) return
  const { skipped } = single
  const { images, top1, top5, loss } = several ? several.result() : single
  for (const [name, reason] of skipped) say(`skipped ${name}: ${reason}`)
  if (confusion)
    await writeConfusion(settings.confusion!, confusion, names ?? Array.from({ length: confusion.classes }, (_, i) => String(i)))
  if (settings.json) return writeJson({ images, top1, top5, loss, ...(single.map && { map: single.map }) })
  writeText(
    `${images} pictures   top-1 ${percent(top1)}   top-5 ${percent(top5)}   loss ${loss.toFixed(4)}${single.map ? `   MAP@${map?.k ?? 100} ${percent(single.map.map)}` : ''}`,
  )
  if (skipped.size > 0) say(`${skipped.size} pictures skipped; --strict makes that an error`)
  say(`on ${await describeDevice(model.device)}`)
}

async function labelled(directory: string, settings: Settings, model: Model) {
  if (settings.truth !== undefined) {
    const { labelledPictures } = await import('../../data/truth.js')
    const found = await labelledPictures(directory, settings.truth, { count: model.network.classes, labels: model.labels })
    if (found.unlabelled > 0) say(`${found.unlabelled} pictures have no right label and do not count`)
    return { ...found, classes: model.labels ?? [] }
  }
  const { openDataset } = await import('../../data/open.js')
  const data = await openDataset(directory, { strict: settings.strict === true })
  return {
    samples: await relabel(pick(data, settings.split), data.classes, model.labels, directory),
    truth: undefined,
    classes: data.classes,
  }
}

type Measured = Pick<Evaluation, 'images' | 'top1' | 'top5' | 'loss' | 'skipped' | 'map'>

async function measure(
  model: Model,
  samples: readonly Sample[],
  settings: Settings & Pick<EvaluateOptions, 'map' | 'ranks'>,
  observe: (logits: Float32Array, sample: number) => void,
  onDone: (done: number) => void,
): Promise<Measured> {
  const { batch, size, strict } = settings
  if (settings.crops === undefined) {
    const { evaluate } = await import('../../train/evaluate.js')
    return await evaluate(model, samples, {
      ...(settings.map && { map: settings.map }),
      batch,
      size,
      strict,
      cacheBytes: 0,
      ranks: settings.ranks,
      observe,
      onProgress: ({ done }) => onDone(done),
    })
  }
  if (settings.ranks)
    throw new SepconvError('ERR_ARGUMENT', 'evaluate: --crops ten runs in one process', { subject: 'crops', given: settings.ranks.size })
  if (size !== undefined)
    throw new SepconvError('ERR_ARGUMENT', 'evaluate: --crops ten runs at the size of the weights; leave out --size', { subject: 'size' })
  const [{ tenCropLogits }, { ClassificationMeter }] = await Promise.all([import('../../train/protocols.js'), import('../../metrics.js')])
  const meter = new ClassificationMeter()
  const skipped = new Map<string, string>()
  for (const [i, sample] of samples.entries()) {
    try {
      const logits = await tenCropLogits(model, sample)
      meter.add(logits, [sample.label])
      observe(logits, i)
    } catch (error) {
      if (strict || !(error instanceof SepconvError) || !['ERR_DATA', 'ERR_FILE'].includes(error.code)) throw error
      skipped.set(sample.name, error.message)
    }
    onDone(i + 1)
  }
  return { ...meter.result(), skipped }
}

function checkPicture(file: string, classes: number): void {
  if (!/\.(csv|svg)$/i.test(file))
    throw new SepconvError('ERR_ARGUMENT', `--confusion must end in .csv or .svg, got ${file}`, { subject: 'confusion', given: file })
  if (/\.svg$/i.test(file) && classes > 200)
    throw new SepconvError('ERR_ARGUMENT', `--confusion: a picture of ${classes} classes cannot be read; ask for .csv`, {
      subject: 'confusion',
      expected: 200,
      given: classes,
    })
}

async function writeConfusion(file: string, matrix: ConfusionMatrix, names: readonly string[]): Promise<void> {
  const { writeAtomic } = await import('../../files.js')
  if (/\.csv$/i.test(file)) return await writeAtomic(file, matrix.toCsv(names))
  const { confusionChart } = await import('../../charts/confusion.js')
  await writeAtomic(file, await confusionChart(matrix.counts, names))
}

function pick(data: Dataset, split: Settings['split']): readonly Sample[] {
  return split === 'all' ? [...data.train, ...data.validation] : data[split]
}

/** Class folders are matched with the weights' labels by name where those exist, else by their order. */
async function relabel(
  samples: readonly Sample[],
  classes: readonly string[],
  labels: readonly string[] | undefined,
  directory: string,
): Promise<readonly Sample[]> {
  if (!labels) return samples
  const { IMAGENET_LABELS, IMAGENET_SYNSETS } = await import('../../data/imagenet.js')
  // ImageNet's folders bear synsets, of which names may repeat.
  const known = labels.length === IMAGENET_LABELS.length && classes.every((name) => /^n\d{8}$/.test(name)) ? IMAGENET_SYNSETS : labels
  const index = classes.map((name) => known.indexOf(name))
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
