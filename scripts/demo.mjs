// npm run demo: the main job in at most three minutes on two cores, with the commands that a user would type. Lists the devices,
// checks the kernels, times separable against regular convolution, writes a labelled picture set, trains a reduced Xception on it,
// and predicts pictures with the saved weights in a new process. --quick is a shorter run of the same, for CI.
//   node scripts/demo.mjs [--quick] [--out FOLDER]

import { spawn } from 'node:child_process'
import { existsSync } from 'node:fs'
import { mkdir, readdir, rm } from 'node:fs/promises'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'

const root = path.dirname(path.dirname(fileURLToPath(import.meta.url)))
const bin = path.join(root, 'dist/cli/main.js')
const { values } = parseArgs({ options: { quick: { type: 'boolean', default: false }, out: { type: 'string', default: 'demo' } } })
const { quick, out } = values
const began = performance.now()
const colour = process.stdout.isTTY && !process.env.NO_COLOR
const bold = (text) => (colour ? `\x1b[1m${text}\x1b[0m` : text)
const elapsed = () => `${((performance.now() - began) / 1000).toFixed(0)} s`

if (!existsSync(bin)) {
  console.error('dist/ is missing: run `npm ci`, or `npm run build`')
  process.exit(1)
}

/** Runs `sepconv` as a user would; resolves with its stdout where that is captured. Stops the demo when it fails. */
async function sepconv(args, { capture = false } = {}) {
  console.log(bold(`\n$ sepconv ${args.map((arg) => (/[\s>*]/.test(arg) ? `'${arg}'` : arg)).join(' ')}`))
  const child = spawn(process.execPath, [bin, ...args], { stdio: ['inherit', capture ? 'pipe' : 'inherit', 'inherit'] })
  let output = ''
  child.stdout?.setEncoding('utf8').on('data', (text) => (output += text))
  const status = await new Promise((resolve, reject) => {
    child.on('error', reject)
    child.on('close', (code, signal) => resolve(code ?? (signal === 'SIGINT' ? 130 : 1)))
  })
  if (status !== 0) {
    console.error(`\nthe demo stops here: sepconv ${args[0]} ended with status ${status}`)
    process.exit(status)
  }
  return output
}

const heading = (text) => console.log(`\n${bold(`— ${text}`)} (after ${elapsed()})`)

heading('What can run programs here')
const devices = JSON.parse(await sepconv(['devices', '--json'], { capture: true }))
for (const { name, available, reason, isa, threads } of devices)
  console.log(`${name.padEnd(10)} ${available ? `available${isa ? `: ${isa}, ${threads} threads` : ''}` : `not available: ${reason}`}`)
const native = devices.some(({ name, available }) => available && name !== 'reference')
if (!native)
  console.log('\nWithout a native device this demo takes many minutes: install a C++ compiler and cmake, and run `npm run build`.')

heading('Every kernel of a training step against the reference')
await sepconv(['verify', '--width', quick ? '0.25' : '0.5', '--middle-repeats', '1', '--size', '71'])

heading('Separable against regular convolution, layer by layer')
await mkdir(out, { recursive: true })
const chart = path.join(out, 'kernels.svg')
const layers = quick || !native ? ['--layers', native ? '728->728@19,1024->1536@10' : '16->32@19'] : []
await sepconv(['bench', 'kernels', ...layers, '--rounds', '3', '--svg', chart, '--out', path.join(out, 'kernels.json')])
console.log(`chart: ${chart}`)

heading('A labelled picture set: drawn shapes and textures, as PNG files in class folders')
const { writeShapes } = await import(path.join(root, 'dist/data/shapes.js'))
const pictures = path.join(out, 'shapes')
await rm(pictures, { recursive: true, force: true })
const counts = quick ? { train: 480, validation: 120 } : { train: 2400, validation: 480 }
const { classes } = await writeShapes(pictures, { ...counts, size: 71 })
console.log(`${counts.train} pictures to learn from, ${counts.validation} held out, ${classes.length} classes: ${classes.join(', ')}`)

heading('Training a reduced Xception on them')
const run = path.join(out, 'run')
await rm(run, { recursive: true, force: true })
const size = ['--size', '71', '--width', quick ? '0.125' : '0.25', '--middle-repeats', quick ? '1' : '2']
await sepconv(['train', pictures, '--out', run, ...size, '--epochs', quick ? '2' : '8', '--batch', '32', '--average-decay', '0.98'])

heading('The saved weights in a new process')
const weights = path.join(run, 'best.safetensors')
const score = JSON.parse(await sepconv(['evaluate', pictures, '--weights', weights, '--json'], { capture: true }))
console.log(`top-1 ${(score.top1 * 100).toFixed(1)} % of ${score.images} held-out pictures, loss ${score.loss.toFixed(3)}`)
const samples = await Promise.all(
  classes.slice(0, 6).map(async (name) => path.join(pictures, 'val', name, (await readdir(path.join(pictures, 'val', name))).sort()[0])),
)
await sepconv(['predict', ...samples, '--weights', weights, '--top', '3'])

console.log(`\n${bold('Done')} in ${elapsed()}. The weights are ${weights}, the chart is ${chart}.`)
const least = quick ? 0 : 0.95
if (!(score.top1 >= least)) {
  console.error(`expected at least ${least * 100} % top-1, got ${(score.top1 * 100).toFixed(1)} %`)
  process.exit(1)
}
