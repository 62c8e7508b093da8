/**
 * `npm run test:tsan`: the CPU executor's thread pool under ThreadSanitizer (test/native/threads.cc), after a seeded race has shown
 * that the check can fail. Exit status 77 where the compiler has no ThreadSanitizer or the kernel does not let it run.
 */

import { spawnSync } from 'node:child_process'
import { existsSync, mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'

const root = dirname(dirname(fileURLToPath(import.meta.url)))
const compiler = process.env.CXX ?? 'g++'
const folder = mkdtempSync(join(tmpdir(), 'sepconv-tsan-'))
process.on('exit', () => rmSync(folder, { recursive: true, force: true }))

function skip(reason) {
  console.error(`test:tsan: ${reason}, so nothing was checked`)
  process.exit(77)
}
function fail(reason, output) {
  console.error(`test:tsan: ${reason}\n${output}`)
  process.exit(1)
}

const { stdout } = spawnSync(compiler, ['-print-file-name=libtsan.so'], { encoding: 'utf8' })
if (!existsSync(stdout?.trim() ?? '')) skip(`${compiler} has no ThreadSanitizer`)

const program = join(folder, 'threads')
const sources = ['test/native/threads.cc', 'native/cpu/pool.cc'].map((file) => join(root, file))
const build = spawnSync(compiler, ['-std=c++17', '-O1', '-g', '-fsanitize=thread', ...sources, '-o', program, '-pthread'], {
  encoding: 'utf8',
})
if (build.status !== 0) fail('the program does not compile', build.stderr)

// Address space layout randomisation of newer kernels is beyond what older ThreadSanitizers map: run without it where that can be had.
const command = spawnSync('setarch', ['-R', 'true']).status === 0 ? ['setarch', '-R', program] : [program]
const run = (...args) =>
  spawnSync(command[0], [...command.slice(1), ...args], {
    encoding: 'utf8',
    timeout: 120_000,
    env: { ...process.env, TSAN_OPTIONS: 'exitcode=66' },
  })

const seeded = run('seeded-race')
if (/unexpected memory mapping/.test(seeded.stderr)) skip('this kernel does not let ThreadSanitizer run')
if (seeded.status !== 66) fail('the seeded race was not found', seeded.stderr)
const { status, stdout: summary, stderr, signal } = run()
if (status !== 0) fail(`status ${status ?? signal}`, stderr)
console.log(`test:tsan: no data race in the thread pool and its shared blocks; ${summary.trim()}`)
