/** Data sources of one's own: anything that can give a picture and its label by number. */

import { checkOptions, SepconvError } from '../errors.js'
import type { Dataset, Sample } from './folder.js'
import { checkWhole } from './image.js'
import type { RgbImage } from './resample.js'

/** Options of {@link dataset}. */
export interface DatasetOptions {
  /** What the source is called in configurations and messages. Default `'own data'`. */
  name?: string
  /** Class names in the order of their labels. */
  classes: readonly string[]
  /** How many training pictures there are. */
  train: number
  /** How many held-out pictures there are. Default 0. */
  validation?: number
  /** The label of a picture, or several. Called once for each, at once. Training pictures are 0 … train − 1, held-out ones follow. */
  label(index: number): number | readonly number[]
  /** Its pixels; called when they are wanted, from any epoch, so it must give the same each time. */
  load(index: number): RgbImage | Promise<RgbImage>
}

/**
 * A data set out of functions. Order, augmentation, mixing and resuming are as for files.
 * @throws ERR_ARGUMENT for counts that are no whole numbers and unknown options.
 * @example dataset({ classes: ['dark', 'light'], train: 1000, label: (i) => i % 2, load: (i) => draw(i) })
 */
export function dataset(options: DatasetOptions): Dataset {
  checkOptions('dataset', options, ['name', 'classes', 'train', 'validation', 'label', 'load'])
  const { name = 'own data', classes, train, validation = 0, label, load } = options
  checkWhole('dataset', 'train', train)
  checkWhole('dataset', 'validation', validation, 0)
  if (typeof label !== 'function' || typeof load !== 'function')
    throw new SepconvError('ERR_ARGUMENT', 'dataset: label and load must be functions of a number', { subject: 'load' })
  const samples = Array.from({ length: train + validation }, (_, index): Sample => {
    const own = label(index)
    const several = typeof own !== 'number'
    const title = `${name} ${index}`
    return { path: title, name: title, label: several ? -1 : own, ...(several && { labels: own }), load: () => load(index) }
  })
  const multiLabel = samples.some(({ labels }) => labels)
  return {
    ...{ root: name, classes, split: 'files' as const, ignored: { count: 0, examples: [] } },
    ...(multiLabel && { multiLabel }),
    train: samples.slice(0, train),
    validation: samples.slice(train),
  }
}
