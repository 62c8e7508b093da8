/** Training over several ranks: what it must have in common with one process, and with itself. Skipped where there is no MPI. */

import { cpSync, existsSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { writeShapes } from '../../src/data/shapes.js'
import type { FitEvent } from '../../src/train/events.js'
import { builtCli } from '../cli/built.js'
import { TINY } from '../cli/run.js'
import { apart, hasMpi, json, ranks, type Steps } from './mpirun.js'

const only = describe.skipIf(!hasMpi)
if (!hasMpi) console.warn('no mpirun and mpicc: tests of several ranks are skipped (apt-get install openmpi-bin libopenmpi-dev)')

only('steps over ranks', { timeout: 120_000 }, () => {
  const settings = { batch: 8, steps: 3, batchNorm: 'synchronised' }

  it.each([
    ['plain', {}],
    ['clipped', { clipNorm: 0.1 }],
    ['one bucket', { bucketBytes: 1 << 28 }],
  ])('with synchronised batch norm 2 and 4 ranks equal one process at the whole batch: %s', async (_, more) => {
    // Three starts, of which two must agree: rounding is 2e-6 to 5e-6, but where it changes which element of a window is the largest, or the
    // side of a ReLU, weights move by 1e-3 and more (3 of 16 runs of three steps, at other places for 2 and for 4 ranks).
    const differences = new Map<number, number[]>([2, 4].map((count) => [count, []]))
    for (const seed of [5, 7, 8]) {
      const given = { ...settings, ...more, model: { seed } }
      const one = await json<Steps>(1, 'steps.mjs', given)
      for (const [count, found] of differences) {
        const several = await json<Steps>(count, 'steps.mjs', given)
        expect(several.same).toBe(true)
        several.losses.forEach((loss, i) => expect(Math.abs(loss - one.losses[i]!)).toBeLessThan(2e-5))
        found.push(apart(one.weights, several.weights))
      }
    }
    for (const found of differences.values()) expect(found.sort((a, b) => a - b)[1]).toBeLessThan(3e-5)
  })

  it('gradients in parts: every part is summed', async () => {
    const given = { ...settings, batch: 8, accumulate: 2, batchNorm: 'local', steps: 2 }
    const two = await json<Steps>(2, 'steps.mjs', given)
    expect(two.same).toBe(true)
    expect(two.losses.every(Number.isFinite)).toBe(true)
  })

  it.each(['local', 'synchronised'])('the same bits from run to run, on every rank (%s)', async (batchNorm) => {
    const given = { ...settings, batchNorm, brief: true }
    const runs = [await json<Steps>(4, 'steps.mjs', given), await json<Steps>(4, 'steps.mjs', given)]
    expect(runs[1]!.digest).toBe(runs[0]!.digest)
    expect(runs.every(({ same }) => same)).toBe(true)
  })

  it('the first buckets start while most of the backward pass is still to come', async () => {
    const { calls } = await json<Steps>(2, 'steps.mjs', { steps: 1, bucketBytes: 32 << 10, brief: true, model: { width: 0.1 } })
    const [first, last] = [calls.indexOf('allReduceStart'), calls.lastIndexOf('allReduceStart')]
    const wait = calls.indexOf('allReduceWait')
    expect(calls.filter((kernel) => kernel === 'allReduceStart').length).toBeGreaterThan(4)
    expect(wait).toBeGreaterThan(last)
    const behind = calls.slice(first, wait).filter((kernel) => /Gradient$/.test(kernel)).length
    const all = calls.filter((kernel) => /Gradient$/.test(kernel)).length
    expect(behind / all).toBeGreaterThan(0.5)
  })
})

only('sepconv train over ranks', { timeout: 240_000 }, () => {
  let folder: string
  let bin: string
  beforeAll(async () => {
    bin = builtCli()
    folder = await mkdtemp(join(tmpdir(), 'sepconv-ranks-'))
    await writeShapes(join(folder, 'shapes'), { train: 48, validation: 18, size: 71 })
  }, 120_000)
  afterAll(() => rm(folder, { recursive: true, force: true }))

  const SETTINGS = [
    '--epochs',
    '2',
    '--batch',
    '8',
    '--seed',
    '11',
    '--dropout',
    '0.3',
    '--mixup',
    '0.2',
    '--rand-augment',
    '5',
    '--checkpoint-steps',
    '1',
  ]
  const train = (count: number, args: readonly string[], options: Parameters<typeof ranks>[2] = {}) =>
    ranks(count, [bin, 'train', ...args], { cwd: folder, ...options })
  const file = (run: string, name: string) => readFileSync(join(folder, run, name))
  const log = (run: string): FitEvent[] =>
    file(run, 'log.jsonl')
      .toString()
      .trim()
      .split('\n')
      .map((line) => JSON.parse(line) as FitEvent)
  const ok = ({ status, stderr }: { status: number | null; stderr: string }) => expect(status, stderr).toBe(0)

  it('one log, one progress, one checkpoint; the bits of a stopped and resumed run; fewer ranks go on', async () => {
    const whole = await train(2, ['shapes', '--out', 'whole', ...TINY, ...SETTINGS])
    ok(whole)
    expect(whole.stdout.trim()).toBe('whole/best.safetensors')
    expect(whole.stderr.match(/epoch 2\/2 /g)).toHaveLength(1)
    expect(whole.stderr).toContain('2 processes on this machine')
    const events = log('whole')
    expect(events.filter(({ type }) => type === 'step')).toHaveLength(12)
    expect(events[0]).toMatchObject({ type: 'start', ranks: 2 })
    expect(events.find(({ type }) => type === 'epoch')).toMatchObject({ validation: { images: 18 } })

    const stopped = await train(2, ['shapes', '--out', 'halves', ...TINY, ...SETTINGS], {
      stopAt: join(folder, 'halves', 'last.safetensors'),
    })
    // Where the signal came too late the run is complete, and its resumption adds nothing.
    expect([0, 130]).toContain(stopped.status)
    if (stopped.status === 130) ok(await train(2, ['--resume', 'halves']))
    for (const name of ['last.safetensors', 'best.safetensors', 'predictions.json', 'state.json'])
      expect(file('halves', name).equals(file('whole', name)), name).toBe(true)
  })

  it('an evaluation over ranks gives the scores of one process', async () => {
    ok(await train(4, ['shapes', '--out', 'four', ...TINY, ...SETTINGS, '--epochs', '1']))
    const epoch = log('four').find((event) => event.type === 'epoch')
    const alone = await ranks(1, [bin, 'evaluate', 'shapes', '--weights', 'four/best.safetensors', '--json'], { cwd: folder })
    const { images, top1, top5, loss } = JSON.parse(alone.stdout) as Record<string, number>
    expect(epoch).toMatchObject({ validation: { images, top1, top5, loss } })
    const four = await ranks(4, [bin, 'evaluate', 'shapes', '--weights', 'four/best.safetensors', '--metric', 'map@100', '--json'], {
      cwd: folder,
    })
    const one = await ranks(1, [bin, 'evaluate', 'shapes', '--weights', 'four/best.safetensors', '--metric', 'map@100', '--json'], {
      cwd: folder,
    })
    expect(JSON.parse(four.stdout)).toEqual(JSON.parse(one.stdout))
  })

  it('a checkpoint of four ranks goes on with two, and with one', async () => {
    ok(await train(4, ['shapes', '--out', 'shrink', ...TINY, ...SETTINGS, '--epochs', '1', '--sync-batch-norm']))
    const config = JSON.parse(file('shrink', 'config.json').toString()) as { settings: Record<string, unknown> }
    expect(config.settings.batchNorm).toBe('synchronised')
    // The same run, made longer by hand as nobody should, so that there is something left to do.
    for (const [name, count] of [
      ['shrink2', 2],
      ['shrink1', 1],
    ] as const) {
      cpSync(join(folder, 'shrink'), join(folder, name), { recursive: true })
      writeFileSync(join(folder, name, 'config.json'), JSON.stringify({ ...config, settings: { ...config.settings, epochs: 2 } }))
      ok(await train(count, ['--resume', name]))
      const resumed = log(name)
      expect(resumed.filter((event) => event.type === 'start').at(-1)).toMatchObject({ step: 6, ranks: count })
      expect(resumed.at(-1)).toMatchObject({ type: 'done', step: 12 })
    }
    // The first step after the checkpoint sees the same pictures, masks and weights on either.
    const first = (name: string) => log(name).find((event) => event.type === 'step' && event.step === 7) as { loss: number }
    expect(Math.abs(first('shrink2').loss - first('shrink1').loss)).toBeLessThan(2e-5)
  })

  it('--workers starts the ranks itself; --help says so', async () => {
    const run = await ranks(
      1,
      [bin, 'train', 'shapes', '--out', 'workers', '--workers', '2', ...TINY, ...SETTINGS, '--epochs', '1', '--json'],
      { cwd: folder },
    )
    ok(run)
    const lines = run.stdout
      .trim()
      .split('\n')
      .map((line) => JSON.parse(line) as FitEvent)
    expect(lines[0]).toMatchObject({ type: 'start', ranks: 2 })
    expect(lines.filter(({ type }) => type === 'done')).toHaveLength(1)
    const step = lines.find(({ type }) => type === 'step')
    expect(step).toMatchObject({ reduceMs: expect.any(Number), exposedMs: expect.any(Number) })
  })

  it.each([
    ['data', ['others'], /rank 1 .* differs from rank 0: .*data\.classes is/],
    ['settings', ['shapes', '--rate', '0.5'], /rank 1 .* differs from rank 0: settings\.rate is 0\.5, of rank 0 it is/],
    ['recipe', ['shapes', '--recipe', 'paper-imagenet'], /rank 1 .* differs from rank 0: settings\.[\w.]+ is/],
    ['isa', ['shapes'], /rank 1 .* differs from rank 0: isa is "scalar"/],
  ])('ranks that differ in %s are refused at the start', async (what, args, message) => {
    cpSync(join(folder, 'shapes'), join(folder, 'others'), { recursive: true })
    for (const part of ['train', 'val']) rmSync(join(folder, 'others', part, 'square'), { recursive: true, force: true })
    const script = `import { spawnSync } from 'node:child_process'
      const first = process.env.OMPI_COMM_WORLD_RANK === '0' || process.env.PMI_RANK === '0'
      const args = first ? ['shapes'] : ${JSON.stringify(args)}
      const env = { ...process.env, ...(!first && ${what === 'isa'} && { SEPCONV_ISA: 'scalar' }) }
      const { status } = spawnSync(process.execPath, [${JSON.stringify(bin)}, 'train', ...args, '--out', 'refused', ...${JSON.stringify([...TINY, ...SETTINGS])}], { stdio: 'inherit', env })
      process.exitCode = status ?? 1`
    const { status, stderr, seconds } = await ranks(2, ['--input-type=module', '-e', script], { cwd: folder })
    expect(status).not.toBe(0)
    expect(stderr).toMatch(message)
    expect(seconds).toBeLessThan(60)
    expect(existsSync(join(folder, 'refused', 'last.safetensors'))).toBe(false)
  })

  it('a batch that cannot be dealt out is refused by name', async () => {
    const { status, stderr } = await train(4, ['shapes', '--out', 'odd', ...TINY, '--batch', '6'])
    expect(status).not.toBe(0)
    expect(stderr).toContain('a batch of 6 in 1 parts cannot be dealt out to 4 ranks')
  })
})
