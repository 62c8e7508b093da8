/** `sepconv tune` on the emulated device: with a clock made for the test, and with the emulator's own. */

import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeEach, describe, expect, it } from 'vitest'
import { tileGeometry } from '../../src/bench/tileGeometry.js'
import { tune, type TuneOptions, type TuneReport } from '../../src/bench/tune.js'
import { SepconvError } from '../../src/errors.js'
import type { TensorType } from '../../src/graph/types.js'
import { json, sepconv, TINY } from '../cli/run.js'
import './emulator.js'

const root = mkdtempSync(join(tmpdir(), 'sepconv-tune-'))
afterAll(() => rmSync(root, { recursive: true, force: true }))
let folder: string
beforeEach(() => {
  folder = process.env.SEPCONV_CACHE = mkdtempSync(join(root, 'cache-'))
})

const small: TuneOptions = { device: 'emulator:fair', batches: [1], options: { inputSize: 71, width: 0.05, middleRepeats: 0 } }
/** Every first tile the fastest but for products, where 128x128 is. */
const clock = (_: unknown, tile: string) => (tile === '128x128' ? 500 : 1000 + tile.length)

describe('tune', () => {
  it('measures every distinct call once, keeps the times, and says what the rule would have cost', async () => {
    const report = await tune({ ...small, training: true, tuner: { clock } })
    expect(report.measured).toBe(report.rows.length)
    expect(new Set(report.rows.map(({ call }) => call)).size).toBe(report.rows.length)
    expect(report.rows.some(({ kernel }) => kernel === 'pointwiseConv2dFilterGradient')).toBe(true)
    const row = report.rows.find(({ kernel }) => kernel === 'conv2d')!
    expect(row).toMatchObject({ rule: '64x64', winner: '128x128', gain: 2.01, state: 'measured' })
    expect(row.why).toMatch(
      /^128x128: \d+ blocks, [\d.]+ per multiprocessor, \d+ % of the work wanted, against 64x64: .*; faster although more/,
    )
    const again = await tune({ ...small, training: true, tuner: { clock: () => expect.unreachable() } })
    expect([again.measured, again.rows.every(({ state }) => state === 'cache')]).toEqual([0, true])
    const forced = await tune({ ...small, again: true, tuner: { clock } })
    expect(forced.measured).toBe(forced.rows.length)
  })
  it('ends by its budget, largest calls first, and goes on where it stopped', async () => {
    const slow = (call: unknown, tile: string) => {
      const until = performance.now() + 10
      while (performance.now() < until);
      return clock(call, tile)
    }
    const report = await tune({ ...small, budget: 0.3, tuner: { clock: slow } })
    expect(report.measured).toBeGreaterThan(0)
    expect(report.remaining).toBeGreaterThan(0)
    expect(report.rows.slice(0, report.measured).every(({ state }) => state === 'measured')).toBe(true)
    expect(report.rows.at(-1)).toMatchObject({ state: 'budget', winner: null, gain: null })
    const next = await tune({ ...small, tuner: { clock } })
    expect([next.measured, next.remaining]).toEqual([report.remaining, 0])
  })
  it('an interrupt keeps what was measured', async () => {
    const stop = new AbortController()
    let calls = 0
    const report = await tune({
      ...small,
      signal: stop.signal,
      tuner: {
        clock: (call, tile) => {
          if (++calls === 4) stop.abort()
          return clock(call, tile)
        },
      },
    })
    expect(report.interrupted).toBe(true)
    expect(report.measured).toBeGreaterThan(0)
    expect(report.rows.at(-1)!.state).toBe('interrupted')
    expect(Object.keys(JSON.parse(readFileSync(report.path!, 'utf8')).calls)).toHaveLength(report.measured)
  })
  it('passes over a call that does not fit into memory, and over no other error', async () => {
    const failing = (code: 'ERR_MEMORY' | 'ERR_DEVICE') => (call: readonly unknown[], tile: string) => {
      if (call[0] === 'conv2d') throw new SepconvError(code, 'refused')
      return clock(call, tile)
    }
    const { rows, remaining } = await tune({ ...small, tuner: { clock: failing('ERR_MEMORY') } })
    expect(rows.filter(({ kernel }) => kernel === 'conv2d').every(({ state, why }) => state === 'failed' && why === 'refused')).toBe(true)
    expect(remaining).toBe(rows.filter(({ kernel }) => kernel === 'conv2d').length)
    await expect(tune({ ...small, again: true, tuner: { clock: failing('ERR_DEVICE') } })).rejects.toMatchObject({ code: 'ERR_DEVICE' })
  })
  it('refuses a device without tiles', async () => {
    await expect(tune({ ...small, device: 'reference' })).rejects.toMatchObject({ code: 'ERR_ARGUMENT' })
  })
})

describe('the explanation', () => {
  const half = (...shape: number[]): TensorType => ({ shape, dtype: 'bfloat16' })
  it('counts the waves of the middle flow as the table of tiles does', () => {
    const x = half(32, 19, 19, 728)
    const call = ['pointwiseConv2d', [x, half(728, 728)], [x], {}] as const
    // 61 x 4 tiles over 132 multiprocessors: two waves, of which 244 of 264 places are taken; 11,552 of 11,712 rows, 728 of 736 columns.
    const { blocks, waves, useful } = tileGeometry(call, '192x184', 132)!
    expect([blocks, waves]).toEqual([244, 244 / 132])
    expect(useful).toBeCloseTo(((11552 * 728) / (11712 * 736)) * (244 / 264), 10)
    expect(tileGeometry(call, '128x256', 132)!.blocks).toBe(91 * 3)
  })
  it('cuts depthwise tiles to the image, and counts the splits of a depth', () => {
    const x = half(1, 6, 10, 128)
    expect(tileGeometry(['depthwiseConv2d', [x, half(3, 3, 128, 1)], [x], {}], '8x16', 132)).toEqual({
      blocks: 2,
      waves: 2 / 132,
      useful: (120 / 144) * (2 / 132),
    })
    const gradient = ['pointwiseConv2dFilterGradient', [half(64, 96), half(64, 96)], [half(96, 96)], {}] as const
    expect(tileGeometry(gradient, '128x128', 132, 33)).toEqual({ blocks: 33, waves: 0.25, useful: ((96 * 96) / 128 ** 2) * 0.25 })
  })
  it('of the rule needs no GPU: candidates, its choice by compute capability, no times', async () => {
    const report = (await json('tune', '--dry-run', '--batch', '32')) as TuneReport
    const middle = report.rows.find(({ kernel, shape }) => kernel === 'pointwiseConv2d' && shape.includes('[32,19,19,728] [728,728] >'))!
    expect(middle).toMatchObject({
      rule: '192x184',
      variant: 'bfloat16 192x184 wgmma',
      winner: null,
      gain: null,
      state: 'dry-run',
      count: 17,
    })
    expect(middle.candidates.map(({ microseconds }) => microseconds)).toEqual(Array(middle.candidates.length).fill(null))
    expect([report.path, report.measured]).toEqual([null, 0])
    const { rows } = (await json('tune', '--dry-run', '--batch', '64', '--training')) as TuneReport
    const gradient = rows.find(({ kernel }) => kernel === 'pointwiseConv2dFilterGradient')!
    const [, splits] = /, (\d+) splits/.exec(gradient.variant)!
    expect(gradient.candidates.find(({ tile }) => tile === gradient.rule)!.blocks! % Number(splits)).toBe(0)
    expect(gradient.candidates.every(({ waves }) => waves! > 0.8)).toBe(true)
    const ampere = (await json('tune', '--dry-run', '--batch', '32', '--capability', '8')) as TuneReport
    expect(ampere.multiprocessors).toBe(108)
    expect(ampere.rows.every(({ variant }) => !variant.includes('wgmma'))).toBe(true)
    expect(readdirSync(folder)).toEqual([])
  })
})

describe('sepconv tune', () => {
  const command = ['tune', ...TINY, '--batch', '1', '--device', 'emulator:fair']
  it('prints a table, the reason below each call, and where the times are kept', async () => {
    const { status, stdout, stderr } = await sepconv(...command)
    expect(status).toBe(0)
    expect(stdout).toMatch(/kernel +shape +calls +tile +µs +blocks +waves +wanted\n/)
    expect(stdout).toMatch(/\n {2}64x64: \d+ blocks, /)
    expect(stdout).toContain('fastest')
    expect(stderr).toMatch(/emulator:fair 2: \d+ calls measured in [\d.]+ s; kept in .*tiles-emulator-fair-2/)
  })
  it('names a damaged cache and goes on', async () => {
    const { path } = (await json(...command)) as TuneReport
    writeFileSync(path!, 'damaged')
    const { status, stderr } = await sepconv(...command)
    expect([status, stderr]).toEqual([0, expect.stringContaining(`${path} is no cache of tiles and is ignored`)])
  })
  it('Ctrl-C ends with status 130 and a cache that is whole', async () => {
    const timer = setInterval(() => {
      if (process.listenerCount('SIGINT') > before) process.emit('SIGINT')
    }, 1)
    const before = process.listenerCount('SIGINT')
    try {
      const { status, stdout, stderr } = await sepconv(...command, '--json')
      expect(status).toBe(130)
      const report = JSON.parse(stdout) as TuneReport
      expect(report.interrupted).toBe(true)
      expect(stderr).toContain('calls were not measured: the rule serves them. Run again to go on')
    } finally {
      clearInterval(timer)
    }
  })
  it.each([
    [['tune', '--device', 'cuda:7'], 1, /there is no device 'cuda:7'|not available/],
    [['tune', '--device', 'reference'], 2, /device 'reference' has no tiles to choose/],
    [['tune', 'xceptoin', '--dry-run'], 2, /Did you mean 'xception'/],
    [['tune', '--capability', '9'], 2, /--capability goes with --dry-run/],
    [['tune', '--budget', '0'], 2, /--budget[\s\S]*above 0/],
    [['tune', '--batch', '0'], 2, /--batch[\s\S]*whole number of at least 1/],
    [['tune', '--precision', 'float16'], 2, /Allowed choices are float32, tf32, bfloat16/],
  ])('%j ends with %i and says why', async (args, expected, message) => {
    const { status, stdout, stderr } = await sepconv(...args)
    expect([status, stdout]).toEqual([expected, ''])
    expect(stderr).toMatch(message)
  })
})
