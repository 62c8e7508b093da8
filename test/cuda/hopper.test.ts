/** Kernels and wrappers for compute capability 9.0 on the emulator, in every adversary mode. */

import { describe } from 'vitest'
import { NativeDeviceExecutor } from '../../src/runtime/executors/native.js'
import { testHopperWrappers } from './archHopper.js'
import { emulator, hopperNames, MULTIPROCESSORS } from './emulator.js'
import { testWarpgroups } from './hopper.js'

describe.each(hopperNames())('%s', (name) => testHopperWrappers(new NativeDeviceExecutor(name)))

testWarpgroups({
  modes: new Map(hopperNames().map((name) => [name, emulator().openExecutor(name)])),
  describe: (kernel, inputs, outputs, attributes) => emulator().describeKernel(kernel, inputs, outputs, attributes, MULTIPROCESSORS, 9),
})
