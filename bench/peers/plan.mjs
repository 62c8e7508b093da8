// The peers' side of network.mjs: plan, weights and images read from the folder.

import { readFileSync } from 'node:fs'
import path from 'node:path'

/** @returns the plan and `weights`: name → { shape, data }, views of one buffer. */
export function readNetwork(folder) {
  const plan = JSON.parse(readFileSync(path.join(folder, 'plan.json'), 'utf8'))
  const { buffer, byteOffset, byteLength } = readFileSync(path.join(folder, 'weights.safetensors'))
  const bytes = new DataView(buffer, byteOffset, byteLength)
  const headerBytes = Number(bytes.getBigUint64(0, true))
  const { __metadata__, ...tensors } = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, byteOffset + 8, headerBytes)))
  const weights = new Map(
    Object.entries(tensors).map(
      ([
        name,
        {
          shape,
          data_offsets: [from, to],
        },
      ]) => [name, { shape, data: floats(buffer, byteOffset + 8 + headerBytes + from, to - from) }],
    ),
  )
  return { plan, weights }
}

/** The first `batch` images, NHWC. */
export function readImages(folder, batch, shape) {
  const { buffer, byteOffset } = readFileSync(path.join(folder, 'images.f32'))
  return floats(buffer, byteOffset, 4 * batch * shape.reduce((a, b) => a * b))
}

const floats = (buffer, offset, bytes) =>
  offset % 4 === 0 ? new Float32Array(buffer, offset, bytes / 4) : new Float32Array(buffer.slice(offset, offset + bytes))

/** [n, h, w, c] → [n, c, h, w]. */
export function toChannelsFirst(data, [h, w, c]) {
  const out = new Float32Array(data.length)
  const image = h * w * c
  for (let n = 0; n < data.length; n += image)
    for (let at = 0; at < h * w; at++) for (let k = 0; k < c; k++) out[n + k * h * w + at] = data[n + at * c + k]
  return out
}

/** [n, c, h, w] → [n, h, w, c]; vectors stay as they are. */
export function toChannelsLast(data, shape) {
  if (shape.length !== 3) return data
  const [h, w, c] = shape
  // The same transposition with the two axes in each other's place.
  return toChannelsFirst(data, [c, 1, h * w])
}

/**
 * Folds every batch norm whose input is a convolution into that convolution's filter and a bias, for peers that do not do so themselves.
 * @returns a network without batch norm, whose convolutions may have `bias` as an array.
 */
export function foldBatchNorm({ plan, weights }) {
  const nodes = []
  const places = [0]
  const folded = new Map(weights)
  for (const node of plan.nodes) {
    const inputs = node.inputs.map((input) => places[input])
    if (node.op !== 'batchNorm') {
      places.push(nodes.push({ ...node, inputs }))
      continue
    }
    const previous = nodes[inputs[0] - 1]
    if (!['conv', 'pointwise'].includes(previous.op) || previous.bias) throw new Error('a batch norm does not follow a convolution')
    const [gamma, beta, mean, variance] = ['gamma', 'beta', 'mean', 'variance'].map((name) => weights.get(node[name]).data)
    const scale = gamma.map((x, i) => x / Math.sqrt(variance[i] + node.epsilon))
    const { shape, data } = folded.get(previous.filter)
    folded.set(previous.filter, { shape, data: data.map((x, i) => x * scale[i % scale.length]) })
    previous.bias = `${previous.filter}.bias`
    folded.set(previous.bias, { shape: [scale.length], data: beta.map((x, i) => x - mean[i] * scale[i]) })
    places.push(inputs[0])
  }
  return { plan: { ...plan, nodes }, weights: folded }
}
