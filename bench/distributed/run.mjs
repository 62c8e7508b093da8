// Two ranks of one thread beside one process of two threads, in turns, on the demo's model; how much of the reduction is hidden.
//   node bench/distributed/run.mjs [--rounds N] [--out FILE]
import { execFileSync } from 'node:child_process'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import { origin } from '../../dist/bench/machine.js'
import { writeAtomic } from '../../dist/files.js'

const { values } = parseArgs({ options: { rounds: { type: 'string', default: '3' }, out: { type: 'string' } } })
const program = fileURLToPath(new URL('../../dist/experiments/rankProgram.js', import.meta.url))
const variant = { architecture: 'xception', options: { classes: 8, width: 0.25, middleRepeats: 2, inputSize: 71 } }
const env = { ...process.env, ...(process.getuid?.() === 0 && { OMPI_ALLOW_RUN_AS_ROOT: '1', OMPI_ALLOW_RUN_AS_ROOT_CONFIRM: '1' }) }
const median = (list) => [...list].sort((a, b) => a - b)[list.length >> 1]
const mean = (list) => list.reduce((a, b) => a + b) / list.length
const round = (x) => Number(x.toPrecision(3))

function run(ranks, threads, settings) {
  const command = ranks === 1 ? [] : ['mpirun', '-n', String(ranks), '--bind-to', 'none']
  const job = { kind: 'steps', reduce: 'overlapped', seconds: 1.5, variant, ...settings }
  const [launcher, ...args] = [...command, process.execPath, program, JSON.stringify(job)]
  return JSON.parse(execFileSync(launcher, args, { env: { ...env, SEPCONV_THREADS: String(threads) }, encoding: 'utf8' }))
}

const results = []
for (const batch of [8, 32]) {
  const rounds = []
  for (let i = 0; i < Number(values.rounds); i++)
    rounds.push({ one: run(1, 2, { batch }), two: run(2, 1, { batch }), alone: run(2, 1, { batch, reduce: 'none' }) })
  const step = (kind) => median(rounds.map((entry) => mean(entry[kind].map(({ medianMs }) => medianMs))))
  const hidden = median(rounds.map(({ two }) => 1 - mean(two.map(({ waitMs }) => waitMs)) / mean(two.map(({ busyMs }) => busyMs))))
  results.push({
    batch,
    oneProcessMs: round(step('one')),
    twoRanksMs: round(step('two')),
    twoRanksWithoutExchangeMs: round(step('alone')),
    imagesPerSecondShare: round(step('one') / step('two')),
    bytesPerStep: rounds[0].two[0].bytesPerStep,
    reduceMs: round(median(rounds.map(({ two }) => mean(two.map(({ busyMs }) => busyMs))))),
    hiddenShare: round(hidden),
  })
}
const report = { ...origin(null), model: variant.options, rounds: Number(values.rounds), results }
if (values.out) await writeAtomic(values.out, `${JSON.stringify(report, null, 2)}\n`)
console.log(JSON.stringify(report, null, 2))
