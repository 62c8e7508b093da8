/**
 * A stack of separable convolutions in the style of VGG, without shortcuts: Chollet 2017, section 4.7, reports that such stacks of the
 * same parameter count beat Inception V3 on JFT too, and gives no layout. Ours: a stem of two 3×3 convolutions as in Xception, then five
 * stages of (separable, batch norm, ReLU), each closed by a 2×2 max pool but the last, then mean and logistic regression.
 */

import { convBatchNormRelu } from '../nn/blocks.js'
import type { Layer } from '../nn/layer.js'
import { batchNorm, maxPool2d, relu, type SeparableOptions, separable } from '../nn/layers.js'
import { BASELINE_OPTIONS, type BaselineOptions, named, pooledClassifier, resolveBaseline } from './common.js'
import { type Network, registerModel } from './registry.js'

/** Options of the separable stack. */
export interface SeparableStackOptions extends BaselineOptions {
  /** Height and width of the input in pixels, at least 64. Default 299. */
  inputSize?: number
  /** Separable convolutions per stage. Default [2, 2, 22, 3, 2], which gives 22,887,096 parameters, Xception's within 0.2 %. */
  blocks?: readonly number[]
  /** The spectrum of Chollet 2017, section 1.2; see the layer `separable`. */
  segments?: SeparableOptions['segments']
  order?: SeparableOptions['order']
  intermediateActivation?: SeparableOptions['intermediateActivation']
  intermediateBatchNorm?: boolean
  /** Of every batch norm. Defaults 1e-3, 0.99. */
  epsilon?: number
  momentum?: number
}

const OWN = ['fullyConnected', 'segments', 'order', 'intermediateActivation', 'intermediateBatchNorm', 'epsilon', 'momentum']
const CHANNELS = [128, 256, 728, 1024, 2048]

/** Builds the separable stack. @throws ERR_ARGUMENT for unknown options and values out of range. */
export function buildSeparableStack(options: SeparableStackOptions = {}): Network {
  const resolved = resolveBaseline('separable_stack', options, OWN, { inputSize: 299, smallest: 64, blocks: [2, 2, 22, 3, 2] })
  const { inputChannels, inputSize, blocks, initializer, channels } = resolved
  const { segments, order, intermediateActivation, intermediateBatchNorm, epsilon = 1e-3, momentum = 0.99 } = options
  const normalise = { epsilon, momentum }
  const sep: SeparableOptions = { initializer, segments, order, intermediateActivation, intermediateBatchNorm, batchNorm: normalise }
  const stem = { padding: 'valid', initializer, ...normalise } as const
  const children: Record<string, Layer> = {
    conv1: convBatchNormRelu(inputChannels, channels(32), { strides: 2, ...stem }),
    conv2: convBatchNormRelu(channels(32), channels(64), stem),
  }
  let from = channels(64)
  for (const [stage, count] of blocks.entries()) {
    const to = channels(CHANNELS[stage]!)
    const parts: Record<string, Layer> = {}
    for (let i = 1; i <= count; i++) {
      parts[`sepconv${i}`] = separable(from, to, sep)
      parts[`sepconv${i}_bn`] = batchNorm(to, normalise)
      parts[`sepconv${i}_act`] = relu()
      from = to
    }
    if (stage < blocks.length - 1) parts.pool = maxPool2d({ window: 2 })
    children[`block${stage + 1}`] = named('stage', parts)
  }
  const root = named('separable_stack', { ...children, ...pooledClassifier(from, resolved, 'predictions') })
  return { root, forward: (x) => root(x), inputSize, inputChannels, classes: resolved.classes, variableInputSize: true }
}

registerModel({
  name: 'separable_stack',
  description: 'Separable convolutions in the style of VGG, without shortcuts (Chollet 2017, section 4.7)',
  options: [...BASELINE_OPTIONS, ...OWN],
  build: (options) => buildSeparableStack(options as SeparableStackOptions),
})
