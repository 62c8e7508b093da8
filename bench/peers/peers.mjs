// Who is compared: how each peer's process is started, with the environment in which it is at its best, and why one cannot be.

import { spawnSync } from 'node:child_process'
import { existsSync, readFileSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'

export const folder = path.dirname(fileURLToPath(import.meta.url))

const node = (program, packageName) => ({
  packageName,
  command: () => [process.execPath, path.join(folder, 'programs', program)],
  environment: () => ({}),
  missing: () =>
    packageName === undefined || existsSync(path.join(folder, 'node_modules', packageName, 'package.json'))
      ? undefined
      : 'npm did not install it',
})

const sepconv = (precision) => ({
  ...node('sepconv.mjs'),
  environment: ({ threads }) => ({ SEPCONV_THREADS: String(threads), PEER_PRECISION: precision }),
})

/** By name, sepconv first: what the others are compared with. `tolerances`: in place of those of float32 in compare.mjs. */
export const PEERS = {
  sepconv: sepconv('float32'),
  // Logits of eight-bit activations after 36 convolutions with random weights.
  'sepconv-bfloat16': { ...sepconv('bfloat16'), tolerances: { output: 5e-2 } },
  'onnxruntime-node': node('onnxruntime-node.mjs', 'onnxruntime-node'),
  pytorch: {
    command: () => [python(), path.join(folder, 'programs/pytorch.py')],
    environment: torchEnvironment,
    missing: () => (python() ? undefined : noTorch()),
  },
  'onnxruntime-web': node('onnxruntime-web.mjs', 'onnxruntime-web'),
  tfjs: node('tfjs.mjs', '@tensorflow/tfjs-backend-wasm'),
  'jax-js': node('jax-js.mjs', '@jax-js/jax'),
}

let found

/** A Python that has torch: the one that SEPCONV_PYTHON names, else the system's or the first in PATH; `undefined` without one. */
function python() {
  const has = (program) => spawnSync(program, ['-c', 'import torch'], { stdio: 'ignore' }).status === 0
  const candidates = process.env.SEPCONV_PYTHON ? [process.env.SEPCONV_PYTHON] : ['/usr/bin/python3', 'python3']
  found ??= { program: candidates.find(has) }
  return found.program
}

const noTorch = () =>
  process.env.SEPCONV_PYTHON
    ? `SEPCONV_PYTHON=${process.env.SEPCONV_PYTHON} is no Python with torch`
    : 'no python3 with torch (Debian: apt-get install python3-torch libopenblas0-openmp)'

/**
 * Debian's OpenBLAS does not know Zen 5 and falls back to its AVX2 kernels, half as fast as those for AVX-512; it ignores
 * torch.set_num_threads; its build with OpenMP shares PyTorch's threads. Memory that malloc takes from the system and gives back around
 * every op costs a quarter of the time at batch 8 and most of a large layer's, in page faults.
 */
function torchEnvironment({ threads, isa }) {
  const openmp = `/usr/lib/${process.arch === 'arm64' ? 'aarch64' : 'x86_64'}-linux-gnu/openblas-openmp`
  const count = String(threads)
  return {
    ...{ OMP_NUM_THREADS: count, OPENBLAS_NUM_THREADS: count, MKL_NUM_THREADS: count, MALLOC_MMAP_MAX_: '0' },
    ...{ MALLOC_TRIM_THRESHOLD_: String(2 ** 36), MALLOC_TOP_PAD_: String(2 ** 26) },
    ...(isa?.startsWith('avx512') && { OPENBLAS_CORETYPE: 'SkylakeX' }),
    ...(existsSync(openmp) && { LD_LIBRARY_PATH: [openmp, process.env.LD_LIBRARY_PATH].filter(Boolean).join(':') }),
  }
}

/**
 * Installs the peers that are npm packages, unless that has been done. Each is an optional dependency, so that one that cannot be
 * installed does not take the others with it.
 * @returns what npm said when it failed, else `undefined`.
 */
export function install(say) {
  const lock = path.join(folder, 'package-lock.json')
  const done = path.join(folder, 'node_modules/.installed')
  const wanted = readFileSync(lock, 'utf8')
  if (existsSync(done) && readFileSync(done, 'utf8') === wanted) return undefined
  say('installing the peers (npm ci in bench/peers)')
  // onnxruntime-node's install script fetches CUDA libraries from another host and fails where that is not reached.
  const { status, stderr } = spawnSync('npm', ['ci', '--no-audit', '--no-fund'], {
    cwd: folder,
    encoding: 'utf8',
    stdio: ['ignore', 'ignore', 'pipe'],
    env: { ...process.env, ONNXRUNTIME_NODE_INSTALL: 'skip' },
  })
  if (status !== 0) return (/npm error (?!code)(.+)/.exec(stderr ?? '')?.[1] ?? 'npm ci failed').trim()
  writeFileSync(done, wanted)
  return undefined
}
