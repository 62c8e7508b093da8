// What the exchange of a single rank costs a training step on a GPU: the same step with and without its sums by NCCL, in turns.
//   node bench/distributed/one-rank.mjs [--device cuda:0] [--batch 32] [--rounds N]
import { parseArgs } from 'node:util'
import { compile, sgd, tensor, xception } from '../../dist/index.js'
import { softmaxCrossEntropy } from '../../dist/ops/index.js'
import { openDevice } from '../../dist/runtime/device.js'

const { values } = parseArgs({
  options: {
    device: { type: 'string', default: 'cuda:0' },
    batch: { type: 'string', default: '32' },
    rounds: { type: 'string', default: '30' },
    model: { type: 'string', default: '{}' },
  },
})
const { device } = values
const [batch, rounds] = [Number(values.batch), Number(values.rounds)]
const executor = openDevice(device)
try {
  await executor.joinRanks(executor.ranksId(), 1, 0)
} catch (error) {
  console.log(JSON.stringify({ skipped: error.message }))
  process.exit(0)
}
const steps = [{}, { ranks: { size: 1, bucketBytes: 25 << 20 } }].map((options) => {
  const model = xception({ device, ...JSON.parse(values.model) })
  const step = compile(({ images, labels }) => softmaxCrossEntropy(model(images), labels), {
    device,
    precision: 'bfloat16',
    train: sgd({ rate: 1e-6, momentum: 0.9 }),
    ...options,
  })
  const { size } = model.config.preprocessing
  const inputs = {
    images: tensor(new Float32Array(batch * size * size * 3), [batch, size, size, 3], { device }),
    labels: tensor(new Int32Array(batch), [batch], { device }),
  }
  return { times: [], run: () => step.run(inputs) }
})
for (let round = -2; round < rounds; round++)
  for (const { times, run } of round % 2 ? [...steps].reverse() : steps) {
    const since = performance.now()
    const { loss, finite } = await run()
    await loss.data()
    if (round >= 0) times.push(performance.now() - since)
    loss.dispose()
    finite.dispose()
  }
const [alone, exchanging] = steps.map(({ times }) => times.sort((a, b) => a - b)[times.length >> 1])
console.log(JSON.stringify({ device, batch, aloneMs: alone, exchangingMs: exchanging, cost: exchanging / alone - 1 }))
