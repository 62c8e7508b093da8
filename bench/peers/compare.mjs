// Outputs are compared before anything is timed. All differences are relative to the largest value.

import { readFileSync } from 'node:fs'
import { relativeError } from '../../dist/runtime/verify.js'

/**
 * Of float32 sums in other orders: through the network; losses of steps whose weights drift apart; a first step's change of a parameter.
 * The gradient of the first convolution has come through forty batch norms: against float64, PyTorch's is off by 2 %, sepconv's by 0.8 %.
 */
export const TOLERANCES = { output: 1e-4, losses: 1e-3, change: 5e-2 }

export const toleranceOf = (name, tolerances = {}) => tolerances[name] ?? TOLERANCES[name] ?? TOLERANCES.change

/**
 * @param actual, expected name → Float32Array.
 * @param tolerances a peer's own.
 * @returns the largest error, the name of what has it, and whether all are within their tolerances.
 */
export function compareOutputs(actual, expected, tolerances) {
  let worst = { maxError: 0, output: Object.keys(expected)[0], share: 0 }
  for (const [output, values] of Object.entries(expected)) {
    const found = actual[output]
    const maxError = found?.length === values.length ? relativeError(found, values) : Number.NaN
    const share = maxError / toleranceOf(output, tolerances)
    if (!(share <= worst.share)) worst = { maxError, output, share }
    if (Number.isNaN(maxError)) break
  }
  const { share, ...rest } = worst
  return { ...rest, agrees: share <= 1 }
}

/** The files that a peer wrote, by the outputs' names. */
export const readOutputs = (files) =>
  Object.fromEntries(
    Object.entries(files).map(([name, file]) => {
      const { buffer, byteOffset, byteLength } = readFileSync(file)
      return [name, new Float32Array(buffer.slice(byteOffset, byteOffset + byteLength))]
    }),
  )
