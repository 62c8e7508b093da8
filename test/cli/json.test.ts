/** The shapes that docs/json.md promises, on stdout alone. */

import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { createModel } from '../../src/models/index.js'
import { json, sepconv, TINY } from './run.js'

const documentation = await readFile(new URL('../../docs/json.md', import.meta.url), 'utf8')
const keys = (value: unknown): string[] => Object.keys(value as object)
const documented = (names: readonly string[]): void => {
  for (const name of names) expect(documentation, `docs/json.md lacks "${name}"`).toContain(`"${name}"`)
}

let folder: string
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'sepconv-json-'))
})
afterAll(() => rm(folder, { recursive: true }))

describe('summary', () => {
  test("Xception's counts", async () => {
    const summary = (await json('summary', 'xception')) as Record<string, unknown> & { layers: object[] }
    expect(keys(summary)).toEqual(['parameters', 'macs', 'inputShape', 'layers'])
    expect(summary).toMatchObject({ parameters: { trainable: 22855952, nonTrainable: 54528, total: 22910480 }, macs: 8357403496 })
    expect(keys(summary.layers[0])).toEqual(['name', 'ops', 'shape', 'parameters', 'nonTrainable', 'macs', 'activationBytes'])
    documented([...keys(summary), ...keys(summary.parameters), ...keys(summary.layers[0])])
  })

  test('options reach the architecture', async () => {
    const options = ['--classes', '0', '--no-residual', '--size', '150', '--segments', 'w64', '--pooling', 'max']
    const { inputShape, layers } = (await json('summary', 'xception', ...options)) as { inputShape: number[]; layers: { name: string }[] }
    expect(inputShape).toEqual([1, 150, 150, 3])
    expect(layers.at(-1)!.name).toBe('max_pool')
    expect(layers.some(({ name }) => name.includes('shortcut') || name.includes('projection'))).toBe(false)
  })

  test('an existing path beats a registered name', async () => {
    using model = await createModel('xception', { classes: 3, width: 0.05, middleRepeats: 0, inputSize: 71, device: 'reference' })
    const path = join(folder, 'weights.safetensors')
    await model.saveWeights(path)
    const { parameters, inputShape } = (await json('summary', path)) as { parameters: unknown; inputShape: number[] }
    expect(parameters).toEqual(model.summary().parameters)
    expect(inputShape).toEqual([1, 71, 71, 3])
    await writeFile(join(folder, 'other'), 'no weights at all')
    expect((await sepconv('summary', join(folder, 'other'))).status).toBe(1)
  })

  test('the table carries the same numbers', async () => {
    const { stdout } = await sepconv('summary', 'xception')
    expect(stdout).toContain('22,910,480 (22,855,952 trainable, 54,528 other)')
    expect(stdout).toContain('8,357,403,496')
  })
})

describe('devices', () => {
  test('what is available, and why not', async () => {
    const devices = (await json('devices')) as { name: string; available: boolean; reason?: string }[]
    expect(devices.map(({ name }) => name)).toEqual(expect.arrayContaining(['cpu', 'reference']))
    for (const { available, reason } of devices) expect(available ? reason === undefined : typeof reason === 'string').toBe(true)
    documented(['name', 'available', 'reason'])
  })

  test('as a table', async () => {
    const { status, stdout } = await sepconv('devices')
    expect(status).toBe(0)
    expect(stdout).toMatch(/^reference +available/m)
  })
})

describe('verify', () => {
  test('one row per op', async () => {
    const rows = (await json('verify', ...TINY, '--batch', '1')) as { op: string; maxError: number; tolerance: number; ok: boolean }[]
    for (const row of rows) {
      expect(keys(row)).toEqual(['op', 'maxError', 'tolerance', 'ok'])
      expect(row.ok && row.maxError <= row.tolerance, row.op).toBe(true)
    }
    expect(new Set(rows.map(({ op }) => op)).size).toBe(rows.length)
    expect(rows.map(({ op }) => op)).toEqual(expect.arrayContaining(['maxPool2d', 'batchNormGradient', 'softmaxCrossEntropy']))
    documented(keys(rows[0]))
  })
})

const ORIGIN = ['date', 'machine', 'versions', 'commit']

describe('bench', () => {
  test('kernels', async () => {
    const [out, svg] = [join(folder, 'kernels.json'), join(folder, 'kernels.svg')]
    const sampling = ['--rounds', '2', '--seconds', '0.005', '--out', out, '--svg', svg]
    const report = (await json('bench', 'kernels', '--layers', '16->24@9', ...sampling)) as {
      results: { op: string; pass: string; ms: number; gflops: number; maxError: number; rooflineShare: number | null }[]
      wrong: unknown[]
    }
    expect(keys(report)).toEqual([...ORIGIN, 'roofline', 'results', 'wrong'])
    expect(report.results.map(({ op, pass }) => `${op} ${pass}`)).toEqual([
      ...['regular', 'depthwise', 'pointwise', 'unfused', 'fused'].map((op) => `${op} forward`),
      ...['data', 'filter'].flatMap((pass) => ['regular', 'depthwise', 'pointwise', 'unfused'].map((op) => `${op} ${pass}`)),
    ])
    expect(keys(report.results[0])).toEqual([
      ...['op', 'layer', 'pass', 'device', 'precision', 'library', 'batch', 'threads', 'ms', 'least', 'gflops', 'gbps', 'rooflineShare'],
      ...['maxError', 'samples'],
    ])
    for (const { ms, maxError } of report.results) expect(ms > 0 && maxError < 1e-5).toBe(true)
    expect(report.wrong).toEqual([])
    documented([...keys(report), ...keys(report.results[0]), 'cpu', 'cores', 'isa'])
    expect(JSON.parse(await readFile(out, 'utf8'))).toEqual(report)
    expect(await readFile(svg, 'utf8')).toContain('16 → 24 @ 9²')

    const again = ['bench', 'kernels', '--layers', '16->24@9', '--op', 'pointwise', '--rounds', '1', '--seconds', '0.001', '--compare', out]
    const compared = await sepconv(...again, '--details')
    expect(compared.status).toBe(0)
    for (const title of ['faster by', 'of the roofline', 'error']) expect(compared.stdout).toContain(title)
    const chart = join(folder, 'compared.svg')
    const { comparison } = (await json(...again, '--svg', chart)) as { comparison: { before: object; rows: object[] } }
    expect(keys(comparison)).toEqual(['before', 'rows', 'unmatched', 'differences'])
    expect(comparison.rows).toHaveLength(3)
    documented([...keys(comparison), ...keys(comparison.before), ...keys(comparison.rows[0])])
    expect(await readFile(chart, 'utf8')).toContain('Two runs side by side')
  })

  test('kernels beside the nearest fast layer', async () => {
    const svg = join(folder, 'nearest.svg')
    const sampling = ['--op', 'depthwise', '--pass', 'forward', '--rounds', '1', '--seconds', '0.001', '--nearest', '--svg', svg]
    const { results } = (await json('bench', 'kernels', '--layers', '5->7@9:k5:s2', ...sampling)) as {
      results: { layer: string; nearest: { layer: string; share: number } }[]
    }
    expect(results).toHaveLength(1)
    expect(results[0]!.nearest.layer).toBe('32->32@14')
    documented(['nearest', ...keys(results[0]!.nearest)])
    expect(await readFile(svg, 'utf8')).toContain('Rates beside the nearest fast layer')
  })

  test('an unfit file to compare with is refused', async () => {
    const { status, stderr } = await sepconv('bench', 'kernels', '--compare', 'package.json')
    expect(status).toBe(1)
    expect(stderr).toContain('ERR_FORMAT')
  })

  test('model', async () => {
    const options = [...TINY, '--classes', '4', '--batch', '1,2', '--rounds', '1', '--seconds', '0.001', '--svg', join(folder, 'model.svg')]
    const report = (await json('bench', 'model', ...options)) as { results: Record<string, number | string>[] }
    expect(keys(report)).toEqual([...ORIGIN, 'results'])
    expect(report.results.map(({ task, batch }) => `${task} ${batch}`)).toEqual(['inference 1', 'inference 2', 'train 1', 'train 2'])
    const names = [
      'task',
      'model',
      'device',
      'precision',
      'batch',
      'threads',
      'ms',
      'least',
      'imagesPerSecond',
      'peakBytes',
      'peakResidentBytes',
      'samples',
    ]
    for (const row of report.results) {
      expect(keys(row)).toEqual(names)
      expect((row.imagesPerSecond as number) * (row.ms as number)).toBeCloseTo((row.batch as number) * 1000, -1)
      expect(row.peakBytes).toBeGreaterThan(1000)
      if (process.platform === 'linux') expect(row.peakResidentBytes).toBeGreaterThan(row.peakBytes as number)
    }
    documented(names)
    expect(await readFile(join(folder, 'model.svg'), 'utf8')).toContain('xception train')
  })
})
