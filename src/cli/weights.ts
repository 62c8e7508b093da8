/** What commands ask of weights files. */

import { SepconvError } from '../errors.js'
import type { Model, ModelConfig } from '../models/model.js'
import { type DeviceSettings, selectDevice } from './options.js'

/** The model that a weights file says it belongs to. @throws ERR_WEIGHTS when it does not say so. */
export async function storedModel(path: string): Promise<ModelConfig> {
  const stored = await metadataOf(path)
  if (!stored)
    throw new SepconvError('ERR_WEIGHTS', `${path} does not say which model it belongs to`, {
      subject: path,
      hint: 'Name the architecture, such as xception',
    })
  return stored
}

async function metadataOf(path: string): Promise<ModelConfig | undefined> {
  const [{ SafetensorsFile }, { readMetadata }] = await Promise.all([import('../weights/safetensors.js'), import('../models/model.js')])
  await using file = await SafetensorsFile.open(path)
  return readMetadata(path, file.metadata)
}

export interface WeightsSettings extends DeviceSettings {
  weights?: string
  model?: string
  labels?: string
}

/**
 * The model of `--weights` on `--device`: the architecture is `--model`, else what the file says, else xception.
 * @throws ERR_ARGUMENT without `--weights`: random weights would give random answers.
 */
export async function openWeights(command: string, settings: WeightsSettings): Promise<Model> {
  const { weights } = settings
  if (weights === undefined)
    throw new SepconvError('ERR_ARGUMENT', `${command} needs --weights FILE: without trained weights its answers would be random`, {
      subject: 'weights',
      hint: 'Train a model with `sepconv train DIR`, which writes best.safetensors',
    })
  const device = selectDevice(settings)
  const { createModel } = await import('../models/index.js')
  const name = settings.model ?? (await metadataOf(weights))?.architecture ?? 'xception'
  const model = await createModel(name, { weights, device })
  if (settings.labels === undefined) return model
  try {
    const { readLabels } = await import('../data/labels.js')
    model.labels = await readLabels(settings.labels, { count: model.network.classes })
  } catch (error) {
    model.dispose()
    throw error
  }
  return model
}

/** `cpu (2 threads, avx2)`: the device as results name it. */
export async function describeDevice(name: string): Promise<string> {
  const { devices } = await import('../runtime/device.js')
  const info = devices().find((device) => device.name === name)
  const threads = name === 'cpu' ? (process.env.SEPCONV_THREADS ?? info?.threads) : undefined
  const details = [
    threads === undefined ? '' : `${threads} thread${Number(threads) === 1 ? '' : 's'}`,
    typeof info?.isa === 'string' ? info.isa : '',
  ]
  const text = details.filter(Boolean).join(', ')
  return text ? `${name} (${text})` : name
}
