/**
 * What a call from JavaScript costs beside its arithmetic, and whether the event loop stays free while a program runs.
 *
 *   node bench/calls.mjs [--out FILE]
 *
 * `runSync` and `run`: medians over calls of a program whose only work is relu on 16 numbers, outputs disposed. `loop`: how late a
 * timer of 1 ms fires while Xception at 299 predicts without pause on all threads, and for comparison with nothing under way.
 */

import { execFileSync } from 'node:child_process'
import { writeFileSync } from 'node:fs'
import { cpus } from 'node:os'
import { monitorEventLoopDelay } from 'node:perf_hooks'
import { parseArgs } from 'node:util'
import { compile, createModel, relu, tensor } from '../dist/index.js'

const { values } = parseArgs({ options: { out: { type: 'string' } } })
const median = (times) => times.sort((a, b) => a - b)[times.length >> 1]
const CALLS = 5000

const f = compile((x) => relu(x), { device: 'cpu' })
const x = tensor(new Float32Array(16).fill(-1), [16], { device: 'cpu' })

async function callCost(call) {
  const times = []
  for (let i = 0; i < 2 * CALLS; i++) {
    const since = performance.now()
    const y = await call()
    const took = performance.now() - since
    y.dispose()
    if (i >= CALLS) times.push(took * 1e3) // the first half warms up
  }
  return Number(median(times).toFixed(2))
}

function syncCost() {
  const times = []
  for (let i = 0; i < 2 * CALLS; i++) {
    const since = performance.now()
    f.runSync(x).dispose()
    if (i >= CALLS) times.push((performance.now() - since) * 1e3)
  }
  return Number(median(times).toFixed(2))
}

/** Delay of a 1 ms timer beyond its time, in ms, while `work` goes on. */
async function loopDelay(work) {
  const monitor = monitorEventLoopDelay({ resolution: 1 })
  monitor.enable()
  await work()
  monitor.disable()
  // The monitor counts the timer's own millisecond.
  const late = (nanoseconds) => Number(Math.max(0, nanoseconds / 1e6 - 1).toFixed(2))
  return { p50: late(monitor.percentile(50)), p99: late(monitor.percentile(99)), max: late(monitor.max) }
}

const runSync = syncCost()
const run = await callCost(() => f.run(x))
const model = await createModel('xception', { device: 'cpu' })
const predict = compile((image) => model(image), { device: 'cpu' })
const image = tensor(new Float32Array(299 * 299 * 3), [1, 299, 299, 3], { device: 'cpu' })
const predictOnce = async () => (await predict(image)).dispose()
for (let i = 0; i < 3; i++) await predictOnce()
const idle = await loopDelay(() => new Promise((resolve) => setTimeout(resolve, 2000)))
let runs = 0
const busy = await loopDelay(async () => {
  for (const end = performance.now() + 4000; performance.now() < end; runs++) await predictOnce()
})

const git = (...args) => execFileSync('git', args, { encoding: 'utf8' }).trim()
const result = {
  date: new Date().toISOString(),
  machine: { cpu: cpus()[0].model, cores: cpus().length, node: process.versions.node },
  commit: git('rev-parse', 'HEAD') + (git('status', '--porcelain') ? '+' : ''),
  microseconds: { runSync, run },
  loopDelayMilliseconds: { idle, whilePredicting: busy, predictions: runs },
}
if (values.out) writeFileSync(values.out, `${JSON.stringify(result, null, 2)}\n`)
console.log(JSON.stringify(result, null, 2))
