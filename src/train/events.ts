/** What a training run reports; the same objects, with their time, are the lines of `log.jsonl` (see docs/json.md). */

/** Scores on the held-out pictures. `map` only where labels are several per picture. */
export interface Scores {
  readonly images: number
  readonly top1: number
  readonly top5: number
  readonly loss: number
  /** MAP@100 by image. */
  readonly map?: number
}

/** The best epoch so far by the score that the run watches. */
export interface Best {
  readonly metric: Metric
  readonly value: number
  readonly epoch: number
}

/** What decides which epoch is best: higher is better, but for `loss`. */
export type Metric = 'top1' | 'top5' | 'loss' | 'map'

/** What `fit` reports; docs/json.md says what the fields mean. */
export type FitEvent =
  | {
      readonly type: 'start'
      readonly step: number
      readonly steps: number
      readonly epochs: number
      readonly stepsPerEpoch: number
      readonly images: number
      readonly validationImages: number
      readonly classes: number
      readonly parameters: number
      /** Values of parameters that stay as they are. */
      readonly frozen: number
      readonly device: string
      /** That train together. */
      readonly ranks: number
    }
  | { readonly type: 'unfrozen'; readonly epoch: number; readonly stages: readonly string[]; readonly frozen: number }
  | {
      readonly type: 'step'
      readonly epoch: number
      readonly step: number
      readonly steps: number
      readonly loss: number
      readonly top1: number
      readonly rate: number
      readonly imagesPerSecond: number
      /** Share of the time that was spent waiting for pictures, over the last 50 steps. */
      readonly waitShare: number
      /** Milliseconds of this step: decoding (summed over threads), waiting for pictures, computing. */
      readonly decodeMs: number
      readonly waitMs: number
      readonly computeMs: number
      /** Of several ranks on the cpu device: milliseconds while gradients were being summed, and of these while this rank stood still for it. */
      readonly reduceMs?: number
      readonly exposedMs?: number
    }
  | { readonly type: 'straggler'; readonly step: number; readonly rank: number; readonly host: string; readonly times: number }
  | { readonly type: 'evaluating'; readonly epoch: number; readonly done: number; readonly total: number }
  | {
      readonly type: 'epoch'
      readonly epoch: number
      readonly step: number
      readonly loss: number
      readonly top1: number
      readonly validation: Scores | null
      readonly best: boolean
      readonly seconds: number
      readonly waitShare: number
      readonly skipped: readonly string[]
      /** Of asynchronous ranks: updates of any rank between reading weights and applying what was computed on them. */
      readonly staleness?: { readonly mean: number; readonly max: number }
    }
  | { readonly type: 'checkpoint'; readonly step: number; readonly path: string }
  | { readonly type: 'stopped'; readonly epoch: number; readonly step: number; readonly out: string | null }
  | {
      readonly type: 'done'
      readonly epoch: number
      readonly step: number
      readonly best: Best | null
      /** Whether the run ended before its last epoch because the score no longer rose. */
      readonly early: boolean
      readonly out: string | null
    }
