// sepconv itself, in a process like every other peer's, through its public functions.

import path from 'node:path'
import { compile, createModel, sgd, softmaxCrossEntropy, tensor } from '../../../dist/index.js'
import { separable } from '../../../dist/nn/index.js'
import { packageVersion } from '../../../dist/runtime/native.js'
import { openDevice } from '../../../dist/runtime/device.js'
import { readState, writeState } from '../../../dist/runtime/state.js'
import { variablesOf } from '../../../dist/nn/layer.js'
import { readImages, readNetwork } from '../plan.mjs'
import { serve, Unsupported } from '../serve.mjs'

/** `float32` or `bfloat16`: the same program serves two peers. */
const precision = process.env.PEER_PRECISION

const model = (network) => createModel('xception', { weights: path.join(network, 'weights.safetensors'), device: 'cpu' })
const images = (network, batch, shape) => tensor(readImages(network, batch, shape), [batch, ...shape], { device: 'cpu' })

/** `forward` is a compiled function of the images. */
function timed(forward, input) {
  const run = () => {
    const output = forward.runSync(input)
    const data = output.dataSync()
    output.dispose()
    return data
  }
  return { outputs: { output: run() }, run }
}

async function inference({ network, batch }) {
  const xception = await model(network)
  const { inputSize, inputChannels } = xception.network
  return timed(
    compile((x) => xception(x), { device: 'cpu', precision }),
    images(network, batch, [inputSize, inputSize, inputChannels]),
  )
}

async function layer({ network, batch }) {
  if (precision !== 'float32') throw new Unsupported('whole networks only')
  const { plan, weights } = readNetwork(network)
  const [{ shape }, last] = plan.nodes
  const separableLayer = separable(shape.at(-1), last.shape.at(-1))
  const [depthwise, pointwise] = variablesOf(separableLayer)
  for (const [variable, name] of [
    [depthwise, 'depthwise'],
    [pointwise, 'pointwise'],
  ])
    writeState(variable, weights.get(name).data, openDevice('cpu'))
  const forward = compile((x) => separableLayer(x), { device: 'cpu' })
  const input = images(network, batch, plan.input)
  const first = timed(forward, input)
  // The result stays where the next layer would read it.
  return { ...first, run: () => forward.runSync(input).dispose() }
}

/**
 * Of the arena in training, per pixel of input. Without a limit Xception takes 184 MiB per picture of 299 x 299, under this one 170: two
 * normalised maps are computed again in the backward pass rather than kept.
 */
const BYTES_PER_PIXEL = (170 * 2 ** 20) / 299 ** 2

async function train({ network, batch, training: settings }) {
  if (precision !== 'float32') throw new Unsupported('compared in inference only')
  const xception = await model(network)
  const { inputSize, inputChannels, classes } = xception.network
  const input = images(network, batch, [inputSize, inputSize, inputChannels])
  const labels = tensor(
    Int32Array.from({ length: batch }, (_, i) => (37 * i) % classes),
    [batch],
    { device: 'cpu' },
  )
  const step = compile((sample) => softmaxCrossEntropy(xception(sample.images), sample.labels), {
    device: 'cpu',
    train: sgd({ rate: settings.rate, momentum: settings.momentum }),
    memoryLimit: Math.floor(batch * inputSize ** 2 * BYTES_PER_PIXEL),
  })
  const run = async () => {
    const { loss, finite } = await step.run({ images: input, labels })
    const [value] = await loss.data()
    loss.dispose()
    finite.dispose()
    return value
  }
  const read = async (name) => Float32Array.from(await readState(xception.variables.get(name)))
  const before = await Promise.all(settings.tracked.map(read))
  const losses = [await run()]
  const after = await Promise.all(settings.tracked.map(read))
  while (losses.length < settings.steps) losses.push(await run())
  const changes = settings.tracked.map((name, i) => [`change of ${name}`, after[i].map((x, k) => x - before[i][k])])
  return { outputs: { losses: Float32Array.from(losses), ...Object.fromEntries(changes) }, run }
}

await serve({ sepconv: packageVersion, node: process.versions.node }, (request) => ({ inference, layer, train })[request.task](request))
