/** Both gradients of a depthwise convolution from one kernel: against the reference in every adversary mode, its traffic, and the pass that asks for it. */

import { describe, expect, it } from 'vitest'
import { compileGraph } from '../../src/graph/compile.js'
import { differentiate } from '../../src/graph/differentiate.js'
import type { Attributes } from '../../src/graph/graph.js'
import type { Target } from '../../src/graph/target.js'
import { trace } from '../../src/graph/trace.js'
import { byteLength, type TensorType } from '../../src/graph/types.js'
import { add, batchNorm, depthwiseConv2d, mean, pointwiseConv2d, relu, square } from '../../src/ops/index.js'
import { cudaTarget } from '../../src/runtime/executors/native.js'
import { relativeError } from '../../src/runtime/verify.js'
import { type Filled, filled, generator, runOp, uniform } from '../helpers.js'
import { decode, inferred, runCall } from './calls.js'
import { emulator, modeNames } from './emulator.js'
import { roundBfloat16 } from './precision.js'

const kernel = 'depthwiseConv2dGradients'
const random = generator(53)
const tensor = (...shape: number[]) => uniform(random, shape)
const half = (t: Filled) => filled(t.type.shape, roundBfloat16(t.data), 'bfloat16')
const same = { strides: [1, 1], dilations: [1, 1], padding: [1, 1, 1, 1] } as const

describe('the kernel', () => {
  // 19 x 19: tiles of 7 x 12; 72 channels: a block and a rest; dy larger and smaller than x.
  const cases: [string, () => (Filled | null)[], Attributes][] = [
    [
      'plain',
      () => [tensor(2, 19, 19, 72), tensor(2, 19, 19, 72), tensor(3, 3, 72, 1)],
      { ...same, inputActivation: 'none', masked: 'none' },
    ],
    [
      'normalised, masked, with a residual',
      () => [tensor(2, 11, 21, 40), tensor(2, 11, 21, 40), tensor(3, 3, 40, 1), tensor(40), tensor(40), tensor(2, 11, 21, 40)],
      { ...same, inputActivation: 'relu', masked: 'own' },
    ],
    [
      'masked behind the residual',
      () => [tensor(1, 10, 9, 16), tensor(1, 10, 9, 16), tensor(3, 3, 16, 1), null, null, tensor(1, 10, 9, 16)],
      { ...same, inputActivation: 'relu', masked: 'sum' },
    ],
    [
      'with the sums for batch norm',
      () => [
        ...[tensor(2, 19, 11, 72), tensor(2, 19, 11, 72), tensor(3, 3, 72, 1), tensor(72), tensor(72), null, tensor(72)],
        filled(
          [72],
          Float32Array.from(tensor(72).data, (x) => 0.5 + Math.abs(x)),
        ),
      ],
      { ...same, inputActivation: 'relu', masked: 'own', epsilon: 1e-3 },
    ],
    [
      'ELU, asymmetric padding',
      () => [tensor(1, 9, 6, 8), tensor(1, 10, 7, 8), tensor(3, 3, 8, 1), null, tensor(8)],
      { ...same, padding: [2, 1, 1, 2], inputActivation: 'elu', masked: 'own' },
    ],
    [
      'valid, activated and not masked',
      () => [tensor(1, 5, 7, 16), tensor(1, 3, 5, 16), tensor(3, 3, 16, 1)],
      { ...same, padding: [0, 0, 0, 0], inputActivation: 'relu', masked: 'none' },
    ],
  ]
  it.each(cases)('%s: what the two gradients give, in both storages and every mode, the same bits', (_, make, attributes) => {
    const float = make()
    // Feature maps and filter are stored alike; scale and shift stay float32.
    const stored = float.map((input, i) => (input && ![3, 4, 6, 7].includes(i) ? half(input) : input))
    for (const inputs of make()[0]!.type.shape[3]! % 8 === 0 ? [float, stored] : [float]) {
      const outputs = inferred(kernel, inputs, attributes)
      const expected = runOp(kernel, inputs, attributes)
      let bits: string | undefined
      for (const name of modeNames()) {
        const got = runCall(emulator().openExecutor(name), kernel, inputs, attributes, outputs)
        for (const [i, { data }] of expected.entries())
          expect(relativeError(decode(outputs[i]!, got[i]!), data), `${name} output ${i}`).toBeLessThan(
            outputs[i]!.dtype === 'bfloat16' ? 5e-3 : 1e-5,
          )
        const text = got.map((bytes) => Buffer.from(bytes).toString('base64')).join()
        expect(text, name).toBe((bits ??= text))
      }
    }
  })
  it.each(['float32', 'bfloat16'] as const)('in %s reads x once and dy with its halo, writes dz once, without bank conflicts', (dtype) => {
    const store = dtype === 'bfloat16' ? half : (t: Filled) => t
    const inputs = [store(tensor(1, 32, 32, 64)), store(tensor(1, 32, 32, 64)), store(tensor(3, 3, 64, 1))]
    const executor = emulator().openExecutor('emulator:counting')
    emulator().takeAccounts()
    runCall(executor, kernel, inputs, { ...same, inputActivation: 'relu', masked: 'own' })
    const { [kernel]: moved } = emulator().takeAccounts()
    const map = byteLength(inputs[0]!.type)
    const halo = (10 * 18) / (8 * 16)
    // The taps of each thread come from the caches, once per block.
    const taps = 9 * 64 * 128 * 4 * 4
    expect(moved!.bytesRead).toBeLessThanOrEqual(map + halo * map + taps)
    expect(moved!.bytesWritten).toBeLessThan(1.6 * map)
    expect(moved!.conflicts).toEqual({})
  })
  it('refuses other windows and channels that do not come in vectors', () => {
    const executor = emulator().openExecutor('emulator')
    const type = (...shape: number[]): TensorType => ({ shape, dtype: 'bfloat16' })
    const call = (x: TensorType, filter: TensorType, attributes: Attributes) =>
      executor.workspaceBytes(kernel, [x, x, filter], [x, { ...filter, dtype: 'float32' }], {
        inputActivation: 'none',
        masked: 'none',
        ...attributes,
      })
    expect(() => call(type(1, 4, 4, 12), type(3, 3, 12, 1), same)).toThrow(/channels must be a multiple of 8/)
    expect(() => call(type(1, 4, 4, 8), type(5, 5, 8, 1), same)).toThrow(/filter/)
    expect(() => call(type(1, 4, 4, 8), type(3, 3, 8, 1), { ...same, strides: [2, 2] })).toThrow(/strides and dilations must be 1/)
  })
})

describe('the pass', () => {
  const type = (...shape: number[]): TensorType => ({ shape, dtype: 'float32' })
  const graph = (options: { strides?: number; channels?: number; multiplier?: number; residual?: boolean } = {}) => {
    const { strides = 1, channels = 16, multiplier = 1, residual = true } = options
    return trace((traced) => {
      const x = traced.input('x', type(2, 9, 10, channels))
      const [d, p] = [traced.input('d', type(3, 3, channels, multiplier)), traced.input('p', type(channels * multiplier, channels))]
      const before = square(x)
      const branch = pointwiseConv2d(depthwiseConv2d(relu(before), d, { strides }), p)
      const loss = mean(square(residual && strides === 1 ? add(branch, before) : branch))
      differentiate(traced, loss, [x, d, p]).forEach((gradient, i) => traced.output(`g${i}`, gradient!))
    })
  }
  const kernels = (target: Target, options?: Parameters<typeof graph>[0]) => compileGraph(graph(options), target).main.program.calls
  const apart = ['depthwiseConv2dInputGradient', 'depthwiseConv2dFilterGradient']

  it('makes one call of both, takes the shortcut in, and masks by the ReLU in front', () => {
    const calls = kernels(cudaTarget())
    const names = calls.map((call) => call.kernel)
    for (const name of apart) expect(names).not.toContain(name)
    const [fused] = calls.filter((call) => call.kernel === kernel)
    expect(fused!.inputs[5]).not.toBeNull()
    expect(fused!.attributes).toMatchObject({ masked: 'own', inputActivation: 'relu' })
    const without = kernels(cudaTarget(), { residual: false }).find((call) => call.kernel === kernel)!
    expect(without.inputs[5] ?? null).toBeNull()
  })
  it.each([{ strides: 2 }, { channels: 6 }, { multiplier: 2 }])('leaves %j to two kernels', (options) => {
    const names = kernels(cudaTarget(), options).map((call) => call.kernel)
    for (const name of apart) expect(names).toContain(name)
    expect(names).not.toContain(kernel)
  })
  it('masks the sum where the ReLU stands in front of branch and shortcut', () => {
    const both = trace((traced) => {
      const x = traced.input('x', type(2, 9, 10, 16))
      const z = relu(square(x))
      const d = traced.input('d', type(3, 3, 16, 1))
      const loss = mean(square(add(depthwiseConv2d(z, d), pointwiseConv2d(z, traced.input('p', type(16, 16))))))
      differentiate(traced, loss, [x, d]).forEach((gradient, i) => traced.output(`g${i}`, gradient!))
    })
    const calls = compileGraph(both, cudaTarget()).main.program.calls
    const functions = calls.filter((call) => call.kernel === 'unaryGradient').map(({ attributes }) => attributes.function)
    expect(functions).not.toContain('relu')
    const [fused] = calls.filter((call) => call.kernel === kernel)
    expect(fused!.attributes.masked).toBe('sum')
    expect(fused!.inputs[5]).not.toBeNull()
  })
  it("takes the sums of batch norm's gradient, which then reads its operands once", () => {
    const normalised = trace(
      (traced) => {
        const x = traced.input('x', type(2, 9, 10, 16))
        const [d, gamma, beta] = [traced.input('d', type(3, 3, 16, 1)), traced.input('gamma', type(16)), traced.input('beta', type(16))]
        const [z] = batchNorm(square(x), { gamma, beta, training: true })
        const loss = mean(square(depthwiseConv2d(relu(z), d)))
        differentiate(traced, loss, [x, d, gamma, beta]).forEach((gradient, i) => traced.output(`g${i}`, gradient!))
      },
      { training: true },
    )
    const calls = compileGraph(normalised, cudaTarget()).main.program.calls
    expect(calls.map((call) => call.kernel)).not.toContain('batchNormGradient')
    const [fused] = calls.filter((call) => call.kernel === kernel)
    expect(fused!.outputs).toHaveLength(4)
    expect(calls.find((call) => call.kernel === 'batchNormInputGradient')!.inputs.slice(4, 6)).toEqual(fused!.outputs.slice(2))
  })
  it('leaves targets without the kernel alone', () => {
    const names = kernels({ ...cudaTarget(), fusesDepthwiseGradients: [] }).map((call) => call.kernel)
    for (const name of apart) expect(names).toContain(name)
  })
})
