/** The CUDA executor without a GPU: loads the emulator's addon, built first where it is missing or out of date. */

import { spawnSync } from 'node:child_process'
import { join } from 'node:path'
import { type NativeAddon, type NativeExecutorInfo, packageRoot, requireNative } from '../../src/runtime/native.js'

/** Traffic of all launches of one name. */
export interface Account {
  /** Of a block. */
  readonly threads: number
  readonly sharedBytes: number
  readonly launches: number
  readonly bytesRead: number
  readonly bytesWritten: number
  /** Of them what memory must move however large the caches: every sector of 32 bytes once per launch and direction. */
  readonly leastRead: number
  readonly leastWritten: number
  /** Passes that shared-memory instructions took, and what they would have taken without bank conflicts. */
  readonly sharedPasses: number
  readonly sharedMinimum: number
  /** Passes beyond the minimum, by place in the source. */
  readonly conflicts: Readonly<Record<string, number>>
}

interface Emulator extends NativeAddon {
  /** What the executor 'emulator:counting' has counted since the last call, by name of the launch. */
  takeAccounts(): Record<string, Account>
  /** What the real addon says of a device when asking for a kernel's attributes on it ends with this error. */
  explainDevice(error: number, errorText: string, device: string, capability: string): NativeExecutorInfo
  /** What the real addon says when the runtime reports this; versions as CUDA writes them, 13000 being 13.0. */
  explainNoDevice(error: number, errorText: string, driverVersion: number, runtimeVersion: number): NativeExecutorInfo
}

// At import, which no test's time limit counts: under a minute the first time, half a second when nothing has changed.
// Under AddressSanitizer, some five times slower:
//   LD_PRELOAD=$(g++ -print-file-name=libasan.so) ASAN_OPTIONS=detect_leaks=0 SEPCONV_EMULATOR=--sanitize npx vitest run test/cuda
const flags = process.env.SEPCONV_EMULATOR?.split(' ') ?? []
const { status, stdout, stderr } = spawnSync(process.execPath, [join(packageRoot, 'scripts/build-emulator.mjs'), ...flags], {
  encoding: 'utf8',
})
if (status !== 0) throw new Error(`the emulator was not built:\n${stderr}`)
process.env.SEPCONV_NATIVE = stdout.trim()

/** The addon, which in this process stands for sepconv's own. */
export const emulator = (): Emulator => requireNative() as Emulator

/** Names of the adversary modes; SEPCONV_EMULATOR_MODES picks some where time is short, but for what asks for all. */
export const modeNames = ({ all = false } = {}): string[] => {
  const wanted = all ? undefined : process.env.SEPCONV_EMULATOR_MODES?.split(',')
  const names = emulator()
    .executors()
    .map(({ name }) => name)
  return wanted ? names.filter((name) => wanted.includes(name.replace('emulator:', ''))) : names
}

/** The same modes on an emulated device of compute capability 9.0. */
export const hopperNames = (options?: { all?: boolean }): string[] => modeNames(options).map((name) => name.replace('emulator:', 'hopper:'))

/** Multiprocessors of the emulated device (native/emulator/driver_emulated.cc): few, so that small shapes reach the large tiles. */
export const MULTIPROCESSORS = 2
