/** How a tile covers what a call computes: blocks, waves over the multiprocessors, and the share of the work that is wanted. Plain arithmetic. */

import type { TensorType } from '../graph/types.js'
import type { TunedCall } from '../runtime/tuner.js'

/** A tile on a GPU of so many multiprocessors. */
export interface TileGeometry {
  /** Blocks of one launch, splits of the depth included. */
  readonly blocks: number
  /** Blocks per multiprocessor. */
  readonly waves: number
  /**
   * Outputs that are asked for over outputs that are computed: what hangs over the edge, and multiprocessors that have nothing left to do
   * in the last wave.
   */
  readonly useful: number
}

/** Blocks of depthwise kernels hold 128 bytes per position. */
const TILE_BYTES = 128

/** @param tile `'192x184'`: rows by columns of a product, height by width of a depthwise tile; `undefined` for kernels without such a shape. @param splits parts that a product's depth is cut into. */
export function tileGeometry(call: TunedCall, tile: string, multiprocessors: number, splits = 1): TileGeometry | undefined {
  const [height, width] = tile.split('x').map(Number)
  const outputs = outputGrid(call)
  if (!outputs || !height || !width) return undefined
  const { count, rows, columns, perBlock } = outputs
  // An image smaller than the tile cuts it.
  const [tall, wide] = perBlock === undefined ? [height, width] : [Math.min(height, rows), Math.min(width, 4 * Math.ceil(columns / 4))]
  const tiles = count * Math.ceil(rows / tall) * Math.ceil(columns / wide)
  const [blocks, edge] = [tiles * splits, (count * rows * columns) / (tiles * tall * wide)]
  const waves = blocks / multiprocessors
  return { blocks, waves, useful: (edge * waves) / Math.ceil(waves) }
}

interface Grid {
  /** Independent grids of rows x columns. */
  readonly count: number
  readonly rows: number
  readonly columns: number
  /** Channels of a depthwise block. */
  readonly perBlock?: number
}

function outputGrid([kernel, , [y], attributes]: TunedCall): Grid | undefined {
  if (!y) return undefined
  const channels = y.shape.at(-1) ?? 1
  switch (kernel) {
    case 'depthwiseConv2d':
    case 'depthwiseConv2dInputGradient': {
      const [n = 1, rows = 1, columns = 1] = y.shape
      const perBlock = TILE_BYTES / bytesOf(y)
      return { count: n * Math.ceil(channels / perBlock), rows, columns, perBlock }
    }
    case 'pointwiseConv2d':
    case 'pointwiseConv2dInputGradient':
    case 'pointwiseConv2dFilterGradient':
    case 'separableConv2d':
    case 'separableConv2dPointwiseGradient':
      return { count: 1, rows: positions(y), columns: channels }
    case 'conv2d':
    case 'conv2dInputGradient':
    case 'conv2dFilterGradient': {
      const groups = Number(attributes.groups ?? 1)
      return { count: groups, rows: positions(y), columns: channels / groups }
    }
    default:
      return undefined
  }
}

const bytesOf = ({ dtype }: TensorType): number => (dtype === 'bfloat16' ? 2 : 4)
const positions = ({ shape }: TensorType): number => shape.slice(0, -1).reduce((product, side) => product * side, 1)
