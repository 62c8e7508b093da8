// Some training steps on one rank's rows of fixed batches; rank 0 prints { losses, weights, same } as JSON: weights by name, and
// whether all ranks hold the same bits. node steps.mjs '{"batch":8,"steps":2,"batchNorm":"synchronised"}'
import { createHash } from 'node:crypto'
import { compile, openCommunicator, rmsprop, sgd, tensor, weightAverage, xception } from '../../../dist/index.js'
import { softmaxCrossEntropy } from '../../../dist/ops/index.js'
import { readState } from '../../../dist/runtime/state.js'

const options = JSON.parse(process.argv[2] ?? '{}')
const {
  batch = 8,
  steps = 2,
  batchNorm,
  bucketBytes,
  accumulate,
  clipNorm,
  size = 71,
  precision,
  optimizer = 'sgd',
  rate = 0.01,
  device = 'cpu',
} = options
const ranks = await openCommunicator()
const [rank, count] = [ranks?.rank ?? 0, ranks?.size ?? 1]
await ranks?.connect(device)
const rows = batch / count / (accumulate ?? 1)
const model = xception({ classes: 8, inputSize: size, width: 0.05, middleRepeats: 1, dropout: 0.3, seed: 5, device, ...options.model })

// mulberry32
function generator(seed) {
  let state = seed >>> 0
  return () => {
    state = (state + 0x6d2b79f5) >>> 0
    let t = Math.imul(state ^ (state >>> 15), state | 1)
    t = (t + Math.imul(t ^ (t >>> 7), t | 61)) ^ t
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296
  }
}

const pixels = size * size * 3
const step = compile(
  ({ images, labels }) => {
    const logits = model(images)
    return { loss: softmaxCrossEntropy(logits, labels), logits }
  },
  {
    device,
    train: { sgd: sgd({ rate, momentum: 0.9 }), rmsprop: rmsprop({ rate }) }[optimizer],
    average: weightAverage('ema', 0.9),
    seed: 7,
    ...(precision && { precision }),
    ...(accumulate && { accumulate }),
    ...(clipNorm && { clipNorm }),
    ...(count > 1 && { ranks: { size: count, ...(batchNorm && { batchNorm }), ...(bucketBytes && { bucketBytes }) } }),
  },
)
const losses = []
for (let i = 0; i < steps; i++) {
  const random = generator(100 + i)
  const images = Float32Array.from({ length: batch * pixels }, () => random() * 2 - 1)
  const labels = Int32Array.from({ length: batch }, () => Math.floor(random() * 8))
  let sum = 0
  for (let part = 0; part < (accumulate ?? 1); part++) {
    const first = (rank * (accumulate ?? 1) + part) * rows
    const inputs = {
      images: tensor(images.slice(first * pixels, (first + rows) * pixels), [rows, size, size, 3], { device }),
      labels: tensor(labels.slice(first, first + rows), [rows], { device }),
    }
    const { loss } = await step.run(inputs, { sample: i * batch + first, part })
    sum += (await loss.data())[0]
  }
  losses.push(sum / (accumulate ?? 1))
}
const weights = {}
const hash = createHash('sha256')
for (const [name, variable] of model.variables) {
  const content = await readState(variable)
  weights[name] = Array.from(content)
  hash.update(new Uint8Array(content.buffer, content.byteOffset, content.byteLength))
}
const digest = hash.digest('hex')
const digests = ranks ? await ranks.share(digest) : [digest]
const calls = step
  .executable({
    images: tensor(new Float32Array(rows * pixels), [rows, size, size, 3], { device }),
    labels: tensor(new Int32Array(rows), [rows], { device }),
  })
  .program.calls.map(({ kernel }) => kernel)
if (rank === 0)
  console.log(
    JSON.stringify({ losses, digest, same: digests.every((other) => other === digest), weights: options.brief ? {} : weights, calls }),
  )
await ranks?.close()
