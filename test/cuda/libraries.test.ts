/**
 * NVIDIA's libraries beside our kernels, by dlopen: what is said where they are missing or of another version, and with libraries
 * made for this test, which compute by plain loops in the emulated device's memory, the whole comparison: descriptors, layouts,
 * choice of an algorithm, verification against the reference, timing.
 */

import { execFileSync } from 'node:child_process'
import { copyFileSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, describe, expect, it } from 'vitest'
import { DeviceKernel, toKrsc } from '../../src/bench/deviceKernels.js'
import { benchKernels } from '../../src/bench/kernels.js'
import { parseLayer } from '../../src/bench/layers.js'
import { parseGpuState } from '../../src/bench/machine.js'
import { makeOperands } from '../../src/bench/operands.js'
import { openDevice } from '../../src/runtime/device.js'
import type { NativeDeviceExecutor } from '../../src/runtime/executors/native.js'
import { packageRoot } from '../../src/runtime/native.js'
import { emulator } from './emulator.js'

const folder = mkdtempSync(join(tmpdir(), 'sepconv-libraries-'))
afterAll(() => rmSync(folder, { recursive: true, force: true }))

function compile(source: string, library: string, ...flags: string[]): void {
  const path = join(packageRoot, 'test/cuda/fakes', source)
  execFileSync(process.env.CXX ?? 'g++', ['-std=c++17', '-O1', '-Wall', '-Wextra', '-shared', '-fPIC', ...flags, path, '-o', library])
}

const log = join(folder, 'calls.txt')
const calls = () => {
  const text = readFileSync(log, 'utf8').trim().split('\n')
  writeFileSync(log, '')
  return text
}

describe('libraries', () => {
  it('that are missing or incomplete are named with the reason', () => {
    process.env.SEPCONV_CUDA_LIBRARIES = folder
    writeFileSync(join(folder, 'libcudnn.so.9'), 'no library')
    const [lt, , dnn] = emulator().cudaLibraries()
    expect(lt).toMatchObject({ name: 'cublasLt', reason: expect.stringMatching(/cuBLASLt was not found: .*libcublasLt\.so\.13/) })
    expect(dnn).toMatchObject({ name: 'cudnn', reason: expect.stringMatching(/cuDNN was not found: .*libcudnn\.so\.9/) })
    expect([lt!.version, dnn!.version]).toEqual([undefined, undefined])
  })
  it('of another version are refused by the name of what they lack', () => {
    const old = join(folder, 'old')
    mkdirSync(old)
    compile('cublasLt.cc', join(old, 'libcublasLt.so.13'), '-DcublasLtMatmulAlgoGetHeuristic=renamed')
    process.env.SEPCONV_CUDA_LIBRARIES = `:${old}`
    expect(emulator().cudaLibraries()[0]!.reason).toMatch(
      /cuBLASLt in .*old\/libcublasLt\.so\.13 has no cublasLtMatmulAlgoGetHeuristic: it is of an unknown version/,
    )
  })
  it('that are there are measured beside our kernels, in every precision, forward and backward', async () => {
    compile('cudnn.cc', join(folder, 'made-cudnn.so'))
    rmSync(join(folder, 'libcudnn.so.9'))
    copyFileSync(join(folder, 'made-cudnn.so'), join(folder, 'libcudnn.so.9'))
    compile('cublasLt.cc', join(folder, 'libcublasLt.so.13'))
    process.env.SEPCONV_CUDA_LIBRARIES = folder
    process.env.FAKE_LIBRARY_LOG = log
    writeFileSync(log, '')
    expect(
      emulator()
        .cudaLibraries()
        .filter(({ name }) => name !== 'nccl'),
    ).toEqual([
      { name: 'cublasLt', version: '13.0.2' },
      { name: 'cudnn', version: '9.10.2' },
    ])
    const report = await benchKernels({
      device: 'emulator:fair',
      layers: [parseLayer('8->16@5')],
      passes: ['forward', 'data', 'filter'],
      batch: 2,
      rounds: 1,
      seconds: 0.001,
    })
    expect(report.wrong).toEqual([])
    expect(report.refused).toEqual([])
    const theirs = report.results.filter(({ library }) => library !== 'sepconv')
    const passes = ['forward', 'data', 'filter']
    const expected = ['regular cudnn', 'depthwise cudnn', 'pointwise cublasLt', 'unfused cudnn+cublasLt'].flatMap((kernel) =>
      passes.flatMap((pass) => ['float32', 'tf32', 'bfloat16'].map((precision) => `${kernel} ${pass} ${precision}`)),
    )
    expect(theirs.map(({ op, library, pass, precision }) => `${op} ${library} ${pass} ${precision}`).sort()).toEqual(expected.sort())
    for (const { ms, rooflineShare, maxError } of report.results) {
      expect(ms).toBeGreaterThan(0)
      expect(rooflineShare).toBeGreaterThan(0)
      expect(maxError).toBeLessThan(2e-2)
    }
    const made = new Set(calls())
    for (const call of ['cudnnConvolutionForward', 'cudnnConvolutionBackwardData', 'cudnnConvolutionBackwardFilter', 'cublasLtMatmul'])
      expect(made).toContain(call)
    // Exact float32 without tensor cores, tf32 by the default, bfloat16 on tensor cores; depthwise is one group per channel.
    for (const math of ['math 3 groups 1', 'math 0 groups 1', 'math 1 groups 1', 'math 3 groups 8', 'compute 68', 'compute 77'])
      expect(made).toContain(math)
  }, 60_000)
  it('whose results are wrong are not timed', async () => {
    const operands = makeOperands(parseLayer('8->8@5'), 1)
    const executor = openDevice('emulator:fair') as NativeDeviceExecutor
    const settings = { op: 'depthwise', pass: 'forward', precision: 'float32', library: 'cudnn' } as const
    const kernel = DeviceKernel.make(executor, { ...settings, operands })!
    expect(kernel.verify().right).toBe(true)
    kernel.dispose()
    // The filter changes after the upload: what was computed is no longer what the reference says.
    const other = DeviceKernel.make(executor, { ...settings, operands })!
    ;(operands.depthwise.data as Float32Array)[0]! += 1
    expect(other.verify().right).toBe(false)
    other.dispose()
  })
})

describe('operands on a GPU', () => {
  it('rotate over more than the L2 cache, and are given back', () => {
    const executor = openDevice('emulator:fair') as NativeDeviceExecutor
    const l2 = Number(executor.info.l2Bytes)
    const before = executor.memory().allocated
    const operands = makeOperands(parseLayer('8->8@6'), 1)
    const kernel = DeviceKernel.make(executor, { op: 'depthwise', pass: 'forward', precision: 'float32', library: 'sepconv', operands })!
    expect(kernel.footprint).toBeGreaterThanOrEqual(2.5 * l2)
    kernel.dispose()
    expect(executor.memory().allocated).toBe(before)
  })
  it("filters in cuDNN's layout and back", () => {
    const data = Float32Array.from({ length: 2 * 2 * 3 * 5 }, (_, i) => i)
    const krsc = toKrsc({ shape: [2, 2, 3, 5], data })
    expect(krsc.shape).toEqual([5, 2, 2, 3])
    expect(krsc.data[1]).toBe(5) // output 0, tap 0, input 1
    expect(toKrsc(krsc, true)).toEqual({ shape: [2, 2, 3, 5], data })
    const depthwise = { shape: [3, 3, 4, 1], data: Float32Array.from({ length: 36 }, (_, i) => i) }
    expect(toKrsc(depthwise)).toMatchObject({ shape: [4, 3, 3, 1] })
    expect(toKrsc(depthwise).data[1]).toBe(4) // channel 0, tap 1
    expect(toKrsc(toKrsc(depthwise), true)).toEqual(depthwise)
  })
  it("nvidia-smi's line", () => {
    expect(parseGpuState('NVIDIA H200, 580.65, 1980, 3201, 1980, 3201, 700.00\n')).toEqual({
      name: 'NVIDIA H200',
      driver: '580.65',
      clocks: { sm: 1980, memory: 3201, smMax: 1980, memoryMax: 3201 },
      powerLimitWatts: 700,
    })
    expect(parseGpuState('A, 1, 2, 3, 4, 5, [N/A]')!.powerLimitWatts).toBeNull()
    expect(parseGpuState('nothing')).toBeNull()
  })
})
