/** The same ranks on MPICH, whose shim is compiled beside Open MPI's. Skipped where there is none. */

import { spawnSync } from 'node:child_process'
import { existsSync, readFileSync } from 'node:fs'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { writeShapes } from '../../src/data/shapes.js'
import { builtCli } from '../cli/built.js'
import { TINY } from '../cli/run.js'
import { program, ranks } from './mpirun.js'

// Debian's names, beside Open MPI.
const [mpirun, mpicc] = ['mpirun.mpich', 'mpicc.mpich']
const has = [mpirun, mpicc].every((command) => spawnSync(command, ['--version']).status === 0)
if (!has) console.warn('no mpirun.mpich and mpicc.mpich: tests of MPICH are skipped (apt-get install mpich libmpich-dev)')
const env = { SEPCONV_MPICC: mpicc, SEPCONV_MPIRUN: mpirun }

describe.skipIf(!has)('MPICH', { timeout: 120_000 }, () => {
  let folder: string
  let bin: string
  beforeAll(async () => {
    bin = builtCli()
    folder = await mkdtemp(join(tmpdir(), 'sepconv-mpich-'))
    await writeShapes(join(folder, 'shapes'), { train: 48, validation: 8, size: 71 })
  }, 120_000)
  afterAll(() => rm(folder, { recursive: true, force: true }))

  it('the same bits on all ranks, from run to run', async () => {
    const settings = JSON.stringify({ batch: 8, steps: 2, batchNorm: 'synchronised', brief: true })
    const runs = [1, 2].map(() => ranks(4, [program('steps.mjs'), settings], { env, mpirun }))
    const digests: string[] = []
    for (const { status, stdout, stderr } of await Promise.all(runs)) {
      expect(status, stderr).toBe(0)
      const { same, digest } = JSON.parse(stdout) as { same: boolean; digest: string }
      expect(same).toBe(true)
      digests.push(digest)
    }
    expect(digests[1]).toBe(digests[0])
  })

  it('--workers starts ranks through it, which stop with a checkpoint and go on with the same bits', async () => {
    const settings = ['--epochs', '3', '--batch', '8', '--seed', '4', '--checkpoint-steps', '1', '--workers', '2']
    const train = (out: string, stopAt?: string) =>
      ranks(1, [bin, 'train', 'shapes', '--out', out, ...TINY, ...settings], {
        cwd: folder,
        env,
        signal: 'SIGINT',
        ...(stopAt && { stopAt }),
      })
    const whole = await train('whole')
    expect(whole.status, whole.stderr).toBe(0)
    expect(whole.stderr).toContain('2 processes on this machine')
    const last = join(folder, 'halves/last.safetensors')
    const stopped = await train('halves', last)
    expect([0, 130]).toContain(stopped.status)
    expect(existsSync(last)).toBe(true)
    if (stopped.status === 130) {
      const resumed = await ranks(1, [bin, 'train', '--resume', 'halves', '--workers', '2'], { cwd: folder, env })
      expect(resumed.status, resumed.stderr).toBe(0)
    }
    expect(readFileSync(last).equals(readFileSync(join(folder, 'whole/last.safetensors')))).toBe(true)
  })
})
