/**
 * The Inception hypothesis in four modules (Chollet 2017, Figures 2 to 4), for experiments: each maps [n, h, w, in] → [n, h, w, …].
 * Every convolution is followed by batch norm and ReLU, as in Inception V3.
 */

import { checkOptions } from '../errors.js'
import * as ops from '../ops/index.js'
import { convBatchNormRelu } from './blocks.js'
import { checkCount, type Layer, layer } from './layer.js'
import { batchNorm, type BatchNormOptions, relu, separable, sequential } from './layers.js'

/** Options of {@link simplifiedInception} and {@link equivalentInception}. */
export interface InceptionModuleOptions {
  /** Towers side by side. Default 3. */
  towers?: number
  /** Channels between the 1×1 and the 3×3 of each tower. */
  reduce: number
  /** Channels out of each tower. */
  out: number
  /** Size of the spatial filters. Default 3. */
  kernel?: number
  batchNorm?: BatchNormOptions
}

function resolve(kind: string, channelsIn: number, options: InceptionModuleOptions) {
  checkOptions(kind, options, ['towers', 'reduce', 'out', 'kernel', 'batchNorm'])
  const { towers = 3, reduce, out, kernel = 3, batchNorm: normalise = {} } = options
  for (const [name, value] of Object.entries({ in: channelsIn, towers, reduce, out, kernel })) checkCount(kind, name, value)
  return { towers, reduce, out, kernel, normalise }
}

/** Figure 2: `towers` times a 1×1 and a spatial convolution, of one size and without a mean, side by side. Out: towers · out channels. */
export function simplifiedInception(channelsIn: number, options: InceptionModuleOptions): Layer {
  const { towers, reduce, out, kernel, normalise } = resolve('simplifiedInception', channelsIn, options)
  const children = Object.fromEntries(
    Array.from({ length: towers }, (_, i) => [
      `tower${i + 1}`,
      sequential(
        convBatchNormRelu(channelsIn, reduce, { kernel: 1, ...normalise }),
        convBatchNormRelu(reduce, out, { kernel, ...normalise }),
      ),
    ]),
  )
  return layer('simplifiedInception', { children }, (x) =>
    ops.concat(
      Object.values(children).map((tower) => tower(x)),
      { axis: 3 },
    ),
  )
}

/**
 * Figure 3: the strictly equivalent form. One large 1×1, then spatial convolutions on non-overlapping segments of its outputs. With the
 * towers' filters put side by side along the output channels it computes the same function.
 */
export function equivalentInception(channelsIn: number, options: InceptionModuleOptions): Layer {
  const { towers, reduce, out, kernel, normalise } = resolve('equivalentInception', channelsIn, options)
  const pointwise = convBatchNormRelu(channelsIn, towers * reduce, { kernel: 1, ...normalise })
  const spatial = convBatchNormRelu(towers * reduce, towers * out, { kernel, groups: towers, ...normalise })
  return layer('equivalentInception', { children: { pointwise, spatial } }, (x) => spatial(pointwise(x)))
}

/** Figure 4: the extreme form, one spatial filter per output channel of the 1×1. */
export function extremeInception(
  channelsIn: number,
  channelsOut: number,
  options: { kernel?: number; batchNorm?: BatchNormOptions } = {},
): Layer {
  checkOptions('extremeInception', options, ['kernel', 'batchNorm'])
  const { kernel = 3, batchNorm: normalise = {} } = options
  return sequential(
    separable(channelsIn, channelsOut, { order: 'inception', kernel, intermediateBatchNorm: true, batchNorm: normalise }),
    batchNorm(channelsOut, normalise),
    relu(),
  )
}
