/** Only on a machine with a GPU (npm run gpu:check): Xception's own layers against the cpu device, whole models call by call. */

import { describe, expect, it } from 'vitest'
import { XCEPTION_LAYERS } from '../../src/bench/layers.js'
import type { Attributes } from '../../src/graph/graph.js'
import { opDefinition } from '../../src/graph/op.js'
import { elements } from '../../src/graph/types.js'
import '../../src/models/index.js'
import { NativeCpuExecutor, NativeDeviceExecutor } from '../../src/runtime/executors/native.js'
import { relativeError, runCall, verifyModel } from '../../src/runtime/verify.js'
import { generator, uniform } from '../helpers.js'

const name = process.env.SEPCONV_GPU ?? 'cuda:0'
const [gpu, cpu] = [new NativeDeviceExecutor(name), new NativeCpuExecutor()]
const same = { strides: [1, 1], dilations: [1, 1], padding: [1, 1, 1, 1] } as const

describe.each(XCEPTION_LAYERS)('$name', ({ cin, cout, size }) => {
  const random = generator(cin + cout)
  const host = (...shape: number[]) => ({ shape, data: uniform(random, shape).data as Float32Array })
  const x = host(1, size, size, cin)
  const [depthwise, pointwise, dy] = [host(3, 3, cin, 1), host(cin, cout), host(1, size, size, cout)]
  const calls: [kernel: string, inputs: (typeof x)[], attributes: Attributes][] = [
    ['depthwiseConv2d', [x, depthwise], same],
    ['depthwiseConv2dInputGradient', [x, depthwise], { ...same, inputActivation: 'none', inputSize: [size, size] }],
    ['depthwiseConv2dFilterGradient', [x, x], { ...same, inputActivation: 'none', kernelSize: [3, 3] }],
    ['pointwiseConv2d', [x, pointwise], { inputActivation: 'relu' }],
    ['pointwiseConv2dInputGradient', [dy, pointwise], { inputActivation: 'none' }],
    ['pointwiseConv2dFilterGradient', [x, dy], { inputActivation: 'relu' }],
    ['separableConv2d', [x, depthwise, pointwise], same],
  ]
  it.each(calls)('%s', (kernel, inputs, attributes) => {
    const types = inputs.map(({ shape }) => ({ shape, dtype: 'float32' as const }))
    const outputs = opDefinition(kernel)
      .infer(types, attributes)
      .map(({ shape }) => ({ shape, data: new Float32Array(elements(shape)) }))
    const call = { kernel, inputs: [], outputs: [], attributes, scope: kernel }
    const [expected, actual] = [runCall(cpu, call, inputs, outputs), runCall(gpu, call, inputs, outputs)]
    expected.forEach((values, i) => expect(relativeError(actual[i]!, values)).toBeLessThan(1e-4))
  })
})

describe('whole models', () => {
  it.each(['inference', 'train'] as const)(
    'xception, %s',
    async (task) => {
      const rows = await verifyModel({ device: name, task, size: 75, batch: 2, options: { dropout: 0 } })
      expect(rows.filter(({ ok }) => !ok)).toEqual([])
    },
    120_000,
  )
})
