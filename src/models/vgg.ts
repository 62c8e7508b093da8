/**
 * VGG-16 (Simonyan and Zisserman 2015): 3×3 convolutions with biases in five stages, each closed by a max pool, then two layers of 4096
 * units. Names are torchvision's: indices into `features` and `classifier`. Features are flattened row by row, channels last.
 */

import { type Layer, layer } from '../nn/layer.js'
import { batchNorm, conv2d, dense, dropout, maxPool2d, relu } from '../nn/layers.js'
import { reshape } from '../ops/index.js'
import { CAFFE_PREPROCESSING, vggNames } from './baselineNames.js'
import { BASELINE_OPTIONS, type BaselineOptions, named, resolveBaseline, torchvisionPreprocessing } from './common.js'
import { type Network, registerModel } from './registry.js'

/** Options of VGG-16. */
export interface VggOptions extends BaselineOptions {
  /** Height and width of the input in pixels, at least 32; its weights fit no other. Default 224. */
  inputSize?: number
  /** Convolutions per stage. Default [2, 2, 3, 3, 3]. */
  blocks?: readonly number[]
  /** Batch norm after every convolution. Default false. */
  batchNorm?: boolean
  /** Of that batch norm: share of the running statistics that is kept. Default 0.9. */
  momentum?: number
}

const OWN = ['batchNorm', 'momentum']
const CHANNELS = [64, 128, 256, 512, 512]
const UNITS = 4096

/** Builds VGG-16. @throws ERR_ARGUMENT for unknown options and values out of range. */
export function buildVgg16(options: VggOptions = {}): Network {
  const resolved = resolveBaseline('vgg16', options, OWN, { inputSize: 224, smallest: 32, blocks: [2, 2, 3, 3, 3] })
  const { classes, inputChannels, inputSize, blocks, initializer, channels } = resolved
  const features: Layer[] = []
  let [from, side] = [inputChannels, inputSize]
  for (const [stage, count] of blocks.entries()) {
    const to = channels(CHANNELS[stage]!)
    for (let i = 0; i < count; i++) {
      features.push(conv2d(from, to, { bias: true, initializer }))
      if (options.batchNorm) features.push(batchNorm(to, { epsilon: 1e-5, momentum: options.momentum ?? 0.9 }))
      features.push(relu())
      from = to
    }
    features.push(maxPool2d({ window: 2 }))
    side = Math.floor(side / 2)
  }
  const units = channels(UNITS)
  const flat = side * side * from
  // Index by index as in torchvision: linear, ReLU, dropout, twice, then the logistic regression.
  const drop = (stream: number) => dropout(resolved.dropout, { stream })
  const hidden = [dense(flat, units, { initializer }), relu(), drop(0), dense(units, units, { initializer }), relu(), drop(1)]
  const classifier = classes > 0 ? [...hidden, dense(units, classes, { initializer })] : hidden
  const indexed = (layers: readonly Layer[]) => Object.fromEntries(layers.map((made, i) => [String(i), made]))
  const root = named('vgg16', {
    features: named('features', indexed(features)),
    flatten: layer('flatten', {}, (x) => reshape(x, [x.shape[0]!, flat])),
    classifier: named('classifier', indexed(classifier)),
  })
  return {
    ...{ root, inputSize, inputChannels, classes, variableInputSize: false },
    forward: (x) => root(x),
    preprocessing: torchvisionPreprocessing(inputSize, inputChannels),
  }
}

registerModel({
  name: 'vgg16',
  head: 'classifier.6',
  description: 'VGG-16 (Simonyan and Zisserman 2015), 138,357,544 parameters at 1000 classes',
  options: [...BASELINE_OPTIONS, ...OWN],
  layerNames: (options) => vggNames(options),
  detect: (has) => (has('features.1.running_mean') ? { batchNorm: true } : {}),
  sources: { torchvision: {}, keras: { preprocessing: CAFFE_PREPROCESSING } },
  build: (options) => buildVgg16(options as VggOptions),
})
