// npm run lint: biome and the type checker for TypeScript, the compiler's warnings as errors for C++ (syntax only, no build; CUDA's are
// nvcc's, in `node scripts/prepare.mjs --strict --werror`). Without a compiler the C++ is left out, and that is said.

import { execFileSync, spawn, spawnSync } from 'node:child_process'
import { createRequire } from 'node:module'
import { availableParallelism } from 'node:os'
import path from 'node:path'
import { fileURLToPath } from 'node:url'

const root = path.dirname(path.dirname(fileURLToPath(import.meta.url)))
const require = createRequire(import.meta.url)
const WARNINGS = ['-Wall', '-Wextra', '-Werror', '-Wno-psabi']

const run = (module, ...args) => {
  if (spawnSync(process.execPath, [require.resolve(module), ...args], { cwd: root, stdio: 'inherit' }).status !== 0) process.exitCode = 1
}
run('@biomejs/biome/bin/biome', 'lint', '--error-on-warnings')
run('typescript/bin/tsc', '-p', 'tsconfig.check.json')

const compiler = process.env.CXX ?? ['c++', 'g++', 'clang++'].find((name) => spawnSync(name, ['--version']).status === 0)
if (compiler) await lintNative()
else console.error('lint: no C++ compiler was found: native/ is not checked')

async function lintNative() {
  const list = (...args) =>
    execFileSync(process.execPath, ['scripts/sources.mjs', ...args], { cwd: root, encoding: 'utf8' })
      .trim()
      .split('\n')
  const headers = path.dirname(require.resolve('node-api-headers/package.json'))
  const flags = [
    '-std=c++17',
    '-fsyntax-only',
    ...WARNINGS,
    '-DNAPI_VERSION=9',
    '-DNODE_ADDON_API_CPP_EXCEPTIONS',
    '-DSEPCONV_VERSION="lint"',
  ]
  const include = ['-isystem', list('napi')[0], '-isystem', path.join(headers, 'include')]
  const waiting = [...list('common'), ...list('withoutCuda')]
  const worker = async () => {
    for (let file = waiting.shift(); file; file = waiting.shift()) {
      const child = spawn(compiler, [...flags, ...include, file], { cwd: root, stdio: 'inherit' })
      if ((await new Promise((resolve) => child.on('close', resolve))) !== 0) process.exitCode = 1
    }
  }
  await Promise.all(Array.from({ length: availableParallelism() }, worker))
}
