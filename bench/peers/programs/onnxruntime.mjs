// What the two ONNX Runtimes share: a session and a run.

import { readFileSync } from 'node:fs'
import path from 'node:path'
import { readImages, toChannelsFirst, toChannelsLast } from '../plan.mjs'
import { Unsupported } from '../serve.mjs'

export async function onnxPrepare(ort, { network, task, batch }, options) {
  if (task === 'train') throw new Unsupported('inference only')
  const plan = JSON.parse(readFileSync(path.join(network, 'plan.json'), 'utf8'))
  const session = await ort.InferenceSession.create(path.join(network, `batch${batch}.onnx`), { graphOptimizationLevel: 'all', ...options })
  const [h, w, c] = plan.input
  const images = new ort.Tensor('float32', toChannelsFirst(readImages(network, batch, plan.input), plan.input), [batch, c, h, w])
  const run = async () => (await session.run({ images })).output.data
  return { outputs: { output: toChannelsLast(await run(), plan.nodes.at(-1).shape) }, run }
}
