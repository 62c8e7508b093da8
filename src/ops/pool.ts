/** What both pools share: options, their resolution into attributes { windowSize, strides, padding }, and the shape rule. */

import { SepconvError } from '../errors.js'
import type { Attributes } from '../graph/graph.js'
import type { TensorType } from '../graph/types.js'
import { expectFloat, expectRank } from './arguments.js'
import { geometryOf, outputSize, type Padding, type Pair, resolveGeometry, resolvePair } from './geometry.js'

type Size = readonly [number, number]

/** Options of {@link maxPool2d}. */
export interface Pool2dOptions {
  /** Rows and columns of a window. */
  readonly windowSize: Pair
  /** Steps between windows. Default: the window's size. */
  readonly strides?: Pair
  /** Default `'same'`. */
  readonly padding?: Padding
}

/** Options as a pool's attributes. */
export function resolvePool(
  op: string,
  x: TensorType,
  options: Pool2dOptions,
): { windowSize: Size; strides: Size; padding: readonly number[] } {
  if (options?.windowSize === undefined)
    throw new SepconvError('ERR_ARGUMENT', `${op}: option windowSize is missing`, {
      subject: op,
      expected: 'windowSize',
      hint: 'Give rows and columns, such as { windowSize: 3, strides: 2 }',
    })
  expectRank(op, 'x', x, '[n, h, w, c]')
  const windowSize = resolvePair(op, 'windowSize', options.windowSize)
  const { strides, padding } = resolveGeometry(op, [x.shape[1]!, x.shape[2]!], windowSize, {
    strides: options.strides ?? windowSize,
    padding: options.padding,
  })
  return { windowSize, strides, padding }
}

/** The type of a pool's result. Padding as large as the window is refused: a window without any input has no maximum and no mean. */
export function inferPool(op: string, argument: string, x: TensorType, attributes: Attributes): TensorType {
  expectFloat(op, argument, x)
  expectRank(op, argument, x, '[n, h, w, c]')
  const windowSize = attributes.windowSize as unknown as Size
  const geometry = geometryOf(attributes)
  if (geometry.padding.some((side, i) => side >= windowSize[i >> 1]!))
    throw new SepconvError(
      'ERR_SHAPE',
      `${op}: padding must be smaller than the window of ${windowSize.join(' x ')}, got top, bottom, left, right = ${geometry.padding.join(', ')}`,
      {
        subject: op,
        expected: windowSize,
        given: geometry.padding,
      },
    )
  return { shape: [x.shape[0]!, ...outputSize(op, [x.shape[1]!, x.shape[2]!], windowSize, geometry), x.shape[3]!], dtype: x.dtype }
}
