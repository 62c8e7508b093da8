/**
 * ResNet-50, -101 and -152 (He et al. 2016): a 7×7 stem, four stages of bottlenecks (1×1, 3×3, 1×1 to four times the width) with
 * identity shortcuts, projected where a stage begins. Names are torchvision's.
 */

import { checkChoice } from '../errors.js'
import * as ops from '../ops/index.js'
import { type Layer, layer } from '../nn/layer.js'
import { type BatchNormOptions, batchNorm, type Conv2dOptions, conv2d, maxPool2d, relu, sequential } from '../nn/layers.js'
import { CAFFE_PREPROCESSING, resnetNames } from './baselineNames.js'
import {
  BASELINE_OPTIONS,
  type BaselineOptions,
  inTurn,
  named,
  pooledClassifier,
  resolveBaseline,
  torchvisionPreprocessing,
} from './common.js'
import { type Network, registerModel } from './registry.js'

/** Options of ResNets. */
export interface ResNetOptions extends BaselineOptions {
  /** Height and width of the input in pixels, at least 32. Default 224. */
  inputSize?: number
  /** Bottlenecks per stage. Default [3, 4, 6, 3], [3, 4, 23, 3] or [3, 8, 36, 3]. */
  blocks?: readonly number[]
  /**
   * `'torchvision'` (default): a stage's stride on its first 3×3 (known as v1.5), no convolution biases, ε 1e-5. `'keras'`: the stride on
   * the first 1×1 as in the paper, biases, ε 1.001e-5.
   */
  variant?: 'torchvision' | 'keras'
  /** Share of the running statistics that is kept. Default 0.9 (PyTorch's 0.1), 0.99 for Keras. */
  momentum?: number
}

const OWN = ['fullyConnected', 'variant', 'momentum']
const EXPANSION = 4

/**
 * Builds a ResNet of bottlenecks.
 * @param published bottlenecks per stage where `blocks` says nothing.
 * @throws ERR_ARGUMENT for unknown options and values out of range.
 */
export function buildResNet(name: string, published: readonly number[], options: ResNetOptions = {}): Network {
  const resolved = resolveBaseline(name, options, OWN, { inputSize: 224, smallest: 32, blocks: published })
  const { inputChannels, inputSize, blocks, initializer, channels } = resolved
  const { variant = 'torchvision' } = options
  checkChoice(name, 'variant', variant, ['torchvision', 'keras'])
  const keras = variant === 'keras'
  const normalise = { epsilon: keras ? 1.001e-5 : 1e-5, momentum: options.momentum ?? (keras ? 0.99 : 0.9) }
  const convolution = { bias: keras, initializer }
  const around = (pixels: number) => ({ top: pixels, bottom: pixels, left: pixels, right: pixels })

  let from = channels(64)
  const stem = {
    conv1: conv2d(inputChannels, from, { kernel: 7, strides: 2, padding: around(3), ...convolution }),
    bn1: batchNorm(from, normalise),
    relu: relu(),
    maxpool: maxPool2d({ window: 3, strides: 2, padding: around(1) }),
  }
  const stages: Record<string, Layer> = {}
  for (const [stage, count] of blocks.entries()) {
    const width = channels(64 * 2 ** stage)
    const modules = Array.from({ length: count }, (_, i) => {
      const stride = stage > 0 && i === 0 ? 2 : 1
      const made = bottleneck(from, width, stride, keras, convolution, normalise)
      from = EXPANSION * width
      return made
    })
    stages[`layer${stage + 1}`] = sequential(...modules)
  }
  const root = named(name, { ...stem, ...stages, ...pooledClassifier(from, resolved, 'fc') })
  return {
    ...{ root, inputSize, inputChannels, classes: resolved.classes, variableInputSize: true },
    forward: (x) => root(x),
    preprocessing: torchvisionPreprocessing(inputSize, inputChannels),
  }
}

function bottleneck(
  from: number,
  width: number,
  stride: number,
  strideFirst: boolean,
  convolution: Conv2dOptions,
  normalise: BatchNormOptions,
): Layer {
  const out = EXPANSION * width
  const around = { top: 1, bottom: 1, left: 1, right: 1 }
  const [first, second] = strideFirst ? [stride, 1] : [1, stride]
  const branch = {
    conv1: conv2d(from, width, { kernel: 1, strides: first, padding: 'valid', ...convolution }),
    bn1: batchNorm(width, normalise),
    relu1: relu(),
    conv2: conv2d(width, width, { kernel: 3, strides: second, padding: around, ...convolution }),
    bn2: batchNorm(width, normalise),
    relu2: relu(),
    conv3: conv2d(width, out, { kernel: 1, ...convolution }),
    bn3: batchNorm(out, normalise),
  }
  const projects = stride > 1 || from !== out
  const downsample = projects
    ? sequential(conv2d(from, out, { kernel: 1, strides: stride, padding: 'valid', ...convolution }), batchNorm(out, normalise))
    : undefined
  return layer('bottleneck', { children: { ...branch, downsample } }, (x) =>
    ops.relu(ops.add(inTurn(Object.values(branch), x), downsample ? downsample(x) : x)),
  )
}

for (const [name, blocks, parameters] of [
  ['resnet50', [3, 4, 6, 3], '25,557,032'],
  ['resnet101', [3, 4, 23, 3], '44,549,160'],
  ['resnet152', [3, 8, 36, 3], '60,192,808'],
] as const)
  registerModel({
    name,
    description: `ResNet-${name.slice(6)} (He et al. 2016), ${parameters} parameters at 1000 classes`,
    options: [...BASELINE_OPTIONS, ...OWN],
    head: 'fc',
    layerNames: (options) => resnetNames(blocks, options),
    sources: {
      torchvision: { options: { variant: 'torchvision' } },
      keras: { options: { variant: 'keras' }, preprocessing: CAFFE_PREPROCESSING },
    },
    build: (options) => buildResNet(name, blocks, options as ResNetOptions),
  })
