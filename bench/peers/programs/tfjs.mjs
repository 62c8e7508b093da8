// TensorFlow.js with its WebAssembly backend (SIMD; its threads do not start in Node). Batch norm is folded into the filters beforehand and
// ReLU handed to the fused ops: TensorFlow.js does neither by itself.

import { createRequire } from 'node:module'
import path from 'node:path'
import { setThreadsCount, setWasmPaths } from '@tensorflow/tfjs-backend-wasm'
import * as tf from '@tensorflow/tfjs-core'
import { foldBatchNorm, readImages, readNetwork } from '../plan.mjs'
import { installedVersion, serve, Unsupported } from '../serve.mjs'

setWasmPaths(`${path.dirname(createRequire(import.meta.url).resolve('@tensorflow/tfjs-backend-wasm'))}/`)

async function prepare({ network, task, batch, threads }) {
  if (task === 'train') throw new Unsupported("the wasm backend has no kernel 'Conv2DBackpropFilter'")
  if (threads > 1) throw new Unsupported('one thread only in Node: with more the wasm backend does not start')
  setThreadsCount(1)
  await tf.setBackend('wasm')
  const { plan, weights } = foldBatchNorm(readNetwork(network))
  const images = tf.tensor4d(readImages(network, batch, plan.input), [batch, ...plan.input])
  const forward = compile(plan, weights)
  const run = () => {
    const output = tf.tidy(() => forward(images))
    const data = output.dataSync()
    output.dispose()
    return data
  }
  return { outputs: { output: run() }, run }
}

/** A function of the images; ReLU after a convolution that nobody else reads is part of it. */
function compile({ nodes }, weights) {
  const readers = nodes.map((_, i) => nodes.filter(({ inputs }) => inputs.includes(i + 1)))
  const fused = (i) => (readers[i].length === 1 && readers[i][0].op === 'relu' ? 'relu' : undefined)
  const constant = (name, shape) => name && tf.tensor(weights.get(name).data, shape ?? weights.get(name).shape)
  const square = ([top, bottom, left, right]) => {
    if (top === bottom && top === left && top === right) return top
    return [
      [0, 0],
      [top, bottom],
      [left, right],
      [0, 0],
    ]
  }
  const steps = nodes.map((node, i) => {
    const { op, strides, shape } = node
    const activation = fused(i)
    const bias = constant(node.bias)
    if (op === 'conv') {
      const filter = constant(node.filter)
      return (x) => tf.fused.conv2d({ x, filter, strides, pad: square(node.padding), bias, activation })
    }
    if (op === 'depthwise') {
      const filter = constant(node.filter)
      return (x) => tf.fused.depthwiseConv2d({ x, filter, strides, pad: square(node.padding), activation })
    }
    if (op === 'pointwise') {
      if (shape.length === 1) {
        const b = constant(node.filter)
        return (a) => tf.fused.matMul({ a, b, bias, activation })
      }
      const filter = constant(node.filter, [1, 1, ...weights.get(node.filter).shape])
      return (x) => tf.fused.conv2d({ x, filter, strides: 1, pad: 0, bias, activation })
    }
    // TensorFlow's 'same' is what sepconv's padding follows.
    if (op === 'maxPool') return (x) => tf.maxPool(x, node.window, strides, 'same')
    if (op === 'add') return (a, b) => tf.add(a, b)
    if (op === 'mean') return (x) => tf.mean(x, [1, 2])
    const [source] = node.inputs
    return source > 0 && fused(source - 1) && nodes[source - 1].filter ? (x) => x : (x) => tf.relu(x)
  })
  const last = nodes.map((_, i) => Math.max(...nodes.flatMap(({ inputs }, k) => (inputs.includes(i + 1) ? [k] : []))))
  return (images) => {
    const values = [images]
    for (const [i, step] of steps.entries()) {
      const value = step(...nodes[i].inputs.map((input) => values[input]))
      values.push(value)
      // What has been read for the last time is freed, unless it goes on under another place.
      for (const input of new Set(nodes[i].inputs))
        if (input > 0 && last[input - 1] === i && values[input] !== value) values[input].dispose()
    }
    return values.at(-1)
  }
}

await serve({ 'tfjs-backend-wasm': installedVersion('@tensorflow/tfjs-backend-wasm'), node: process.versions.node }, prepare)
