/** Storage types that benchmarks can be asked for; a device that has not got one refuses it by name. */

import { SepconvError } from '../errors.js'
import type { Precision } from '../graph/passes/storage.js'
import type { Executor } from '../runtime/executor.js'

/** What benchmarks run in today; results carry the name, so that rows of other precisions stand beside these. */
const MEASURED: readonly Precision[] = ['float32']

/** @throws ERR_ARGUMENT unless both the device and the benchmarks have it. */
export function checkPrecision(executor: Executor, precision: string): Precision {
  const available = MEASURED.filter((name) => executor.target.dtypes.includes(name))
  if (available.includes(precision as Precision)) return precision as Precision
  throw new SepconvError('ERR_ARGUMENT', `precision '${precision}' is not available`, {
    subject: 'precision',
    expected: available,
    given: precision,
  })
}
