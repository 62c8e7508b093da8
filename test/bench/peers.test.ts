/** The comparison with peers: its pure parts, its protocol with processes made for the purpose, and the plan that peers build from. */

import { execFile } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { afterAll, describe, expect, test } from 'vitest'
import { trace } from '../../src/graph/trace.js'
import { XCEPTION_LAYERS } from '../../src/bench/layers.js'
import { createModel } from '../../src/models/index.js'
import { packageRoot } from '../../src/runtime/native.js'

const load = (file: string) => import(new URL(`../../bench/peers/${file}`, import.meta.url).href)
const { compareOutputs } = await load('compare.mjs')
const { interleave, orderOf, ratioOf, roundsOf, summary, turnOf } = await load('rounds.mjs')
const { lastWords, parseReply, PeerProcess } = await load('child.mjs')
const { charts, disturbed, joined, markdownReport, networkSum, notes, tables, textReport, chart } = await load('report.mjs')
const { foldBatchNorm, readImages, readNetwork, toChannelsFirst, toChannelsLast } = await load('plan.mjs')
const { planOf, writeLayer } = await load('network.mjs')
const { filterFirst } = await load('programs/layouts.mjs')

const folder = mkdtempSync(join(tmpdir(), 'sepconv-test-'))
afterAll(() => rmSync(folder, { recursive: true, force: true }))

describe('comparison of outputs', () => {
  const expected = { output: Float32Array.of(1, -2, 4) }
  test('differences are relative to the largest value', () => {
    expect(compareOutputs({ output: Float32Array.of(1, -2, 4.0002) }, expected)).toMatchObject({ agrees: true, output: 'output' })
    const { agrees, maxError } = compareOutputs({ output: Float32Array.of(1.4, -2, 4) }, expected)
    expect(agrees).toBe(false)
    expect(maxError).toBeCloseTo(0.1, 6)
  })
  test.each([
    ['another length', { output: Float32Array.of(1, -2) }],
    ['nothing', {}],
    ['not a number', { output: Float32Array.of(1, Number.NaN, 4) }],
  ])('%s disagrees', (_, actual) => expect(compareOutputs(actual, expected)).toMatchObject({ agrees: false, maxError: Number.NaN }))
  test('the output furthest beyond its own tolerance decides', () => {
    const steps = { losses: Float32Array.of(7), 'change of a': Float32Array.of(1) }
    expect(compareOutputs({ losses: Float32Array.of(7.05), 'change of a': Float32Array.of(1.03) }, steps)).toMatchObject({
      agrees: false,
      output: 'losses',
    })
  })
})

describe('turns', () => {
  test('alternate their order, fit the time, and are fewer for slow peers', () => {
    expect([orderOf(['a', 'b'], 0), orderOf(['a', 'b'], 1)]).toEqual([
      ['a', 'b'],
      ['b', 'a'],
    ])
    expect(turnOf(40, 0.4)).toEqual({ warm: 1, count: 10 })
    expect(turnOf(900, 0.4)).toEqual({ warm: 0, count: 1 })
    expect([roundsOf(100, 7), roundsOf(12_000, 7), roundsOf(90_000, 7)]).toEqual([7, 2, 1])
  })
  test('one that fails is left out from then on', async () => {
    const order: string[] = []
    const failures: string[] = []
    const peer = (name: string, broken = false) => ({
      ms: 1000,
      run: async () => {
        order.push(name)
        if (broken) throw new Error('broke')
        return [order.length]
      },
    })
    const peers = new Map([
      ['a', peer('a')],
      ['b', peer('b', true)],
      ['c', peer('c')],
    ])
    const times = await interleave(peers, { rounds: 2, seconds: 0.1, onFailure: (name: string) => failures.push(name) })
    expect(order).toEqual(['a', 'b', 'c', 'c', 'a'])
    expect(failures).toEqual(['b'])
    expect([...times]).toEqual([
      ['a', [[1], [5]]],
      ['c', [[3], [4]]],
    ])
  })
  test('medians over all runs, ratios over the rounds', () => {
    expect(summary([[3, 1], [2], [9, 4]])).toEqual({ ms: 3, least: 1, samples: 5 })
    expect(ratioOf([[1], [2], [10]], [[2], [4], [10]])).toBe(2)
    // A slow peer sat out the last rounds.
    expect(ratioOf([[2], [100]], [[6]])).toBe(3)
  })
})

describe('protocol', () => {
  const peer = (body: string) => {
    const file = join(folder, `peer${Math.random()}.mjs`)
    writeFileSync(file, `import { serve, Unsupported } from ${JSON.stringify(join(packageRoot, 'bench/peers/serve.mjs'))}\n${body}`)
    return [process.execPath, file]
  }
  test('lines of libraries are no replies', () => {
    expect(parseReply('{"id":3,"ms":[1]}')).toEqual({ id: 3, ms: [1] })
    for (const line of ['loading…', '{"level":"info"}', '{broken']) expect(parseReply(line)).toBeUndefined()
    expect(lastWords(['  at x', 'TypeError: no', 'Node.js v20'])).toBe('TypeError: no')
  })
  test('prepare, run, memory; what a library prints does not disturb', async () => {
    const process = await PeerProcess.start(
      peer(`let runs = 0
await serve({ toy: '1.0' }, async ({ batch }) => {
  console.log('{"id":1}')
  return { outputs: { output: Float32Array.of(batch, 2) }, run: () => void runs++ }
})`),
    )
    try {
      expect(process.versions).toEqual({ toy: '1.0' })
      const { outputs } = await process.request('prepare', { batch: 5, out: folder })
      expect(readFileSync(outputs.output)).toEqual(Buffer.from(Float32Array.of(5, 2).buffer))
      expect((await process.request('run', { warm: 1, count: 3 })).ms).toHaveLength(3)
      expect((await process.request('memory')).peakBytes).toBeGreaterThan(2 ** 20)
    } finally {
      await process.close()
    }
    await expect(process.request('run', { warm: 0, count: 1 })).rejects.toThrow('ended with status 0')
  })
  test('refusals, failures, deaths and silence are told apart', async () => {
    const process = await PeerProcess.start(
      peer(`await serve({}, async ({ how }) => {
  if (how === 'refuse') throw new Unsupported('inference only')
  if (how === 'fail') throw new Error('out of luck')
  if (how === 'hang') await new Promise((resolve) => setTimeout(resolve, 60_000))
})`),
      { seconds: 2 },
    )
    await expect(process.request('prepare', { how: 'refuse' })).rejects.toMatchObject({ message: 'inference only', unsupported: true })
    await expect(process.request('prepare', { how: 'fail' })).rejects.toMatchObject({ message: 'out of luck', unsupported: false })
    await expect(process.request('prepare', { how: 'hang' })).rejects.toThrow('gave no answer within 2 s')
    await process.close()
    await expect(PeerProcess.start(peer("throw new TypeError('no such library')"))).rejects.toThrow(
      'ended with status 1: TypeError: no such library',
    )
    await expect(PeerProcess.start([join(folder, 'nowhere')])).rejects.toThrow('could not be started (ENOENT)')
  })
})

describe('the plan', () => {
  test('of a small Xception folds into one with the same answer', async () => {
    using model = await createModel('xception', { inputSize: 71, width: 0.125, middleRepeats: 1, classes: 3, device: 'reference' })
    const graph = trace((traced) => traced.output('logits', model(traced.input('images', { shape: [1, 71, 71, 3], dtype: 'float32' }))))
    const plan = planOf(graph)
    const count = (op: string) => plan.nodes.filter((node: { op: string }) => node.op === op).length
    // Two of the stem, four projections; two per block of entry and exit flow, three of the middle; one head.
    expect(['conv', 'depthwise', 'pointwise', 'maxPool', 'add', 'mean'].map(count)).toEqual([6, 13, 14, 4, 5, 1])
    expect(plan.nodes.at(-1)).toMatchObject({ op: 'pointwise', bias: 'predictions.bias', shape: [3] })
    expect(plan.nodes.every((node: { inputs: number[] }, i: number) => node.inputs.every((input) => input <= i))).toBe(true)
    const weights = new Map(
      [...model.variables].map(([name, { type }]) => [
        name,
        { shape: type.shape, data: new Float32Array(type.shape.reduce((a, b) => a * b)) },
      ]),
    )
    const folded = foldBatchNorm({ plan, weights })
    expect(folded.plan.nodes).toHaveLength(plan.nodes.length - count('batchNorm'))
    expect(folded.plan.nodes.every((node: { inputs: number[] }, i: number) => node.inputs.every((input) => input <= i))).toBe(true)
  })
  test('folding: scale into the filter, the rest into a bias', () => {
    const values = (...data: number[]) => ({ shape: [data.length], data: Float32Array.from(data) })
    const nodes = [
      { op: 'pointwise', inputs: [0], shape: [1, 1, 2], filter: 'f' },
      { op: 'batchNorm', inputs: [1], shape: [1, 1, 2], gamma: 'g', beta: 'b', mean: 'm', variance: 'v', epsilon: 0 },
      { op: 'relu', inputs: [2], shape: [1, 1, 2] },
    ]
    const weights = new Map([
      ['f', { shape: [1, 2], data: Float32Array.of(3, 5) }],
      ...Object.entries({ g: values(2, 1), b: values(1, 0), m: values(4, 2), v: values(4, 1) }),
    ])
    const folded = foldBatchNorm({ plan: { nodes }, weights })
    expect(folded.plan.nodes.map(({ op, inputs }: { op: string; inputs: number[] }) => [op, inputs])).toEqual([
      ['pointwise', [0]],
      ['relu', [1]],
    ])
    expect([...folded.weights.get('f').data]).toEqual([3, 5])
    expect([...folded.weights.get('f.bias').data]).toEqual([-3, -2])
    expect([...weights.get('f')!.data]).toEqual([3, 5])
  })
  test('files are read back', async () => {
    await writeLayer(folder, { cin: 4, cout: 6, size: 5 }, 2)
    const { plan, weights } = readNetwork(folder)
    expect(plan.nodes.map(({ op }: { op: string }) => op)).toEqual(['depthwise', 'pointwise'])
    expect([weights.get('depthwise').shape, weights.get('pointwise').shape]).toEqual([
      [3, 3, 4, 1],
      [4, 6],
    ])
    expect(weights.get('pointwise').data.some((x: number) => x !== 0)).toBe(true)
    expect(readImages(folder, 2, plan.input)).toHaveLength(200)
  })
  test('layouts', () => {
    const image = Float32Array.from({ length: 24 }, (_, i) => i)
    // [2, 3, 4]: element (h, w, c) is 12h + 4w + c.
    const first = toChannelsFirst(image, [2, 3, 4])
    expect([...first.subarray(0, 7)]).toEqual([0, 4, 8, 12, 16, 20, 1])
    expect(toChannelsLast(first, [2, 3, 4])).toEqual(image)
    const filter = filterFirst({ shape: [1, 3, 4, 2], data: image })
    expect(filter.shape).toEqual([2, 4, 1, 3])
    expect([...filter.data.subarray(0, 6)]).toEqual([0, 8, 16, 2, 10, 18])
  })
})

const base = {
  date: '2026-01-02T00:00:00Z',
  machine: { cpu: 'AMD EPYC', cores: 2, isa: 'avx512', memoryBytes: 1, system: 'x' },
  versions: { sepconv: '0' },
  commit: null,
}
const measured = (rest: object) => ({
  status: 'measured',
  least: 1,
  samples: 3,
  peakBytes: 2 ** 20,
  maxError: 0,
  ratio: null,
  imagesPerSecond: 1,
  ...rest,
})
const report = {
  ...base,
  results: [
    measured({ task: 'inference', batch: 1, threads: 1, peer: 'sepconv', ms: 40, least: 20 }),
    measured({ task: 'inference', batch: 1, threads: 1, peer: 'ort', ms: 50, ratio: 1.25 }),
    {
      task: 'inference',
      batch: 1,
      threads: 1,
      peer: 'slow',
      status: 'wrong',
      maxError: 0.5,
      reason: 'output differs by 5.0e-1 of the largest value',
    },
    measured({ task: 'train', batch: 4, threads: 2, peer: 'sepconv', ms: 400, least: 399 }),
    { task: 'train', batch: 4, threads: 2, peer: 'ort', status: 'unsupported', reason: 'inference only' },
    { task: 'train', batch: 4, threads: 2, peer: 'slow', status: 'failed', reason: 'npm did not install it' },
  ],
}

describe('report', () => {
  test('nobody is dropped, and every gap has its reason', () => {
    const [inference, train] = tables(report)
    expect(inference.rows.map((row: string[]) => row.slice(0, 2))).toEqual([
      ['sepconv', '40.0 ms'],
      ['ort', '50.0 ms (1.25×)'],
      ['slow', 'disagrees'],
    ])
    expect(train.rows.map((row: string[]) => row[1])).toEqual(['400 ms', 'cannot', 'failed'])
    expect(notes(report)).toEqual([
      'slow, inference: disagrees: output differs by 5.0e-1 of the largest value',
      'ort, train: inference only',
      'slow, train: failed: npm did not install it',
    ])
    expect(disturbed(report)).toEqual(['disturbed: inference, batch 1, 1 thread: repeat it on a quiet machine'])
    for (const text of [textReport(report), markdownReport(report)]) for (const note of notes(report)) expect(text).toContain(note)
    expect(markdownReport(report)).toContain('|  | batch 1, 1 thread | peak memory |\n| --- | ---: | ---: |')
  })
  test('the sum over the network counts each layer as often as it occurs, and none is missing', () => {
    expect(networkSum(() => ({ status: 'measured', ms: 2 }))).toBe(68)
    expect(networkSum((name: string) => (name === '728->728@19' ? { status: 'failed' } : { status: 'measured', ms: 2 }))).toBeUndefined()
  })
  test('the chart has a group per case', async () => {
    const svg = await chart(report)
    for (const text of ['inference, batch 1, 1 thread', 'training, batch 4, 2 threads', 'pictures per second']) expect(svg).toContain(text)
  })
})

describe('separable layers', () => {
  const names = XCEPTION_LAYERS.map(({ name }) => name)
  const row = (layer: string, peer: string, ms: number) =>
    ({ task: 'layer', layer, batch: 1, threads: 2, peer, status: 'measured', ms, ratio: peer === 'sepconv' ? null : ms / 2 }) as const
  const layers = {
    ...report,
    results: names.flatMap((name) => [row(name, 'sepconv', 2), row(name, 'ort', 3)]),
  }
  test('have a table with the sum over the network, and a chart of their own', async () => {
    const [table] = tables(layers)
    expect(table.title).toBe('Separable layers, batch 1, 2 threads')
    expect(table.rows.at(-1)).toEqual(["the network's 34", '68.0 ms', '102 ms (1.50×)'])
    expect(Object.keys(charts(layers))).toEqual([''])
    expect(Object.keys(charts({ ...report, results: [...report.results, ...layers.results] }))).toEqual(['', '-layers'])
    const svg = await charts(layers)['']
    for (const text of ["the network's 34, batch 1, 2 threads", '728 → 728 @ 19², batch 1, 2 threads']) expect(svg).toContain(text)
  })
  test('a run in parts is one report, unless the parts do not belong together', () => {
    const [first, second] = [
      { ...layers, results: layers.results.slice(0, 3) },
      { ...layers, versions: { ...layers.versions, torch: '2' }, results: [row(names[1]!, 'sepconv', 5), row(names[4]!, 'sepconv', 7)] },
    ]
    const both = joined(first, second)
    expect(both.versions).toEqual({ ...layers.versions, torch: '2' })
    expect(
      both.results.map(({ layer, peer, ms }: { layer: string; peer: string; ms: number }) => [names.indexOf(layer), peer, ms]),
    ).toEqual([
      [0, 'sepconv', 2],
      [0, 'ort', 3],
      [1, 'sepconv', 5],
      [4, 'sepconv', 7],
    ])
    expect(() => joined(first, { ...second, commit: 'other' })).toThrow(/another commit/)
    expect(() => joined(first, { ...second, machine: { ...layers.machine, isa: 'avx2' } })).toThrow(/another machine/)
  })
})

describe('command', () => {
  const run = (...args: string[]) =>
    promisify(execFile)(process.execPath, [join(packageRoot, 'bench/peers/run.mjs'), ...args]).then(
      ({ stdout, stderr }) => ({ status: 0, stdout, stderr }),
      (error) => ({ status: error.code as number, stdout: error.stdout as string, stderr: error.stderr as string }),
    )
  test('--draw makes table and chart of a file, and refuses others', async () => {
    const file = join(folder, 'peers.json')
    writeFileSync(file, JSON.stringify(report))
    const { status, stdout } = await run('--draw', file)
    expect([status, stdout]).toEqual([0, `${markdownReport(report)}\n`])
    expect(readFileSync(join(folder, 'peers.svg'), 'utf8')).toMatch(/^<svg/)
    writeFileSync(file, '{"results":[{"op":"fused"}]}')
    expect(await run('--draw', file)).toMatchObject({ status: 1, stdout: '', stderr: expect.stringContaining('no result of bench:peers') })
    const only = ['--only', 'sepconv', '--tasks', 'layers']
    expect(await run(...only, '--out', file, '--append')).toMatchObject({
      status: 1,
      stderr: expect.stringContaining('no result of bench'),
    })
    expect(await run(...only, '--layers', '8->8@9:k5')).toMatchObject({
      status: 1,
      stderr: expect.stringContaining("'8->8@9:k5' is not 3 × 3"),
    })
  })
  test.each([
    ['--only', 'caffe'],
    ['--threads', '0'],
    ['--tasks', 'dream'],
  ])('%s %s is refused by name', async (flag, value) => {
    const { status, stderr } = await run(flag, value)
    expect(status).toBe(2)
    expect(stderr).toContain(flag)
  })
  test('a run with sepconv and a peer that is missing', async () => {
    const file = join(folder, 'run.json')
    const small = [
      '--tasks',
      'inference',
      '--size',
      '71',
      '--width',
      '0.125',
      '--batch',
      '1',
      '--threads',
      '1',
      '--rounds',
      '1',
      '--seconds',
      '0.01',
    ]
    const { stdout } = await promisify(execFile)(
      process.execPath,
      [join(packageRoot, 'bench/peers/run.mjs'), '--only', 'sepconv,pytorch', ...small, '--out', file, '--json'],
      { env: { ...process.env, SEPCONV_PYTHON: join(folder, 'no-python'), PATH: '' } },
    )
    const [own, missing] = JSON.parse(stdout).results
    expect(own).toMatchObject({ peer: 'sepconv', status: 'measured', ratio: null, maxError: 0 })
    expect(missing).toMatchObject({ peer: 'pytorch', status: 'failed', reason: expect.stringContaining('no-python') })
    expect(JSON.parse(readFileSync(file, 'utf8'))).toEqual(JSON.parse(stdout))
  })
})
