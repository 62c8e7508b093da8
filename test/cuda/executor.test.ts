/**
 * The CUDA executor on the emulated device: programs out of the compiler, recording and replay, state, memory, and every error
 * that it promises. Only what lies below DeviceInterface differs from a GPU.
 */

import { describe, expect, it } from 'vitest'
import { compileGraph } from '../../src/graph/compile.js'
import type { Attributes } from '../../src/graph/graph.js'
import { trace } from '../../src/graph/trace.js'
import { byteLength, type DType, type TensorType } from '../../src/graph/types.js'
import { add, relu, separableConv2d } from '../../src/ops/index.js'
import { NativeDeviceExecutor } from '../../src/runtime/executors/native.js'
import { ReferenceExecutor } from '../../src/runtime/executors/reference.js'
import type { Executor } from '../../src/runtime/executor.js'
import type { Program } from '../../src/runtime/program.js'
import { type Filled, filled, generator, runOp, uniform } from '../helpers.js'
import { buffer, download, encode, floats, poisoned, runCall, singleCall, upload } from './calls.js'
import { emulator } from './emulator.js'

const open = () => emulator().openExecutor('emulator')
const type = (shape: readonly number[], dtype: DType = 'float32'): TensorType => ({ shape, dtype })

/** NaN where either has one. */
const largestDifference = (got: ArrayLike<number>, expected: ArrayLike<number>): number =>
  Math.max(...Array.from(got, (value, i) => Math.abs(value - expected[i]!)))

/** Runs a compiled program on any executor. */
async function runOn(executor: Executor, program: Program, inputs: readonly Filled[]): Promise<Float32Array[]> {
  const loaded = executor.load(program)
  const bind = (bytes: number) => ({ memory: executor.allocate(bytes), offset: 0 })
  const from = inputs.map((input) => {
    const binding = bind(byteLength(input.type))
    executor.write(binding.memory, 0, encode(input))
    return binding
  })
  const to = program.outputs.map((index) => bind(program.buffers[index]!.bytes))
  const results: Float32Array[] = []
  // Three times: launched, recorded, replayed.
  for (let run = 0; run < 3; run++) {
    for (const { memory } of to) executor.write(memory, 0, new Uint8Array(memory.bytes).fill(0xff))
    await loaded.run(from, to)
    const bytes = new Uint8Array(to[0]!.memory.bytes)
    await executor.read(to[0]!.memory, 0, bytes)
    results.push(floats(bytes))
  }
  return results
}

/** y = a residual block of two separable convolutions as in Xception's middle flow. */
function block(random: () => number) {
  const inputs = [
    uniform(random, [1, 9, 9, 12]),
    ...[0, 1].flatMap(() => [uniform(random, [3, 3, 12, 1]), uniform(random, [12, 12]), uniform(random, [12]), uniform(random, [12])]),
  ]
  const graph = trace((graph) => {
    const [x, ...weights] = inputs.map((input, i) => graph.input(`input${i}`, input.type))
    let y = x!
    for (let i = 0; i < 8; i += 4)
      y = separableConv2d(relu(y), weights[i]!, weights[i + 1]!, { scale: weights[i + 2]!, shift: weights[i + 3]! })
    graph.output('y', add(y, x!))
  })
  return { graph, inputs }
}

describe('programs', () => {
  it('out of the compiler run as on the reference: launched, recorded and replayed', async () => {
    const { graph, inputs } = block(generator(1))
    const reference = new ReferenceExecutor()
    const [expected] = await runOn(reference, compileGraph(graph, reference.target, { optimise: false }).main.program, inputs)
    for (const { name } of emulator().executors()) {
      const executor = new NativeDeviceExecutor(name)
      const { program } = compileGraph(graph, executor.target).main
      expect(program.calls.map((call) => call.kernel)).toEqual(['separableConv2d', 'separableConv2d'])
      for (const got of await runOn(executor, program, inputs)) expect(largestDifference(got, expected!)).toBeLessThan(1e-4)
    }
  })

  it('replay reads what is in memory now, and every address set has its own recording', () => {
    const executor = open()
    const program = executor.load(singleCall(executor, 'copy', [type([5])], [type([5])], {}))
    const from = [0, 1, 2].map(() => executor.allocate(20))
    const to = executor.allocate(20)
    // Twelve sets exceed what is remembered, with offsets into two blocks among them.
    for (let round = 0; round < 4; round++)
      for (const [i, memory] of from.entries()) {
        const x = filled(
          [5],
          [1, 2, 3, 4, 5].map((value) => value + 10 * i + 100 * round),
        )
        executor.write(memory, 0, encode(x))
        program.runSync([memory], [0], [to], [0])
        expect([...floats(download(executor, to))]).toEqual(x.data)
      }
    const large = executor.allocate(1024)
    for (let round = 0; round < 3; round++)
      for (let offset = 0; offset < 12 * 32; offset += 32) {
        program.runSync([from[0]!], [0], [large], [offset])
        expect(floats(download(executor, large))[offset / 4]).toBe(301)
      }
  })

  it('bind state, take constants, and see views', () => {
    const executor = open()
    const x = filled([2, 3], [1, 2, 3, 4, 5, 6])
    const constant = filled([3, 2], [1, 0, 0, 1, 1, 1])
    const program: Program = {
      format: 'sepconv-program',
      version: 1,
      target: 'cuda',
      buffers: [
        buffer('input', type([6]), { name: 'x' }),
        buffer('input', type([2, 3]), { view: 0 }),
        { ...buffer('constant', type([3, 2])), data: encode(constant) as unknown as string },
        buffer('state', type([2]), { name: 'shift' }),
        buffer('arena', type([2, 2]), { offset: 64 }),
        buffer('output', type([2, 2]), { name: 'y' }),
      ],
      calls: [
        { kernel: 'pointwiseConv2d', inputs: [1, 2, null, 3], outputs: [4], attributes: {}, scope: 'a' },
        { kernel: 'copy', inputs: [4], outputs: [5], attributes: {}, scope: 'b' },
      ],
      inputs: [0],
      outputs: [5],
      arenaBytes: 128,
      updateStart: 2,
    }
    const loaded = executor.load(program)
    const [from, to] = [upload(executor, x), poisoned(executor, 16)]
    expect(() => loaded.runSync([from], [0], [to], [0])).toThrow(/no memory is bound.*shift/)
    for (const shift of [10, 20]) {
      loaded.bind(3, upload(executor, filled([2], [shift, 2 * shift])), 0)
      for (let run = 0; run < 3; run++) {
        executor.write(to, 0, new Uint8Array(16).fill(0xff))
        loaded.runSync([from], [0], [to], [0])
        expect([...floats(download(executor, to))]).toEqual([4 + shift, 5 + 2 * shift, 10 + shift, 11 + 2 * shift])
      }
    }
    expect(loaded.profile([from], [0], [to], [0]).length).toBe(2)
    expect(executor.memory().arena).toBe(128)
    loaded.dispose()
  })

  it('share one arena, as large as the largest needs', () => {
    const executor = open()
    const rows = (n: number) => singleCall(executor, 'batchNormStatistics', [type([n, 64])], [type([64]), type([64])], {})
    const [small, large] = [executor.load(rows(10)), executor.load(rows(3000))]
    const workspace = executor.workspaceBytes('batchNormStatistics', [type([3000, 64])], [type([64]), type([64])], {})
    expect(workspace).toBe(Math.ceil(3000 / 256) * 2 * 64 * 4)
    expect(executor.memory().arena).toBe(workspace)
    const from = upload(executor, filled([10, 64], new Float32Array(640).fill(3)))
    const to = [poisoned(executor, 256), poisoned(executor, 256)]
    small.runSync([from], [0], to, [0, 0])
    expect([...new Set(floats(download(executor, to[0]!)))]).toEqual([3])
    large.dispose()
  })

  it('obey an abort before the first call that writes state', async () => {
    const executor = open()
    const program = executor.load({ ...singleCall(executor, 'copy', [type([4])], [type([4])], {}), updateStart: 0 })
    const [from, to] = [upload(executor, filled([4], [1, 2, 3, 4])), upload(executor, filled([4], [0, 0, 0, 0]))]
    // So many that the last ones still wait when they are aborted.
    const runs = Array.from({ length: 2000 }, (_, i) => program.run([from], [0], [to], [0], i + 1))
    for (let i = 1; i <= runs.length; i++) program.abort(i)
    const done = await Promise.all(runs)
    expect([...floats(download(executor, to))]).toEqual(done.includes(true) ? [1, 2, 3, 4] : [0, 0, 0, 0])
    expect(done.at(-1)).toBe(false)
  })
})

describe('errors', () => {
  const failing = (kernel: string, inputs: (TensorType | null)[], outputs: TensorType[], attributes: Attributes) => () =>
    open().workspaceBytes(kernel, inputs, outputs, attributes)
  const coded = (code: string, message: RegExp) => expect.objectContaining({ code, message: expect.stringMatching(message) })
  const caught = (body: () => unknown): unknown => {
    try {
      body()
    } catch (error) {
      return error
    }
    return undefined
  }
  const geometry = { strides: [1, 1], dilations: [1, 1], padding: [1, 1, 1, 1] }

  it('name a kernel that the executor lacks, when the program is loaded', () => {
    const executor = open()
    const program = singleCall(executor, 'copy', [type([4])], [type([4])], {})
    const lacking = { ...program, calls: [{ ...program.calls[0]!, kernel: 'conv9d', scope: 'head.conv' }] }
    expect(caught(() => executor.load(lacking))).toEqual(coded('ERR_DEVICE', /'emulator' has no kernel for 'conv9d' of head\.conv/))
  })
  it('refuse what a damaged program asks for', () => {
    const x = type([1, 5, 5, 4])
    expect(caught(failing('depthwiseConv2d', [x, type([3, 3, 3, 1])], [x], geometry))).toEqual(
      coded('ERR_FORMAT', /does not fit x \[1, 5, 5, 4\]/),
    )
    expect(caught(failing('depthwiseConv2d', [x, type([3, 3, 4, 1])], [type([1, 9, 5, 4])], geometry))).toEqual(
      coded('ERR_FORMAT', /output 0 must be/),
    )
    expect(caught(failing('depthwiseConv2d', [x, type([3, 3, 4, 1])], [x], { ...geometry, strides: [0, 1] }))).toEqual(
      coded('ERR_FORMAT', /'strides' is out of range/),
    )
    expect(caught(failing('pointwiseConv2d', [x, type([4, 3, 8])], [x], { packed: true, cout: 4 }))).toEqual(
      coded('ERR_FORMAT', /does not fit cout 4/),
    )
  })
  it('refuse element types and sizes that the kernels do not take', () => {
    const whole = type([1, 5, 5, 4], 'int32')
    expect(caught(failing('depthwiseConv2d', [whole, type([3, 3, 4, 1], 'int32')], [whole], geometry))).toEqual(
      coded('ERR_DTYPE', /takes float32 for x, got int32/),
    )
    const huge = type([70000, 299, 299, 3])
    expect(caught(failing('depthwiseConv2d', [huge, type([3, 3, 3, 1])], [huge], geometry))).toEqual(
      coded('ERR_SHAPE', /more than 2147483647 elements/),
    )
  })
  it('say how much memory was needed and is free, and leave the executor usable', () => {
    const executor = open()
    const kept = executor.allocate(25 << 20)
    expect(caught(() => executor.allocate(50 << 20))).toEqual(
      coded(
        'ERR_MEMORY',
        /needed 50 MiB, free 39 MiB of 64 MiB, held by this executor 25 MiB, by others .* 0\.00 MiB; use a smaller batch/,
      ),
    )
    kept.dispose()
    // The block that was given back is kept for reuse, and returned to the device when a larger one is asked for.
    const larger = executor.allocate(50 << 20)
    expect(executor.memory()).toEqual({ allocated: 50 << 20, peak: 50 << 20, arena: 0 })
    larger.dispose()
    expect(executor.memory().allocated).toBe(0)
    expect(runCall(executor, 'copy', [filled([1], [7])], {}, [type([1])]).map(floats)).toEqual([Float32Array.of(7)])
  })
  it('refuse memory that kernels cannot read 16 bytes at a time', () => {
    const executor = open()
    const program = executor.load(singleCall(executor, 'copy', [type([4])], [type([4])], {}))
    const memory = executor.allocate(64)
    expect(caught(() => program.runSync([memory], [4], [memory], [32]))).toEqual(coded('ERR_ARGUMENT', /multiple of 16 bytes/))
  })
  it('refuse a program whose workspace was planned too small', () => {
    const executor = open()
    const program = singleCall(executor, 'batchNormStatistics', [type([10, 4])], [type([4]), type([4])], {})
    const short = { ...program, calls: [{ ...program.calls[0]!, workspace: { offset: 0, bytes: 0 } }] }
    expect(caught(() => executor.load(short))).toEqual(coded('ERR_FORMAT', /needs 32 bytes of workspace/))
  })
  it('refuse an executor that does not exist', () => {
    expect(caught(() => emulator().openExecutor('emulator:unknown'))).toEqual(
      coded('ERR_DEVICE', /expected emulator or one of emulator:fair/),
    )
  })
})

describe('reasons why there is no device', () => {
  const explain = (error: number, driver: number) => emulator().explainNoDevice(error, 'cudaErrorUnknown (unknown error)', driver, 13000)
  it.each([
    [35, 0, 'no-driver', /no NVIDIA driver was found.*supports CUDA 13\.0/],
    [35, 12040, 'driver-too-old', /supports CUDA 12\.4, this build needs 13\.0/],
    [100, 13000, 'no-device', /shows no GPU.*CUDA_VISIBLE_DEVICES/],
    [0, 13000, 'no-device', /shows no GPU/],
    [999, 13010, 'no-device', /reports cudaErrorUnknown \(unknown error\)/],
  ])('error %i, driver %i: %s', (error, driver, code, reason) => {
    expect(explain(error, driver)).toMatchObject({ name: 'cuda', available: false, code, driverVersion: driver, runtimeVersion: 13000 })
    expect(explain(error, driver).reason).toMatch(reason)
  })
})

describe('reasons why a device cannot be used', () => {
  const explain = (error: number) => emulator().explainDevice(error, 'cudaErrorDevicesUnavailable (busy)', 'NVIDIA Test', '7.5')
  it.each([
    [209, 'no-kernel-image', /NVIDIA Test has compute capability 7\.5, for which this build holds no code.*sepconv build/],
    [98, 'no-kernel-image', /holds no code/],
    [46, 'no-device', /NVIDIA Test cannot be used: cudaErrorDevicesUnavailable \(busy\)/],
  ])('error %i: %s', (error, code, reason) => {
    expect(explain(error)).toMatchObject({ available: false, code, reason: expect.stringMatching(reason) })
  })
  it('none', () => expect(explain(0)).toMatchObject({ available: true }))
})

describe('choice of tiles on an H200 (132 multiprocessors)', () => {
  const choice = (kernel: string, inputs: number[][], attributes: Attributes) => {
    const types = inputs.map((shape) => type(shape))
    const y = types[0]!.shape.slice(0, -1)
    return emulator().describeKernel(kernel, types, [type([...y, inputs.at(-1)!.at(-1)!])], attributes, 132).description
  }
  const same = { strides: [1, 1], dilations: [1, 1], padding: [1, 1, 1, 1] }
  it('takes the large tile only where it fills the device', () => {
    expect(
      choice(
        'pointwiseConv2d',
        [
          [32, 19, 19, 728],
          [728, 728],
        ],
        {},
      ),
    ).toBe('128x128, 4 elements per access')
    expect(
      choice(
        'pointwiseConv2d',
        [
          [1, 19, 19, 728],
          [728, 728],
        ],
        {},
      ),
    ).toBe('32x64, 4 elements per access')
    expect(
      choice(
        'pointwiseConv2d',
        [
          [8, 19, 19, 728],
          [728, 728],
        ],
        {},
      ),
    ).toBe('64x64, 4 elements per access')
    expect(
      choice(
        'pointwiseConv2d',
        [
          [32, 149, 149, 3],
          [3, 32],
        ],
        {},
      ),
    ).toBe('32x64, 1 element per access')
    expect(
      choice(
        'pointwiseConv2d',
        [
          [1, 2048],
          [2048, 1000],
        ],
        {},
      ),
    ).toBe('32x64, 4 elements per access')
  })
  it('makes the fused tile wide in the entry flow', () => {
    expect(
      choice(
        'separableConv2d',
        [
          [8, 147, 147, 64],
          [3, 3, 64, 1],
          [64, 128],
        ],
        same,
      ),
    ).toBe('64x128, 4 elements per access, 3x3 taps')
  })
  it('keeps depthwise tiles within 48 KiB of shared memory', () => {
    const depthwise = (x: number[], filter: number[], attributes: Attributes, y: number[]) =>
      emulator().describeKernel('depthwiseConv2d', [type(x), type(filter)], [type(y)], attributes, 132).description
    expect(depthwise([8, 147, 147, 128], [3, 3, 128, 1], same, [8, 147, 147, 128])).toBe('tiled3x3 8x16, 4 channels per access')
    expect(depthwise([8, 19, 19, 728], [3, 3, 728, 1], { ...same, strides: [2, 2] }, [8, 10, 10, 728])).toBe(
      'tiled3x3Stride2 8x8, 4 channels per access',
    )
    expect(depthwise([1, 64, 64, 32], [31, 31, 32, 1], { ...same, padding: [15, 15, 15, 15] }, [1, 64, 64, 32])).toBe(
      'direct, 4 channels per access',
    )
  })
  it('gives what the reference gives for a whole layer', () => {
    const random = generator(2)
    const inputs = [uniform(random, [1, 19, 19, 100]), uniform(random, [3, 3, 100, 1]), uniform(random, [100, 52])]
    const expected = runOp('separableConv2d', inputs, same)[0]!
    const got = floats(runCall(open(), 'separableConv2d', inputs, same)[0]!)
    expect(largestDifference(got, expected.data)).toBeLessThan(1e-4)
  })
})
