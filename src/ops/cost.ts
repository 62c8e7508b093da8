/** Parameters and multiply-adds of one convolution by the formulas of the literature, without running anything. */

import { checkOptions, SepconvError } from '../errors.js'
import { type Pair, resolvePair } from './geometry.js'

/** What {@link convCost} needs to know. */
export interface ConvCostOptions {
  /** Rows and columns of the filter. */
  readonly kernel: Pair
  /** Input channels. */
  readonly in: number
  /** Output channels. */
  readonly out: number
  /** Output rows. */
  readonly height: number
  /** Output columns. */
  readonly width: number
  /** Groups of a regular convolution; must divide `in` and `out`. Default 1. */
  readonly groups?: number
  /** Depthwise plus pointwise in place of one regular convolution. Default false. */
  readonly separable?: boolean
}

/** Weights, and multiply-adds for one picture. */
export interface ConvCost {
  readonly parameters: number
  readonly macs: number
}

/**
 * What a convolution costs, bias not counted. With k² = rows times columns of the kernel:
 *
 *     regular    k² · in · out             weights
 *     grouped    k² · in · out / groups    weights
 *     separable  k² · in + in · out        weights
 *
 * and as many multiply-adds per output position, of which there are height · width.
 *
 * @param options `height` and `width` are those of the output; `groups` 1 and `separable` false by default
 * @returns `{ parameters, macs }` for a batch of one
 * @throws ERR_ARGUMENT for numbers that are not whole and at least 1, for groups that do not divide the channels, or groups together with separable
 * @see Chollet, Xception, 2017 (arXiv 1610.02357)
 * @example convCost({ kernel: 3, in: 728, out: 728, height: 19, width: 19, separable: true }) // { parameters: 536536, macs: 193689496 }
 */
export function convCost(options: ConvCostOptions = {} as ConvCostOptions): ConvCost {
  checkOptions('convCost', options, ['kernel', 'in', 'out', 'groups', 'height', 'width', 'separable'])
  const { in: cin, out: cout, groups = 1, height, width, separable = false } = options
  for (const [name, value] of Object.entries({ in: cin, out: cout, groups, height, width }))
    if (!Number.isInteger(value) || value < 1)
      throw new SepconvError('ERR_ARGUMENT', `convCost: ${name} must be a whole number of at least 1, got ${value}`, {
        subject: name,
        given: value,
      })
  const [kh, kw] = resolvePair('convCost', 'kernel', options.kernel)
  if (separable && groups !== 1)
    throw new SepconvError('ERR_ARGUMENT', `convCost: a separable convolution has no groups, got ${groups}`, {
      subject: 'groups',
      given: groups,
      hint: 'Leave out groups or separable',
    })
  if (cin % groups !== 0 || cout % groups !== 0)
    throw new SepconvError(
      'ERR_ARGUMENT',
      `convCost: groups must divide in and out, but ${groups} does not divide ${cin % groups !== 0 ? `in = ${cin}` : `out = ${cout}`}`,
      { subject: 'groups', given: groups },
    )
  const parameters = separable ? kh * kw * cin + cin * cout : (kh * kw * cin * cout) / groups
  return { parameters, macs: parameters * height * width }
}
