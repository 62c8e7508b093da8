// jax-js with its WebAssembly backend (SIMD; no threads in Node, which has no global Worker): one jitted function, NCHW, batch norm folded
// into the filters beforehand.

import { defaultDevice, init, jit, lax, nn, numpy as np } from '@jax-js/jax'
import { foldBatchNorm, readImages, readNetwork, toChannelsFirst, toChannelsLast } from '../plan.mjs'
import { installedVersion, serve, Unsupported } from '../serve.mjs'
import { depthwiseFirst, filterFirst, pointwiseFirst } from './layouts.mjs'

/** Stands for padding in a maximum; jax-js pads with zeros. */
const LEAST = -3e38

async function prepare({ network, task, batch, threads }) {
  if (threads > 1) throw new Unsupported('one thread only in Node: the wasm backend wants web workers')
  if (task === 'train') throw new Unsupported('its training step is not part of this comparison')
  await init('wasm')
  defaultDevice('wasm')
  const { plan, weights } = foldBatchNorm(readNetwork(network))
  const array = ({ shape, data }) => np.array(data).reshape(shape)
  const parameters = {}
  const layouts = { conv: filterFirst, depthwise: depthwiseFirst, pointwise: pointwiseFirst }
  for (const { op, filter, bias, shape } of plan.nodes) {
    if (filter) parameters[filter] = array(shape.length === 1 ? weights.get(filter) : layouts[op](weights.get(filter)))
    if (bias) parameters[bias] = array(shape.length === 1 ? weights.get(bias) : { shape: [shape[2], 1, 1], data: weights.get(bias).data })
  }
  const [h, w, c] = plan.input
  const images = array({ shape: [batch, c, h, w], data: toChannelsFirst(readImages(network, batch, plan.input), plan.input) })
  const forward = jit((p, x) => apply(plan, p, x))
  const run = () => forward(references(parameters), images.ref).data()
  return { outputs: { output: toChannelsLast(await run(), plan.nodes.at(-1).shape) }, run }
}

/** Every function of jax-js takes its arguments' ownership; these stay with the caller. */
const references = (parameters) => Object.fromEntries(Object.entries(parameters).map(([name, array]) => [name, array.ref]))

function apply({ nodes }, parameters, images) {
  const values = [images]
  const left = [0, ...nodes].map((_, place) => nodes.flatMap(({ inputs }) => inputs).filter((input) => input === place).length)
  const take = (place) => (--left[place] > 0 ? values[place].ref : values[place])
  for (const node of nodes) values.push(step(node, parameters, node.inputs.map(take)))
  return values.at(-1)
}

function step(node, parameters, [x, y]) {
  const { op, filter, bias, strides, padding } = node
  const biased = (value) => (bias ? value.add(parameters[bias]) : value)
  const pads = padding && [padding.slice(0, 2), padding.slice(2)]
  switch (op) {
    case 'conv':
      return biased(lax.convGeneralDilated(x, parameters[filter], strides, pads))
    case 'depthwise':
      return lax.convGeneralDilated(x, parameters[filter], strides, pads, { featureGroupCount: x.shape[1] })
    case 'pointwise':
      return biased(
        node.shape.length === 1 ? np.dot(x, parameters[filter]) : lax.convGeneralDilated(x, parameters[filter], [1, 1], 'VALID'),
      )
    case 'relu':
      return nn.relu(x)
    case 'add':
      return x.add(y)
    case 'mean':
      return np.mean(x, [2, 3])
    case 'maxPool':
      return maxPool(x, node, pads)
    default:
      throw new Error(`jax-js has not been taught ${op}`)
  }
}

/** The maximum over windows, as the maximum of the window's shifted images. */
function maxPool(x, { window, strides }, pads) {
  const [, , h, w] = x.shape
  const [[top, bottom], [left, right]] = pads
  const border = new Float32Array((h + top + bottom) * (w + left + right)).fill(LEAST)
  for (let row = 0; row < h; row++) border.fill(0, (row + top) * (w + left + right) + left, (row + top) * (w + left + right) + left + w)
  const padded = np.pad(x, [[0, 0], [0, 0], ...pads]).add(np.array(border).reshape([1, 1, h + top + bottom, w + left + right]))
  return lax.reduceWindow(padded, (values) => np.max(values), window, strides)
}

await serve({ 'jax-js': installedVersion('@jax-js/jax'), node: process.versions.node }, prepare)
