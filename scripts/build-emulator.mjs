/**
 * Builds build-emulator/sepconv_emulator.node: the CUDA kernels' own source on the host, for tests (native/emulator). Needs cmake
 * and a C++ compiler; nothing of CUDA. Quick when nothing has changed. Prints the addon's path on stdout.
 *   --sanitize  with AddressSanitizer, into build-emulator-asan
 *   --ucontext  with the portable fiber switch, into build-emulator-ucontext
 */

import { spawnSync } from 'node:child_process'
import { existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { homedir } from 'node:os'
import { dirname, join, resolve } from 'node:path'
import { fileURLToPath } from 'node:url'

const root = resolve(dirname(fileURLToPath(import.meta.url)), '..')
const require = createRequire(import.meta.url)
const sanitize = process.argv.includes('--sanitize')
const ucontext = process.argv.includes('--ucontext')
const directory = join(root, `build-emulator${sanitize ? '-asan' : ''}${ucontext ? '-ucontext' : ''}`)

/** The folder with node_api.h: beside this Node, or where a build tool has put the headers. */
function nodeInclude() {
  const version = process.versions.node
  const candidates = [
    process.env.npm_config_nodedir && join(process.env.npm_config_nodedir, 'include/node'),
    resolve(dirname(process.execPath), '../include/node'),
    join(homedir(), `.cmake-js/node-${process.arch}/v${version}/include/node`),
    join(homedir(), `.cache/node-gyp/${version}/include/node`),
  ]
  const found = candidates.find((folder) => folder && existsSync(join(folder, 'node_api.h')))
  if (!found)
    throw new Error(
      `Node's C headers were not found (looked for node_api.h in ${candidates.filter(Boolean).join(', ')}); set npm_config_nodedir`,
    )
  return found
}

function run(command, args) {
  const { status, error, stdout, stderr } = spawnSync(command, args, { cwd: root, encoding: 'utf8' })
  if (status === 0) return
  throw new Error(error ? `${command}: ${error.message}` : `${command} ${args.join(' ')} failed\n${stdout}\n${stderr}`)
}

/** Test files run side by side: only one of them builds, the others wait. */
function withLock(body) {
  mkdirSync(directory, { recursive: true })
  const lock = join(directory, '.lock')
  for (;;) {
    try {
      writeFileSync(lock, String(process.pid), { flag: 'wx' })
      break
    } catch (error) {
      if (error.code !== 'EEXIST') throw error
      if (!isAlive(lock)) rmSync(lock, { force: true })
      else Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 200)
    }
  }
  try {
    body()
  } finally {
    rmSync(lock, { force: true })
  }
}

function isAlive(lock) {
  try {
    const pid = Number(readFileSync(lock, 'utf8'))
    if (!pid) return true // its owner is about to write it
    process.kill(pid, 0)
    return true
  } catch {
    return false
  }
}

try {
  withLock(() => {
    const { version } = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8'))
    const options = [
      `-DNODE_INCLUDE=${nodeInclude()}`,
      `-DNODE_ADDON_API=${dirname(require.resolve('node-addon-api'))}`,
      `-DSEPCONV_VERSION=${version}`,
    ]
    run('cmake', [
      '-S',
      'native/emulator',
      '-B',
      directory,
      ...options,
      `-DSEPCONV_SANITIZE=${sanitize ? 'ON' : 'OFF'}`,
      `-DSEPCONV_UCONTEXT=${ucontext ? 'ON' : 'OFF'}`,
    ])
    run('cmake', ['--build', directory, '--parallel', '2'])
  })
  console.log(join(directory, 'sepconv_emulator.node'))
} catch (error) {
  console.error(`build-emulator: ${error.message}`)
  process.exitCode = 1
}
