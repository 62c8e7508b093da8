// npm run bench:peers: Xception with the same weights in sepconv and in other libraries, interleaved in one run, outputs compared first.
//   npm run bench:peers -- --help

import { existsSync } from 'node:fs'
import { mkdir, readFile } from 'node:fs/promises'
import path from 'node:path'
import { Command } from 'commander'
import { parseLayer, XCEPTION_LAYERS } from '../../dist/bench/layers.js'
import { origin } from '../../dist/bench/machine.js'
import { writeSvg } from '../../dist/charts/theme.js'
import { list, oneOf, positive, wholeNumber } from '../../dist/cli/options.js'
import { Progress, red, say, writeJson, writeText } from '../../dist/cli/ui.js'
import { writeAtomic } from '../../dist/files.js'
import { devices } from '../../dist/index.js'
import { measureCase, Networks } from './measure.mjs'
import { folder, install, PEERS } from './peers.mjs'
import { charts, joined, markdownReport, provenance, textReport } from './report.mjs'

const TASKS = ['inference', 'train', 'layers']

const program = new Command('npm run bench:peers --')
  .description(
    'Times Xception with the same weights in sepconv and in other libraries: each in a process of its own, outputs compared first, in short\n' +
      'turns that alternate, medians. The peers of bench/peers/package.json are installed by the command; PyTorch takes part where a Python\n' +
      'has it (Debian: apt-get install python3-torch libopenblas0-openmp). Whoever is missing, fails or disagrees stands in the table as such.',
  )
  .option('--only <list>', Object.keys(PEERS).join(', '), list(oneOf(...Object.keys(PEERS))), Object.keys(PEERS))
  .option('--tasks <list>', TASKS.join(', '), list(oneOf(...TASKS)), TASKS)
  .option('--batch <list>', 'pictures per batch (default: inference 1,8; train 4,8; layers 1)', list(wholeNumber()))
  .option('--threads <list>', 'numbers of threads (default: inference and layers 1,2; train 2)', list(wholeNumber()))
  .option('--layers <list>', 'such as 728->728@19 (default: the ten of Xception)', list(String))
  .option('--size <pixels>', 'height and width of the input', wholeNumber(71), 299)
  .option('--width <factor>', 'multiplies every channel count', positive, 1)
  .option('--rounds <n>', 'turns of every peer', wholeNumber(), 7)
  .option('--seconds <s>', 'per peer and turn', positive, 0.4)
  .option('--patience <s>', 'seconds that a peer may take for an answer before it counts as failed', positive, 300)
  .option('--out <file>', 'the JSON (default: bench/results/peers-<cpu>-<date>.json)')
  .option('--append', 'add to the results in that file, of the same machine, versions, settings and commit: a long comparison in parts')
  .option('--json', 'print the JSON on stdout too, instead of the tables')
  .option('--draw <file>', "measure nothing: print a result's tables as Markdown and write its charts beside it, as .svg (and -layers.svg)")
  .addHelpText(
    'after',
    '\nExamples:\n  $ npm run bench:peers\n  $ npm run bench:peers -- --only sepconv,onnxruntime-node,pytorch --tasks inference --batch 1\n  $ npm run bench:peers -- --draw bench/results/peers-amd-epyc-2026-11-25.json',
  )

// Called wrongly: status 2, as everywhere.
program.exitOverride(({ exitCode }) => process.exit(exitCode === 0 ? 0 : 2))
const options = program.parse().opts()
const children = new Set()
process.once('SIGINT', async () => {
  say('stopped; nothing was written')
  for (const child of children) child.kill()
  await networks?.dispose()
  process.exit(130)
})

let networks
try {
  if (options.draw !== undefined) await draw(options.draw)
  else await bench()
} catch (error) {
  say(`${red('error')} ${error.message}`)
  if (process.env.SEPCONV_DEBUG) say(error.stack)
  process.exitCode = 1
}

async function bench() {
  const failure = options.only.some((name) => PEERS[name].packageName) ? install(say) : undefined
  if (failure) say(red(`the peers could not be installed: ${failure}`))
  const cases = casesOf(options)
  const { only: peers, rounds, seconds, size, width, patience } = options
  const isa = devices().find(({ name }) => name === 'cpu')?.isa ?? null
  const from = origin(isa)
  const file = options.out ?? path.join(folder, '../results', `peers-${slug(from.machine.cpu)}-${from.date.slice(0, 10)}.json`)
  // What does not fit is refused before an hour of measuring.
  const earlier = options.append && existsSync(file) ? await read(file) : undefined
  if (earlier) joined(earlier, { ...from, settings: { size, width, rounds, seconds }, results: [] })
  networks = new Networks({
    model: { inputSize: size, width },
    batch: Math.max(...cases.map(({ batch }) => batch)),
    onnx: peers.some((name) => name.startsWith('onnxruntime') && !PEERS[name].missing()),
  })
  const results = []
  const versions = {}
  const progress = new Progress({ label: 'peers', total: cases.length * peers.length * (1 + rounds) })
  let steps = 0
  try {
    for (const [i, task] of cases.entries()) {
      const title = `${[task.task, task.layer].filter(Boolean).join(' ')}, batch ${task.batch}, threads ${task.threads}`
      const rows = await measureCase(task, peers, networks, {
        ...{ rounds, seconds, isa, patience },
        onStart: (_, child) => {
          children.add(child)
          Object.assign(versions, child.versions)
        },
        onStep: (peer) => progress.update(++steps, `${title}: ${peer}`),
      })
      // A peer that dropped out took no turns.
      steps = (i + 1) * peers.length * (1 + rounds)
      children.clear()
      results.push(...rows)
    }
  } finally {
    progress.finish()
    await networks.dispose()
  }
  const measured = { ...from, versions: { ...from.versions, ...versions }, settings: { size, width, rounds, seconds }, results }
  const report = earlier ? joined(earlier, measured) : measured
  await mkdir(path.dirname(file), { recursive: true })
  await writeAtomic(file, `${JSON.stringify(report, null, 2)}\n`)
  if (options.json) writeJson(report)
  else writeText(textReport(report))
  say(provenance(report))
  say(`written to ${path.relative(process.cwd(), file)}`)
}

function casesOf({ tasks, batch, threads, layers }) {
  const names = (layers?.map(parseLayer) ?? XCEPTION_LAYERS).map(({ name, kernel, stride, dilation, multiplier }) => {
    if (kernel !== 3 || stride * dilation * multiplier !== 1)
      throw new Error(`--layers: '${name}' is not 3 × 3 with stride, dilation and multiplier 1, which is all that the peers are taught`)
    return name
  })
  const cross = (batches, counts, rest) => batches.flatMap((size) => counts.map((count) => ({ ...rest, batch: size, threads: count })))
  return [
    ...(tasks.includes('inference') ? cross(batch ?? [1, 8], threads ?? [1, 2], { task: 'inference' }) : []),
    ...(tasks.includes('train') ? cross(batch ?? [4, 8], threads ?? [2], { task: 'train' }) : []),
    ...(tasks.includes('layers') ? names.flatMap((layer) => cross(batch ?? [1], threads ?? [1, 2], { task: 'layer', layer })) : []),
  ]
}

async function read(file) {
  const report = JSON.parse(await readFile(file, 'utf8'))
  if (!Array.isArray(report.results) || !report.results.every(({ peer }) => peer)) throw new Error(`${file} is no result of bench:peers`)
  return report
}

async function draw(file) {
  const report = await read(file)
  writeText(markdownReport(report))
  for (const [suffix, svg] of Object.entries(charts(report))) {
    const target = file.replace(/(\.json)?$/, `${suffix}.svg`)
    await writeSvg(target, await svg)
    say(`chart: ${target}`)
  }
}

/** `AMD EPYC 9654 96-Core Processor` → `amd-epyc-9654-96-core-processor`. */
function slug(text) {
  return text
    .toLowerCase()
    .replace(/[^a-z0-9]+/g, '-')
    .replace(/^-|-$/g, '')
}
