/** `sepconv summary NAME`: layers, shapes, parameters, multiply-adds and activation memory of a model. Needs no native code. */

import { existsSync } from 'node:fs'
import { Command } from 'commander'
import type { ModelSummary } from '../../models/summary.js'
import { addModelOptions, jsonOption, modelOptions } from '../options.js'
import { formatBytes, formatTable, grouped } from '../table.js'
import { writeJson, writeText } from '../ui.js'

export function summaryCommand(): Command {
  const command = new Command('summary')
    .summary('print the layers of a model with their parameters and costs')
    .description('Prints the layers of a model: output shape, parameters, multiply-adds and activation memory for one picture.')
    .argument('<name>', 'a registered model such as xception, or a weights file')
  addModelOptions(command)
    .addOption(jsonOption())
    .addHelpText(
      'after',
      '\nExamples:\n  $ sepconv summary xception\n  $ sepconv summary xception --classes 10 --width 0.5 --size 150 --json',
    )
  return command.action(async (name: string, values: Record<string, unknown> & { json?: boolean }) => {
    const summary = await summarizeNamed(name, modelOptions(values))
    if (values.json)
      writeJson({ parameters: summary.parameters, macs: summary.macs, inputShape: summary.inputShape, layers: summary.layers })
    else writeText(formatSummary(summary))
  })
}

/** The summary of a registered model, or of the model that an existing weights file belongs to. */
async function summarizeNamed(name: string, options: Record<string, unknown>): Promise<ModelSummary> {
  const [{ summarize }, { architecture }] = await Promise.all([
    import('../../models/summary.js'),
    import('../../models/registry.js'),
    import('../../models/index.js'),
  ])
  if (!existsSync(name)) return summarize(architecture(name).build(options))
  const { readSource } = await import('../../models/source.js')
  const source = await readSource(name)
  return summarize(architecture(source.architecture).build({ ...source.options, ...options }))
}

export function formatSummary({ parameters, macs, inputShape, layers }: ModelSummary): string {
  const columns = [
    { title: 'layer' },
    { title: 'ops' },
    { title: 'output', align: 'right' as const },
    { title: 'parameters', align: 'right' as const },
    { title: 'multiply-adds', align: 'right' as const },
    { title: 'activations', align: 'right' as const },
  ]
  const rows = layers.map((layer) => [
    layer.name,
    layer.ops,
    layer.shape.slice(1).join(' × '),
    layer.parameters + layer.nonTrainable > 0 ? grouped(layer.parameters + layer.nonTrainable) : '',
    layer.macs > 0 ? grouped(layer.macs) : '',
    layer.activationBytes > 0 ? formatBytes(layer.activationBytes) : '',
  ])
  const bytes = layers.reduce((sum, layer) => sum + layer.activationBytes, 0)
  return [
    formatTable(columns, rows),
    '',
    `input           ${inputShape.slice(1).join(' × ')}`,
    `parameters      ${grouped(parameters.total)} (${grouped(parameters.trainable)} trainable, ${grouped(parameters.nonTrainable)} other)`,
    `multiply-adds   ${grouped(macs)}`,
    `activations     ${formatBytes(bytes)} for one picture, before fusion and reuse`,
  ].join('\n')
}
