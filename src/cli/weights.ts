/** What commands ask of weights files. */

import { SepconvError } from '../errors.js'
import type { Precision } from '../graph/precision.js'
import type { Model } from '../models/model.js'
import { type DeviceSettings, selectDevice } from './options.js'
import { Progress } from './ui.js'

export interface WeightsSettings extends DeviceSettings {
  weights?: string
  model?: string
  labels?: string
  resize?: 'crop' | 'squash'
  precision?: Precision
}

/** The file behind `--weights`; a download shows how far it is. */
export async function downloaded(weights: string): Promise<string> {
  const { localWeights } = await import('../weights/file.js')
  let progress: Progress | undefined
  try {
    return await localWeights(weights, {
      onProgress({ done, total }) {
        progress ??= new Progress({ label: `downloading ${weights}`, unit: 'MB', ...(total !== undefined && { total: total / 1e6 }) })
        progress.update(done / 1e6)
      },
    })
  } finally {
    progress?.finish()
  }
}

/**
 * The model of `--weights` on `--device`: the architecture is `--model`, else what the file's metadata or tensors say.
 * @throws ERR_ARGUMENT without `--weights`: random weights would give random answers.
 */
export async function openWeights(command: string, settings: WeightsSettings, extra: { classes?: 0 } = {}): Promise<Model> {
  const { weights } = settings
  if (weights === undefined)
    throw new SepconvError('ERR_ARGUMENT', `${command} needs --weights FILE: without trained weights its answers would be random`, {
      subject: 'weights',
      hint: 'Train a model with `sepconv train DIR`, which writes best.safetensors',
    })
  const device = selectDevice(settings)
  const { createModel, loadModel } = await import('../models/index.js')
  const { model: name, resize, precision } = settings
  const path = await downloaded(weights)
  const crop = resize === undefined ? {} : { preprocessing: { crop: resize === 'squash' ? ('squash' as const) : ('center' as const) } }
  const options = { device, precision, ...crop, ...extra }
  const model = name === undefined ? await loadModel(path, options) : await createModel(name, { weights: path, ...options })
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
