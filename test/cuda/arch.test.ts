/** The wrappers of native/cuda/arch on the emulator, in every adversary mode. */

import { describe } from 'vitest'
import { NativeDeviceExecutor } from '../../src/runtime/executors/native.js'
import { testWrappers } from './arch.js'
import { emulator } from './emulator.js'

describe.each(emulator().executors())('$name', ({ name }) => testWrappers(new NativeDeviceExecutor(name)))
