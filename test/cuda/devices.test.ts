/**
 * Devices that misbehave or are not there, on the emulated device and with a driver made for this test: what vanishes is not used any
 * more, foreign memory is refused, several devices and programs work side by side.
 */

import { execFileSync } from 'node:child_process'
import { existsSync, mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, describe, expect, it } from 'vitest'
import type { TensorType } from '../../src/graph/types.js'
import type { NativeExecutor } from '../../src/runtime/native.js'
import { localAddon, packageRoot } from '../../src/runtime/native.js'
import { filled, generator, uniform } from '../helpers.js'
import { download, encode, floats, inferred, poisoned, runCall, singleCall, upload } from './calls.js'
import { emulator } from './emulator.js'

const type = (shape: readonly number[]): TensorType => ({ shape, dtype: 'float32' })
const coded = (code: string, message: RegExp) => expect.objectContaining({ code, message: expect.stringMatching(message) })
async function caught(body: () => unknown): Promise<unknown> {
  try {
    await body()
  } catch (error) {
    return error
  }
  return undefined
}

describe('a device that vanishes in the middle of a run', () => {
  const setup = () => {
    const executor = emulator().openExecutor('emulator')
    const load = (kernel: string) => executor.load(singleCall(executor, kernel, [type([4])], [type([4])], {}))
    const [from, to] = [upload(executor, filled([4], [1, 2, 3, 4])), poisoned(executor, 16)]
    const [sound, broken] = [load('copy'), load('emulatorDeviceLost')]
    return { executor, sound, broken, from, to }
  }
  const lost = /run: cudaErrorIllegalAddress/
  const refused = coded(
    'ERR_DEVICE',
    /is not used any more after an earlier error: run: cudaErrorIllegalAddress.*checkpoints are not affected/,
  )

  it.each(['run', 'runSync', 'profile', 'elapsed'] as const)('%s fails, and everything after it is refused', async (method) => {
    const { executor, sound, broken, from, to } = setup()
    const call = (program: typeof sound, name: typeof method) => program[name]([from], [0], [to], [0])
    expect(await caught(() => call(broken, method))).toEqual(coded('ERR_DEVICE', lost))
    for (const name of ['run', 'runSync', 'profile', 'elapsed'] as const) expect(await caught(() => call(sound, name))).toEqual(refused)
    expect(await caught(() => executor.write(from, 0, new Uint8Array(4)))).toEqual(refused)
    expect(await caught(() => executor.read(to, 0, new Uint8Array(4)))).toEqual(refused)
    expect(await caught(() => executor.readAsync(to, 0, new Uint8Array(4)))).toEqual(refused)
    expect(await caught(() => executor.allocate(1 << 20))).toEqual(refused)
    expect(await caught(() => executor.load(singleCall(executor, 'copy', [type([4])], [type([4])], {})))).toEqual(refused)
    // What it held can be given back, and another executor goes on.
    for (const memory of [from, to]) memory.dispose()
    expect(runCall(emulator().openExecutor('emulator'), 'copy', [filled([1], [7])], {}, [type([1])]).map(floats)).toEqual([
      Float32Array.of(7),
    ])
  })
  it('fails a replay too, and leaves nothing recorded behind', async () => {
    const { broken, from, to } = setup()
    expect(await caught(() => broken.runSync([from], [0], [to], [0]))).toEqual(coded('ERR_DEVICE', lost))
    expect(await caught(() => broken.runSync([from], [0], [to], [0]))).toEqual(refused)
  })
})

describe('several devices', () => {
  const names = ['emulator:fair', 'emulator:random-late-shuffled']
  const random = generator(9)
  const inputs = [uniform(random, [1, 9, 9, 12]), uniform(random, [3, 3, 12, 1]), uniform(random, [12, 20])]
  const attributes = { strides: [1, 1], dilations: [1, 1], padding: [1, 1, 1, 1] }
  const outputs = inferred('separableConv2d', inputs, attributes)

  it('run several programs each, all at once, with the same bits', async () => {
    const start = (executor: NativeExecutor) => {
      const types = inputs.map((input) => input.type)
      const program = executor.load(singleCall(executor, 'separableConv2d', types, outputs, attributes))
      const from = inputs.map((input) => upload(executor, input))
      const to = poisoned(executor, 4 * 81 * 20)
      const zeros = from.map(() => 0)
      return { executor, to, done: Promise.all(Array.from({ length: 5 }, () => program.run(from, zeros, [to], [0]))) }
    }
    const executors = names.map((name) => emulator().openExecutor(name))
    const all = [...executors, ...executors].map(start)
    await Promise.all(all.map(({ done }) => done))
    const results = all.map(({ executor, to }) => Buffer.from(download(executor, to)))
    for (const result of results) expect(result.equals(results[0]!)).toBe(true)
    expect(floats(results[0]!).some(Number.isNaN)).toBe(false)
  })
  it("refuse each other's memory", async () => {
    const [own, other] = names.map((name) => emulator().openExecutor(name)) as [NativeExecutor, NativeExecutor]
    const program = own.load(singleCall(own, 'copy', [type([4])], [type([4])], {}))
    const [mine, foreign] = [upload(own, filled([4], [1, 2, 3, 4])), other.allocate(16)]
    for (const [from, to] of [
      [foreign, mine],
      [mine, foreign],
    ] as const)
      expect(await caught(() => program.runSync([from], [0], [to], [0]))).toEqual(coded('ERR_DEVICE', /belongs to another executor/))
    expect(await caught(() => own.write(foreign, 0, new Uint8Array(4)))).toMatchObject({ code: 'ERR_DEVICE' })
    expect(await caught(() => program.runSync([{} as never], [0], [mine], [0]))).toMatchObject({ code: 'ERR_ARGUMENT' })
  })
  it('refuse what reaches beyond its memory', async () => {
    const executor = emulator().openExecutor('emulator')
    const program = executor.load(singleCall(executor, 'copy', [type([4])], [type([4])], {}))
    const memory = executor.allocate(64)
    for (const offset of [56, 64, 2 ** 40])
      expect(await caught(() => program.runSync([memory], [offset], [memory], [0])), String(offset)).toMatchObject({ code: 'ERR_ARGUMENT' })
  })
})

describe('inputs of the next run', () => {
  const load = (executor: NativeExecutor, kernel: string) => executor.load(singleCall(executor, kernel, [type([4])], [type([4])], {}))

  it('are copied while the current one runs, and read by the run that was asked for after them', async () => {
    const executor = emulator().openExecutor('emulator')
    const [copy, waiting] = [load(executor, 'copy'), load(executor, 'emulatorAwaitsCopy')]
    const [first, next] = [upload(executor, filled([4], [1, 2, 3, 4])), poisoned(executor, 16)]
    const [to, result] = [poisoned(executor, 16), poisoned(executor, 16)]
    copy.runSync([first], [0], [to], [0])
    // This run ends only when something is copied meanwhile: behind the queue it would wait for itself.
    const running = waiting.run([first], [0], [to], [0])
    executor.write(next, 0, encode(filled([4], [5, 6, 7, 8])))
    const after = copy.run([next], [0], [result], [0])
    await Promise.all([running, after])
    expect([...floats(download(executor, result))]).toEqual([5, 6, 7, 8])
  })
  it('keep to the order in which they were written and read, over many runs', async () => {
    const executor = emulator().openExecutor('emulator')
    const copy = load(executor, 'copy')
    const results: Promise<number>[] = []
    const reused = executor.allocate(16)
    for (let i = 0; i < 200; i++) {
      // By turns memory of its own, and memory that earlier runs may still read or an earlier write still fills.
      const from = i % 3 ? executor.allocate(16) : reused
      const to = executor.allocate(16)
      executor.write(from, 0, encode(filled([4], [-1, -1, -1, -1])))
      executor.write(from, 0, encode(filled([4], [i, i, i, i])))
      const done = copy.run([from], [0], [to], [0])
      if (from !== reused) from.dispose() // its block is used again only when the run is over
      const bytes = new Uint8Array(16)
      results.push(done.then(() => executor.readAsync(to, 0, bytes)).then(() => floats(bytes)[3]!))
    }
    expect(await Promise.all(results)).toEqual(Array.from({ length: 200 }, (_, i) => i))
  })
  it('fail the next task when the device has gone meanwhile', async () => {
    const executor = emulator().openExecutor('emulator')
    const [copy, broken] = [load(executor, 'copy'), load(executor, 'emulatorDeviceLost')]
    const [from, next, to] = [upload(executor, filled([4], [1, 2, 3, 4])), executor.allocate(16), executor.allocate(16)]
    const failed = caught(() => broken.run([from], [0], [to], [0]))
    // The device may be gone already.
    await caught(() => executor.write(next, 0, new Uint8Array(16)))
    expect(await failed).toMatchObject({ code: 'ERR_DEVICE' })
    expect(await caught(() => copy.run([next], [0], [to], [0]))).toMatchObject({ code: 'ERR_DEVICE' })
  })
})

describe('memory that another process holds', () => {
  it('is named where there is too little', () => {
    process.env.SEPCONV_EMULATOR_HELD = String(40 << 20)
    try {
      const executor = emulator().openExecutor('emulator')
      const kept = executor.allocate(10 << 20)
      expect(() => executor.allocate(20 << 20)).toThrow(
        /needed 20 MiB, free 14 MiB of 64 MiB, held by this executor 10 MiB, by others \(the driver, other processes\) 40 MiB/,
      )
      kept.dispose()
      expect(runCall(executor, 'copy', [filled([1], [7])], {}, [type([1])]).map(floats)).toEqual([Float32Array.of(7)])
    } finally {
      delete process.env.SEPCONV_EMULATOR_HELD
    }
  })
})

/** The addon of this checkout with a libcuda.so.1 of ours, which has no GPU to show, as with CUDA_VISIBLE_DEVICES empty. */
describe('a driver', () => {
  const folder = mkdtempSync(join(tmpdir(), 'sepconv-driver-'))
  afterAll(() => rmSync(folder, { recursive: true, force: true }))
  const ask = (status: number, version: number) => {
    const flags = [`-DSTATUS=${status}`, `-DVERSION=${version}`]
    const source = join(packageRoot, 'test/cuda/fakes/driver.cc')
    execFileSync(process.env.CXX ?? 'g++', [
      '-std=c++17',
      '-shared',
      '-fPIC',
      '-Wall',
      '-Wextra',
      ...flags,
      source,
      '-o',
      join(folder, 'libcuda.so.1'),
    ])
    const script = `const addon = require(${JSON.stringify(localAddon)})
      const [, ...rest] = addon.executors()
      let refusal
      try { addon.openExecutor('cuda:0') } catch (error) { refusal = { code: error.code, message: error.message } }
      console.log(JSON.stringify({ rest, refusal }))`
    const text = execFileSync(process.execPath, ['-e', script], {
      encoding: 'utf8',
      env: { ...process.env, LD_LIBRARY_PATH: folder, CUDA_VISIBLE_DEVICES: '' },
    })
    return JSON.parse(text) as { rest: { name: string; code: string; reason: string }[]; refusal: { code: string; message: string } }
  }
  const built =
    existsSync(localAddon) &&
    !/nvcc was not found/.test(
      execFileSync(process.execPath, ['-p', `require(${JSON.stringify(localAddon)}).executors()[1].reason`], { encoding: 'utf8' }),
    )
  it.runIf(built).each([
    ['no GPU', 100, 13000, 'no-device', /shows no GPU.*CUDA_VISIBLE_DEVICES/],
    ['an older version', 35, 12020, 'driver-too-old', /supports CUDA 12\.2, this build needs 13\.0/],
  ] as const)('with %s', (_, status, version, code, reason) => {
    const { rest, refusal } = ask(status, version)
    expect(rest).toEqual([expect.objectContaining({ name: 'cuda', code, reason: expect.stringMatching(reason) })])
    expect(refusal).toEqual({ code: 'ERR_DEVICE', message: expect.stringMatching(reason) })
  })
})
