/**
 * Mixup (Zhang et al. 2018) and cutmix (Yun et al. 2019) of whole batches: each picture is mixed with the one at the mirrored place of
 * its batch, and so are their labels. What is drawn is a function of (seed, global index of the batch's first sample).
 */

import { checkOptions, SepconvError } from '../errors.js'
import { SampleRandom, STREAMS } from './random.js'

/** How batches are mixed in training. */
export interface MixOptions {
  /** α of the Beta(α, α) that mixup's share is drawn from; 0 (default) for none. */
  mixup?: number
  /** The same for cutmix. Where both are on, each batch takes one of them, evenly. */
  cutmix?: number
  /** Share of the batches that are mixed at all. Default 1. */
  probability?: number
}

/** @throws ERR_ARGUMENT for unknown options and values out of range. */
export function checkMix(options: MixOptions): void {
  checkOptions('mix', options, ['mixup', 'cutmix', 'probability'])
  for (const [name, value] of Object.entries(options))
    if (!(value >= 0) || (name === 'probability' && value > 1))
      throw new SepconvError(
        'ERR_ARGUMENT',
        `mix: ${name} must be ${name === 'probability' ? 'from 0 to 1' : 'at least 0'}, got ${value}`,
        {
          subject: name,
          given: value,
        },
      )
}

export const mixes = ({ mixup = 0, cutmix = 0, probability = 1 }: MixOptions): boolean => (mixup > 0 || cutmix > 0) && probability > 0

/** What is done to one batch. */
export interface Mixing {
  /** Share of each row's own picture in what it becomes. */
  readonly share: number
  /** The part that the other picture fills; absent for mixup. */
  readonly box?: { readonly left: number; readonly top: number; readonly right: number; readonly bottom: number }
}

/** Draws what is done to the batch of pictures of `size` that begins at global sample index `start`; `null`: nothing. */
export function drawMixing(
  seed: number,
  start: number,
  size: number,
  { mixup = 0, cutmix = 0, probability = 1 }: MixOptions,
): Mixing | null {
  const random = new SampleRandom(seed, STREAMS.mix, start)
  const [applied, kind] = [random.uniform(), random.uniform()]
  if (applied >= probability) return null
  const cuts = cutmix > 0 && (mixup === 0 || kind < 0.5)
  const share = drawBeta(random, cuts ? cutmix : mixup)
  if (!cuts) return { share }
  const side = size * Math.sqrt(1 - share)
  const [x, y] = [random.uniform() * size, random.uniform() * size]
  const clip = (value: number) => Math.min(size, Math.max(0, Math.round(value)))
  const box = { left: clip(x - side / 2), top: clip(y - side / 2), right: clip(x + side / 2), bottom: clip(y + side / 2) }
  // The box may reach over the edge: labels follow what is really seen.
  return { share: 1 - ((box.right - box.left) * (box.bottom - box.top)) / size ** 2, box }
}

/** Mixes pictures [n, size, size, 3] in place. */
export function mixImages(images: Uint8Array, rows: number, size: number, { share, box }: Mixing): void {
  const bytes = size * size * 3
  for (let row = 0; row < rows >> 1; row++) {
    const [a, b] = [images.subarray(row * bytes, (row + 1) * bytes), images.subarray((rows - 1 - row) * bytes, (rows - row) * bytes)]
    if (box) {
      for (let y = box.top; y < box.bottom; y++)
        for (let i = (y * size + box.left) * 3; i < (y * size + box.right) * 3; i++) [a[i], b[i]] = [b[i]!, a[i]!]
      continue
    }
    // Weights in 8 bits and rounding to nearest: integers, so the same everywhere.
    const weight = Math.round(share * 256)
    for (let i = 0; i < bytes; i++) {
      const [own, other] = [a[i]!, b[i]!]
      a[i] = (own * weight + other * (256 - weight) + 128) >> 8
      b[i] = (other * weight + own * (256 - weight) + 128) >> 8
    }
  }
}

/** Mixes rows of targets [n, classes] likewise, in place. */
export function mixTargets(targets: Float32Array, rows: number, { share }: Mixing): void {
  const classes = targets.length / rows
  for (let row = 0; row < rows >> 1; row++)
    for (let c = 0; c < classes; c++) {
      const [i, j] = [row * classes + c, (rows - 1 - row) * classes + c]
      const [own, other] = [targets[i]!, targets[j]!]
      targets[i] = share * own + (1 - share) * other
      targets[j] = share * other + (1 - share) * own
    }
}

/** Beta(α, α) as the share of one of two Gamma(α). */
function drawBeta(random: SampleRandom, alpha: number): number {
  const [a, b] = [drawGamma(random, alpha), drawGamma(random, alpha)]
  return a + b > 0 ? a / (a + b) : 0.5
}

/** Marsaglia and Tsang 2000; below 1 by Gamma(α) = Gamma(α + 1) · U^(1/α). */
function drawGamma(random: SampleRandom, alpha: number): number {
  if (alpha < 1) return drawGamma(random, alpha + 1) * (1 - random.uniform()) ** (1 / alpha)
  const d = alpha - 1 / 3
  const c = 1 / Math.sqrt(9 * d)
  for (;;) {
    const x = Math.sqrt(-2 * Math.log(1 - random.uniform())) * Math.cos(2 * Math.PI * random.uniform())
    const v = (1 + c * x) ** 3
    if (v > 0 && Math.log(1 - random.uniform()) < 0.5 * x * x + d - d * v + d * Math.log(v)) return d * v
  }
}
