/**
 * Sums over the ranks of emulated GPUs: the CUDA executor's own code, and in the place of NCCL a library made for this test (it adds up
 * in shared memory, test/cuda/fakes/nccl.cc). What only hardware can show is how fast it is.
 */

import { execFileSync } from 'node:child_process'
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { emulator } from '../cuda/emulator.js'
import { writeShapes } from '../../src/data/shapes.js'
import { compileGraph } from '../../src/graph/compile.js'
import { opDefinition } from '../../src/graph/op.js'
import { trace } from '../../src/graph/trace.js'
import '../../src/ops/index.js'
import { openDevice } from '../../src/runtime/device.js'
import { Executable } from '../../src/runtime/executable.js'
import type { NativeDeviceExecutor } from '../../src/runtime/executors/native.js'
import { packageRoot } from '../../src/runtime/native.js'
import { upload } from '../../src/runtime/tensor.js'
import { apart, hasMpi, json, program, ranks, type Steps } from './mpirun.js'

const folder = mkdtempSync(join(tmpdir(), 'sepconv-nccl-'))
afterAll(() => rmSync(folder, { recursive: true, force: true }))

function compileFake(directory: string, ...flags: string[]): void {
  mkdirSync(directory, { recursive: true })
  const source = join(packageRoot, 'test/cuda/fakes/nccl.cc')
  const target = join(directory, 'libnccl.so.2')
  execFileSync(process.env.CXX ?? 'g++', ['-std=c++17', '-O1', '-Wall', '-Wextra', '-shared', '-fPIC', ...flags, source, '-o', target])
}

const log = join(folder, 'calls.txt')
const calls = () => {
  const lines = existsSync(log) ? readFileSync(log, 'utf8').trim().split('\n') : []
  writeFileSync(log, '')
  return lines
}
const DEVICE = 'emulator:random-late-shuffled'
const environment = () => ({
  SEPCONV_NATIVE: process.env.SEPCONV_NATIVE!,
  SEPCONV_CUDA_LIBRARIES: join(folder, 'good'),
  FAKE_LIBRARY_LOG: log,
})

beforeAll(() => {
  emulator()
  compileFake(join(folder, 'good'))
})

describe('one rank', () => {
  const SIZE = 1000
  /** y = sum over ranks of x, then doubled; without the wait where `waits` is false. */
  function doubled(waits: boolean) {
    return trace((graph) => {
      const x = graph.input('x', { shape: [SIZE], dtype: 'float32' })
      const [started] = graph.emit(opDefinition('allReduceStart'), [x], { ranks: 1 })
      const [sum] = waits ? graph.emit(opDefinition('allReduceWait'), [started!], { ranks: 1 }) : [started]
      const [y] = graph.emit(opDefinition('binary'), [sum!, sum!], { function: 'add' })
      graph.output('y', y!)
    })
  }

  async function run(device: string, waits: boolean): Promise<boolean[]> {
    const executor = openDevice(device) as NativeDeviceExecutor
    await executor.joinRanks(executor.ranksId(), 1, 0)
    const executable = new Executable(executor, compileGraph(doubled(waits), executor.target, {}))
    const x = upload(executor, { shape: [SIZE], dtype: 'float32' }, new Float32Array(SIZE))
    const right: boolean[] = []
    // The third run replays what the second one has recorded.
    for (let i = 1; i <= 3; i++) {
      const values = Float32Array.from({ length: SIZE }, (_, k) => i * k + 1)
      executor.write(x.binding.memory, x.binding.offset, new Uint8Array(values.buffer))
      const [y] = await executable.run([x])
      const data = (await y!.data()) as Float32Array
      right.push(data.every((value, k) => value === 2 * values[k]!))
      y!.dispose()
    }
    return right
  }

  it.each(['emulator:fair', DEVICE])('is right on %s, launched and replayed', async (device) => {
    process.env.SEPCONV_CUDA_LIBRARIES = join(folder, 'good')
    expect(await run(device, true)).toEqual([true, true, true])
  })

  it('a wait that is missing shows where sums are late', async () => {
    process.env.SEPCONV_CUDA_LIBRARIES = join(folder, 'good')
    expect((await run(DEVICE, false)).every((right) => !right)).toBe(true)
  })
})

describe.skipIf(!hasMpi)('several ranks', { timeout: 240_000 }, () => {
  const settings = { batch: 2, steps: 2, batchNorm: 'synchronised', device: DEVICE, model: { dropout: 0, middleRepeats: 0 } }

  it('equal one process at the whole batch, with the same bits from run to run, every sum in the same order', async () => {
    const one = await json<Steps>(1, 'steps.mjs', settings, environment())
    calls()
    const two = await json<Steps>(2, 'steps.mjs', settings, environment())
    const made = calls()
    const again = await json<Steps>(2, 'steps.mjs', settings, environment())
    expect(two.same).toBe(true)
    expect(again.digest).toBe(two.digest)
    two.losses.forEach((loss, i) => expect(Math.abs(loss - one.losses[i]!)).toBeLessThan(2e-5))
    expect(apart(one.weights, two.weights)).toBeLessThan(3e-4)
    expect(two.calls.filter((kernel) => kernel === 'allReduceStart').length).toBeGreaterThan(1)
    expect(made.filter((call) => call === 'ncclGetUniqueId').length).toBeGreaterThan(0)
    expect(made.filter((call) => /^ncclCommInitRank/.test(call)).sort()).toEqual(['ncclCommInitRank 0 of 2', 'ncclCommInitRank 1 of 2'])
    // As many of each size from either rank.
    const sizes = new Map<string, number>()
    for (const call of made.filter((line) => /^ncclAllReduce/.test(line))) sizes.set(call, (sizes.get(call) ?? 0) + 1)
    expect(sizes.size).toBeGreaterThan(3)
    for (const [size, times] of sizes) expect(times % 2, size).toBe(0)
  })

  it('where NCCL is missing or too old, the rank and the reason are named', async () => {
    const missing = await ranks(2, [program('steps.mjs'), JSON.stringify(settings)], {
      env: { ...environment(), SEPCONV_CUDA_LIBRARIES: join(folder, 'nothing') },
    })
    expect(missing.status).not.toBe(0)
    expect(missing.stderr).toMatch(/rank 0 \(.*\) cannot sum over GPUs: NCCL was not found: .*apt-get install libnccl2/s)
    compileFake(join(folder, 'old'), '-DFAKE_NCCL_VERSION=20803')
    const old = await ranks(2, [program('steps.mjs'), JSON.stringify(settings)], {
      env: { ...environment(), SEPCONV_CUDA_LIBRARIES: join(folder, 'old') },
    })
    expect(old.stderr).toMatch(/NCCL is too old: 2\.14 is needed, this one calls itself 20803/)
  })

  it('a rank on another kind of device is refused at the start, by name', async () => {
    await writeShapes(join(folder, 'shapes'), { train: 16, validation: 2, size: 71 })
    const settings = JSON.stringify({ data: join(folder, 'shapes'), rank: -1, batch: 2 })
    const gpu = { ...environment(), settings: settings.replace('{', '{"device":"emulator:fair",') }
    const script = `import { spawnSync } from 'node:child_process'
      const first = process.env.OMPI_COMM_WORLD_RANK === '0' || process.env.PMI_RANK === '0'
      const { settings = ${JSON.stringify(settings)}, ...more } = first ? {} : ${JSON.stringify(gpu)}
      const { SEPCONV_NATIVE: _, ...env } = process.env
      const { status } = spawnSync(process.execPath, [${JSON.stringify(program('failing.mjs'))}, settings], { stdio: 'inherit', env: { ...env, ...more } })
      process.exitCode = status ?? 1`
    const { status, stderr } = await ranks(2, ['--input-type=module', '-e', script])
    expect(status).not.toBe(0)
    expect(stderr).toMatch(/rank 1 \(.*\) differs from rank 0: device is "emulator.*", of rank 0 it is "cpu"/)
  })

  it('a rank that fails ends the others, with its name and reason, though they wait for a sum', async () => {
    await writeShapes(join(folder, 'shapes'), { train: 16, validation: 2, size: 71 })
    calls()
    const { status, stderr } = await ranks(
      2,
      [program('failing.mjs'), JSON.stringify({ data: join(folder, 'shapes'), rank: 1, step: 2, batch: 2, device: 'emulator:fair' })],
      { env: environment() },
    )
    expect(status).not.toBe(0)
    expect(stderr).toMatch(/rank 1 ended with Error: the cable came loose/)
    expect(stderr).toMatch(/rank 0 ended with ERR_RANK: .*rank 1 \(.*\): the cable came loose/)
    expect(calls()).toContain('ncclCommAbort')
  })
})
