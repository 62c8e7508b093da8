/** What several seeds say of a difference. */

import type { Experiment } from './definition.js'
import type { Results } from './results.js'

export interface Summary {
  /** Last scores of each seed; `undefined` where the run diverged. */
  readonly values: readonly (number | undefined)[]
  readonly diverged: number
  /** `undefined` where a run diverged: a mean without it would be of another question. */
  readonly mean: number | undefined
  readonly deviation: number | undefined
}

export interface Verdict {
  readonly first: string
  readonly second: string
  /** Mean of second − first over seeds, and the half width of its 95 % interval. */
  readonly difference?: number
  readonly margin?: number
  readonly outcome: 'ahead' | 'behind' | 'undecided' | 'diverged'
  readonly text: string
}

/** Quantile 0.975 of Student's distribution by degrees of freedom, from 1; the last stands for all beyond. */
const STUDENT = [12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.16, 2.145, 2.131, 1.96] as const

export const meanOf = (values: readonly number[]): number => values.reduce((sum, value) => sum + value, 0) / values.length
/** Of a sample; 0 for a single value. */
export function deviationOf(values: readonly number[]): number {
  const mean = meanOf(values)
  return values.length < 2 ? 0 : Math.sqrt(values.reduce((sum, value) => sum + (value - mean) ** 2, 0) / (values.length - 1))
}

/** The last epoch's score of one variant, seed by seed. */
export function summarizeVariant({ runs, seeds }: Results, variant: string, metric: string): Summary {
  const own = seeds.map((seed) => runs.find((run) => run.variant === variant && run.seed === seed))
  const values = own.map((run) => (run?.status === 'done' ? run.epochs.at(-1)?.scores[metric] : undefined))
  const diverged = own.filter((run) => run?.status === 'diverged').length
  const known = values.filter((value) => value !== undefined)
  const complete = known.length === seeds.length && known.length > 0
  return {
    values,
    diverged,
    mean: complete ? meanOf(known) : undefined,
    deviation: complete ? deviationOf(known) : undefined,
  }
}

/**
 * Whether the second variant is ahead of the first. Seeds are paired: both saw the same order and augmentation. Decided is what a 95 %
 * interval of the mean difference (Student) leaves on one side of zero; with fewer than three pairs nothing is.
 */
export function compare(results: Results, { metric }: Experiment, first: string, second: string): Verdict {
  const [a, b] = [summarizeVariant(results, first, metric), summarizeVariant(results, second, metric)]
  const diverged = a.diverged + b.diverged
  if (diverged > 0)
    return {
      ...{ first, second, outcome: 'diverged' },
      text: `not to be compared: ${[a, b].map(({ diverged: count, values }, i) => `${count} of ${values.length} runs of ${i === 0 ? first : second} diverged`).join(', ')}`,
    }
  const differences = results.seeds.flatMap((_, i) => {
    const [x, y] = [a.values[i], b.values[i]]
    return x === undefined || y === undefined ? [] : [y - x]
  })
  const difference = meanOf(differences)
  if (differences.length < 3)
    return {
      ...{ first, second, difference, outcome: 'undecided' },
      text: `undecided: ${differences.length} pairs of seeds, and three are needed`,
    }
  const student = STUDENT[Math.min(differences.length - 2, STUDENT.length - 1)]!
  const margin = (student * deviationOf(differences)) / Math.sqrt(differences.length)
  const percent = (x: number) => `${(100 * x).toFixed(1)}`
  const figure = `${difference >= 0 ? '+' : '−'}${percent(Math.abs(difference))} ± ${percent(margin)} points`
  const outcome = Math.abs(difference) <= margin ? 'undecided' : difference > 0 ? 'ahead' : 'behind'
  const text =
    outcome === 'undecided'
      ? `undecided: ${figure} is within the spread of seeds`
      : `${second} is ${outcome === 'ahead' ? 'ahead of' : 'behind'} ${first}: ${figure}`
  return { first, second, difference, margin, outcome, text }
}
