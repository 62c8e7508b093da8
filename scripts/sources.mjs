// The one list of native sources (native/sources.json) as the two build systems want it.
//   node scripts/sources.mjs cmake                  a CMake script that sets SEPCONV_* variables
//   node scripts/sources.mjs common|cuda|...        files of that group, one per line (binding.gyp)
//   node scripts/sources.mjs isa NAME               the file of one instruction set;  flags NAME: its compiler flags
//   node scripts/sources.mjs version|napi|nvcc|cudart|cuda-include|gencode
// SEPCONV_ARCH names the processor to compile for where it is not this one (scripts/check-neon.mjs). SEPCONV_CUDA=0 hides nvcc,
// SEPCONV_CUDA=1 asks for it. SEPCONV_CUDA_ARCHITECTURES (as CMAKE_CUDA_ARCHITECTURES) overrides the default: the GPU that is in the machine, else sm_80, its PTX
// (for everything newer), and sm_90a.

import { execFileSync, spawnSync } from 'node:child_process'
import { existsSync, readdirSync, readFileSync, realpathSync } from 'node:fs'
import { createRequire } from 'node:module'
import path from 'node:path'
import { fileURLToPath } from 'node:url'

const root = path.dirname(path.dirname(fileURLToPath(import.meta.url)))
const list = JSON.parse(readFileSync(path.join(root, 'native/sources.json'), 'utf8'))
const arch = process.env.SEPCONV_ARCH || process.arch

/** A setting that was misspelt would build something else than was meant, for minutes. */
function refuse(name, expected) {
  console.error(`sources.mjs: ${name}: expected ${expected}, got '${process.env[name]}'`)
  process.exit(1)
}
for (const name of ['SEPCONV_CUDA', 'SEPCONV_WIDE']) if (!['', '0', '1'].includes(process.env[name] ?? '')) refuse(name, '0 or 1')

/** Files that the patterns of a group name, relative to the root; `*` stands for a file's stem only. */
function files(group) {
  return list[group].flatMap((pattern) => {
    const [folder, name] = [path.posix.dirname(pattern), path.posix.basename(pattern)]
    if (!name.startsWith('*')) return [pattern]
    if (!existsSync(path.join(root, folder))) return []
    return readdirSync(path.join(root, folder))
      .filter((file) => file.endsWith(name.slice(1)) && !list.withoutCuda.includes(`${folder}/${file}`))
      .sort()
      .map((file) => `${folder}/${file}`)
  })
}

const folders = () =>
  [...new Set(['common', 'cuda'].flatMap((group) => list[group].map((pattern) => path.posix.dirname(pattern))))].filter((folder) =>
    existsSync(path.join(root, folder)),
  )
// `wide` serves tests only, and GCC takes a minute for 64-byte vectors in AVX2 code: it is built where SEPCONV_WIDE=1 asks for it.
const isas = () => Object.keys(list.isa[arch] ?? { scalar: [] }).filter((name) => name !== 'wide' || process.env.SEPCONV_WIDE === '1')
const isaFile = (name) => `native/cpu/simd/${name}.cc`
const isaFlags = (name) => [...list.isaFlags, ...(list.isa[arch]?.[name] ?? [])]
const version = () => JSON.parse(readFileSync(path.join(root, 'package.json'), 'utf8')).version
const napi = () => path.dirname(createRequire(path.join(root, 'package.json')).resolve('node-addon-api/napi.h'))

/** The CUDA toolkit's folder, or ''. The nvcc on the PATH may be a script or a link: it is asked where it lives. */
function toolkit() {
  if (process.env.SEPCONV_CUDA === '0') return ''
  const homes = [process.env.CUDA_PATH, process.env.CUDA_HOME].filter(Boolean).map((home) => path.join(home, 'bin'))
  for (const folder of [...homes, ...(process.env.PATH ?? '').split(path.delimiter), '/usr/local/cuda/bin']) {
    const file = path.join(folder, 'nvcc')
    if (!folder || !existsSync(file)) continue
    const { stderr } = spawnSync(file, ['--dryrun', '-x', 'cu', '/dev/null'], { encoding: 'utf8' })
    const top = /^#\$ TOP=(.*)$/m.exec(stderr ?? '')?.[1]
    if (top && existsSync(path.join(top, 'bin/nvcc'))) return realpathSync(top)
  }
  if (process.env.SEPCONV_CUDA === '1') refuse('SEPCONV_CUDA', 'nvcc on the PATH, in CUDA_PATH or in /usr/local/cuda')
  return ''
}

const nvcc = () => (toolkit() ? path.join(toolkit(), 'bin/nvcc') : '')

function inToolkit(folder, file) {
  const home = toolkit()
  const target = arch === 'arm64' ? 'sbsa-linux' : 'x86_64-linux'
  const found = [`${folder}64`, folder, `targets/${target}/${folder}`]
    .map((name) => path.join(home, name))
    .find((name) => existsSync(path.join(name, file)))
  if (!found) throw new Error(`${file} was not found in ${home}`)
  return found
}

/** Compiling for the GPU at hand alone halves the time of a local build. What runs well from sm_80 code is not built again for 86 and 89. */
function architectures() {
  const given = process.env.SEPCONV_CUDA_ARCHITECTURES
  if (given) {
    const names = given.split(/[;,]/)
    if (!names.every((name) => /^\d{2,3}[af]?(-real|-virtual)?$/.test(name)))
      refuse('SEPCONV_CUDA_ARCHITECTURES', "names such as 80, 90a-real or 80-virtual with ';' between them")
    return names
  }
  try {
    const text = execFileSync('nvidia-smi', ['--query-gpu=compute_cap', '--format=csv,noheader'], {
      encoding: 'utf8',
      stdio: ['ignore', 'pipe', 'ignore'],
      timeout: 10000,
    })
    const found = text
      .split('\n')
      .map((line) => /^(\d+)\.(\d)$/.exec(line.trim()))
      .filter(Boolean)
    if (found.length)
      return [
        ...new Set(found.map(([, major, minor]) => (major === '9' ? '90a-real' : major === '8' ? '80-real' : `${major}${minor}-real`))),
      ]
  } catch {
    // no driver here: build for every machine that the addon may be carried to
  }
  return list.cudaArchitectures
}

/** nvcc's flags for CMake's notation: N-real machine code, N-virtual PTX, N both. */
function gencode() {
  return architectures().map((entry) => {
    const [name, kind] = entry.split('-')
    const code = { real: `sm_${name}`, virtual: `compute_${name}` }[kind] ?? `[sm_${name},compute_${name}]`
    return `-gencode=arch=compute_${name},code=${code}`
  })
}

function cmake() {
  const set = (name, values) =>
    `set(SEPCONV_${name} ${[values]
      .flat()
      .map((value) => JSON.stringify(value))
      .join(' ')})`
  return [
    set('VERSION', version()),
    set('NAPI_INCLUDE', napi()),
    set('COMMON', files('common')),
    set('CUDA_SOURCES', files('cuda')),
    set('WITHOUT_CUDA', files('withoutCuda')),
    set('ISAS', isas()),
    ...isas().flatMap((name) => [set(`ISA_${name}`, isaFile(name)), set(`FLAGS_${name}`, isaFlags(name))]),
    set('NVCC', nvcc()),
    set('ARCHITECTURES', toolkit() ? architectures() : []),
    set('FOLDERS', folders()),
  ].join('\n')
}

const [what, name] = process.argv.slice(2)
const answers = {
  cmake,
  version,
  napi,
  nvcc,
  gencode,
  isa: () => isaFile(name),
  flags: () => isaFlags(name),
  cudart: () => (toolkit() ? path.join(inToolkit('lib', 'libcudart_static.a'), 'libcudart_static.a') : ''),
  'cuda-include': () => (toolkit() ? inToolkit('include', 'cuda_runtime.h') : ''),
}
const answer = answers[what] ? answers[what]() : list[what] ? files(what) : undefined
if (answer === undefined) {
  console.error(`sources.mjs: unknown group '${what}'`)
  process.exit(1)
}
console.log([answer].flat().join('\n'))
