// The native CPU executor through the executor interface, on small programs built by hand: order, aborts, lifetimes, errors, cost.

import { spawnSync } from 'node:child_process'
import { mkdtempSync, readdirSync, writeFileSync } from 'node:fs'
import { availableParallelism, tmpdir } from 'node:os'
import path from 'node:path'
import { Worker } from 'node:worker_threads'
import { afterEach, describe, expect, test, vi } from 'vitest'
import type { Attributes } from '../../src/graph/graph.js'
import type { DeviceMemory } from '../../src/runtime/executor.js'
import { NativeCpuExecutor, nativeExecutors } from '../../src/runtime/executors/native.js'
import { loadNative, packageVersion } from '../../src/runtime/native.js'
import type { Call, Program, ProgramBuffer } from '../../src/runtime/program.js'

const native = loadNative()
if (!native.addon) console.warn(`native executor tests do not run: ${JSON.stringify(native.failures)}`)

// ---- programs by hand

const float32 = (place: ProgramBuffer['place'], shape: number[], extra: Partial<ProgramBuffer> = {}): ProgramBuffer => ({
  place,
  dtype: 'float32',
  shape,
  bytes: 4 * shape.reduce((a, b) => a * b, 1),
  ...extra,
})
const call = (
  kernel: string,
  inputs: (number | null)[],
  outputs: number[],
  attributes: Attributes = {},
  extra: Partial<Call> = {},
): Call => ({ kernel, inputs, outputs, attributes, scope: '', ...extra })

function program(buffers: ProgramBuffer[], calls: Call[], extra: Partial<Program> = {}): Program {
  const at = (place: string) => buffers.flatMap((buffer, i) => (buffer.place === place && buffer.view === undefined ? [i] : []))
  const arenaBytes = Math.max(0, ...buffers.map((buffer) => (buffer.place === 'arena' ? buffer.offset! + buffer.bytes : 0)))
  return {
    format: 'sepconv-program',
    version: 1,
    target: 'cpu',
    buffers,
    calls,
    inputs: at('input'),
    outputs: at('output'),
    arenaBytes,
    updateStart: calls.length,
    ...extra,
  }
}

/** y = x + w for a state w. */
const sum = (n: number) =>
  program(
    [float32('input', [n]), float32('state', [n], { name: 'w' }), float32('output', [n])],
    [call('binary', [0, 1], [2], { function: 'add' })],
  )

/** s = s (function) constant, in place. */
const step = (fn: string, value: number) =>
  program(
    [
      float32('state', [1], { name: 's' }),
      float32('constant', [1], { data: Buffer.from(new Float32Array([value]).buffer).toString('base64') }),
    ],
    [call('binary', [0, 1], [0], { function: fn })],
    { updateStart: 0 },
  )

/** Many additions over `n` elements in the arena, then s = s + 1: long enough to be interrupted. */
const long = (n: number, calls: number) =>
  program(
    [
      float32('arena', [n], { offset: 0 }),
      float32('arena', [n], { offset: 4 * n }),
      float32('state', [1], { name: 's' }),
      float32('constant', [1], { data: Buffer.from(new Float32Array([1]).buffer).toString('base64') }),
    ],
    [
      ...Array.from({ length: calls }, () => call('binary', [0, 1], [0], { function: 'add' })),
      call('binary', [2, 3], [2], { function: 'add' }),
    ],
    { updateStart: calls },
  )

const bytesOf = (values: ArrayLike<number>) => new Uint8Array(Float32Array.from(values).buffer)

function upload(executor: NativeCpuExecutor, values: ArrayLike<number>): DeviceMemory {
  const memory = executor.allocate(4 * values.length)
  executor.write(memory, 0, bytesOf(values))
  return memory
}

function valuesOf(memory: DeviceMemory): Float32Array {
  const bytes = new Uint8Array(memory.bytes)
  memory.executor.readSync(memory, 0, bytes)
  return new Float32Array(bytes.buffer)
}

const whole = (memory: DeviceMemory) => ({ memory, offset: 0 })
const random = (n: number, seed = 1) => Float32Array.from({ length: n }, (_, i) => Math.sin(seed * 12.9898 + i * 78.233) * 3)
const codeOf = (body: () => unknown): string => {
  try {
    body()
  } catch (error) {
    return (error as { code: string }).code
  }
  return 'no error'
}

describe.skipIf(!native.addon)('native cpu executor', () => {
  test('says what it is', () => {
    const executor = new NativeCpuExecutor({ threads: 1 })
    expect(executor.name).toBe('cpu')
    expect(executor.target.name).toBe('cpu')
    expect(executor.target.panel).toBeGreaterThan(0)
    expect(executor.target.dtypes).toContain('float32')
    expect(executor.threads).toBe(1)
    executor.setThreads(3)
    expect(executor.threads).toBe(3)
    const listed = nativeExecutors()
    expect(listed.find(({ name }) => name === 'cpu')).toMatchObject({ available: true })
    expect(listed.some(({ name }) => name.startsWith('cuda'))).toBe(true)
    for (const { available, code, reason } of listed) if (!available) expect([typeof code, typeof reason]).toEqual(['string', 'string'])
  })

  test.runIf(process.platform === 'linux')('starts no more threads than there are processors', () => {
    const running = () => readdirSync('/proc/self/task').length
    const executor = new NativeCpuExecutor({ threads: 1 })
    const before = running()
    executor.setThreads(availableParallelism() + 40)
    expect(executor.threads).toBe(availableParallelism() + 40)
    expect(running() - before).toBeLessThan(availableParallelism() + 20)
    executor.setThreads(1)
    const tested = new NativeCpuExecutor({ threads: availableParallelism() + 40, oversubscribe: true })
    expect(running() - before).toBeGreaterThanOrEqual(availableParallelism() + 39)
    tested.setThreads(1)
  })

  test('runs a program, asynchronously and on the calling thread', async () => {
    const executor = new NativeCpuExecutor({ threads: 2 })
    const loaded = executor.load(sum(1000))
    const [x, w] = [upload(executor, random(1000)), upload(executor, random(1000, 2))]
    const [y, z] = [executor.allocate(4000), executor.allocate(4000)]
    loaded.bind(1, whole(w))
    await loaded.run([whole(x)], [whole(y)])
    loaded.runSync([whole(x)], [whole(z)])
    const expected = random(1000).map((value, i) => value + random(1000, 2)[i]!)
    expect(valuesOf(y)).toEqual(expected)
    expect(valuesOf(z)).toEqual(expected)
  })

  test('takes offsets, views, absent inputs and workspaces', async () => {
    const executor = new NativeCpuExecutor({ threads: 1 })
    // y[3] = sum over the rows of x seen as [4, 3]; then z = y * 1 without shift or residual.
    const reduce = call('reduce', [1], [3], { function: 'sum', axes: [0], keepDims: false })
    const bytes = executor.target.workspaceBytes(
      'reduce',
      [{ dtype: 'float32', shape: [4, 3] }],
      [{ dtype: 'float32', shape: [3] }],
      reduce.attributes,
    )
    const given = { ...reduce, workspace: { offset: 64, bytes } }
    const loaded = executor.load(
      program(
        [
          float32('input', [12]),
          float32('input', [4, 3], { view: 0 }),
          float32('state', [3], { name: 'scale' }),
          float32('arena', [3], { offset: 0 }),
          float32('output', [3]),
        ],
        [given, call('scaleShift', [3, 2, null, null], [4], { activation: 'none' })],
        { arenaBytes: 64 + bytes },
      ),
    )
    const x = upload(
      executor,
      Array.from({ length: 16 }, (_, i) => i),
    )
    const scale = upload(executor, [0, 0, 1, 2, 3])
    const y = executor.allocate(32)
    loaded.bind(2, { memory: scale, offset: 8 })
    await loaded.run([{ memory: x, offset: 16 }], [{ memory: y, offset: 4 }])
    expect([...valuesOf(y).subarray(1, 4)]).toEqual([4 + 7 + 10 + 13, 2 * (5 + 8 + 11 + 14), 3 * (6 + 9 + 12 + 15)])
  })

  test('works off runs, writes and reads in the order in which they were started', async () => {
    const executor = new NativeCpuExecutor({ threads: 2 })
    const s = upload(executor, [1])
    const [double, increment, busy] = [executor.load(step('multiply', 2)), executor.load(step('add', 1)), executor.load(long(1 << 20, 40))]
    for (const loaded of [double, increment]) loaded.bind(0, whole(s))
    busy.bind(2, whole(s))
    const read = new Uint8Array(4)
    const done = [busy.run([], []), double.run([], []), increment.run([], []), double.run([], [])]
    const reading = executor.read(s, 0, read)
    executor.write(s, 0, bytesOf([100])) // waits in the queue: the runs before it still see their own value
    done.push(increment.run([], []))
    await Promise.all([...done, reading])
    expect(new Float32Array(read.buffer)[0]).toBe(((1 + 1) * 2 + 1) * 2)
    expect(valuesOf(s)[0]).toBe(101)
  })

  test('runSync waits for what was started before', () => {
    const executor = new NativeCpuExecutor({ threads: 2 })
    const s = upload(executor, [0])
    const [busy, double] = [executor.load(long(1 << 20, 20)), executor.load(step('multiply', 2))]
    busy.bind(2, whole(s))
    double.bind(0, whole(s))
    void busy.run([], [])
    double.runSync([], [])
    expect(valuesOf(s)[0]).toBe(2)
  })

  test('a state that is bound anew does not change runs that were started before', async () => {
    const executor = new NativeCpuExecutor({ threads: 1 })
    const loaded = executor.load(sum(4))
    const x = upload(executor, [0, 0, 0, 0])
    const [y, z] = [executor.allocate(16), executor.allocate(16)]
    loaded.bind(1, whole(upload(executor, [1, 1, 1, 1])))
    const first = loaded.run([whole(x)], [whole(y)])
    loaded.bind(1, whole(upload(executor, [2, 2, 2, 2])))
    await Promise.all([first, loaded.run([whole(x)], [whole(z)])])
    expect([valuesOf(y)[0], valuesOf(z)[0]]).toEqual([1, 2])
  })

  test('an abort stops a run before it writes state, and not after', async () => {
    const executor = new NativeCpuExecutor({ threads: 1 })
    const s = upload(executor, [0])
    const busy = executor.load(long(1 << 20, 400))
    busy.bind(2, whole(s))
    const controller = new AbortController()
    const started = performance.now()
    const run = busy.run([], [], { signal: controller.signal })
    const queued = busy.run([], [], { signal: controller.signal })
    setTimeout(() => controller.abort(new Error('enough')), 5)
    await expect(run).rejects.toThrow('enough')
    await expect(queued).rejects.toThrow('enough')
    const aborted = performance.now() - started
    expect(valuesOf(s)[0]).toBe(0)
    const full = performance.now()
    busy.runSync([], [])
    expect(aborted).toBeLessThan(performance.now() - full)
    expect(valuesOf(s)[0]).toBe(1)

    await expect(busy.run([], [], { signal: AbortSignal.abort(new Error('before')) })).rejects.toThrow('before')
    const late = new AbortController()
    const increment = executor.load(step('add', 1))
    increment.bind(0, whole(s))
    await increment.run([], [], { signal: late.signal })
    late.abort()
    expect(valuesOf(s)[0]).toBe(2)
  })

  test('memory and programs may be disposed while a run uses them', async () => {
    const executor = new NativeCpuExecutor({ threads: 2 })
    const before = executor.memory().allocated
    const s = upload(executor, [0])
    const busy = executor.load(long(1 << 20, 50))
    busy.bind(2, whole(s))
    const run = busy.run([], [])
    s.dispose()
    busy.dispose()
    expect(s.disposed).toBe(true)
    // Blocks of the same size, allocated and filled meanwhile, must not be the one that the run still writes.
    const others = Array.from({ length: 8 }, () => upload(executor, [7]))
    await run
    for (const other of others) expect(valuesOf(other)[0]).toBe(7)
    for (const other of others) other.dispose()
    expect(executor.memory()).toMatchObject({ allocated: before, arena: 0 })
  })

  test('the arena is one block, as large as the largest program needs', () => {
    const executor = new NativeCpuExecutor({ threads: 1 })
    const small = executor.load(long(1024, 1))
    expect(executor.memory().arena).toBe(8192)
    const large = executor.load(long(5120, 1))
    expect(executor.memory().arena).toBe(40960)
    expect(executor.memory().allocated).toBe(40960 + 2 * 4)
    large.dispose()
    const s = upload(executor, [0])
    small.bind(2, whole(s))
    small.runSync([], [])
    expect(executor.memory().arena).toBe(8192)
    expect(executor.memory().peak).toBeGreaterThanOrEqual(40960 + 4)
  })

  test('gives the same bits on one thread, two and five', () => {
    const [rows, n] = [301, 517]
    const results = [1, 2, 5].map((threads) => {
      const executor = new NativeCpuExecutor({ threads })
      const types = [{ dtype: 'float32', shape: [rows, n] }] as const
      const attributes = { function: 'sum', axes: [0], keepDims: false }
      const bytes = executor.target.workspaceBytes('reduce', types, [{ dtype: 'float32', shape: [n] }], attributes)
      const loaded = executor.load(
        program(
          [float32('input', [rows, n]), float32('arena', [rows, n], { offset: 0 }), float32('output', [n]), float32('output', [rows, n])],
          [
            call('unary', [0], [1], { function: 'tanh' }),
            call('reduce', [1], [2], attributes, { workspace: { offset: Math.ceil((rows * n * 4) / 64) * 64, bytes } }),
            call('softmax', [1], [3]),
          ],
          { arenaBytes: Math.ceil((rows * n * 4) / 64) * 64 + bytes },
        ),
      )
      const [x, y, z] = [upload(executor, random(rows * n)), executor.allocate(4 * n), executor.allocate(4 * rows * n)]
      loaded.runSync([whole(x)], [whole(y), whole(z)])
      return [Buffer.from(valuesOf(y).buffer).toString('base64'), Buffer.from(valuesOf(z).buffer).toString('base64')]
    })
    expect(results[1]).toEqual(results[0])
    expect(results[2]).toEqual(results[0])
  })

  test('executors of different instruction sets live side by side', () => {
    const isas = nativeExecutors().find(({ name }) => name === 'cpu')!.isas!
    const expected = random(1000).map((value, i) => value + random(1000, 2)[i]!)
    const executors = isas.map((isa) => new NativeCpuExecutor({ threads: 2, isa }))
    for (const executor of [...executors, ...executors.reverse()]) {
      const loaded = executor.load(sum(1000))
      const [x, w, y] = [upload(executor, random(1000)), upload(executor, random(1000, 2)), executor.allocate(4000)]
      loaded.bind(1, whole(w))
      loaded.runSync([whole(x)], [whole(y)])
      expect(valuesOf(y)).toEqual(expected)
    }
    expect(isas).toContain('scalar')
    expect(codeOf(() => new NativeCpuExecutor({ isa: 'sse9' }))).toBe('ERR_DEVICE')
  })

  test('profile gives one time per call', () => {
    const executor = new NativeCpuExecutor({ threads: 1 })
    const busy = executor.load(long(1 << 16, 5))
    busy.bind(2, whole(upload(executor, [0])))
    const times = busy.profile([], [])
    expect(times).toHaveLength(6)
    for (const time of times) expect(time).toBeGreaterThan(0)
    expect(times[0]!).toBeGreaterThan(times[5]!) // 65536 additions against one
  })

  test('a zero-copy view is detached when the memory is disposed', () => {
    const executor = new NativeCpuExecutor({ threads: 1 })
    const memory = upload(executor, [1, 2, 3])
    const view = new Float32Array(executor.buffer(memory))
    expect([...view]).toEqual([1, 2, 3])
    view[1] = 5
    expect([...valuesOf(memory)]).toEqual([1, 5, 3])
    expect(executor.buffer(memory)).toBe(view.buffer)
    memory.dispose()
    expect(view).toHaveLength(0)
  })

  test('refuses what does not fit, by code', async () => {
    const executor = new NativeCpuExecutor({ threads: 1 })
    const loaded = executor.load(sum(8))
    const [x, y, w] = [executor.allocate(32), executor.allocate(32), executor.allocate(32)]
    expect(codeOf(() => loaded.runSync([whole(x)], [whole(y)]))).toBe('ERR_ARGUMENT') // w is not bound
    expect(codeOf(() => loaded.bind(0, whole(w)))).toBe('ERR_ARGUMENT') // an input
    expect(codeOf(() => loaded.bind(99, whole(w)))).toBe('ERR_ARGUMENT')
    expect(codeOf(() => loaded.bind(1, { memory: w, offset: 4 }))).toBe('ERR_ARGUMENT') // runs over the end
    loaded.bind(1, whole(w))
    expect(codeOf(() => loaded.runSync([], [whole(y)]))).toBe('ERR_ARGUMENT')
    expect(codeOf(() => loaded.runSync([whole(x)], [whole(executor.allocate(16))]))).toBe('ERR_ARGUMENT')
    expect(codeOf(() => loaded.runSync([{ memory: executor.allocate(64), offset: 3 }], [whole(y)]))).toBe('ERR_ARGUMENT')
    expect(codeOf(() => loaded.runSync([{ memory: x, offset: -4 }], [whole(y)]))).toBe('ERR_ARGUMENT')
    const other = new NativeCpuExecutor({ threads: 1 })
    expect(codeOf(() => loaded.runSync([whole(other.allocate(32))], [whole(y)]))).toBe('ERR_DEVICE')
    expect(codeOf(() => executor.allocate(1e15))).toBe('ERR_MEMORY')
    expect(codeOf(() => executor.allocate(-1))).toBe('ERR_ARGUMENT')
    expect(codeOf(() => executor.allocate(1.5))).toBe('ERR_ARGUMENT')
    expect(codeOf(() => executor.write(x, 30, new Uint8Array(4)))).toBe('ERR_ARGUMENT')
    expect(codeOf(() => executor.readSync(x, 0, new Uint8Array(64)))).toBe('ERR_ARGUMENT')
    expect(codeOf(() => executor.setThreads(0))).toBe('ERR_ARGUMENT')
    y.dispose()
    expect(codeOf(() => loaded.runSync([whole(x)], [whole(y)]))).toBe('ERR_DISPOSED')
    await expect(loaded.run([whole(x)], [whole(y)])).rejects.toMatchObject({ name: 'SepconvError', code: 'ERR_DISPOSED' })
    await expect(executor.read(y, 0, new Uint8Array(4))).rejects.toMatchObject({ code: 'ERR_DISPOSED' })
    loaded.dispose()
    expect(codeOf(() => loaded.runSync([], []))).toBe('ERR_DISPOSED')
  })

  test('refuses damaged programs', () => {
    const executor = new NativeCpuExecutor({ threads: 1 })
    const good = long(128, 2)
    expect(codeOf(() => executor.load(good))).toBe('no error')
    const broken: Record<string, Program> = {
      'a buffer outside the arena': { ...good, arenaBytes: 100 },
      'a misaligned buffer': { ...good, buffers: good.buffers.with(0, float32('arena', [128], { offset: 4 })) },
      'a buffer smaller than its shape': { ...good, buffers: good.buffers.with(0, { ...good.buffers[0]!, shape: [1000] }) },
      'a shape whose product overflows': { ...good, buffers: good.buffers.with(0, { ...good.buffers[0]!, shape: [2 ** 40, 2 ** 40] }) },
      'an index beyond the buffers': { ...good, calls: [call('binary', [0, 17], [0], { function: 'add' })] },
      'a negative index': { ...good, calls: [call('binary', [0, -1], [0], { function: 'add' })] },
      'an unknown kernel': { ...good, calls: [call('conv9d', [0, 1], [0])] },
      'a workspace outside the arena': { ...good, calls: [{ ...good.calls[0]!, workspace: { offset: 0, bytes: 1e9 } }] },
      'an unknown place': { ...good, buffers: good.buffers.with(0, { ...good.buffers[0]!, place: 'nowhere' as 'arena' }) },
      'an unknown dtype': { ...good, buffers: good.buffers.with(0, { ...good.buffers[0]!, dtype: 'float8' as 'float32' }) },
      'a constant cut short': { ...good, buffers: good.buffers.with(3, { ...good.buffers[3]!, data: 'AAA=' }) },
      'a view of nothing': { ...good, buffers: [...good.buffers, float32('arena', [1], { view: 44 })] },
      'a view larger than its buffer': { ...good, buffers: [...good.buffers, float32('arena', [200], { view: 0 })] },
      'updateStart beyond the end': { ...good, updateStart: 9 },
      'an input that is none': { ...good, inputs: [0] },
    }
    for (const [what, bad] of Object.entries(broken)) expect([what, codeOf(() => executor.load(bad))]).toEqual([what, 'ERR_FORMAT'])
  })

  test('the event loop stays free while a run is under way', async () => {
    const executor = new NativeCpuExecutor({ threads: 1 })
    const busy = executor.load(long(1 << 21, 300))
    busy.bind(2, whole(upload(executor, [0])))
    busy.runSync([], [])
    // A run that blocked the loop would end before the first tick, every time. One that leaves it free may still look blocked while
    // other processes hold the cores, so that a few of many runs suffice.
    let free = 0
    for (let attempt = 0; attempt < 100 && free < 3; attempt++) {
      const started = performance.now()
      let [last, longest, ticks] = [started, 0, 0]
      const timer = setInterval(() => {
        const now = performance.now()
        longest = Math.max(longest, now - last)
        last = now
        ticks++
      }, 1)
      await busy.run([], [])
      clearInterval(timer)
      const elapsed = performance.now() - started
      if (ticks <= 5 || longest > elapsed / 2) continue
      if (free++ === 0)
        console.log(`event loop during a run of ${elapsed.toFixed(0)} ms: ${ticks} ticks, longest pause ${longest.toFixed(1)} ms`)
    }
    expect(free).toBe(3)
  })

  test('a call costs microseconds', async () => {
    const executor = new NativeCpuExecutor({ threads: 2 })
    const loaded = executor.load(sum(16))
    const [x, y] = [[whole(upload(executor, random(16)))], [whole(executor.allocate(64))]]
    loaded.bind(1, whole(upload(executor, random(16))))
    const median = (times: number[]) => times.sort((a, b) => a - b)[times.length >> 1]! * 1000
    const [sync, async]: [number[], number[]] = [[], []]
    for (let i = 0; i < 4000; i++) {
      const started = performance.now()
      loaded.runSync(x, y)
      sync.push(performance.now() - started)
    }
    for (let i = 0; i < 4000; i++) {
      const started = performance.now()
      await loaded.run(x, y)
      async.push(performance.now() - started)
    }
    const [syncCost, asyncCost] = [median(sync), median(async)]
    console.log(`call cost, median: runSync ${syncCost.toFixed(1)} us, run ${asyncCost.toFixed(1)} us`)
    expect(syncCost).toBeLessThan(200) // 20 on a quiet machine
    expect(asyncCost).toBeLessThan(1000) // 100 on a quiet machine
  })

  test('works in worker threads, and a worker may be terminated while a run is under way', async () => {
    const busy = long(1 << 20, 300)
    const source = `
      const { parentPort, workerData } = require('node:worker_threads')
      const executor = require(workerData.file).openExecutor('cpu', { threads: 2 })
      const program = executor.load(workerData.program)
      const state = executor.allocate(4)
      executor.write(state, 0, new Uint8Array(4))
      program.bind(2, state, 0)
      program.run([], [], [], []).then(() => { const bytes = new Uint8Array(4); executor.read(state, 0, bytes); parentPort.postMessage(new Float32Array(bytes.buffer)[0]) })
      parentPort.postMessage('started')`
    const data = (calls: Program) => ({
      file: native.source,
      program: {
        ...calls,
        buffers: calls.buffers.map((buffer) =>
          buffer.data ? { ...buffer, data: new Uint8Array(Buffer.from(buffer.data, 'base64')) } : buffer,
        ),
      },
    })
    const messages = (worker: Worker, count: number) =>
      new Promise<unknown[]>((resolve, reject) => {
        const seen: unknown[] = []
        worker.on('message', (message) => seen.push(message) === count && resolve(seen))
        worker.on('error', reject)
      })
    const finishing = new Worker(source, { eval: true, workerData: data(long(1024, 3)) })
    expect(await messages(finishing, 2)).toEqual(['started', 1])
    const stopped = new Worker(source, { eval: true, workerData: data(busy) })
    await messages(stopped, 1)
    const started = performance.now()
    await stopped.terminate()
    expect(performance.now() - started).toBeLessThan(5000)
  })

  test('a process ends by itself when its runs are done, and at once when it exits', () => {
    const source = (end: string) => `
      const executor = require(${JSON.stringify(native.source)}).openExecutor('cpu', { threads: 2 })
      const program = executor.load(${JSON.stringify(sum(1000))})
      const [x, w, y] = [1, 2, 3].map(() => executor.allocate(4000))
      program.bind(1, w, 0)
      for (let i = 0; i < 10; i++) program.run([x], [0], [y], [0]).then(() => { if (i === 9) console.log('done') })
      ${end}`
    const run = (end: string) => spawnSync(process.execPath, ['-e', source(end)], { encoding: 'utf8', timeout: 20000 })
    expect(run('')).toMatchObject({ status: 0, stdout: 'done\n', signal: null })
    expect(run('process.exit(3)')).toMatchObject({ status: 3, stdout: '', signal: null })
  })
})

describe('finding the addon', () => {
  afterEach(() => {
    vi.unstubAllEnvs()
    vi.resetModules()
  })

  const attempt = async (file: string) => {
    vi.stubEnv('SEPCONV_NATIVE', file)
    vi.resetModules()
    return (await import('../../src/runtime/executors/native.js')).nativeExecutors()
  }

  test('says why there is none', async () => {
    for (const info of await attempt('/nonexistent/sepconv.node'))
      expect(info).toMatchObject({ available: false, code: 'no-binary', reason: expect.stringContaining('/nonexistent/sepconv.node') })
    expect((await attempt('none'))[0]!.reason).toContain('SEPCONV_NATIVE')
  })

  test('refuses another version by name', async () => {
    const file = path.join(mkdtempSync(path.join(tmpdir(), 'sepconv-')), 'addon.cjs')
    writeFileSync(file, "exports.version = '0.0.1'")
    const [info] = await attempt(file)
    expect(info!.reason).toContain('0.0.1')
    expect(info!.reason).toContain(packageVersion)
  })
})
