/** Mean and biased variance per channel of x[..., c] over all rows, in two passes: batch norm's statistics and the pointwise epilogue's. */

import type { HostTensor } from '../graph/op.js'
import { lastSize, rowCount } from './arguments.js'

export function channelMoments(x: HostTensor, mean: HostTensor, variance: HostTensor): void {
  const [rows, c] = [rowCount(x.shape), lastSize(x.shape)]
  for (let channel = 0; channel < c; channel++) {
    let sum = 0
    for (let row = 0; row < rows; row++) sum += x.data[row * c + channel]!
    const center = sum / rows
    let squares = 0
    for (let row = 0; row < rows; row++) squares += (x.data[row * c + channel]! - center) ** 2
    mean.data[channel] = center
    variance.data[channel] = squares / rows
  }
}
