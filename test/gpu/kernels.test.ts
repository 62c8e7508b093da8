/**
 * Only on a machine with a GPU (npm run gpu:check): what the emulator suite says of the CUDA kernels must hold on hardware. The
 * wrappers over PTX come first: one that disagrees is a bug in the emulator, and everything after it follows from that.
 * SEPCONV_GPU_ROUNDS: random calls per op; compute-sanitizer runs few.
 */

import { describe } from 'vitest'
import { NativeDeviceExecutor } from '../../src/runtime/executors/native.js'
import { testWrappers } from '../cuda/arch.js'
import { testHopperWrappers } from '../cuda/archHopper.js'
import { testWarpgroups } from '../cuda/hopper.js'
import { testPrecision } from '../cuda/precision.js'
import { testSuite } from '../cuda/suite.js'

const executor = new NativeDeviceExecutor(process.env.SEPCONV_GPU ?? 'cuda:0')

describe('wrappers of arch/', () => testWrappers(executor))
const hopper = executor.handle.info().computeCapability === '9.0'
describe.runIf(hopper)('wrappers for compute capability 9.0', () => testHopperWrappers(executor))
describe.runIf(hopper)('wgmma', () => testWarpgroups({ modes: new Map([[executor.name, executor.handle]]) }))
testSuite([executor], Number(process.env.SEPCONV_GPU_ROUNDS ?? 40))
testPrecision({ modes: new Map([[executor.name, executor.handle]]) })
