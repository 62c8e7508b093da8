/**
 * `npm run gpu:check`: on a machine with a GPU, every wrapper over PTX, every kernel and whole models on hardware (test/gpu), then the
 * small shapes once more under compute-sanitizer's memcheck, racecheck and synccheck where it is installed. Needs `npm run build`
 * first. Exit status 77 and one line where there is no GPU; otherwise 0 when everything holds, 1 when not.
 *   --device cuda:1   another GPU than the first
 */

import { spawnSync } from 'node:child_process'
import { dirname, join } from 'node:path'
import { fileURLToPath, pathToFileURL } from 'node:url'

const root = dirname(dirname(fileURLToPath(import.meta.url)))
const at = process.argv.indexOf('--device')
const wanted = at < 0 ? 'cuda:0' : process.argv[at + 1]

const { devices } = await import(pathToFileURL(join(root, 'dist/index.js')).href)
const known = devices().filter(({ name }) => name.startsWith('cuda'))
const device = known.find(({ name }) => name === wanted)
if (!device?.available) {
  const reason = (device ?? known[0])?.reason ?? 'the addon was built without CUDA'
  console.error(`gpu:check: no GPU to check on: ${known.some(({ available }) => available) ? `there is no '${wanted}'` : reason}`)
  process.exit(77)
}
console.error(`gpu:check: ${device.name}, ${device.device}, compute capability ${device.computeCapability}`)

const vitest = join(root, 'node_modules/vitest/vitest.mjs')
function run(command, args, environment = {}) {
  const { status } = spawnSync(command, args, { cwd: root, stdio: 'inherit', env: { ...process.env, SEPCONV_GPU: wanted, ...environment } })
  return status === 0
}

let holds = run(process.execPath, [vitest, 'run', '--mode', 'gpu'])
if (spawnSync('compute-sanitizer', ['--version']).status === 0) {
  for (const tool of ['memcheck', 'racecheck', 'synccheck']) {
    console.error(`gpu:check: compute-sanitizer ${tool}`)
    const options = ['--tool', tool, '--target-processes', 'all', '--error-exitcode', '9']
    const tests = [process.execPath, vitest, 'run', '--mode', 'gpu', 'test/gpu/kernels.test.ts']
    holds = run('compute-sanitizer', [...options, ...tests], { SEPCONV_GPU_ROUNDS: '3' }) && holds
  }
} else console.error('gpu:check: compute-sanitizer is not installed: memory, races and barriers were not checked on hardware')
process.exitCode = holds ? 0 : 1
