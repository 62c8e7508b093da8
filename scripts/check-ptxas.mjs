/**
 * `npm run build:cuda-check`: compiles every CUDA source for sm_80, sm_90a and PTX with warnings as errors, and fails when a kernel
 * spills registers or uses local memory, unless ALLOWED says why. Prints registers per kernel and architecture (stdout, `--json`).
 * The table of registers and occupancy in docs/cuda-kernels.md must be what comes out of it.
 *   --all      sm_100 and sm_120 as well, as prebuilt packages carry them
 *   --write    write that table anew
 */

import { execFile, execFileSync } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { availableParallelism, tmpdir } from 'node:os'
import { basename, dirname, join } from 'node:path'
import { fileURLToPath, pathToFileURL } from 'node:url'
import { promisify } from 'node:util'
import { occupancyTable, withTable } from './occupancy.mjs'

/** Kernels that may use local memory: { kernel: part of the demangled name, architecture, bytes of stack, reason }. */
const exact = 'exact float32 products; two blocks per multiprocessor leave 128 registers, and are worth more than none of these spills'
export const ALLOWED = [
  { kernel: 'gemmSimt<Tile<128, 128, 8, 8, 8, 2>', architecture: 'sm_100', bytes: 32, reason: exact },
  { kernel: 'gemmSimt<Tile<128, 128, 8, 8, 8, 2>', architecture: 'sm_120', bytes: 32, reason: exact },
]

const root = dirname(dirname(fileURLToPath(import.meta.url)))
const FLAGS = ['-std=c++17', '-O3', '-Werror', 'all-warnings', '-Xcompiler', '-Wall,-Wextra,-Werror', '-Xptxas', '-v']

/** What `ptxas -v` says of each kernel: [{ kernel, architecture, registers, stack, spillStores, spillLoads }]. */
export function parsePtxas(log) {
  const kernels = []
  for (const line of log.split('\n')) {
    const entry = /Compiling entry function '(\S+)' for '(\w+)'/.exec(line)
    if (entry) kernels.push({ kernel: entry[1], architecture: entry[2], registers: 0, stack: 0, spillStores: 0, spillLoads: 0 })
    const kernel = kernels.at(-1)
    const memory = /(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads/.exec(line)
    if (kernel && memory) [kernel.stack, kernel.spillStores, kernel.spillLoads] = memory.slice(1).map(Number)
    const used = /Used (\d+) registers/.exec(line)
    if (kernel && used) kernel.registers = Number(used[1])
  }
  return kernels
}

/** Lines in which ptxas says that it has serialised wgmma, or has put a fence of its own between: the kernel then runs at half its speed. */
export const serialised = (log) => log.split('\n').filter((line) => /\(C75\d\d\)/.test(line))

/** One message per kernel that spills without leave, and per entry of the list that is no longer needed. */
export function complaints(kernels, allowed = ALLOWED) {
  const needed = new Set()
  const messages = []
  for (const { kernel, architecture, stack, spillStores, spillLoads } of kernels) {
    if (!stack && !spillStores && !spillLoads) continue
    const entry = allowed.find(
      (candidate) => kernel.includes(candidate.kernel) && candidate.architecture === architecture && stack <= candidate.bytes,
    )
    if (entry) needed.add(entry)
    else
      messages.push(
        `${kernel} (${architecture}): ${stack} bytes of stack, ${spillStores} bytes of spill stores, ${spillLoads} of spill loads`,
      )
  }
  for (const entry of allowed)
    if (!needed.has(entry)) messages.push(`the allow-list names ${entry.kernel} (${entry.architecture}), which no longer spills: remove it`)
  return messages
}

/** Of the compiler that the table in the docs comes from. */
const TABLE_VERSION = '13.0'
const versionOf = (nvcc) => /release (\d+\.\d+)/.exec(execFileSync(nvcc, ['--version'], { encoding: 'utf8' }))?.[1]

const sources = (...names) => execFileSync(process.execPath, [join(root, 'scripts/sources.mjs'), ...names], { encoding: 'utf8' }).trim()

/** C++ names in place of mangled ones, where binutils are installed. */
function demangle(kernels) {
  try {
    const names = execFileSync('c++filt', { input: kernels.map(({ kernel }) => kernel).join('\n'), encoding: 'utf8' }).split('\n')
    return kernels.map((kernel, i) => ({
      ...kernel,
      kernel: names[i]
        .replaceAll(/sepconv::cuda::|\(anonymous namespace\)::/g, '')
        .replace(/^void /, '')
        .replace(/\([^()]*\)$/, ''),
    }))
  } catch {
    return kernels
  }
}

async function main() {
  const nvcc = sources('nvcc')
  if (!nvcc) {
    console.error('build:cuda-check: nvcc was not found, so no CUDA source was checked')
    process.exitCode = 77
    return
  }
  const names = ['80', '90a', ...(process.argv.includes('--all') ? ['100', '120'] : [])]
  const codes = [...names.map((name) => `-gencode=arch=compute_${name},code=sm_${name}`), '-gencode=arch=compute_80,code=compute_80']
  const files = sources('cuda')
    .split('\n')
    .filter((file) => file.endsWith('.cu'))
  const folder = mkdtempSync(join(tmpdir(), 'sepconv-ptxas-'))
  const kernels = []
  const errors = []
  const compile = async (file) => {
    try {
      const { stdout, stderr } = await promisify(execFile)(
        nvcc,
        [...FLAGS, ...codes, '-c', file, '-o', join(folder, `${basename(file)}.o`)],
        {
          cwd: root,
          maxBuffer: 1 << 26,
        },
      )
      kernels.push(...parsePtxas(stdout + stderr))
      errors.push(...serialised(stdout + stderr))
    } catch (error) {
      errors.push(`${file}:\n${error.stderr ?? error.message}`)
    }
  }
  try {
    const queue = [...files]
    const worker = async () => {
      for (let file = queue.shift(); file; file = queue.shift()) await compile(file)
    }
    await Promise.all(Array.from({ length: availableParallelism() }, worker))
  } finally {
    rmSync(folder, { recursive: true, force: true })
  }
  const named = demangle(kernels).sort((a, b) => a.kernel.localeCompare(b.kernel) || a.architecture.localeCompare(b.architecture))
  if (process.argv.includes('--json')) console.log(JSON.stringify(named, null, 2))
  else
    for (const { kernel, architecture, registers } of named)
      console.log(`${architecture.padEnd(8)}${String(registers).padStart(4)} registers  ${kernel}`)
  errors.push(
    ...complaints(
      named,
      ALLOWED.filter(({ architecture }) => names.includes(architecture.slice(3))),
    ),
  )
  const page = join(root, 'docs/cuda-kernels.md')
  const before = readFileSync(page, 'utf8')
  const after = withTable(before, occupancyTable(named))
  if (process.argv.includes('--write') && after) writeFileSync(page, after)
  // Registers are those of one compiler: others are not wrong.
  else if (after !== before && versionOf(nvcc) === TABLE_VERSION)
    errors.push('docs/cuda-kernels.md has another table of registers and occupancy: npm run build:cuda-check -- --write')
  for (const message of errors) console.error(message)
  console.error(`${files.length} files, ${named.length} kernels, ${errors.length ? `${errors.length} problems` : 'no warnings, no spills'}`)
  if (errors.length) process.exitCode = 1
}

if (process.argv[1] && import.meta.url === pathToFileURL(process.argv[1]).href) await main()
