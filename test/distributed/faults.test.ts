/** What happens to a job when a rank dies, cannot write, or is slow. Skipped where there is no MPI. */

import { spawnSync } from 'node:child_process'
import { cpSync, existsSync, mkdirSync, readFileSync, readdirSync } from 'node:fs'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { writeShapes } from '../../src/data/shapes.js'
import type { FitEvent } from '../../src/train/events.js'
import { builtCli } from '../cli/built.js'
import { TINY } from '../cli/run.js'
import { hasMpi, program, ranks } from './mpirun.js'

/** Process ids of the ranks that mpirun `parent` has started, in no order. */
function children(parent: number): { pid: number; rank: number }[] {
  return readdirSync('/proc')
    .filter((name) => /^\d+$/.test(name))
    .flatMap((name) => {
      try {
        const ppid = Number(/^PPid:\s+(\d+)/m.exec(readFileSync(`/proc/${name}/status`, 'utf8'))?.[1])
        if (ppid !== parent) return []
        const rank = /(?:OMPI_COMM_WORLD_RANK|PMI_RANK)=(\d+)/.exec(readFileSync(`/proc/${name}/environ`, 'utf8'))?.[1]
        return rank === undefined ? [] : [{ pid: Number(name), rank: Number(rank) }]
      } catch {
        return []
      }
    })
}

const onLinux = process.platform === 'linux'

describe.skipIf(!hasMpi || !onLinux)('faults', { timeout: 240_000 }, () => {
  let folder: string
  let bin: string
  beforeAll(async () => {
    bin = builtCli()
    folder = await mkdtemp(join(tmpdir(), 'sepconv-faults-'))
    await writeShapes(join(folder, 'shapes'), { train: 48, validation: 8, size: 71 })
  }, 120_000)
  afterAll(() => rm(folder, { recursive: true, force: true }))

  const SETTINGS = [...TINY, '--epochs', '3', '--batch', '8', '--seed', '4', '--checkpoint-steps', '1']
  const train = (count: number, args: readonly string[], options: Parameters<typeof ranks>[2] = {}) =>
    ranks(count, [bin, 'train', ...args], { cwd: folder, ...options })
  const bytes = (run: string, name = 'last.safetensors') => readFileSync(join(folder, run, name))

  it('a rank killed at a random moment ends the job within seconds, by name; its checkpoint goes on with the same bits, and on fewer ranks', async () => {
    expect((await train(2, ['shapes', '--out', 'whole', ...SETTINGS])).status).toBe(0)
    for (const victim of [1, 0]) {
      const out = `killed${victim}`
      let killedAt = 0
      // Once there is a checkpoint, after some more milliseconds.
      const timer = (pid: number) =>
        setInterval(() => {
          if (killedAt || !existsSync(join(folder, out, 'state.json'))) return
          const target = children(pid).find(({ rank }) => rank === victim)
          if (!target) return
          killedAt = performance.now()
          setTimeout(() => process.kill(target.pid, 'SIGKILL'), Math.random() * 300)
        }, 5)
      let watching: NodeJS.Timeout | undefined
      const ended = await train(2, ['shapes', '--out', out, ...SETTINGS], { watch: (_, pid) => (watching ??= timer(pid)) })
      clearInterval(watching)
      expect(ended.status, 'the run was over before the rank was killed').not.toBe(0)
      expect((performance.now() - killedAt) / 1e3).toBeLessThan(10)
      expect(ended.stderr).toMatch(new RegExp(`rank ${victim}\\b`))
      cpSync(join(folder, out), join(folder, `${out}-alone`), { recursive: true })

      expect((await train(2, ['--resume', out])).status).toBe(0)
      expect(bytes(out).equals(bytes('whole'))).toBe(true)
      const fewer = await train(1, ['--resume', `${out}-alone`, '--json'])
      expect(fewer.status, fewer.stderr).toBe(0)
      const last = JSON.parse(fewer.stdout.trim().split('\n').at(-1)!) as FitEvent
      expect(last).toMatchObject({ type: 'done', step: 18 })
    }
  })

  it('an error on one rank ends all, with its name and reason', async () => {
    const { status, stderr, seconds } = await ranks(3, [
      program('failing.mjs'),
      JSON.stringify({ data: join(folder, 'shapes'), rank: 2, step: 3 }),
    ])
    expect(status).not.toBe(0)
    for (const rank of [0, 1])
      expect(stderr).toMatch(new RegExp(`rank ${rank} ended with ERR_RANK: .*rank 2 \\(.*\\): the cable came loose`))
    expect(stderr).toMatch(/rank 2 ended with Error: the cable came loose/)
    expect(seconds).toBeLessThan(30)
  })

  it('a straggler is named', async () => {
    const { status, stdout, stderr } = await ranks(3, [
      program('failing.mjs'),
      JSON.stringify({ data: join(folder, 'shapes'), rank: 1, slow: 60, epochs: 8 }),
    ])
    expect(status, stderr).toBe(0)
    const events = stdout
      .trim()
      .split('\n')
      .map((line) => JSON.parse(line) as FitEvent)
    const named = events.filter((event) => event.type === 'straggler')
    expect(named.length).toBeGreaterThan(0)
    for (const event of named) expect(event).toMatchObject({ rank: 1 })
  })

  // A tmpfs that is too small for a checkpoint; only root may mount one.
  const disk = process.getuid?.() === 0
  it.skipIf(!disk)('a full disk stops all ranks cleanly, and says so once', async ({ skip }) => {
    const full = join(folder, 'full')
    mkdirSync(full)
    if (spawnSync('mount', ['-t', 'tmpfs', '-o', 'size=64k', 'tmpfs', full]).status !== 0) skip()
    try {
      const { status, stderr, seconds } = await train(2, ['shapes', '--out', 'full/run', ...SETTINGS])
      expect(status).not.toBe(0)
      expect(stderr).toMatch(/ENOSPC|no space|disk is full/i)
      expect(stderr.match(/\[ERR_FILE\]/g)).toHaveLength(1)
      expect(seconds).toBeLessThan(30)
    } finally {
      spawnSync('umount', [full])
    }
  })
})
