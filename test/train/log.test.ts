import { appendFile, mkdtemp, readdir, readFile, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, expect, it } from 'vitest'
import { readJsonLines } from '../../src/files.js'
import type { FitEvent } from '../../src/train/events.js'
import { LOG, RunLog } from '../../src/train/log.js'

let folder: string
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), 'sepconv-log-'))
})
afterEach(() => rm(folder, { recursive: true }))

const step = (n: number): FitEvent => ({
  ...{ type: 'step', epoch: 1, step: n, steps: 9, loss: 1 / n, top1: 0.5, rate: 0.1, imagesPerSecond: 10, waitShare: 0 },
  ...{ decodeMs: 1, waitMs: 2, computeMs: 3 },
})

it('holds steps back until something else happens, and closes a line that a crash tore', async () => {
  const log = await RunLog.open(folder)
  await log.add(step(1))
  expect(await readJsonLines(join(folder, LOG))).toHaveLength(0)
  await log.add({ type: 'checkpoint', step: 1, path: 'x' })
  expect(await readJsonLines(join(folder, LOG))).toMatchObject([{ type: 'step', step: 1 }, { type: 'checkpoint' }])
  await log.close()
  await appendFile(join(folder, LOG), '{"type":"st')
  const again = await RunLog.open(folder)
  await again.add(step(2))
  await again.close()
  expect(((await readJsonLines(join(folder, LOG))) as FitEvent[]).map(({ type }) => type)).toEqual(['step', 'checkpoint', 'step'])
  const boards = (await readdir(folder)).filter((name) => name.startsWith('events.out.tfevents.'))
  expect(boards.length).toBeGreaterThan(0)
  const bytes = await readFile(join(folder, boards[0]!))
  for (const tag of ['brain.Event:2', 'train/loss', 'throughput/images_per_second']) expect(bytes.includes(tag)).toBe(true)
})
