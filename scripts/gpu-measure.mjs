/**
 * `npm run gpu:measure`: everything that awaits a GPU, in the order in which one result rests on the one before, into one JSON file. Needs
 * `npm run build` first. A step that fails or runs out of time is written down as such, and the next one starts; the file is
 * written after every step, so that a machine that goes away leaves what was measured.
 *   --device cuda:1      another GPU than the first
 *   --out FILE           default bench/results/gpu-<name>-<date>.json
 *   --steps a,b          only these, of those that --plan prints
 *   --minutes N          most of them all together; default 28
 *   --plan               print the commands and end
 * Exit status 77 and one line where there is no GPU, 1 where a step failed.
 */

import { spawnSync } from 'node:child_process'
import { mkdirSync, renameSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { fileURLToPath, pathToFileURL } from 'node:url'

const root = dirname(dirname(fileURLToPath(import.meta.url)))

/** The steps: name, command, seconds that it may take, and whether its stdout is JSON, JSON lines or text. */
export function plan(device) {
  const cli = (...args) => [process.execPath, join(root, 'dist/cli/main.js'), ...args]
  const torch = (...args) => ['python3', join(root, 'bench/peers/programs/pytorch_gpu.py'), ...args]
  const kernels = (...args) => cli('bench', 'kernels', '--device', device, '--batch', '32', '--json', ...args)
  return [
    { name: 'check', command: [process.execPath, join(root, 'scripts/gpu-check.mjs'), '--device', device], seconds: 420, output: 'text' },
    // Two layers first: does every library load, and is every kernel right?
    { name: 'libraries', command: kernels('--layers', '728->728@19,128->128@147', '--rounds', '1'), seconds: 120, output: 'json' },
    { name: 'pytorch-limits', command: torch('limits'), seconds: 60, output: 'lines' },
    { name: 'kernels', command: kernels('--rounds', '3'), seconds: 300, output: 'json' },
    { name: 'backward', command: kernels('--pass', 'data,filter', '--rounds', '3'), seconds: 360, output: 'json' },
    { name: 'model', command: cli('bench', 'model', '--device', device, '--batch', '1,32', '--json'), seconds: 180, output: 'json' },
    {
      name: 'nccl',
      command: [process.execPath, join(root, 'bench/distributed/one-rank.mjs'), '--device', device],
      seconds: 90,
      output: 'json',
    },
    { name: 'pytorch-layers', command: torch('layers', '--batch', '32', '--dtype', 'bf16', 'tf32', 'fp32'), seconds: 240, output: 'lines' },
    { name: 'pytorch-net', command: torch('net', '--batch', '1', '32', '--train-batch', '32'), seconds: 420, output: 'lines' },
  ]
}

/** Runs the steps and gives their records to `save` after each. @param now milliseconds. @returns whether all of them succeeded. */
export function runSteps(steps, { minutes, now = Date.now, run = runStep, save }) {
  const end = now() + minutes * 60_000
  const records = {}
  let good = true
  for (const step of steps) {
    const left = Math.floor((end - now()) / 1000)
    if (left < 10) records[step.name] = { command: step.command.join(' '), status: 'no time was left' }
    else {
      const since = now()
      const { status, stdout, error } = run(step, Math.min(step.seconds, left))
      records[step.name] = {
        command: step.command.join(' '),
        status: error ?? status,
        seconds: (now() - since) / 1000,
        ...parse(stdout, step.output),
      }
    }
    good &&= records[step.name].status === 0
    save(records)
  }
  return good
}

function runStep({ command: [program, ...args], name }, seconds) {
  console.error(`gpu:measure: ${name}, at most ${seconds} s`)
  const options = { cwd: root, encoding: 'utf8', stdio: ['ignore', 'pipe', 'inherit'], timeout: seconds * 1000, maxBuffer: 1 << 28 }
  const { status, stdout, error } = spawnSync(program, args, options)
  return { status, stdout: stdout ?? '', error: error && (error.code === 'ETIMEDOUT' ? `stopped after ${seconds} s` : error.message) }
}

/** What a step printed; what does not parse (it was stopped half way) is kept as text. */
function parse(stdout, output) {
  const lines = stdout.split('\n').filter((line) => line !== '')
  try {
    if (output === 'json') return { result: JSON.parse(stdout) }
    if (output === 'lines') return { result: lines.map((line) => JSON.parse(line)) }
  } catch {
    // below
  }
  return { text: lines.slice(-40) }
}

async function main() {
  const option = (name) => {
    const at = process.argv.indexOf(`--${name}`)
    return at < 0 ? undefined : process.argv[at + 1]
  }
  const device = option('device') ?? 'cuda:0'
  const wanted = option('steps')?.split(',')
  const steps = plan(device).filter(({ name }) => !wanted || wanted.includes(name))
  if (process.argv.includes('--plan')) {
    for (const { name, seconds, command } of steps) console.log(`${name} (${seconds} s): ${command.join(' ')}`)
    return
  }
  const { devices } = await import(pathToFileURL(join(root, 'dist/index.js')).href)
  const { gpuState, origin } = await import(pathToFileURL(join(root, 'dist/bench/machine.js')).href)
  const known = devices().filter(({ name }) => name.startsWith('cuda'))
  const found = known.find(({ name }) => name === device)
  if (!found?.available) {
    console.error(`gpu:measure: no GPU to measure: ${(found ?? known[0])?.reason ?? 'the addon was built without CUDA'}`)
    process.exit(77)
  }
  const slug = String(found.device)
    .toLowerCase()
    .replaceAll(/[^a-z0-9]+/g, '-')
  const out = option('out') ?? join(root, 'bench/results', `gpu-${slug}-${new Date().toISOString().slice(0, 10)}.json`)
  const head = { ...origin(null), device: found, gpu: gpuState(Number(device.split(':')[1])) }
  mkdirSync(dirname(out), { recursive: true })
  const save = (records) => {
    writeFileSync(`${out}.part`, `${JSON.stringify({ ...head, steps: records }, null, 2)}\n`)
    renameSync(`${out}.part`, out)
  }
  const good = runSteps(steps, { minutes: Number(option('minutes') ?? 28), save })
  console.error(`gpu:measure: ${out}`)
  process.exitCode = good ? 0 : 1
}

if (process.argv[1] && import.meta.url === pathToFileURL(process.argv[1]).href) await main()
