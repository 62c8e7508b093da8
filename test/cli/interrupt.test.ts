/** Ctrl-C in a process of its own: the step is finished and saved, the command to go on is printed, and it does go on. */

import { spawn } from 'node:child_process'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { writeShapes } from '../../src/data/shapes.js'
import { builtCli } from './built.js'
import { TINY } from './run.js'

let bin: string
let folder: string

beforeAll(async () => {
  bin = builtCli()
  folder = await mkdtemp(join(tmpdir(), 'sepconv-interrupt-'))
  await writeShapes(join(folder, 'shapes'), { train: 16, validation: 8, size: 71 })
}, 120_000)
afterAll(() => rm(folder, { recursive: true }))

function start(args: readonly string[], onLine: (line: string, signal: (name: NodeJS.Signals) => void) => void = () => {}) {
  const child = spawn(process.execPath, [bin, ...args], { cwd: folder, stdio: ['ignore', 'pipe', 'pipe'] })
  const output = { stdout: '', stderr: '' }
  let rest = ''
  child.stdout.setEncoding('utf8').on('data', (text: string) => {
    output.stdout += text
    const lines = (rest + text).split('\n')
    rest = lines.pop()!
    for (const line of lines) onLine(line, (name) => child.kill(name))
  })
  child.stderr.setEncoding('utf8').on('data', (text: string) => (output.stderr += text))
  return new Promise<{ status: number | null; signal: string | null; stdout: string; stderr: string }>((resolve) =>
    child.on('close', (status, signal) => resolve({ status, signal, ...output })),
  )
}

test('Ctrl-C saves, says how to go on, and the run goes on', async () => {
  const args = ['train', 'shapes', '--out', 'run', ...TINY, '--epochs', '3', '--batch', '8', '--json']
  let sent = false
  const stopped = await start(args, (line, signal) => {
    if (sent || (JSON.parse(line) as { type: string }).type !== 'step') return
    sent = true
    signal('SIGINT')
  })
  expect(stopped.status, stopped.stderr).toBe(130)
  expect(stopped.stderr).toContain('continue with: sepconv train shapes --resume run')
  const last = JSON.parse(stopped.stdout.trimEnd().split('\n').at(-1)!) as { type: string; step: number }
  expect(last.type).toBe('stopped')
  const resumed = await start(['train', '--resume', 'run', '--json'])
  expect(resumed.status, resumed.stderr).toBe(0)
  const events = resumed.stdout
    .trimEnd()
    .split('\n')
    .map((line) => JSON.parse(line) as { type: string; step: number })
  expect(events[0]).toMatchObject({ type: 'start', step: last.step })
  expect(events.at(-1)).toMatchObject({ type: 'done', step: 6 })
}, 120_000)

test('a second Ctrl-C ends at once', async () => {
  const args = ['train', 'shapes', '--out', 'second', ...TINY, '--epochs', '50', '--batch', '16', '--json']
  const { status } = await start(args, (line, signal) => {
    if ((JSON.parse(line) as { type: string }).type !== 'step') return
    signal('SIGINT')
    setTimeout(() => signal('SIGINT'), 30)
  })
  expect(status).toBe(130)
}, 60_000)

test('a closed pipe is no error', async () => {
  const child = spawn(process.execPath, [bin, 'summary', 'xception'], { stdio: ['ignore', 'pipe', 'pipe'] })
  let stderr = ''
  child.stderr.setEncoding('utf8').on('data', (text: string) => (stderr += text))
  child.stdout.destroy()
  const status = await new Promise((resolve) => child.on('close', resolve))
  expect([status, stderr]).toEqual([0, ''])
})
