/** Timings that several ranks take together: training steps with and without exchange, and the exchange alone. */

import type { Communicator } from '../distributed/communicator.js'
import type { Value } from '../graph/graph.js'
import { createModel } from '../models/index.js'
import { allReduce } from '../ops/allReduce.js'
import { softmaxCrossEntropy } from '../ops/index.js'
import { compile } from '../runtime/function.js'
import { tensor } from '../runtime/tensor.js'
import { sgd } from '../train/optimizer.js'

/** Training steps on drawn pictures, on the cpu device. */
export interface StepsJob {
  readonly kind: 'steps'
  readonly variant: { readonly architecture: string; readonly options: Readonly<Record<string, unknown>> }
  /** Pictures of all ranks. */
  readonly batch: number
  /** `overlapped`: as training does it. `none`: the computation alone. */
  readonly reduce: 'overlapped' | 'none'
  readonly seconds: number
}

/** Medians and means of one rank. */
export interface StepTimes {
  readonly steps: number
  readonly medianMs: number
  readonly meanMs: number
  readonly reductionsPerStep: number
  readonly bytesPerStep: number
  /** While a sum was under way, and of these while the step stood still for it. */
  readonly busyMs: number
  readonly waitMs: number
}

/** Sums of `bytes` over all ranks, nothing beside, on the cpu device. */
export interface ExchangeJob {
  readonly kind: 'exchange'
  readonly bytes: readonly number[]
  readonly seconds: number
}

const WARMUP = 3
const medianOf = (values: readonly number[]) => [...values].sort((a, b) => a - b)[values.length >> 1]!

/** Milliseconds of as many calls on every rank as fit into `seconds` on the fastest. */
async function timed(once: () => Promise<void>, seconds: number, ranks: Communicator | undefined, begin?: () => void): Promise<number[]> {
  for (let i = 0; i < WARMUP; i++) await once()
  const since = performance.now()
  await once()
  const own = Math.max(3, Math.ceil((seconds * 1e3) / (performance.now() - since)))
  const count = ranks ? Math.min(...(await ranks.numbers([own])).map(([n]) => n!)) : own
  await ranks?.barrier()
  begin?.()
  const times: number[] = []
  for (let i = 0; i < count; i++) {
    const start = performance.now()
    await once()
    times.push(performance.now() - start)
  }
  return times
}

/** @returns the times of every rank. */
export async function measureSteps({ variant, batch, reduce, seconds }: StepsJob, ranks: Communicator | undefined): Promise<StepTimes[]> {
  const size = ranks?.size ?? 1
  const rows = batch / size
  using model = await createModel(variant.architecture, { ...variant.options, device: 'cpu' })
  const { size: side } = model.config.preprocessing
  const { classes } = model.network
  const step = compile(({ images, labels }: { images: Value; labels: Value }) => softmaxCrossEntropy(model(images), labels), {
    device: model.device,
    train: sgd({ rate: 0.01, momentum: 0.9 }),
    ...(size > 1 && reduce !== 'none' && { ranks: { size } }),
  })
  const pictures = Float32Array.from({ length: rows * side * side * 3 }, (_, i) => Math.sin(i))
  using images = tensor(pictures, [rows, side, side, 3], { device: model.device })
  const known = Int32Array.from({ length: rows }, (_, i) => i % classes)
  using labels = tensor(known, [rows], { device: model.device })
  const once = async () => {
    const { loss, finite } = await step.run({ images, labels })
    await loss.data()
    loss.dispose()
    finite.dispose()
  }
  const times = await timed(once, seconds, ranks, () => ranks?.statistics())
  const { reductions = 0, bytes = 0, busySeconds = 0, waitSeconds = 0 } = ranks?.statistics() ?? {}
  step.dispose()
  const steps = times.length
  const own: StepTimes = {
    ...{ steps, medianMs: medianOf(times), meanMs: times.reduce((a, b) => a + b) / steps },
    ...{ reductionsPerStep: reductions / steps, bytesPerStep: bytes / steps },
    ...{ busyMs: (busySeconds * 1e3) / steps, waitMs: (waitSeconds * 1e3) / steps },
  }
  return ranks ? ((await ranks.share(own)) as StepTimes[]) : [own]
}

/** @returns medians of rank 0 by size. */
export async function measureExchange(
  { bytes, seconds }: ExchangeJob,
  ranks: Communicator | undefined,
): Promise<{ bytes: number; seconds: number }[]> {
  const found: { bytes: number; seconds: number }[] = []
  for (const size of bytes) {
    const sum = compile((x: Value) => allReduce([x], ranks?.size ?? 1, 2 ** 40)[0]!, { device: 'cpu' })
    using x = tensor(new Float32Array(size / 4), [size / 4], { device: 'cpu' })
    const times = await timed(async () => (await sum.run(x)).dispose(), seconds, ranks)
    sum.dispose()
    found.push({ bytes: size, seconds: medianOf(times) / 1e3 })
  }
  return found
}
