/** Calls that contradict their own op, on the CPU kernels. */

import { describe } from 'vitest'
import { NativeCpuExecutor, nativeExecutors } from '../../src/runtime/executors/native.js'
import { bfloat16Makers, cpuMakers, makers } from './makers.js'
import { testDamagedCalls } from './damaged.js'

const available = nativeExecutors().some(({ name, available: ready }) => name === 'cpu' && ready)

describe.skipIf(!available)('damaged calls', () => {
  const executor = new NativeCpuExecutor({ threads: 1 })
  const { panel } = executor.target
  describe('float32', () => testDamagedCalls(executor, cpuMakers(makers(panel))))
  describe('bfloat16', () => testDamagedCalls(executor, cpuMakers(bfloat16Makers(panel))))
})
