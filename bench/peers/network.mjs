// What every peer builds its program from, in one folder: the network as a list of ops (plan.json), its weights, and its input.
// The plan is read off sepconv's own trace, so that no second description of Xception can drift away from the first.
//   nodes: { op, inputs, shape, … } with inputs as indices (0 is the images), shape as [h, w, c] or [c], padding as
//   [top, bottom, left, right]; filters in sepconv's layouts: conv [kh, kw, in, out], depthwise [kh, kw, c, 1], pointwise [in, out].

import { writeFile } from 'node:fs/promises'
import path from 'node:path'
import { trace } from '../../dist/graph/trace.js'
import { createModel } from '../../dist/index.js'
import { writeState } from '../../dist/runtime/state.js'
import { writeSafetensors } from '../../dist/weights/safetensors.js'

/** Of the running statistics in training: the share that is kept. */
const MOMENTUM = 0.99

/**
 * Writes Xception with random weights into `folder`.
 * @param options of the architecture: `inputSize`, `width`, `middleRepeats`, `classes`.
 * @param batch the most images that a case takes.
 */
export async function writeModel(folder, options, batch) {
  const model = await createModel('xception', { ...options, device: 'cpu' })
  try {
    const next = randoms(1)
    // Fresh running statistics (mean 0, variance 1) would hide mistakes in folding them.
    const scatter = { gamma: [0.8, 1.2], beta: [-0.1, 0.1], movingMean: [-0.1, 0.1], movingVariance: [0.5, 1.5] }
    for (const [name, variable] of model.variables) {
      const range = scatter[name.split('.').at(-1)]
      if (range)
        writeState(
          variable,
          Float32Array.from({ length: variable.type.shape[0] }, () => uniform(next, range)),
          model.executor,
        )
    }
    const { inputSize, inputChannels, classes } = model.network
    const shape = [inputSize, inputSize, inputChannels]
    const graph = trace((traced) => traced.output('logits', model(traced.input('images', { shape: [1, ...shape], dtype: 'float32' }))))
    await writeFile(path.join(folder, 'plan.json'), JSON.stringify({ ...planOf(graph), classes, momentum: MOMENTUM }))
    await model.saveWeights(path.join(folder, 'weights.safetensors'))
    await writeImages(folder, batch, shape)
  } finally {
    model.dispose()
  }
}

/** Writes one separable layer (3 × 3, stride 1, 'same') into `folder`. */
export async function writeLayer(folder, { cin, cout, size }, batch) {
  const next = randoms(2)
  const tensor = (shape, scale) => ({
    dtype: 'F32',
    shape,
    data: Float32Array.from({ length: shape.reduce((a, b) => a * b) }, () => uniform(next, [-scale, scale])),
  })
  const weights = { depthwise: tensor([3, 3, cin, 1], 0.5), pointwise: tensor([cin, cout], 1 / Math.sqrt(cin)) }
  const nodes = [
    { op: 'depthwise', inputs: [0], shape: [size, size, cin], filter: 'depthwise', strides: [1, 1], padding: [1, 1, 1, 1] },
    { op: 'pointwise', inputs: [1], shape: [size, size, cout], filter: 'pointwise' },
  ]
  await writeFile(path.join(folder, 'plan.json'), JSON.stringify({ input: [size, size, cin], nodes }))
  await writeSafetensors(path.join(folder, 'weights.safetensors'), weights)
  await writeImages(folder, batch, [size, size, cin])
}

/** Values in [-1, 1), NHWC. */
function writeImages(folder, batch, shape) {
  const next = randoms(3)
  const images = Float32Array.from({ length: batch * shape.reduce((a, b) => a * b) }, () => uniform(next, [-1, 1]))
  return writeFile(path.join(folder, 'images.f32'), images)
}

/** The ops of an inference trace; throws for what no peer has been taught. */
export function planOf(graph) {
  const nodes = []
  const places = new Map([[graph.inputs[0], 0]])
  for (const node of graph.nodes) {
    if (node.kind !== 'op' || node.name === 'batchNormCoefficients') continue
    const inputs = node.inputs.filter((input) => places.has(input)).map((input) => places.get(input))
    const [value] = node.outputs
    const { op, ...rest } = describe(node)
    if (op === 'bias') {
      Object.assign(nodes[inputs[0] - 1], rest)
      places.set(value, inputs[0])
    } else {
      places.set(value, nodes.push({ op, ...rest, inputs, shape: value.shape.slice(1) }))
    }
  }
  return { input: graph.inputs[0].shape.slice(1), nodes }
}

function describe({ name, scope, attributes, inputs }) {
  const { strides, padding } = attributes
  const variable = (i) => inputs[i]?.node.variable?.name
  const refuse = (what) => {
    throw new Error(`${scope}: the peers have not been taught ${what}`)
  }
  if (attributes.activation && attributes.activation !== 'none') refuse(`${name} with an activation`)
  if (attributes.dilations?.some((dilation) => dilation !== 1)) refuse('dilation')
  switch (name) {
    case 'conv2d':
      if (attributes.groups !== 1) refuse('grouped convolution')
      return { op: 'conv', filter: variable(1), strides, padding }
    case 'depthwiseConv2d':
      return { op: 'depthwise', filter: variable(1), strides, padding }
    case 'pointwiseConv2d':
      return { op: 'pointwise', filter: variable(1) }
    case 'scaleShift': {
      if (inputs[1] === null && inputs[0].node.name === 'pointwiseConv2d') return { op: 'bias', bias: variable(2) }
      const node = inputs[1]?.node
      if (node?.name !== 'batchNormCoefficients') refuse('a scale and shift')
      const [mean, variance, gamma, beta] = node.inputs.map((input) => input.node.variable.name)
      return { op: 'batchNorm', mean, variance, gamma, beta, epsilon: node.attributes.epsilon }
    }
    case 'unary':
      return attributes.function === 'relu' ? { op: 'relu' } : refuse(attributes.function)
    case 'binary':
      return attributes.function === 'add' ? { op: 'add' } : refuse(attributes.function)
    case 'maxPool2d':
      return { op: 'maxPool', window: attributes.windowSize, strides, padding }
    case 'reduce':
      return attributes.function === 'mean' && String(attributes.axes) === '1,2' ? { op: 'mean' } : refuse('this reduction')
    default:
      return refuse(name)
  }
}

/** Uniform numbers in [0, 1), the same everywhere (the minimal standard generator of Park and Miller 1988). */
function randoms(seed) {
  let state = seed
  return () => (state = (state * 48271) % 2147483647) / 2147483647
}
const uniform = (next, [least, most]) => least + (most - least) * next()
