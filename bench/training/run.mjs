// What training costs besides its kernels, each beside the bound that it is held to: JavaScript per step, optimizer and averages in
// the step, waiting for pictures at the demo's scale, MAP@100 at the size of FastEval14k.
//   node bench/training/run.mjs [--out FILE]
// Linux only: the JavaScript thread's own processor time comes from /proc.

import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import { origin } from '../../dist/bench/machine.js'
import { ImageLoader } from '../../dist/data/loader.js'
import { writeShapes } from '../../dist/data/shapes.js'
import { writeAtomic } from '../../dist/files.js'
import {
  adamW,
  compile,
  createModel,
  dataset,
  devices,
  fit,
  imageFolder,
  lamb,
  MeanAveragePrecisionMeter,
  rmsprop,
  sgd,
  softmaxCrossEntropy,
  tensor,
  weightAverage,
} from '../../dist/index.js'

const { values } = parseArgs({ options: { out: { type: 'string' } } })
const say = (text) => console.error(text)
const median = (numbers) => [...numbers].sort((a, b) => a - b)[numbers.length >> 1]
const round = (x) => Number(x.toPrecision(3))

/** Microseconds of processor time that this thread has used. */
const threadMicroseconds = () => Number(readFileSync(`/proc/self/task/${process.pid}/schedstat`, 'utf8').split(' ')[0]) / 1e3

/**
 * The JavaScript of a step of `fit`: processor time of the main thread per step, with pictures that are in the cache, and less that of
 * the loader alone over the same batches. The model is small, so that the device's thread leaves the core to this one.
 */
async function javascriptPerStep(batch) {
  const size = 32
  const [stepsPerEpoch, epochs, settled] = [100, 25, 500]
  const picture = { width: size, height: size, data: new Uint8Array(size * size * 3).fill(7) }
  const data = dataset({ classes: ['a', 'b'], train: batch * stepsPerEpoch, label: (i) => i % 2, load: () => picture })
  const perItem = async (items) => {
    let [count, since] = [0, 0]
    for await (const _ of items) if (++count === settled) since = threadMicroseconds()
    return (threadMicroseconds() - since) / (count - settled)
  }
  const rounds = { fit: [], loader: [] }
  for (let round = 0; round < 3; round++) {
    const model = await createModel('vgg16', { inputSize: size, width: 0.02, classes: 2, device: 'cpu' })
    const steps = async function* () {
      for await (const event of fit({ model, data, epochs, batch, size, augment: false })) if (event.type === 'step') yield event
    }
    rounds.fit.push(await perItem(steps()))
    model.dispose()
    rounds.loader.push(await perItem(new ImageLoader(data.train, { size, batch, epochs, shuffle: true, augment: false })))
  }
  const [whole, loader] = [median(rounds.fit), median(rounds.loader)]
  return { batch, size, microseconds: round(whole - loader), withLoader: round(whole), loaderAlone: round(loader), bound: 100 }
}

/** Share of the step's time in the calls that check, update and average. */
async function updateShare(name, options, batch, optimizer) {
  const model = await createModel('xception', { ...options, device: 'cpu' })
  const { size } = model.config.preprocessing
  const step = compile(({ x, y }) => ({ loss: softmaxCrossEntropy(model(x), y) }), {
    device: 'cpu',
    train: optimizer,
    average: weightAverage(),
  })
  const executable = step.executable({
    x: tensor(new Uint8Array(batch * size * size * 3).fill(99), [batch, size, size, 3], { device: 'cpu' }),
    y: tensor(new Int32Array(batch), [batch], { device: 'cpu' }),
  })
  const inputs = executable.inputs.map(({ type }) => {
    const count = type.shape.reduce((product, side) => product * side, 1)
    const arrays = { float32: Float32Array, int32: Int32Array, uint8: Uint8Array }
    return tensor(new arrays[type.dtype](count).fill(type.dtype === 'float32' ? 0.001 : 1), type.shape, {
      dtype: type.dtype,
      device: 'cpu',
    })
  })
  const shares = []
  for (let round = 0; round < 3; round++) {
    const times = executable.profile(inputs)
    const total = times.reduce((sum, time) => sum + time, 0)
    const update = executable.program.calls.reduce(
      (sum, { kernel }, i) => sum + (/Update$|^allFinite$|^globalNorm$/.test(kernel) ? times[i] : 0),
      0,
    )
    if (round > 0) shares.push({ share: update / total, ms: total / 1e6 })
  }
  step.dispose()
  model.dispose()
  const shown = options.width ? `${name}, width ${options.width}, ${options.middleRepeats} middle blocks` : name
  return {
    ...{ optimizer: optimizer.name, model: shown, size, batch },
    ...{ share: round(median(shares.map(({ share }) => share))), stepMs: round(median(shares.map(({ ms }) => ms))), bound: 0.05 },
  }
}

/** As `npm run demo` trains; three epochs of it. */
async function waitShare() {
  const folder = mkdtempSync(path.join(tmpdir(), 'sepconv-bench-'))
  try {
    await writeShapes(folder, { train: 2400, validation: 48, size: 71 })
    const data = await imageFolder(folder)
    const model = await createModel('xception', {
      inputSize: 71,
      width: 0.25,
      middleRepeats: 2,
      classes: data.classes.length,
      device: 'cpu',
    })
    const byEpoch = []
    let [waited, computed] = [0, 0]
    for await (const event of fit({ model, data, epochs: 3, batch: 32 })) {
      if (event.type === 'epoch') byEpoch.push(round(event.waitShare))
      if (event.type !== 'step') continue
      waited += event.waitMs
      computed += event.computeMs
    }
    return { share: round(waited / (waited + computed)), byEpoch, bound: 0.05 }
  } finally {
    rmSync(folder, { recursive: true })
  }
}

function meanAveragePrecision() {
  const [images, classes, rows] = [14_000, 17_000, 500]
  const scores = Float32Array.from({ length: rows * classes }, () => Math.random())
  const labels = Array.from({ length: rows }, (_, i) => [i, (7 * i) % classes, (31 * i + 5) % classes])
  const meter = new MeanAveragePrecisionMeter(classes, { classes: Array.from({ length: 6000 }, (_, i) => i * 2) })
  const since = performance.now()
  for (let done = 0; done < images; done += rows) meter.add(scores, labels)
  meter.result()
  return { images, classes, seconds: round((performance.now() - since) / 1e3), threads: 1, bound: 10 }
}

const demo = { inputSize: 71, width: 0.25, middleRepeats: 2, classes: 8 }
const report = { ...origin(devices().find(({ name }) => name === 'cpu')?.isa ?? null), javascript: [], update: [] }
for (const batch of [1, 8]) {
  say(`JavaScript per step, batch ${batch}`)
  report.javascript.push(await javascriptPerStep(batch))
}
for (const optimizer of [
  sgd({ weightDecay: 1e-5 }),
  rmsprop({ momentum: 0.9, weightDecay: 1e-5 }),
  adamW({ weightDecay: 0.02 }),
  lamb({ weightDecay: 0.02 }),
]) {
  say(`share of the update, ${optimizer.name}`)
  report.update.push(await updateShare('xception', demo, 32, optimizer))
}
say('share of the update, whole Xception')
report.update.push(await updateShare('xception', {}, 8, sgd({ weightDecay: 1e-5 })))
say('waiting for pictures')
report.wait = await waitShare()
say('MAP@100')
report.map = meanAveragePrecision()
console.log(JSON.stringify(report, null, 2))
const slug = report.machine.cpu
  .toLowerCase()
  .replace(/[^a-z0-9]+/g, '-')
  .replace(/^-|-$/g, '')
const folder = path.join(path.dirname(fileURLToPath(import.meta.url)), '../results')
const file = values.out ?? path.join(folder, `training-${slug}-${report.date.slice(0, 10)}.json`)
await writeAtomic(file, `${JSON.stringify(report, null, 2)}\n`)
say(`written to ${path.relative(process.cwd(), file)}`)
