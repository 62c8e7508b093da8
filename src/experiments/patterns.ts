/**
 * Generated picture sets on which reduced models differ, neither at chance nor perfect.
 *
 * A class is a pair: one of four textures (stripes, checks, rings, dots: spatial structure), and one of four relations between the
 * colour channels (which of them the texture raises together and which it lowers: cross-channel structure). Both halves are needed, and
 * neither is in the values of single pixels or single channels:
 * the texture has any place, scale, direction and strength; its sign as a whole is random, so that every channel by itself looks alike in
 * all relations; a second, weaker texture of a random kind and relation lies over it; ground colours, uneven light and noise are random.
 *
 * Fair to all models: nothing in it favours a filter shape, since textures lie at every angle, and any network with 3×3
 * windows and products across channels can express both halves. What it asks of a network is what the paper's hypothesis is about:
 * whether spatial and cross-channel correlations are better looked for together or apart.
 */

import { dataset } from '../data/dataset.js'
import type { Dataset } from '../data/folder.js'
import { SampleRandom, STREAMS } from '../data/random.js'
import type { RgbImage } from '../data/resample.js'

const TEXTURES = ['stripes', 'checks', 'rings', 'dots'] as const
/** Signs of red, green and blue, but for a common one. */
const RELATIONS = { rgb: [1, 1, 1], 'rg-b': [1, 1, -1], 'rb-g': [1, -1, 1], 'gb-r': [-1, 1, 1] } as const
const SIGNS = Object.values(RELATIONS)

/** Texture by texture, relation by relation. */
export const PATTERN_CLASSES: readonly string[] = TEXTURES.flatMap((texture) =>
  Object.keys(RELATIONS).map((relation) => `${texture} ${relation}`),
)

/** What one set is made of. */
export interface PatternOptions {
  readonly train: number
  readonly validation: number
  /** Side of the pictures. */
  readonly size: number
  /** Several labels: one to three windows with a pattern each. Default false. */
  readonly multiLabel?: boolean
  /** Deviation of the noise in grey levels. */
  readonly noise: number
  /** Strength of the second texture, as a share of the first. */
  readonly distraction: number
}

/** One texture at a place, from −1 to 1. */
type Field = (x: number, y: number) => number

/** Sets up to this size are drawn once for all runs of an experiment: a picture takes about 2 ms. */
const KEPT_BYTES = 256 << 20

/** The data are the same for every seed of an experiment: seeds vary weights, order and augmentation. */
export function patternSet(options: PatternOptions): Dataset {
  const { train, validation, size, multiLabel = false } = options
  const kept: RgbImage[] | undefined = (train + validation) * size * size * 3 <= KEPT_BYTES ? [] : undefined
  const picture = (index: number) => draw(index, multiLabel ? labelsOf(index) : [index % PATTERN_CLASSES.length], options)
  return dataset({
    name: multiLabel ? 'patterns, several labels' : 'patterns',
    classes: PATTERN_CLASSES,
    ...{ train, validation },
    label: (index) => (multiLabel ? [...new Set(labelsOf(index))].sort((a, b) => a - b) : index % PATTERN_CLASSES.length),
    load: (index) => (kept ? (kept[index] ??= picture(index)) : picture(index)),
  })
}

/** One to three classes of a picture with several labels. */
function labelsOf(index: number): number[] {
  const random = new SampleRandom(0, STREAMS.patterns, index, 2)
  return Array.from({ length: 1 + random.below(3) }, () => random.below(PATTERN_CLASSES.length))
}

/** @param labels one pattern over all of the picture, or each in a window of its own. */
export function draw(index: number, labels: readonly number[], { size, noise, distraction, multiLabel }: PatternOptions): RgbImage {
  const random = new SampleRandom(0, STREAMS.patterns, index)
  const between = (low: number, high: number) => low + (high - low) * random.uniform()
  const layers = labels.map((label) => {
    const strength = between(18, 40) * (random.below(2) === 0 ? 1 : -1)
    const signs = SIGNS[label % SIGNS.length]!
    return {
      field: texture(Math.floor(label / SIGNS.length), size, between),
      amplitudes: signs.map((sign) => sign * strength * between(0.7, 1.3)),
      window: multiLabel ? { x: between(0.25, 0.75) * size, y: between(0.25, 0.75) * size, radius: between(0.22, 0.34) * size } : undefined,
    }
  })
  const other = { field: texture(random.below(TEXTURES.length), size, between), signs: SIGNS[random.below(SIGNS.length)]! }
  const distracting = other.signs.map((sign) => sign * distraction * between(18, 40))
  const ground = [between(90, 165), between(90, 165), between(90, 165)]
  const [slopeX, slopeY] = [between(-25, 25) / size, between(-25, 25) / size]
  const grain = new SampleRandom(0, STREAMS.patterns, index, 1)
  const data = new Uint8ClampedArray(size * size * 3)
  for (let y = 0, at = 0; y < size; y++)
    for (let x = 0; x < size; x++, at += 3) {
      const second = other.field(x, y)
      const light = slopeX * (x - size / 2) + slopeY * (y - size / 2)
      // Three bytes of a word per channel: their sum is near enough to normal, of deviation 128.
      for (let c = 0; c < 3; c++) {
        const word = grain.word()
        let value = ground[c]! + light + distracting[c]! * second
        value += (((word & 255) + ((word >>> 8) & 255) + ((word >>> 16) & 255) - 382.5) / 128) * noise
        for (const { field, amplitudes, window } of layers)
          if (!window || Math.hypot(x - window.x, y - window.y) < window.radius) value += amplitudes[c]! * field(x, y)
        data[at + c] = value
      }
    }
  return { data: new Uint8Array(data.buffer), width: size, height: size }
}

function texture(kind: number, size: number, between: (low: number, high: number) => number): Field {
  const angle = between(0, Math.PI)
  const [cos, sin] = [Math.cos(angle), Math.sin(angle)]
  const rate = (2 * Math.PI) / between(7, 13)
  const [phaseX, phaseY] = [between(0, 2 * Math.PI), between(0, 2 * Math.PI)]
  const [centreX, centreY] = [between(0.2, 0.8) * size, between(0.2, 0.8) * size]
  const along = (x: number, y: number) => rate * (cos * x + sin * y) + phaseX
  const across = (x: number, y: number) => rate * (cos * y - sin * x) + phaseY
  switch (TEXTURES[kind]) {
    case 'stripes':
      return (x, y) => Math.sin(along(x, y))
    case 'checks':
      return (x, y) => Math.sin(along(x, y)) * Math.sin(across(x, y)) * Math.SQRT2
    case 'rings':
      return (x, y) => Math.sin(rate * Math.hypot(x - centreX, y - centreY) + phaseX)
    default:
      // Spots on a lattice: three waves at 60 degrees.
      return (x, y) =>
        (Math.cos(along(x, y)) +
          Math.cos(-0.5 * along(x, y) + (Math.sqrt(3) / 2) * across(x, y)) +
          Math.cos(-0.5 * along(x, y) - (Math.sqrt(3) / 2) * across(x, y))) /
        1.7
  }
}
