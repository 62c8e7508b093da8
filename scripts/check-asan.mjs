/**
 * `npm run test:asan`: the emulator suite under AddressSanitizer, smallest shapes, two modes: overruns of global and shared memory are
 * reported with the kernel's line. Builds build-emulator-asan first. Exit status 77 where the compiler has no AddressSanitizer.
 */

import { spawnSync } from 'node:child_process'
import { existsSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'

const root = dirname(dirname(fileURLToPath(import.meta.url)))
const compiler = process.env.CXX ?? 'g++'
const { stdout } = spawnSync(compiler, ['-print-file-name=libasan.so'], { encoding: 'utf8' })
const library = stdout?.trim() ?? ''
if (!existsSync(library)) {
  console.error(`test:asan: ${compiler} has no AddressSanitizer, so nothing was checked`)
  process.exit(77)
}
const environment = {
  ...process.env,
  SEPCONV_EMULATOR: '--sanitize',
  SEPCONV_EMULATOR_MODES: 'fair,random-late-shuffled',
  SEPCONV_ROUNDS: '4',
}
const build = spawnSync(process.execPath, [join(root, 'scripts/build-emulator.mjs'), '--sanitize'], { cwd: root, stdio: ['ignore', 2, 2] })
if (build.status !== 0) process.exit(1)
const { status } = spawnSync(
  process.execPath,
  [
    join(root, 'node_modules/vitest/vitest.mjs'),
    'run',
    'test/cuda/suite.test.ts',
    'test/cuda/precision.test.ts',
    'test/cuda/arch.test.ts',
    'test/cuda/emulator.test.ts',
  ],
  {
    cwd: root,
    stdio: 'inherit',
    // Node itself is not clean at exit.
    env: { ...environment, LD_PRELOAD: library, ASAN_OPTIONS: 'detect_leaks=0' },
  },
)
process.exitCode = status ?? 1
