/** `sepconv convert WEIGHTS OUT`: weights of any origin as safetensors, Keras HDF5 or ONNX. */

import { Command } from 'commander'
import { SepconvError } from '../../errors.js'
import { jsonOption, oneOf } from '../options.js'
import { say, writeJson, writeText } from '../ui.js'
import { downloaded } from '../weights.js'

interface Settings {
  model?: string
  format?: 'safetensors' | 'keras' | 'onnx'
  names?: 'own' | 'timm' | 'torchvision'
  fold: boolean
  json?: boolean
}

export const convertCommand = (): Command =>
  new Command('convert')
    .summary('write weights in another format')
    .description(
      'Reads weights of any known origin (safetensors, Keras .h5 and .keras, PyTorch .pth) and writes them as safetensors, as Keras .h5\nor as ONNX. The format follows from the name of OUT.',
    )
    .argument('<weights>', 'a file, or a name such as timm/legacy_xception.tf_in1k')
    .argument('<out>', 'model.safetensors, model.h5 or model.onnx')
    .option('--model <name>', 'the architecture (default: what the weights say)')
    .option('--format <format>', 'safetensors, keras or onnx (default: by the name)', oneOf('safetensors', 'keras', 'onnx'))
    .option(
      '--names <names>',
      "of safetensors: own; timm for PyTorch's Xceptions; torchvision for the baselines (default: own)",
      oneOf('own', 'timm', 'torchvision'),
    )
    .option('--no-fold', 'of ONNX: keep batch norms as nodes of their own')
    .addOption(jsonOption())
    .addHelpText(
      'after',
      '\nExamples:\n  $ sepconv convert xception_weights.h5 xception.safetensors\n  $ sepconv convert keras/xception xception.onnx',
    )
    .action(convert)

async function convert(weights: string, out: string, settings: Settings): Promise<void> {
  const { createModel, loadModel } = await import('../../models/index.js')
  const path = await downloaded(weights)
  if (path === out) throw new SepconvError('ERR_ARGUMENT', 'convert: OUT is the file that is read', { subject: 'out', given: out })
  // Nothing is computed, so the plainest device serves.
  const options = { device: 'reference' as const }
  using model =
    settings.model === undefined ? await loadModel(path, options) : await createModel(settings.model, { weights: path, ...options })
  const { format, names, fold } = settings
  await model.saveWeights(out, { ...(format && { format }), ...(names && { names }), fold })
  const { architecture, options: architectureOptions } = model.config
  const parameters = model.summary().parameters.trainable
  if (settings.json) writeJson({ out, architecture, options: architectureOptions, parameters })
  else writeText(out)
  say(`${architecture}, ${parameters.toLocaleString('en-US')} parameters, options ${JSON.stringify(architectureOptions)}`)
}
