/** The wrappers of native/cuda/arch on the emulator, in every adversary mode. */

import { describe } from 'vitest'
import { NativeDeviceExecutor } from '../../src/runtime/executors/native.js'
import { testWrappers } from './arch.js'
import { modeNames } from './emulator.js'

describe.each(modeNames())('%s', (name) => testWrappers(new NativeDeviceExecutor(name)))
