/** `bench kernels` on the CUDA kernels: verified first, timed by the device's clock, held to limits measured in the same run. */

import { expect, it } from 'vitest'
import { deviceCopyGbps, devicePeakGflops } from '../../src/bench/devicePeaks.js'
import { benchKernels } from '../../src/bench/kernels.js'
import { benchModel } from '../../src/bench/model.js'
import { parseLayer } from '../../src/bench/layers.js'
import { NativeDeviceExecutor } from '../../src/runtime/executors/native.js'
import './emulator.js'

it.each(['emulator:fair', 'hopper:fair'])('%s: measures limits of the device through its own kernels', (name) => {
  const executor = new NativeDeviceExecutor(name)
  expect(deviceCopyGbps(executor, 1 << 16)).toBeGreaterThan(0)
  for (const precision of ['float32', 'tf32', 'bfloat16'] as const) expect(devicePeakGflops(executor, 1, precision)).toBeGreaterThan(0)
})

it('times every kernel of a layer, forward and backward', async () => {
  const report = await benchKernels({
    device: 'emulator:fair',
    layers: [parseLayer('8->12@7')],
    passes: ['forward', 'data', 'filter'],
    precisions: ['float32'],
    rounds: 1,
    seconds: 0.01,
  })
  expect(report.wrong).toEqual([])
  expect(report.results.map(({ op, pass }) => `${op} ${pass}`)).toEqual([
    ...['regular', 'depthwise', 'pointwise', 'unfused', 'fused'].map((op) => `${op} forward`),
    ...['regular', 'depthwise', 'pointwise', 'unfused'].map((op) => `${op} data`),
    ...['regular', 'depthwise', 'pointwise', 'unfused'].map((op) => `${op} filter`),
  ])
  for (const { ms, rooflineShare, device } of report.results) {
    expect(ms).toBeGreaterThan(0)
    expect(rooflineShare).toBeGreaterThan(0)
    expect(device).toBe('emulator:fair')
  }
})

it('times a whole model in every precision, inference and training step', async () => {
  const report = await benchModel({
    options: { inputSize: 71, classes: 5, width: 0.1, middleRepeats: 1 },
    device: 'emulator:fair',
    batches: [1],
    rounds: 1,
    seconds: 0.01,
  })
  // Rows of a GPU without being asked: all precisions.
  const rows = ['inference', 'train'].flatMap((task) => ['float32', 'tf32', 'bfloat16'].map((precision) => [task, precision]))
  expect(report.results.map(({ task, precision }) => [task, precision])).toEqual(rows)
  for (const { ms, imagesPerSecond, device, peakBytes } of report.results) {
    expect([ms > 0, imagesPerSecond > 0, peakBytes > 0, device]).toEqual([true, true, true, 'emulator:fair'])
  }
  const bytes = (task: string, precision: string) =>
    report.results.find((row) => row.task === task && row.precision === precision)!.peakBytes
  expect(bytes('train', 'bfloat16')).toBeLessThan(bytes('train', 'float32'))
}, 60_000)
