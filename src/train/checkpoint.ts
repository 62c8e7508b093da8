/**
 * A training run's folder:
 *     config.json        what the run is: model, data, settings; a resumed run must agree with it
 *     last.safetensors   everything the next step depends on, in one file that is replaced atomically; position in its metadata
 *     best.safetensors   the weights (averaged, where an average is kept) with the best validation score, for prediction
 *     state.json         the position and the scores, for reading
 *     predictions.json   what these weights make of each held-out picture
 *     log.jsonl          one event per line
 *     events.out.…       the same for TensorBoard
 */

import { mkdir, readdir, readFile, rm } from 'node:fs/promises'
import { existsSync } from 'node:fs'
import { join } from 'node:path'
import { differences } from '../differences.js'
import { SepconvError } from '../errors.js'
import { fileError, writeAtomic } from '../files.js'
import { elements, sameShape } from '../graph/types.js'
import type { Variable } from '../graph/variable.js'
import type { Model } from '../models/model.js'
import { writeMetadata } from '../models/source.js'
import type { Best } from './events.js'
import { readState, writeState } from '../runtime/state.js'
import { SafetensorsFile, writeSafetensors } from '../weights/safetensors.js'

/** Where a run stands; together with the tensors, all that the rest of the run depends on. */
export interface TrainingState {
  /** Steps done. */
  readonly step: number
  /** Global index of the next sample to be loaded. */
  readonly sample: number
  /** Sums over the epoch under way, so that its means survive a resume. */
  readonly epochLoss: number
  readonly epochCorrect: number
  readonly epochImages: number
  /** Best validation score so far, and its epoch. */
  readonly best: Best | null
}

export const LAST = 'last.safetensors'
export const BEST = 'best.safetensors'
export const PREDICTIONS = 'predictions.json'
const CONFIG = 'config.json'

/** Names in `last.safetensors`: the model's own, and training's under `train.`. */
export async function saveCheckpoint(folder: string, model: Model, companions: readonly Variable[], state: TrainingState): Promise<void> {
  const metadata = { ...writeMetadata(model.config), training: JSON.stringify(state) }
  const all = [...model.variables.values(), ...companions]
  const tensors = new Map(
    all.map((variable) => [variable.name, { dtype: 'F32' as const, shape: variable.type.shape, data: () => readState(variable) }]),
  )
  await writeSafetensors(join(folder, LAST), tensors, { metadata })
  await writeSummary(folder, state)
}

const writeSummary = (folder: string, state: TrainingState): Promise<void> =>
  writeAtomic(join(folder, 'state.json'), `${JSON.stringify(state, null, 2)}\n`)

/**
 * Puts model and companions back to where `last.safetensors` left them, and `state.json` where a kill came between the two files.
 * @throws ERR_WEIGHTS when it lacks something, ERR_FILE.
 */
export async function loadCheckpoint(folder: string, model: Model, companions: readonly Variable[]): Promise<TrainingState> {
  const path = join(folder, LAST)
  await using file = await SafetensorsFile.open(path)
  for (const variable of [...model.variables.values(), ...companions]) {
    const entry = file.tensors.get(variable.name)
    if (!entry || !sameShape(entry.shape, variable.type.shape))
      throw new SepconvError('ERR_WEIGHTS', `${path} holds ${entry ? `'${variable.name}' in another shape` : `no '${variable.name}'`}`, {
        subject: variable.name,
        hint: 'It was written by another run',
      })
    const data = new Float32Array(elements(variable.type.shape))
    await file.readInto(variable.name, data)
    writeState(variable, data, model.executor)
  }
  const state = parseState(path, file)
  await writeSummary(folder, state)
  return state
}

/** Where the run in `folder` stands, without its tensors. */
export async function storedState(folder: string): Promise<TrainingState> {
  const path = join(folder, LAST)
  await using file = await SafetensorsFile.open(path)
  return parseState(path, file)
}

function parseState(path: string, { metadata }: SafetensorsFile): TrainingState {
  try {
    return JSON.parse(metadata.training ?? '') as TrainingState
  } catch (cause) {
    throw new SepconvError('ERR_FORMAT', `${path} has no training state`, { subject: path, cause })
  }
}

/** What a run is; kept as JSON and compared on resume. */
export type RunConfig = Readonly<Record<string, unknown>>

export async function readConfig(folder: string): Promise<RunConfig> {
  const path = join(folder, CONFIG)
  try {
    return JSON.parse(await readFile(path, 'utf8')) as RunConfig
  } catch (cause) {
    if (cause instanceof SyntaxError) throw new SepconvError('ERR_FORMAT', `${path} is not valid JSON`, { subject: path, cause })
    if ((cause as NodeJS.ErrnoException).code === 'ENOENT')
      throw new SepconvError('ERR_FILE', `${folder} holds no training run (${CONFIG} is missing)`, {
        subject: folder,
        hint: 'Resume from the folder that --out named',
      })
    throw fileError(cause, path, 'read')
  }
}

/**
 * Starts a run in `folder`, or checks that it goes on with the same one.
 * @throws ERR_FILE when a new run would overwrite another; ERR_ARGUMENT when a resumed run differs, naming every difference.
 */
export async function openRun(folder: string, config: RunConfig, resume: boolean): Promise<void> {
  if (resume) {
    const found = differences(await readConfig(folder), JSON.parse(JSON.stringify(config)) as RunConfig)
    const texts = found.map(({ path, was, is }) => `${path} was ${JSON.stringify(was)}, is ${JSON.stringify(is)}`)
    if (texts.length > 0)
      throw new SepconvError('ERR_ARGUMENT', `${folder} cannot be resumed with other settings: ${texts.join('; ')}`, {
        subject: 'resume',
        given: texts,
        hint: 'Start a new run in another folder to change them',
      })
    return
  }
  if (existsSync(join(folder, LAST)))
    throw new SepconvError('ERR_FILE', `${folder} holds a training run already`, {
      subject: folder,
      hint: 'Resume it, or choose another output folder',
    })
  try {
    await mkdir(folder, { recursive: true })
    for (const file of await readdir(folder))
      if (file === 'log.jsonl' || file.startsWith('events.out.tfevents.')) await rm(join(folder, file), { force: true })
  } catch (error) {
    throw fileError(error, folder, 'write')
  }
  await writeAtomic(join(folder, CONFIG), `${JSON.stringify(config, null, 2)}\n`)
}
