/**
 * packFilter(filter[k, n]) -> packed[ceil(n / panel), k, panel]: columns in panels of the width that a GEMM micro-kernel reads in one
 * go; columns beyond n are zero. packed[p][i][j] = filter[i][p * panel + j]. Runs in the prepare program, once per change of the weights.
 * With `pair` 2, rows come in pairs, as products of bfloat16 multiply them: packed[ceil(n / panel), ceil(k / 2), panel, 2] with
 * packed[p][i][j][t] = filter[2 * i + t][p * panel + j], zero beyond k.
 */

import { SepconvError } from '../errors.js'
import { defineOp, type HostTensor } from '../graph/op.js'
import { formatShape, sameShape, type TensorType } from '../graph/types.js'
import { expectFloat, expectRank, required, tensorAt } from './arguments.js'

export const packFilterDefinition = defineOp({
  name: 'packFilter',
  inputs: ['filter'],
  outputs: ['packed'],
  infer(inputs, attributes) {
    const filter = required('packFilter', inputs, 0, 'filter')
    expectFloat('packFilter', 'filter', filter)
    expectRank('packFilter', 'filter', filter, '[k, n]')
    const panel = attributes.panel as number
    if (!Number.isInteger(panel) || panel < 1)
      throw new SepconvError('ERR_INTERNAL', `packFilter: panel must be a whole number of at least 1, got ${panel}`)
    return [{ shape: packedShape(filter.shape[0]!, filter.shape[1]!, panel, attributes.pair === 2), dtype: filter.dtype }]
  },
  reference({ inputs, outputs }) {
    const [filter, packed] = [tensorAt(inputs, 0), tensorAt(outputs, 0)]
    const [k, n] = filter.shape as [number, number]
    const [panels, rows, panel, pair = 1] = packed.shape as [number, number, number, number?]
    for (let p = 0; p < panels; p++)
      for (let i = 0; i < rows; i++)
        for (let j = 0; j < panel; j++)
          for (let t = 0; t < pair; t++) {
            const [row, column] = [i * pair + t, p * panel + j]
            packed.data[((p * rows + i) * panel + j) * pair + t] = row < k && column < n ? filter.data[row * n + column]! : 0
          }
  },
})

function packedShape(k: number, n: number, panel: number, pairs: boolean): number[] {
  const panels = Math.ceil(n / panel)
  return pairs ? [panels, Math.ceil(k / 2), panel, 2] : [panels, k, panel]
}

/** packed[ceil(n / panel), k, panel] or, in pairs, [ceil(n / panel), ceil(k / 2), panel, 2] -> filter[k, n] */
export function unpackFilter(packed: HostTensor, k: number, n: number): Float32Array {
  const [panels, rows, panel, pair = 1] = packed.shape as [number, number, number, number?]
  const filter = new Float32Array(k * n)
  for (let p = 0; p < panels; p++) {
    const width = Math.min(panel, n - p * panel)
    for (let row = 0; row < k; row++) {
      const place = (p * rows + Math.floor(row / pair)) * panel
      for (let j = 0; j < width; j++) filter[row * n + p * panel + j] = packed.data[(place + j) * pair + (row % pair)]!
    }
  }
  return filter
}

/** Checks that `packed` holds a filter of [k, n]. */
export function checkPacked(op: string, packed: TensorType, k: number, n: number): void {
  const panel = packed.shape[2] ?? 1
  const expected = packedShape(k, n, panel, packed.shape.length === 4)
  if (!sameShape(packed.shape, expected))
    throw new SepconvError('ERR_SHAPE', `${op}: packed filter must be ${formatShape(expected)}, got ${formatShape(packed.shape)}`, {
      subject: op,
      expected,
      given: packed.shape,
    })
}
