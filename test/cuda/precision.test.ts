/** bfloat16 storage and tensor cores on the emulator, in every adversary mode. */

import { emulator, MULTIPROCESSORS } from './emulator.js'
import { testPrecision } from './precision.js'

testPrecision({
  modes: new Map(
    emulator()
      .executors()
      .map(({ name }) => [name, emulator().openExecutor(name)]),
  ),
  describe: (kernel, inputs, outputs, attributes) =>
    emulator().describeKernel(kernel, inputs, outputs, attributes, MULTIPROCESSORS).description,
})
