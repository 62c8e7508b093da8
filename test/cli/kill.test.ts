/**
 * `kill -9` at random moments: however often a run is killed, resuming it ends with the files of an uninterrupted one, byte for byte,
 * order of data, augmentation, mixing and dropout included.
 */

import { spawn } from 'node:child_process'
import { randomInt } from 'node:crypto'
import { existsSync, readFileSync } from 'node:fs'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { writeShapes } from '../../src/data/shapes.js'
import { builtCli } from './built.js'
import { TINY } from './run.js'

const KILLS = 10
let folder: string
let bin: string

beforeAll(async () => {
  bin = builtCli()
  folder = await mkdtemp(join(tmpdir(), 'sepconv-kill-'))
  await writeShapes(join(folder, 'shapes'), { train: 32, validation: 8, size: 71 })
}, 120_000)
afterAll(() => rm(folder, { recursive: true }))

const SETTINGS = [
  ...['--epochs', '8', '--batch', '8', '--accumulate', '2', '--seed', '11', '--dropout', '0.3', '--checkpoint-steps', '1'],
  ...['--optimizer', 'adamw', '--rate', '0.001', '--rand-augment', '5', '--erase', '0.3', '--mixup', '0.2', '--cutmix', '1'],
]

/** Runs to the end, or is killed after so many milliseconds. @returns whether it reached the end. */
function run(args: readonly string[], killAfter?: number): Promise<boolean> {
  const child = spawn(process.execPath, [bin, 'train', ...args], { cwd: folder, stdio: ['ignore', 'ignore', 'pipe'] })
  const timer = killAfter === undefined ? undefined : setTimeout(() => child.kill('SIGKILL'), killAfter)
  let stderr = ''
  child.stderr.setEncoding('utf8').on('data', (text: string) => (stderr += text))
  return new Promise((resolve, reject) =>
    child.on('close', (status, signal) => {
      clearTimeout(timer)
      if (status === 0) resolve(true)
      else if (signal === 'SIGKILL') resolve(false)
      else reject(new Error(`status ${status}: ${stderr}`))
    }),
  )
}

test('a run that is killed at random moments ends with the same bytes', async () => {
  const since = performance.now()
  await run(['shapes', '--out', 'whole', ...TINY, ...SETTINGS])
  const whole = performance.now() - since
  const moments: number[] = []
  let done = false
  for (let kill = 0; kill < KILLS && !done; kill++) {
    moments.push(randomInt(Math.ceil(whole * 0.15), Math.ceil(whole)))
    const begun = existsSync(join(folder, 'killed', 'config.json'))
    done = await run(begun ? ['--resume', 'killed'] : ['shapes', '--out', 'killed', ...TINY, ...SETTINGS], moments.at(-1))
  }
  const begun = existsSync(join(folder, 'killed', 'config.json'))
  if (!done) await run(begun ? ['--resume', 'killed'] : ['shapes', '--out', 'killed', ...TINY, ...SETTINGS])
  for (const file of ['last.safetensors', 'best.safetensors', 'predictions.json', 'state.json', 'config.json'])
    expect(
      readFileSync(join(folder, 'killed', file)).equals(readFileSync(join(folder, 'whole', file))),
      `${file}; killed after ${moments.join(', ')} ms`,
    ).toBe(true)
}, 180_000)
