/** How pictures become a model's input: what travels with the weights, and the same in the graph. */

import { checkChoice, checkOptions, SepconvError } from '../errors.js'
import type { Value } from '../graph/graph.js'
import { opDefinition } from '../graph/op.js'
import { emit } from '../graph/trace.js'
import { checkCount } from '../nn/layer.js'
import type { Network } from './registry.js'

/** How a picture becomes the model's input; it travels with the weights. */
export interface Preprocessing {
  /** Side of the square input in pixels. */
  readonly size: number
  /** The shorter side after resizing, before the centre is cut out. */
  readonly resize: number
  readonly crop: 'center' | 'squash'
  readonly interpolation: 'bicubic' | 'bilinear' | 'nearest'
  /** Per channel, of values from 0 to 1: the input is (value / 255 − mean) / deviation. */
  readonly mean: readonly number[]
  readonly deviation: readonly number[]
}

/** What the published Xception weights want: shorter side to 333, centre 299, [−1, 1] (see docs/weights.md). */
export const defaultPreprocessing = ({ inputSize, inputChannels, preprocessing }: Network): Preprocessing => ({
  size: inputSize,
  resize: Math.round((inputSize * 333) / 299),
  crop: 'center',
  interpolation: 'bicubic',
  mean: new Array<number>(inputChannels).fill(0.5),
  deviation: new Array<number>(inputChannels).fill(0.5),
  ...preprocessing,
})

/** Side of an input in pixels: an activation of Xception's stem has 1.1 GB there. Files of unknown origin name sizes too. */
const MAX_SIDE = 4096

/** @throws ERR_ARGUMENT for unknown keys, sizes that are not whole, and means and deviations that do not fit the channels. */
export function checkPreprocessing(name: string, preprocessing: Preprocessing, channels: number): void {
  const subject = `${name}: preprocessing`
  checkOptions(subject, preprocessing, ['size', 'resize', 'crop', 'interpolation', 'mean', 'deviation'])
  const { size, resize, mean, deviation } = preprocessing
  checkCount(subject, 'size', size, 1, MAX_SIDE)
  checkCount(subject, 'resize', resize, 1, 4 * MAX_SIDE)
  checkChoice(subject, 'crop', preprocessing.crop, ['center', 'squash'])
  checkChoice(subject, 'interpolation', preprocessing.interpolation, ['bicubic', 'bilinear', 'nearest'])
  const perChannel = (key: string, values: readonly number[], accepts: (x: number) => boolean, expected: string) => {
    if (Array.isArray(values) && values.length === channels && values.every((x) => Number.isFinite(x) && accepts(x))) return
    throw new SepconvError('ERR_ARGUMENT', `${subject}: ${key} must be ${channels} ${expected}, got ${JSON.stringify(values)}`, {
      subject: key,
      given: values,
    })
  }
  perChannel('mean', mean, () => true, 'numbers, one per channel')
  perChannel('deviation', deviation, (x) => x > 0, 'positive numbers, one per channel')
}

/** uint8 pixels → (value / 255 − mean) / deviation, in the graph; float32 passes as it is. */
export function normalise(images: Value, { mean, deviation }: Preprocessing): Value {
  if (images.dtype !== 'uint8') return images
  const uniform = mean.every((value) => value === mean[0]) && deviation.every((value) => value === deviation[0])
  if (uniform)
    return emit(opDefinition('cast'), [images], { dtype: 'float32', scale: 1 / (255 * deviation[0]!), offset: -mean[0]! / deviation[0]! })
  const channels = mean.length
  const constant = (values: readonly number[]) => images.graph.constant({ shape: [channels], dtype: 'float32' }, Float32Array.from(values))
  const wide = emit(opDefinition('cast'), [images], { dtype: 'float32', scale: 1, offset: 0 })
  const scale = constant(deviation.map((value) => 1 / (255 * value)))
  const shift = constant(mean.map((value, i) => -value / deviation[i]!))
  return emit(opDefinition('scaleShift'), [wide, scale, shift, null], { activation: 'none' })
}
