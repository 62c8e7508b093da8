// One rank of run.mjs: trains for some seconds on drawn pictures and prints what its steps took as JSON.
//   node rank.mjs '{"batch":8,"reduce":"overlapped","seconds":3,"model":{…}}'
// batch counts all ranks. reduce: overlapped; after: one bucket, hence after the backward pass; none: every rank by itself, what
// the same computation takes without any exchange.
import { compile, openCommunicator, sgd, tensor, xception } from '../../dist/index.js'
import { softmaxCrossEntropy } from '../../dist/ops/index.js'

const { batch, reduce = 'overlapped', seconds = 3, warmup = 3, model: options, batchNorm, bucketBytes, steps } = JSON.parse(process.argv[2])
const ranks = await openCommunicator()
const size = ranks?.size ?? 1
const rows = batch / size
const model = xception({ classes: 8, ...options })
const side = options.inputSize
const exchanges = size > 1 && reduce !== 'none'
const step = compile(({ images, labels }) => softmaxCrossEntropy(model(images), labels), {
  train: sgd({ rate: 0.01, momentum: 0.9 }),
  ...(exchanges && {
    ranks: {
      size,
      ...(batchNorm && { batchNorm }),
      ...(reduce === 'after' ? { bucketBytes: 2 ** 40 } : bucketBytes && { bucketBytes }),
    },
  }),
})
const images = tensor(
  Float32Array.from({ length: rows * side * side * 3 }, (_, i) => Math.sin(i)),
  [rows, side, side, 3],
)
const labels = tensor(
  Int32Array.from({ length: rows }, (_, i) => i % 8),
  [rows],
)
const once = async () => {
  const { loss, finite } = await step.run({ images, labels })
  await loss.data()
  loss.dispose()
  finite.dispose()
}
for (let i = 0; i < warmup; i++) await once()
let count = steps
if (count === undefined) {
  // As many steps on every rank.
  const since = performance.now()
  await once()
  const own = Math.max(3, Math.ceil((seconds * 1e3) / (performance.now() - since)))
  count = ranks ? Math.min(...(await ranks.numbers([own])).map(([n]) => n)) : own
}
await ranks?.barrier()
ranks?.statistics()
const times = []
for (let i = 0; i < count; i++) {
  const since = performance.now()
  await once()
  times.push(performance.now() - since)
}
const { reductions = 0, bytes = 0, busySeconds = 0, waitSeconds = 0 } = ranks?.statistics() ?? {}
times.sort((a, b) => a - b)
const medianMs = times[times.length >> 1]
const own = {
  ...{ steps: count, medianMs, meanMs: times.reduce((a, b) => a + b) / count },
  ...{ reductionsPerStep: reductions / count, bytesPerStep: bytes / count },
  ...{ busyMs: (busySeconds * 1e3) / count, waitMs: (waitSeconds * 1e3) / count },
}
const all = ranks ? await ranks.share(own) : [own]
if ((ranks?.rank ?? 0) === 0) console.log(JSON.stringify(all))
await ranks?.close()
