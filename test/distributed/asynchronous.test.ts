/** Ranks that do not wait for each other. What needs MPI is skipped where there is none. */

import { readFileSync, writeFileSync } from 'node:fs'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { writeShapes } from '../../src/data/shapes.js'
import { dealOut } from '../../src/train/asynchronous.js'
import type { FitEvent } from '../../src/train/events.js'
import { builtCli } from '../cli/built.js'
import { TINY } from '../cli/run.js'
import { hasMpi, program, ranks } from './mpirun.js'

describe('owners', () => {
  it('get parts of about the same size, every part once', () => {
    const parts = [100, 1, 50, 49, 3, 98, 2].map((length, id) => ({ length, id }))
    const dealt = dealOut(parts, 3)
    expect(
      dealt
        .flat()
        .map(({ id }) => id)
        .sort(),
    ).toEqual([0, 1, 2, 3, 4, 5, 6])
    expect(dealt.map((own) => own.reduce((sum, { length }) => sum + length, 0))).toEqual([101, 101, 101])
    expect(dealOut(parts.slice(0, 1), 3).map((own) => own.length)).toEqual([1, 0, 0])
  })
})

describe.skipIf(!hasMpi)('asynchronous training', { timeout: 120_000 }, () => {
  let folder: string
  let bin: string
  beforeAll(async () => {
    bin = builtCli()
    folder = await mkdtemp(join(tmpdir(), 'sepconv-async-'))
    await writeShapes(join(folder, 'shapes'), { train: 96, validation: 16, size: 71 })
  }, 120_000)
  afterAll(() => rm(folder, { recursive: true, force: true }))
  const train = (count: number, args: readonly string[], options: Parameters<typeof ranks>[2] = {}) =>
    ranks(count, [bin, 'train', ...args, '--json'], { cwd: folder, ...options })
  const events = (stdout: string) =>
    stdout
      .trim()
      .split('\n')
      .map((line) => JSON.parse(line) as FitEvent)
  const SETTINGS = [...TINY, '--batch', '8', '--seed', '2', '--asynchronous']

  it.each([
    [2, 2, ['--optimizer', 'adamw', '--rate', '0.001']],
    [4, 0, []],
  ])(
    '%i ranks, staleness of at most %i steps: every picture counts once, updates are as old as the bound allows',
    async (count, most, more) => {
      const out = `bound${count}`
      const { status, stdout, stderr } = await train(count, [
        'shapes',
        '--out',
        out,
        ...SETTINGS,
        '--epochs',
        '2',
        '--max-staleness',
        String(most),
        ...more,
      ])
      expect(status, stderr).toBe(0)
      const epochs = events(stdout).filter((event) => event.type === 'epoch')
      expect(epochs).toHaveLength(2)
      for (const { staleness, top1, loss } of epochs) {
        expect(Number.isFinite(loss)).toBe(true)
        // Shares of 96 pictures.
        expect(Math.abs(top1 * 96 - Math.round(top1 * 96))).toBeLessThan(1e-9)
        // A rank's own updates since, and what the others may be ahead and behind.
        expect(staleness!.max).toBeLessThanOrEqual((count - 1) * (most + 1) + count * most)
        expect(staleness!.mean).toBeGreaterThan(0)
      }
    },
  )

  it('stops at the same step everywhere, and goes on with one process', async () => {
    const out = join(folder, 'halves')
    const stopped = await train(2, ['shapes', '--out', 'halves', ...SETTINGS, '--epochs', '60'], { stopAt: join(out, 'last.safetensors') })
    expect(stopped.status, stopped.stderr).toBe(130)
    const end = events(stopped.stdout).at(-1) as { type: string; step: number }
    expect(end.type).toBe('stopped')
    const state = JSON.parse(readFileSync(join(out, 'state.json'), 'utf8')) as Record<string, number>
    // Every rank had counted its pictures of the epoch under way: as many as the steps say.
    expect(state).toMatchObject({ step: end.step, epochImages: (end.step % 12) * 8 })
    const config = JSON.parse(readFileSync(join(out, 'config.json'), 'utf8')) as { settings: object }
    const epochs = Math.floor(end.step / 12) + 1
    writeFileSync(join(out, 'config.json'), JSON.stringify({ ...config, settings: { ...config.settings, epochs } }))
    const resumed = await train(1, ['--resume', 'halves'])
    expect(resumed.status, resumed.stderr).toBe(0)
    expect(events(resumed.stdout)[0]).toMatchObject({ type: 'start', step: end.step, ranks: 1 })
  })

  it('a rank that fails ends the others, which may be waiting for its weights', async () => {
    const { status, stderr, seconds } = await ranks(2, [
      program('failing.mjs'),
      JSON.stringify({ data: join(folder, 'shapes'), rank: 1, step: 5, epochs: 50, asynchronous: { maxStaleness: 1 } }),
    ])
    expect(status).not.toBe(0)
    expect(stderr).toMatch(/rank 0 ended with ERR_RANK: .*rank 1 \(.*\): the cable came loose/)
    expect(seconds).toBeLessThan(30)
  })

  it.each([
    [['--accumulate', '2'], /asynchronous training has no accumulate/],
    [['--sync-batch-norm'], /asynchronous training has no batchNorm: 'synchronised'/],
  ])('has no %j', async (args, message) => {
    const { status, stderr } = await train(2, ['shapes', '--out', 'clash', ...SETTINGS, ...args])
    expect(status).not.toBe(0)
    expect(stderr).toMatch(message)
  })
})
