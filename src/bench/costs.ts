/** Arithmetic and least traffic of a layer's kernels, which rates and the roofline's floor are reckoned with. */

import { SepconvError } from '../errors.js'
import { type Layer, outputSide } from './layers.js'
import type { KernelOp, Pass } from './operands.js'

export interface Cost {
  /** Two per multiply-add; taps beyond the border count. */
  readonly flops: number
  /** Operands and results, each moved once. */
  readonly bytes: number
  /** Computed on a GPU's SIMT units whatever the precision of products. */
  readonly simt?: boolean
}

/** Of one kernel; of an unfused pair, of both halves. All passes of a kernel cost the same: they move and multiply the same three tensors. */
export function costs(op: KernelOp, pass: Pass, layer: Layer, batch: number, bytesPerElement = 4): Cost[] {
  const { cin, cout, size, kernel, multiplier } = layer
  const [inputs, outputs] = [batch * size ** 2, batch * outputSide(layer) ** 2]
  const [between, taps] = [cin * multiplier, kernel ** 2]
  const depthwise: Cost = {
    flops: 2 * taps * outputs * between,
    bytes: bytesPerElement * (inputs * cin + outputs * between + taps * between),
    simt: true,
  }
  const pointwise: Cost = { flops: 2 * outputs * between * cout, bytes: bytesPerElement * (outputs * (between + cout) + between * cout) }
  switch (op) {
    case 'regular':
      return [{ flops: 2 * taps * outputs * cin * cout, bytes: bytesPerElement * (inputs * cin + outputs * cout + taps * cin * cout) }]
    case 'depthwise':
      return [depthwise]
    case 'pointwise':
      return [pointwise]
    case 'unfused':
      return [depthwise, pointwise]
    case 'fused':
      if (pass !== 'forward') throw new SepconvError('ERR_INTERNAL', 'gradients are not fused')
      return [
        {
          flops: depthwise.flops + pointwise.flops,
          bytes: bytesPerElement * (inputs * cin + outputs * cout + taps * between + between * cout),
        },
      ]
  }
}
