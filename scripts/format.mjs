// npm run format: biome for TypeScript and JavaScript, clang-format for C++ and CUDA. --check changes nothing and fails on the first
// difference; it is part of CI.
//   node scripts/format.mjs [--check]

import { spawnSync } from 'node:child_process'
import { readdirSync } from 'node:fs'
import { createRequire } from 'node:module'
import path from 'node:path'
import { fileURLToPath } from 'node:url'

const root = path.dirname(path.dirname(fileURLToPath(import.meta.url)))
const check = process.argv.includes('--check')
const require = createRequire(import.meta.url)

function run(name, command, args) {
  const { status, error } = spawnSync(command, args, { cwd: root, stdio: 'inherit' })
  if (error) throw error
  if (status !== 0) {
    console.error(`${name} found differences${check ? '; npm run format puts them right' : ''}`)
    process.exitCode = 1
  }
}

const sources = ['native', 'test']
  .flatMap((folder) => readdirSync(path.join(root, folder), { recursive: true }).map((file) => path.join(folder, file)))
  .filter((file) => /\.(c|cc|h|cu|cuh|inl)$/.test(file))
  .sort()

run('biome', process.execPath, [require.resolve('@biomejs/biome/bin/biome'), 'format', ...(check ? [] : ['--write'])])
run('clang-format', process.execPath, [
  require.resolve('clang-format/index.js'),
  ...(check ? ['--dry-run', '-Werror'] : ['-i']),
  ...sources,
])
