/** `sepconv embed DIR --weights FILE --out FILE`: a feature vector of every picture below a folder. */

import { extname, join } from 'node:path'
import { Command } from 'commander'
import type { RgbImage } from '../../data/image.js'
import { SepconvError } from '../../errors.js'
import { addInferenceOptions } from '../options.js'
import { Progress, say, writeJson, writeText } from '../ui.js'
import { openWeights, type WeightsSettings } from '../weights.js'

interface Settings extends WeightsSettings {
  out: string
  strict?: boolean
  json?: boolean
}

const BATCH = 32
const FORMATS = ['.npy', '.safetensors', '.jsonl']

export const embedCommand = (): Command =>
  addInferenceOptions(
    new Command('embed')
      .summary('write feature vectors of pictures')
      .description(
        'Writes the vector of pooled features of every picture below a folder, in the order of their names: what nearest-neighbour search\nand small classifiers work on. With .npy the names go beside it, one per line, into OUT.names.txt.',
      )
      .argument('<dir>', 'a folder of pictures, at any depth')
      .requiredOption('--out <file>', 'features.npy, features.safetensors or features.jsonl')
      .option('--weights <file>', 'trained weights: a file, or a name such as keras/xception (see docs/weights.md)')
      .option('--model <name>', 'the architecture (default: what the weights say)')
      .option('--strict', 'fail on a picture that cannot be read instead of skipping it'),
  )
    .addHelpText('after', '\nExample:\n  $ sepconv embed photos/ --weights timm/legacy_xception.tf_in1k --out features.npy')
    .action(embed)

async function embed(directory: string, settings: Settings): Promise<void> {
  const format = extname(settings.out).toLowerCase()
  if (!FORMATS.includes(format))
    throw new SepconvError('ERR_ARGUMENT', `--out must end in ${FORMATS.join(', ')}, got ${settings.out}`, {
      subject: 'out',
      expected: FORMATS,
    })
  const { listPictures } = await import('../../data/folder.js')
  const names = await listPictures(directory)
  if (names.length === 0) throw new SepconvError('ERR_DATA', `${directory} has no pictures`, { subject: directory })
  using model = await openWeights('embed', settings, { classes: 0 })
  const { loadImage } = await import('../../data/image.js')
  const progress = new Progress({ label: 'embedding', total: names.length, unit: 'img' })
  const done: string[] = []
  const parts: Float32Array[] = []
  let skipped = 0
  for (let start = 0; start < names.length; start += BATCH) {
    const chunk = names.slice(start, start + BATCH)
    const loaded = await Promise.all(
      chunk.map((name) =>
        loadImage(join(directory, name)).catch((error: unknown) => {
          if (settings.strict || !(error instanceof SepconvError)) throw error
          say(`skipped ${error.message}`)
          skipped++
          return undefined
        }),
      ),
    )
    const usable = loaded.flatMap((image, i): [string, RgbImage][] => (image ? [[chunk[i]!, image]] : []))
    if (usable.length > 0) {
      parts.push(await model.embed(usable.map(([, image]) => image)))
      done.push(...usable.map(([name]) => name))
    }
    progress.update(Math.min(start + BATCH, names.length))
  }
  progress.finish()
  if (done.length === 0) throw new SepconvError('ERR_DATA', `none of the ${names.length} pictures could be read`, { subject: directory })
  const width = parts.reduce((sum, { length }) => sum + length, 0) / done.length
  const features = new Float32Array(done.length * width)
  let at = 0
  for (const part of parts) {
    features.set(part, at)
    at += part.length
  }
  await write(settings.out, format, done, features, width)
  if (settings.json) writeJson({ out: settings.out, images: done.length, features: width, skipped })
  else writeText(settings.out)
  say(`${done.length} pictures, ${width} features each${skipped > 0 ? `, ${skipped} skipped` : ''}`)
}

async function write(out: string, format: string, names: readonly string[], features: Float32Array, width: number): Promise<void> {
  const { writeAtomic } = await import('../../files.js')
  if (format === '.npy') {
    const { encodeNpy } = await import('../../data/npy.js')
    await writeAtomic(out, encodeNpy(features, [names.length, width]))
    return await writeAtomic(`${out}.names.txt`, `${names.join('\n')}\n`)
  }
  if (format === '.safetensors') {
    const { writeSafetensors } = await import('../../weights/safetensors.js')
    const tensors = { features: { dtype: 'F32' as const, shape: [names.length, width], data: features } }
    return await writeSafetensors(out, tensors, { metadata: { names: JSON.stringify(names) } })
  }
  await writeAtomic(out, async (file) => {
    for (const [i, image] of names.entries())
      await file.write(Buffer.from(`${JSON.stringify({ image, features: [...features.subarray(i * width, (i + 1) * width)] })}\n`))
  })
}
