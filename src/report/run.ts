/** What a report needs of a run's folder: configuration, log, predictions of the best epoch. */

import { existsSync } from 'node:fs'
import { readFile } from 'node:fs/promises'
import { basename, join, resolve } from 'node:path'
import { SepconvError } from '../errors.js'
import { readJsonLines } from '../files.js'
import { PREDICTIONS, readConfig } from '../train/checkpoint.js'
import type { FitEvent } from '../train/events.js'
import { LOG } from '../train/log.js'

type EventOf<T extends FitEvent['type']> = Extract<FitEvent, { type: T }>

export interface Predictions {
  readonly epoch: number
  readonly classes: readonly string[]
  readonly pictures: readonly {
    readonly name: string
    readonly labels: readonly number[]
    readonly predicted: number
    readonly confidence: number
  }[]
}

export interface ReportedRun {
  readonly name: string
  readonly folder: string
  readonly config: {
    readonly model: { readonly architecture: string; readonly options: Readonly<Record<string, unknown>> }
    readonly data: { readonly root: string; readonly classes: readonly string[] }
    readonly settings: Readonly<Record<string, unknown>>
  }
  readonly steps: readonly EventOf<'step'>[]
  readonly epochs: readonly EventOf<'epoch'>[]
  readonly predictions?: Predictions
}

/**
 * Reads a run. Where a resumed run did a step again, the last one counts.
 * @throws ERR_FILE for a folder without a run, ERR_FORMAT for files that are no JSON, ERR_DATA for a log without a step.
 */
export async function readRun(folder: string): Promise<ReportedRun> {
  const config = (await readConfig(folder)) as unknown as ReportedRun['config']
  const log = join(folder, LOG)
  const events = (existsSync(log) ? await readJsonLines(log) : []) as FitEvent[]
  const steps = latest(events.filter((event) => event.type === 'step'))
  const epochs = latest(events.filter((event) => event.type === 'epoch'))
  if (steps.length === 0) throw new SepconvError('ERR_DATA', `the log of ${folder} holds no step`, { subject: folder })
  const predictions = await readPredictions(join(folder, PREDICTIONS))
  return { name: basename(resolve(folder)), folder, config, steps, epochs, ...(predictions && { predictions }) }
}

function latest<T extends { readonly step: number }>(events: readonly T[]): T[] {
  const byStep = new Map(events.map((event) => [event.step, event]))
  return [...byStep.values()].sort((a, b) => a.step - b.step)
}

async function readPredictions(path: string): Promise<Predictions | undefined> {
  if (!existsSync(path)) return undefined
  try {
    return JSON.parse(await readFile(path, 'utf8')) as Predictions
  } catch (cause) {
    throw new SepconvError('ERR_FORMAT', `${path} is not valid JSON`, { subject: path, cause })
  }
}
