// Every experiment in miniature, its report complete; resuming, refusals, verdicts.

import { existsSync } from 'node:fs'
import { mkdtemp, readFile, readdir, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { builtCli } from '../cli/built.js'
import { hasMpi } from '../distributed/mpirun.js'
import { writeShapes } from '../../src/data/shapes.js'
import { imageFolder } from '../../src/data/folder.js'
import { experiment, experimentNames, type Sizes, SIZES } from '../../src/experiments/definition.js'
import { sizeVariants } from '../../src/experiments/models.js'
import { draw, PATTERN_CLASSES, patternSet } from '../../src/experiments/patterns.js'
import { markdown, secondsTo, writeReport } from '../../src/experiments/report.js'
import { readResults, type Results, writeResults } from '../../src/experiments/results.js'
import { type ExperimentOptions, runExperiment } from '../../src/experiments/runner.js'
import { kindOf } from '../../src/experiments/speed.js'
import { compare, deviationOf, summarizeVariant } from '../../src/experiments/verdict.js'

let folder: string
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'sepconv-experiments-'))
  if (hasMpi) builtCli()
}, 120_000)
afterAll(() => rm(folder, { recursive: true }))

const MINIATURE: Partial<Sizes> = {
  ...{ train: 16, validation: 16, size: 75, epochs: 2, batch: 8, width: 0.04 },
  architectures: {
    xception: { middleRepeats: 1 },
    inception_v3: { blocks: [1, 2, 1], padding: 'same' },
    vgg16: { blocks: [1, 1, 1, 1, 1], batchNorm: true },
    resnet152: { blocks: [1, 1, 1, 1] },
    separable_stack: { blocks: [1, 1, 1, 1, 1] },
  },
}
const run = (name: string, out: string, options: Partial<ExperimentOptions> = {}) =>
  runExperiment(name, { out: join(folder, out), seeds: 1, sizes: MINIATURE, turnSeconds: 0.05, ...options })

const OVER_RANKS = experimentNames().filter((name) => experiment(name).variants.some(({ ranks }) => ranks))

describe('in miniature', () => {
  it.each(experimentNames().filter((name) => hasMpi || !OVER_RANKS.includes(name)))(
    '%s: every variant runs, and the report is complete',
    async (name) => {
      const defined = experiment(name)
      const out = join(folder, `complete-${name}`)
      const results = await run(name, `complete-${name}`)
      expect(await readResults(out)).toEqual(JSON.parse(JSON.stringify(results)))
      expect(results.variants.map((variant) => variant.name)).toEqual(defined.variants.map((variant) => variant.name))
      if (defined.kind === 'accuracy') {
        expect(results.runs).toHaveLength(defined.variants.length)
        for (const { epochs, status } of results.runs) {
          expect(status).toBe('done')
          expect(epochs.map(({ epoch }) => epoch)).toEqual([1, 2])
          for (const { scores } of epochs) expect(scores[defined.metric]).toBeGreaterThanOrEqual(0)
        }
        // Nothing is left of checkpoints.
        expect(await readdir(join(out, 'runs'))).toEqual([])
      }
      if (defined.kind === 'speed' || defined.timed) {
        expect(results.timings.map(({ variant }) => variant)).toEqual(defined.variants.map((variant) => variant.name))
        for (const { stepsPerSecond, shares } of results.timings) {
          expect(stepsPerSecond).toBeGreaterThan(0)
          expect(Object.values(shares).reduce((sum, share) => sum + share, 0)).toBeCloseTo(1, 2)
        }
        const [extreme] = results.timings.filter(({ variant }) => /^(Xception|per channel, equal width)$/.test(variant))
        expect(extreme!.shares.depthwise).toBeGreaterThan(0)
      }
      const files = await writeReport(out, results)
      const text = await readFile(files[0]!, 'utf8')
      expect(text).toContain(`# ${defined.title}`)
      expect(text).toContain(defined.claim)
      expect(text).toContain(defined.limits)
      for (const { name: variant, paper } of defined.variants) {
        expect(text).toContain(`| ${variant} |`)
        for (const value of Object.values(paper ?? {})) expect(text).toMatch(new RegExp(value.toLocaleString('en-US').replace('.', '\\.')))
      }
      for (const [first, second] of defined.comparisons) for (const variant of [first, second]) expect(text).toContain(variant)
      expect(text).not.toMatch(/undefined|NaN|not run/)
      const pictures = [...text.matchAll(/\]\((.*?\.svg)\)/g)].map(([, picture]) => picture!)
      expect(pictures.length).toBeGreaterThan(0)
      if (name === 'table2') expect(pictures).toEqual(['fig7.svg', 'fig8.svg'])
      if (name === 'sync-async') {
        expect(pictures).toEqual(['curves.svg', 'time.svg', 'scaling.svg'])
        const found = results.runs.map(({ epochs, exchange }) => [epochs[0]!.staleness !== undefined, exchange !== undefined])
        expect(found).toEqual([
          [false, false],
          [false, true],
          [true, false],
          [false, true],
          [true, false],
        ])
        expect(results.scaling!.steps.map(({ ranks }) => ranks)).toEqual([1, 2, 4])
      }
      if (name === 'spectrum') expect(pictures).toEqual(['spectrum.svg', 'speed.svg'])
      for (const picture of pictures) expect(await readFile(join(out, picture), 'utf8')).toMatch(/^<svg/)
    },
    120_000,
  )

  it("full: the paper's recipe on pictures of one's own", async () => {
    await writeShapes(join(folder, 'shapes'), { train: 16, validation: 16, size: 75 })
    const data = await imageFolder(join(folder, 'shapes'))
    const results = await run('fig9', 'full', { scale: 'full', data, settings: { epochs: 1, batch: 8 } })
    expect(results).toMatchObject({ scale: 'full', data: join(folder, 'shapes'), settings: { recipe: 'paper-imagenet' } })
    expect(results.variants[0]!.options.classes).toBe(data.classes.length)
    const [report] = await writeReport(join(folder, 'full'), results)
    expect(await readFile(report!, 'utf8')).toContain(`Pictures: ${data.root}.`)
    // Several labels are another question.
    await expect(run('table2', 'wrong', { scale: 'full', data })).rejects.toMatchObject({ code: 'ERR_DATA' })
  }, 60_000)

  it('fig7 and fig8 are table2', () => {
    expect(experiment('fig7')).toBe(experiment('table2'))
    expect(() => experiment('fig11')).toThrow(expect.objectContaining({ code: 'ERR_ARGUMENT', hint: expect.stringContaining('fig1') }))
  })
})

describe('interrupted', () => {
  it('goes on without repeating finished runs, and ends with the same scores', async () => {
    const whole = await run('fig9', 'whole', { seeds: 2 })
    const stop = new AbortController()
    const steps: string[] = []
    const onProgress = ({ label, done }: { label: string; done: number }) => {
      steps.push(label)
      // In the second of four runs, after its first epoch.
      if (label === 'not residual, seed 0' && done === 7) stop.abort(new Error('enough'))
    }
    await expect(run('fig9', 'halves', { seeds: 2, signal: stop.signal, onProgress })).rejects.toThrow('enough')
    expect((await readResults(join(folder, 'halves'))).runs).toHaveLength(1)
    const again: string[] = []
    const results = await run('fig9', 'halves', { seeds: 2, resume: true, onProgress: ({ label }) => again.push(label) })
    expect(again).not.toContain('residual, seed 0')
    expect(again.filter((label) => label === 'not residual, seed 0').length).toBeLessThan(4)
    const timeless = (x: Results) => JSON.parse(JSON.stringify(x.runs, (key, value) => (key === 'seconds' ? undefined : value)))
    expect(timeless(results)).toEqual(timeless(whole))
  }, 120_000)

  it.runIf(hasMpi)(
    'ranks too stop with a checkpoint, and go on without repeating an epoch',
    async () => {
      const stop = new AbortController()
      const settings = { settings: { epochs: 12 }, sizes: { ...MINIATURE, epochs: 12 } }
      const onProgress = ({ label }: { label: string }) => {
        if (label === '2 ranks, synchronous, seed 0') stop.abort(new Error('enough'))
      }
      await expect(run('sync-async', 'ranks', { ...settings, signal: stop.signal, onProgress })).rejects.toThrow('enough')
      const kept = (await readResults(join(folder, 'ranks'))).runs.map(({ variant }) => variant)
      expect(kept).toEqual(['one process'])
      const { runs } = await run('sync-async', 'ranks', { ...settings, resume: true })
      expect(runs).toHaveLength(5)
      for (const { epochs } of runs) expect(epochs.map(({ epoch }) => epoch)).toEqual(Array.from({ length: 12 }, (_, i) => i + 1))
    },
    120_000,
  )

  it('other results are refused by name, and none are overwritten', async () => {
    await expect(run('fig9', 'whole', { seeds: 2 })).rejects.toMatchObject({ code: 'ERR_FILE', hint: expect.stringContaining('--resume') })
    await expect(run('fig9', 'whole', { seeds: 3, resume: true })).rejects.toMatchObject({
      code: 'ERR_ARGUMENT',
      message: expect.stringContaining('seeds [0,1], now [0,1,2]'),
    })
    await expect(run('fig10', 'whole', { seeds: 2, resume: true })).rejects.toMatchObject({
      message: expect.stringContaining('experiment "fig9", now "fig10"'),
    })
    await expect(run('fig9', 'whole', { seeds: 2, scale: 'small', resume: true })).rejects.toMatchObject({
      message: expect.stringContaining('scale "tiny", now "small"'),
    })
    const results = await readResults(join(folder, 'whole'))
    await writeResults(join(folder, 'whole'), { ...results, version: 0 })
    await expect(run('fig9', 'whole', { seeds: 2, resume: true })).rejects.toMatchObject({
      message: expect.stringContaining('version 0, now 1'),
    })
    await writeFile(join(folder, 'whole', 'results.json'), '{}')
    await expect(run('fig9', 'whole', { seeds: 2, resume: true })).rejects.toMatchObject({ code: 'ERR_FORMAT' })
    await expect(run('fig9', 'none', { scale: 'full' })).rejects.toMatchObject({ code: 'ERR_ARGUMENT', subject: 'data' })
    expect(existsSync(join(folder, 'none'))).toBe(false)
  })
})

/** Results of two variants whose runs ended with these scores; `null` diverged. */
function ended(scores: Record<string, (number | null)[]>): Results {
  const seeds = Object.values(scores)[0]!.map((_, seed) => seed)
  return {
    ...{ version: 1, experiment: 'fig9', scale: 'tiny', seeds, device: 'cpu', data: 'patterns', origin: {}, settings: {}, timings: [] },
    variants: Object.keys(scores).map((name) => ({ name, architecture: 'xception', options: {}, parameters: 1000, macs: 1e6 })),
    runs: Object.entries(scores).flatMap(([variant, values]) =>
      values.map((value, seed) => ({
        ...{ variant, seed, status: value === null ? ('diverged' as const) : ('done' as const) },
        ...(value === null && { reason: 'the loss is NaN' }),
        epochs: value === null ? [] : [{ epoch: 1, step: 1, loss: 1, scores: { top1: value, top5: 1 }, seconds: 1 }],
      })),
    ),
  }
}

describe('verdicts', () => {
  const fig9 = experiment('fig9')
  const judge = (a: (number | null)[], b: (number | null)[]) =>
    compare(ended({ 'not residual': a, residual: b }), fig9, 'not residual', 'residual')

  it('a difference outside the spread of pairs is decided: Student’s interval by hand', () => {
    // Differences 0.09, 0.10, 0.11: mean 0.1, deviation 0.01, margin 4.303 · 0.01 / √3.
    const verdict = judge([0.5, 0.6, 0.7], [0.59, 0.7, 0.81])
    expect(verdict).toMatchObject({ outcome: 'ahead', text: 'residual is ahead of not residual: +10.0 ± 2.5 points' })
    expect(verdict.margin).toBeCloseTo((4.303 * 0.01) / Math.sqrt(3), 6)
    expect(judge([0.59, 0.7, 0.81], [0.5, 0.6, 0.7])).toMatchObject({ outcome: 'behind', text: expect.stringContaining('−10.0') })
    expect(deviationOf([1, 2, 3, 4])).toBeCloseTo(1.290994, 6)
  })

  it('within it, or with fewer than three pairs, it is undecided', () => {
    expect(judge([0.5, 0.6, 0.7], [0.6, 0.55, 0.8])).toMatchObject({ outcome: 'undecided' })
    expect(judge([0.5, 0.5], [0.9, 0.9])).toMatchObject({ outcome: 'undecided', text: expect.stringContaining('three') })
  })

  it('a run that diverged is never left out of a mean', () => {
    const results = ended({ 'not residual': [0.5, null, 0.7], residual: [0.6, 0.7, 0.8] })
    expect(summarizeVariant(results, 'not residual', 'top1')).toMatchObject({ diverged: 1, mean: undefined })
    expect(compare(results, fig9, 'not residual', 'residual')).toMatchObject({ outcome: 'diverged' })
    const text = markdown(fig9, results, [])
    expect(text).toContain('| not residual | 1 of 3 diverged |')
    expect(text).toContain('not to be compared: 1 of 3 runs of not residual diverged')
    expect(text).toContain('Diverged: not residual, seed 1 (the loss is NaN)')
  })

  it('the time to a score is that of the first epoch that reaches it', () => {
    const epoch = (number: number, top1: number) => ({ epoch: number, step: number, loss: 1, scores: { top1 }, seconds: number })
    const own = { variant: 'a', seed: 0, status: 'done' as const, epochs: [epoch(1, 0.2), epoch(2, 0.6), epoch(3, 0.4)] }
    expect(secondsTo(own, 'top1', 0.5)).toBe(3)
    expect(secondsTo(own, 'top1', 0.2)).toBe(1)
    expect(secondsTo(own, 'top1', 0.7)).toBeUndefined()
  })

  it('a run that diverges is a result, and the others go on', async () => {
    const results = await run('fig9', 'diverging', { settings: { rate: 1e30, schedule: { kind: 'constant' }, average: 'none' } })
    expect(results.runs.map(({ status }) => status)).toEqual(['diverged', 'diverged'])
    expect(results.runs[0]!.reason).toContain('diverged at step')
  }, 60_000)
})

describe('generated pictures', () => {
  const options = { train: 64, validation: 16, size: 48, noise: 0, distraction: 0 }

  it('are functions of their number; every class as often as any other', async () => {
    const data = patternSet(options)
    const again = patternSet(options)
    expect(await data.train[5]!.load!()).toEqual(await again.train[5]!.load!())
    expect(await data.train[5]!.load!()).not.toEqual(await again.train[5 + PATTERN_CLASSES.length]!.load!())
    expect(data.classes).toHaveLength(16)
    const counts = new Map<number, number>()
    for (const { label } of data.train) counts.set(label, (counts.get(label) ?? 0) + 1)
    expect([...counts.values()]).toEqual(new Array(16).fill(4))
  })

  it('channels alone do not tell relations apart, their products do', () => {
    // Correlation of red and green, over many pictures: +1 under rgb and rg-b, −1 under rb-g and gb-r; each channel's own spread alike.
    const correlation = (label: number) => {
      let [product, red] = [0, 0]
      for (let i = 0; i < 40; i++) {
        const { data } = draw(1000 + i, [label], { ...options, noise: 5 })
        const pixels = data.length / 3
        const channel = (c: number) => Array.from({ length: pixels }, (_, p) => data[3 * p + c]!)
        const centred = (values: number[]) => {
          const mean = values.reduce((a, b) => a + b, 0) / pixels
          return values.map((value) => value - mean)
        }
        const [a, b] = [centred(channel(0)), centred(channel(1))]
        product += a.reduce((sum, value, p) => sum + value * b[p]!, 0) / pixels
        red += a.reduce((sum, value) => sum + value * value, 0) / pixels
      }
      return { share: product / red, red }
    }
    const [same, opposite] = [correlation(0), correlation(2)]
    expect(same.share).toBeGreaterThan(0.5)
    expect(opposite.share).toBeLessThan(-0.3)
    expect(same.red / opposite.red).toBeCloseTo(1, 1)
  })

  it('several labels: one to three, sorted, without repeats', () => {
    const { train, multiLabel } = patternSet({ ...options, multiLabel: true })
    expect(multiLabel).toBe(true)
    const sizes = new Set(train.map(({ labels }) => labels!.length))
    expect([...sizes].sort()).toEqual([1, 2, 3])
    for (const { labels } of train) expect([...new Set(labels)].sort((a, b) => a - b)).toEqual(labels)
  })
})

it('what shall be equally large is so within four percent at tiny scale', () => {
  for (const name of experimentNames()) {
    const variants = sizeVariants(experiment(name), SIZES.tiny, 16)
    for (const variant of variants) {
      const target = variants.find((other) => other.name === variant.asLargeAs)
      if (target) expect(Math.abs(variant.parameters / target.parameters - 1), `${name}: ${variant.name}`).toBeLessThan(0.04)
    }
  }
})

it('calls of a step are counted by kind', () => {
  expect(kindOf('depthwiseConv2dFilterGradient')).toBe('depthwise')
  expect(kindOf('pointwiseConv2d')).toBe('pointwise')
  expect(kindOf('conv2dInputGradient')).toBe('regular convolution')
  expect(
    kindOf('conv2d', [
      [32, 19, 19, 8],
      [1, 1, 8, 16],
    ]),
  ).toBe('pointwise')
  expect(
    kindOf('conv2d', [
      [32, 1, 1, 8],
      [3, 3, 8, 16],
    ]),
  ).toBe('regular convolution')
  expect(kindOf('sgdUpdate')).toBe('update')
  expect(kindOf('maxPool2d')).toBe('everything else')
})
