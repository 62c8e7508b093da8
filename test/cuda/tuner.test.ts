/** The tuner on the emulated device: with a clock made for the test, and with the device's own. */

import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeEach, describe, expect, it } from 'vitest'
import { compileGraph } from '../../src/graph/compile.js'
import { trace } from '../../src/graph/trace.js'
import type { TensorType } from '../../src/graph/types.js'
import { pointwiseConv2d, separableConv2d } from '../../src/ops/index.js'
import { NativeDeviceExecutor } from '../../src/runtime/executors/native.js'
import { KERNELS_VERSION, readShipped, shippedTable } from '../../src/runtime/measuredTiles.js'
import { signatureOf, type TunedCall, Tuner } from '../../src/runtime/tuner.js'
import { filled, generator, runOp, uniform } from '../helpers.js'
import { floats, inferred, runCall } from './calls.js'
import { emulator } from './emulator.js'

const folder = mkdtempSync(join(tmpdir(), 'sepconv-tiles-'))
afterAll(() => rmSync(folder, { recursive: true, force: true }))
beforeEach(() => {
  process.env.SEPCONV_CACHE = folder
})

const type = (...shape: number[]): TensorType => ({ shape, dtype: 'float32' })
const handle = emulator().openExecutor('emulator')
const same = { strides: [1, 1], dilations: [1, 1], padding: [1, 1, 1, 1] }
const product: TunedCall = ['pointwiseConv2d', [type(70, 16), type(16, 72)], [type(70, 72)], {}]

describe('tuner', () => {
  it('keeps the fastest tile, on disk too, and measures a call once per device and version', () => {
    const asked: string[] = []
    const clock = (_: unknown, tile: string) => {
      asked.push(tile)
      return { '32x64': 3, '64x64': 1, '128x128': 2 }[tile]!
    }
    const tuner = new Tuner(handle, { key: 'NVIDIA Test 9.0 v1', clock })
    expect(tuner.tile(...product)).toBe('64x64')
    expect(tuner.tile(...product)).toBe('64x64')
    expect(asked).toEqual(['32x64', '64x64', '128x128'])
    expect(tuner.path).toBe(join(folder, 'tiles-nvidia-test-9.0-v1.json'))
    // Another process, a slower clock: what is known is not measured again.
    const again = new Tuner(handle, { key: 'NVIDIA Test 9.0 v1', clock: () => expect.unreachable() })
    expect(again.tile(...product)).toBe('64x64')
    expect(again.measured).toBe(0)
    // Another version, another shape and another attribute are.
    const other = new Tuner(handle, { key: 'NVIDIA Test 9.0 v2', clock })
    other.tile(...product)
    other.tile('pointwiseConv2d', [type(71, 16), type(16, 72)], [type(71, 72)], {})
    other.tile('pointwiseConv2d', [type(70, 16), type(16, 72)], [type(70, 72)], { activation: 'relu' })
    expect(other.measured).toBe(3)
  })
  it('adds to what another process has written meanwhile', () => {
    const clock = () => 1
    const [a, b] = [0, 1].map(() => new Tuner(handle, { key: 'side by side', clock })) as [Tuner, Tuner]
    a.tile(...product)
    b.tile('pointwiseConv2d', [type(8, 16), type(16, 72)], [type(8, 72)], {})
    expect(Object.keys(JSON.parse(readFileSync(a.path, 'utf8')).calls)).toHaveLength(2)
  })
  const clock = (_: unknown, tile: string) => (tile === '32x64' ? 1 : 2)
  it.each([
    ['', /no cache of tiles and is ignored/],
    ['{"format":', /no cache of tiles and is ignored/],
    ['[]', /no cache of tiles and is ignored/],
    ['null', /no cache of tiles and is ignored/],
    ['{"format":"sepconv-tiles","key":"damaged","calls":{"a":1,"b":{},"c":{"64x64":"fast"}}}', /3 damaged entries are ignored/],
    ['{"format":"sepconv-tiles","key":"another device 9.0 v1","calls":{}}', /belongs to 'another device 9\.0 v1', not to 'damaged'/],
  ])('takes a damaged file, or one of another device, for none and names it: %s', (text, message) => {
    const { path } = new Tuner(handle, { key: 'damaged', clock })
    writeFileSync(path, text)
    const warnings: string[] = []
    const tuner = new Tuner(handle, { key: 'damaged', clock, onWarning: (warning) => warnings.push(warning) })
    expect(warnings).toEqual([expect.stringMatching(message)])
    expect(warnings[0]).toContain(path)
    expect([tuner.tile(...product), tuner.measured]).toEqual(['32x64', 1])
    rmSync(path)
  })
  it('takes the shipped table where the own cache knows nothing, the cache before the table, and the rule where neither does', () => {
    const table = join(folder, 'measured.json')
    const row = (nanoseconds: Record<string, unknown>, device = 'NVIDIA H200 9.0 132') => ({
      ...{ device, call: signatureOf(product), nanoseconds, driver: '580.65', date: '2026-11-25' },
    })
    const options = { key: 'shipped', device: 'NVIDIA H200 9.0 132', table, clock: () => expect.unreachable(), measures: false }
    const opened = (rows: unknown[], kernels = KERNELS_VERSION) => {
      writeFileSync(table, JSON.stringify({ format: 'sepconv-measured-tiles', kernels, rows }))
      const warnings: string[] = []
      return { tuner: new Tuner(handle, { ...options, onWarning: (warning) => warnings.push(warning) }), warnings }
    }
    const times = { '32x64': 3, '64x64': 2, '128x128': 1 }
    expect(opened([row(times)]).tuner.tile(...product)).toBe('128x128')
    expect(opened([row(times)]).tuner.known(product)?.from).toBe('table')
    // Of another device, for kernels of old, or without a tile that has come since: the rule.
    for (const { tuner, warnings } of [
      opened([row(times, 'NVIDIA H100 9.0 132')]),
      opened([row(times)], KERNELS_VERSION + 1),
      opened([row({ '32x64': 1 })]),
    ])
      expect([tuner.tile(...product), warnings]).toEqual([undefined, []])
    const damaged = opened([row({ '32x64': -1 }), { device: 1 }, row(times)])
    expect([damaged.tuner.tile(...product), damaged.warnings]).toEqual(['128x128', [`${table}: 2 damaged rows are ignored`]])
    writeFileSync(table, '{"rows":')
    const broken: string[] = []
    new Tuner(handle, { ...options, onWarning: (warning) => broken.push(warning) })
    expect(broken).toEqual([`${table} is no table of measured tiles and is ignored`])
    new Tuner(handle, { key: 'shipped', clock }).tile(...product)
    expect(opened([row(times)]).tuner.known(product)).toMatchObject({ from: 'cache', times: { '32x64': 1 } })
  })
  it('ships a table that is whole and holds no rows but measured ones', () => {
    const warnings: string[] = []
    expect(readShipped(shippedTable, 'NVIDIA H200 9.0 132', (warning) => warnings.push(warning)).size).toBe(0)
    expect(warnings).toEqual([])
    expect(JSON.parse(readFileSync(shippedTable, 'utf8'))).toEqual({ format: 'sepconv-measured-tiles', kernels: KERNELS_VERSION, rows: [] })
  })
  it('goes without a folder that cannot be written, and measures a tile that is no longer there again', () => {
    const clock = () => 1
    const blocked = new Tuner(handle, { key: 'x', clock, folder: join(folder, 'file', 'below') })
    writeFileSync(join(folder, 'file'), '')
    expect(blocked.tile(...product)).toBe('32x64')
    const tuner = new Tuner(handle, { key: 'renamed', clock })
    tuner.tile(...product)
    writeFileSync(tuner.path, readFileSync(tuner.path, 'utf8').replace('32x64', '99x99'))
    expect(new Tuner(handle, { key: 'renamed', clock }).tile(...product)).toBe('32x64')
  })
  it('has nothing to say where there is no choice', () => {
    const tuner = new Tuner(handle, { key: 'none', clock: () => expect.unreachable() })
    expect(tuner.tile('copy', [type(4)], [type(4)], {})).toBeUndefined()
    expect(tuner.tile('pointwiseConv2d', [type(7, 3), type(3, 5)], [type(7, 5)], {})).toBeUndefined()
    expect(tuner.tile('depthwiseConv2d', [type(1, 1, 1, 4), type(3, 3, 4, 1)], [type(1, 1, 1, 4)], same)).toBeUndefined()
  })
  it('measures by the clock of the device', () => {
    const tuner = new Tuner(handle, { key: 'own clock' })
    expect(handle.tiles(...product)).toContain(tuner.tile(...product))
  })
})

describe('every tile', () => {
  const random = generator(41)
  const tensor = (...shape: number[]) => uniform(random, shape)
  const cases = [
    ['pointwiseConv2d', [tensor(70, 16), tensor(16, 72)], {}],
    ['pointwiseConv2dInputGradient', [tensor(70, 72), tensor(16, 72), null], { inputActivation: 'none' }],
    ['pointwiseConv2dFilterGradient', [tensor(200, 16), tensor(200, 72)], { inputActivation: 'none' }],
    ['separableConv2d', [tensor(1, 9, 13, 16), tensor(3, 3, 16, 1), tensor(16, 72)], same],
    ['depthwiseConv2d', [tensor(1, 17, 19, 40), tensor(3, 3, 40, 1)], same],
    [
      'depthwiseConv2dInputGradient',
      [tensor(1, 17, 19, 40), tensor(3, 3, 40, 1)],
      { ...same, inputActivation: 'none', inputSize: [17, 19] },
    ],
  ] as const
  it.each(cases)('of %s gives what the reference gives', (kernel, inputs, attributes) => {
    const given = [...inputs]
    const [y] = inferred(kernel, given, attributes)
    const expected = runOp(kernel, given, attributes)[0]!
    const tiles = handle.tiles(
      kernel,
      given.map((input) => input && input.type),
      [y!],
      attributes,
    )
    expect(tiles.length).toBeGreaterThan(1)
    for (const tile of tiles) {
      const got = floats(runCall(handle, kernel, given, { ...attributes, tile }, [y!])[0]!)
      const worst = Math.max(
        ...Array.from(got, (value, i) => Math.abs(value - expected.data[i]!) / Math.max(1, Math.abs(expected.data[i]!))),
      )
      expect(worst, tile).toBeLessThan(1e-5)
    }
    expect(() => runCall(handle, kernel, given, { ...attributes, tile: '3x3' }, [y!])).toThrow(/there is no tile '3x3' for this shape/)
  })
})

describe('SEPCONV_TUNE=1', () => {
  it('puts tiles into compiled programs, and nothing without it', () => {
    const x = filled([1, 9, 13, 16], new Float32Array(9 * 13 * 16).fill(1))
    const graph = () =>
      trace((traced) => {
        const input = traced.input('x', x.type)
        const y = separableConv2d(input, traced.input('d', type(3, 3, 16, 1)), traced.input('p', type(16, 72)))
        traced.output('y', pointwiseConv2d(y, traced.input('q', type(72, 8))))
      })
    const tiles = () => {
      const executor = new NativeDeviceExecutor('emulator')
      const { program } = compileGraph(graph(), executor.target).main
      executor.load(program).dispose()
      return program.calls.map(({ attributes }) => attributes.tile)
    }
    expect(tiles()).toEqual([undefined, undefined])
    process.env.SEPCONV_TUNE = '1'
    try {
      for (const tile of tiles()) expect(tile).toMatch(/^\d+x\d+$/)
      // What has been measured stays in use, until 0 leaves all to the rule.
      delete process.env.SEPCONV_TUNE
      for (const tile of tiles()) expect(tile).toMatch(/^\d+x\d+$/)
      process.env.SEPCONV_TUNE = '0'
      expect(tiles()).toEqual([undefined, undefined])
    } finally {
      delete process.env.SEPCONV_TUNE
    }
  })
})
