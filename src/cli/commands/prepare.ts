/** `sepconv prepare DIR`: decodes every picture once, so that training maps pixels instead of decoding files. */

import { basename, resolve } from 'node:path'
import { Command } from 'commander'
import { jsonOption, wholeNumber } from '../options.js'
import { formatBytes } from '../table.js'
import { Progress, say, writeJson, writeText } from '../ui.js'

interface Settings {
  out?: string
  size: number
  strict?: boolean
  json?: boolean
}

export const prepareCommand = (): Command =>
  new Command('prepare')
    .summary('decode pictures once and for all')
    .description(
      'Writes the decoded pictures of a data set (in any form that `sepconv train` takes) into a folder, which `sepconv train` then takes instead\nof it. Training pictures are reduced as training would, held-out ones kept whole: a run on them has the same bits.',
    )
    .argument('<dir>', 'the pictures')
    .option('--out <folder>', 'where they go (default: prepared/<name of DIR>)')
    .option('--size <pixels>', 'side of the training pictures that it is meant for', wholeNumber(), 299)
    .option('--strict', 'fail on a picture that cannot be read instead of leaving it out')
    .addOption(jsonOption())
    .addHelpText('after', '\nExample:\n  $ sepconv prepare pets/ --size 150 && sepconv train prepared/pets --size 150')
    .action(prepare)

async function prepare(directory: string, { out, size, strict = false, json }: Settings): Promise<void> {
  const [{ openDataset }, { prepareDataset }] = await Promise.all([import('../../data/open.js'), import('../../data/prepared.js')])
  const folder = out ?? `prepared/${basename(resolve(directory))}`
  const data = await openDataset(directory, { strict })
  const stop = new AbortController()
  const interrupt = () => stop.abort(Object.assign(new Error('interrupted'), { name: 'AbortError' }))
  process.once('SIGINT', interrupt)
  process.once('SIGTERM', interrupt)
  const progress = new Progress({ label: 'preparing', total: data.train.length + data.validation.length, unit: 'img' })
  try {
    const prepared = await prepareDataset(data, folder, { size, strict, signal: stop.signal, onProgress: (done) => progress.update(done) })
    progress.finish()
    const { train, validation, bytes, skipped } = prepared
    if (skipped.length > 0) say(`left out ${skipped.length} pictures that cannot be read: ${skipped.slice(0, 3).join('; ')}`)
    if (json) return writeJson({ folder, train, validation, bytes, skipped: skipped.length })
    say(`${train + validation} pictures (${validation} held out), ${formatBytes(bytes)}`)
    writeText(folder)
  } finally {
    progress.finish()
    process.off('SIGINT', interrupt)
    process.off('SIGTERM', interrupt)
  }
}
