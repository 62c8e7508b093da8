/** Calls that contradict their own op, on the CUDA kernels: refused when the program is loaded, or harmless. */

import { describe } from 'vitest'
import { NativeDeviceExecutor } from '../../src/runtime/executors/native.js'
import { makers } from '../runtime/makers.js'
import { testDamagedCalls } from '../runtime/damaged.js'
import { modeNames } from './emulator.js'

describe('damaged calls', () => testDamagedCalls(new NativeDeviceExecutor(modeNames()[0]!), makers(16)))
