/** The building blocks of Xception and its relatives (Chollet 2017, Figure 5), for models of one's own. */

import { checkOptions } from '../errors.js'
import * as ops from '../ops/index.js'
import type { Padding } from '../ops/geometry.js'
import { checkCount, type Layer, layer } from './layer.js'
import {
  type BatchNormOptions,
  batchNorm,
  type Conv2dOptions,
  conv2d,
  maxPool2d,
  relu,
  type SeparableOptions,
  separable,
} from './layers.js'

/** Convolution, batch norm, ReLU: [n, h, w, in] → [n, h', w', out]. Options of the convolution and of the batch norm together. */
export function convBatchNormRelu(channelsIn: number, channelsOut: number, options: Conv2dOptions & BatchNormOptions = {}): Layer {
  const { epsilon, momentum, affine, scale, runningStatistics, ...convolution } = options
  const normalise = Object.fromEntries(
    Object.entries({ epsilon, momentum, affine, scale, runningStatistics }).filter(([, value]) => value !== undefined),
  )
  const conv = conv2d(channelsIn, channelsOut, convolution)
  const bn = batchNorm(channelsOut, normalise)
  return layer('convBatchNormRelu', { children: { conv, bn } }, (x) => ops.relu(bn(conv(x))))
}

/** Depthwise-separable convolution under its full name; see {@link separable}. */
export const depthwiseSeparableConv2d = separable

/** Options of {@link xceptionBlock}. */
export interface XceptionBlockOptions {
  in: number
  out: number
  /** Separable convolutions in the block. */
  reps: number
  /** Of the closing max pool and the projection; 1 means neither. Default 1. */
  stride?: number
  /** ReLU before the first separable convolution. Default true; the very first block has none. */
  startWithRelu?: boolean
  /** The first separable convolution changes the channel count (entry flow) rather than the last (exit flow). Default true. */
  growFirst?: boolean
  /** The shortcut around the block. Default true. */
  residual?: boolean
  /** Of the 3×3 max pool: `'same'` (TensorFlow's rule, default) or explicit. */
  poolPadding?: Padding
  /** Passed on to every separable convolution. */
  separable?: SeparableOptions
  /** Passed on to every batch norm. */
  batchNorm?: BatchNormOptions
}

/**
 * `reps` times ReLU, separable convolution, batch norm; then a 3×3 max pool where `stride` > 1; the input is added, projected
 * by a strided 1×1 convolution with batch norm where channels or stride change. The shortcut reads the input before any ReLU.
 */
export function xceptionBlock(options: XceptionBlockOptions = {} as XceptionBlockOptions): Layer {
  checkOptions('xceptionBlock', options, [
    'in',
    'out',
    'reps',
    'stride',
    'startWithRelu',
    'growFirst',
    'residual',
    'poolPadding',
    'separable',
    'batchNorm',
  ])
  const { reps, stride = 1, startWithRelu = true, growFirst = true, residual = true, poolPadding = 'same' } = options
  for (const [name, value] of Object.entries({ in: options.in, out: options.out, reps, stride })) checkCount('xceptionBlock', name, value)
  const children: Record<string, Layer> = {}
  const branch: Layer[] = []
  for (let rep = 1; rep <= reps; rep++) {
    const channelsIn = growFirst ? (rep === 1 ? options.in : options.out) : options.in
    const channelsOut = growFirst || rep === reps ? options.out : options.in
    const act = rep > 1 || startWithRelu ? relu() : undefined
    const conv = separable(channelsIn, channelsOut, { batchNorm: options.batchNorm, ...options.separable })
    const bn = batchNorm(channelsOut, options.batchNorm)
    if (act) children[`sepconv${rep}_act`] = act
    children[`sepconv${rep}`] = conv
    children[`sepconv${rep}_bn`] = bn
    branch.push(...(act ? [act] : []), conv, bn)
  }
  if (stride > 1) branch.push((children.pool = maxPool2d({ window: 3, strides: stride, padding: poolPadding })))
  const projects = residual && (stride > 1 || options.in !== options.out)
  if (projects) {
    const { initializer } = options.separable ?? {}
    children.shortcut = conv2d(options.in, options.out, { kernel: 1, strides: stride, padding: 'valid', initializer })
    children.shortcut_bn = batchNorm(options.out, options.batchNorm)
  }
  return layer('xceptionBlock', { children }, (x) => {
    const y = branch.reduce((value, child) => child(value), x)
    if (!residual) return y
    return ops.add(y, projects ? children.shortcut_bn!(children.shortcut!(x)) : x)
  })
}
