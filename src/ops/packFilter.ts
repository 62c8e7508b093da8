/**
 * packFilter(filter[k, n]) -> packed[ceil(n / panel), k, panel]: columns in panels of the width that a GEMM micro-kernel reads in one
 * go; columns beyond n are zero. packed[p][i][j] = filter[i][p * panel + j]. Runs in the prepare program, once per change of the weights.
 */

import { SepconvError } from '../errors.js'
import { defineOp, type HostTensor } from '../graph/op.js'
import { formatShape, type TensorType } from '../graph/types.js'
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
    return [{ shape: [Math.ceil(filter.shape[1]! / panel), filter.shape[0]!, panel], dtype: filter.dtype }]
  },
  reference({ inputs, outputs }) {
    const [filter, packed] = [tensorAt(inputs, 0), tensorAt(outputs, 0)]
    const n = filter.shape[1]!
    const [panels, k, panel] = packed.shape as [number, number, number]
    for (let p = 0; p < panels; p++)
      for (let i = 0; i < k; i++)
        for (let j = 0; j < panel; j++) {
          const column = p * panel + j
          packed.data[(p * k + i) * panel + j] = column < n ? filter.data[i * n + column]! : 0
        }
  },
})

/** packed[ceil(n / panel), k, panel] -> filter[k, n] */
export function unpackFilter(packed: HostTensor, n: number): Float32Array {
  const [panels, k, panel] = packed.shape as [number, number, number]
  const filter = new Float32Array(k * n)
  for (let p = 0; p < panels; p++) {
    const width = Math.min(panel, n - p * panel)
    for (let i = 0; i < k; i++) {
      const row = (p * k + i) * panel
      for (let j = 0; j < width; j++) filter[i * n + p * panel + j] = packed.data[row + j]!
    }
  }
  return filter
}

/** Checks that `packed` holds a filter of [k, n]. */
export function checkPacked(op: string, packed: TensorType, k: number, n: number): void {
  const [panels, rows, panel] = packed.shape
  if (packed.shape.length !== 3 || rows !== k || panels !== Math.ceil(n / panel!))
    throw new SepconvError(
      'ERR_SHAPE',
      `${op}: packed filter must be [ceil(${n} / panel), ${k}, panel], got ${formatShape(packed.shape)}`,
      { subject: op, given: packed.shape },
    )
}
