/** Learning-rate schedules as pure functions of the position in training. */

import { checkOptions, SepconvError } from '../errors.js'
import { checkRange } from './optimizer.js'

export interface Position {
  /** Steps done, from 0. */
  readonly step: number
  readonly stepsPerEpoch: number
  readonly epochs: number
}

/** How the learning rate changes over a run. */
export interface Schedule {
  /** `constant`; `cosine`: half a cosine down to `floor`; `exponential`: × `factor` every `every` epochs. */
  readonly kind: 'constant' | 'cosine' | 'exponential'
  /** Epochs over which the rate rises linearly from 0. Default 0. */
  readonly warmup?: number
  /** Of `cosine`: the last rate as a share of the first. Default 0. */
  readonly floor?: number
  /** Of `exponential`. Default 0.94, the paper's. */
  readonly factor?: number
  /** Of `exponential`, in epochs. Default 2, the paper's. */
  readonly every?: number
  /** Of `exponential`: in whole stairs (default) or continuously. */
  readonly staircase?: boolean
}

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
  checkRange('schedule', 'every', schedule.every ?? 2, (x) => x > 0, 'positive')
}

/** The rate of a step: `rate` times the schedule's factor there. */
export function rateAt(rate: number, schedule: Schedule, { step, stepsPerEpoch, epochs }: Position): number {
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
      const periods = epoch / (schedule.every ?? 2)
      return rate * (schedule.factor ?? 0.94) ** (schedule.staircase === false ? periods : Math.floor(periods))
    }
  }
}
