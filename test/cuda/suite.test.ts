/** Every op on the emulator; in a correct kernel all modes give the same bits (kernels.test.ts, precision.test.ts). */

import { NativeDeviceExecutor } from '../../src/runtime/executors/native.js'
import { modeNames } from './emulator.js'
import { testSuite } from './suite.js'

const executors = modeNames().map((name) => new NativeDeviceExecutor(name))
testSuite(executors, Number(process.env.SEPCONV_ROUNDS ?? 24))
