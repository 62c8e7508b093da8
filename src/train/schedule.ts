/** Learning-rate schedules as pure functions of the position in training. */

import { checkOptions, SepconvError } from '../errors.js'
import { checkRange } from './optimizer.js'

/** Where a step stands in its run. */
export interface Position {
  /** Steps done, from 0. */
  readonly step: number
  readonly stepsPerEpoch: number
  readonly epochs: number
  /** Samples per step. */
  readonly batch: number
}

/** A length of training in one unit; a number alone means epochs. */
export type Span = number | { readonly epochs: number } | { readonly steps: number } | { readonly samples: number }

/** How the learning rate changes over a run. */
export interface Schedule {
  /** `constant`; `cosine`: half a cosine down to `floor`; `exponential`: × `factor` every `every`. */
  readonly kind: 'constant' | 'cosine' | 'exponential'
  /** Epochs over which the rate rises linearly from 0. Default 0. */
  readonly warmup?: number
  /** Of `cosine`: the last rate as a share of the first. Default 0. */
  readonly floor?: number
  /** Of `exponential`. Default 0.94, the paper's for ImageNet. */
  readonly factor?: number
  /** Of `exponential`. Default 2 epochs, the paper's for ImageNet; for JFT it has `{ samples: 3_000_000 }`. */
  readonly every?: Span
  /** Of `exponential`: in whole stairs (default) or continuously. */
  readonly staircase?: boolean
}

/** A schedule of one's own: the rate of a step, at least 0. Must depend on nothing but the position, or a resumed run differs. */
export type RateFunction = (position: Position) => number

const UNITS = ['epochs', 'steps', 'samples'] as const

/** @throws ERR_ARGUMENT for unknown keys and values that would make a rate negative or undefined. */
export function checkSchedule(schedule: Schedule): void {
  checkOptions('schedule', schedule, ['kind', 'warmup', 'floor', 'factor', 'every', 'staircase'])
  if (!['constant', 'cosine', 'exponential'].includes(schedule.kind))
    throw new SepconvError('ERR_ARGUMENT', `schedule: kind must be constant, cosine or exponential, got ${String(schedule.kind)}`, {
      subject: 'kind',
      given: schedule.kind,
    })
  checkRange('schedule', 'warmup', schedule.warmup ?? 0, (x) => x >= 0, 'at least 0')
  checkRange('schedule', 'floor', schedule.floor ?? 0, (x) => x >= 0 && x <= 1, 'in [0, 1]')
  checkRange('schedule', 'factor', schedule.factor ?? 0.94, (x) => x > 0 && x <= 1, 'in (0, 1]')
  const { every = 2 } = schedule
  if (typeof every === 'object') {
    checkOptions('schedule.every', every, UNITS)
    if (Object.keys(every).length !== 1)
      throw new SepconvError('ERR_ARGUMENT', `schedule: every must name one unit, got ${JSON.stringify(every)}`, {
        subject: 'every',
        expected: UNITS,
        given: every,
      })
  }
  checkRange('schedule', 'every', typeof every === 'object' ? (Object.values(every)[0] as number) : every, (x) => x > 0, 'positive')
}

/** How many epochs a span is. */
function epochsOf(span: Span, { stepsPerEpoch, batch }: Position): number {
  if (typeof span === 'number') return span
  if ('epochs' in span) return span.epochs
  return 'steps' in span ? span.steps / stepsPerEpoch : span.samples / (stepsPerEpoch * batch)
}

/** The rate of a step: `rate` times the schedule's factor there, or what the function says. @throws ERR_ARGUMENT when that is negative. */
export function rateAt(rate: number, schedule: Schedule | RateFunction, position: Position): number {
  if (typeof schedule === 'function') {
    const own = schedule(position)
    checkRange('schedule', `rate of step ${position.step + 1}`, own, (x) => x >= 0, 'at least 0')
    return own
  }
  const { step, stepsPerEpoch, epochs } = position
  const epoch = step / stepsPerEpoch
  const warmup = schedule.warmup ?? 0
  if (epoch < warmup) return (rate * (step + 1)) / Math.ceil(warmup * stepsPerEpoch + 1)
  switch (schedule.kind) {
    case 'constant':
      return rate
    case 'cosine': {
      const floor = schedule.floor ?? 0
      const progress = Math.min(1, (epoch - warmup) / Math.max(epochs - warmup, 1e-9))
      return rate * (floor + ((1 - floor) * (1 + Math.cos(Math.PI * progress))) / 2)
    }
    case 'exponential': {
      // A little over, so that rounding does not put a stair's first step on the stair before.
      const periods = epoch / epochsOf(schedule.every ?? 2, position)
      return rate * (schedule.factor ?? 0.94) ** (schedule.staircase === false ? periods : Math.floor(periods * (1 + 1e-12)))
    }
  }
}

/** Looks at up to a thousand steps of a run before it begins. @throws ERR_ARGUMENT naming the first step whose rate is negative. */
export function checkRates(rate: number, schedule: Schedule | RateFunction, whole: Omit<Position, 'step'>): void {
  const steps = whole.stepsPerEpoch * whole.epochs
  const stride = Math.max(1, Math.floor(steps / 1000))
  for (let step = 0; step < steps; step += stride) rateAt(rate, schedule, { ...whole, step })
  if (steps > 0) rateAt(rate, schedule, { ...whole, step: steps - 1 })
}
