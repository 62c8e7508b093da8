/**
 * Separable convolutions as one kernel in training: statistics out of the epilogue, the gradient of the pointwise filter with the
 * depthwise result computed again, the pass that makes them, and the memory traffic that they save.
 */

import { describe, expect, it } from 'vitest'
import { compileGraph } from '../../src/graph/compile.js'
import { differentiate } from '../../src/graph/differentiate.js'
import type { Target } from '../../src/graph/target.js'
import { opDefinition } from '../../src/graph/op.js'
import { emitAll, trace } from '../../src/graph/trace.js'
import { byteLength, type TensorType } from '../../src/graph/types.js'
import { mean, relu, separableConv2d, square } from '../../src/ops/index.js'
import { NativeDeviceExecutor } from '../../src/runtime/executors/native.js'
import { relativeError } from '../../src/runtime/verify.js'
import { type Filled, filled, generator, runOp, uniform } from '../helpers.js'
import { Cases } from '../runtime/cases.js'
import { makers } from '../runtime/makers.js'
import { decode, inferred, runCall } from './calls.js'
import { emulator, modeNames } from './emulator.js'

const random = generator(77)
const tensor = (...shape: number[]) => uniform(random, shape)
const half = (t: Filled) => filled(t.type.shape, t.data, 'bfloat16')
const type = (...shape: number[]): TensorType => ({ shape, dtype: 'float32' })
const same = { strides: [1, 1], dilations: [1, 1], padding: [1, 1, 1, 1] } as const

describe('separableConv2d with statistics, exact', () => {
  it('gives the moments of what it stores, for any shape', () => {
    const modes = modeNames().map((name) => emulator().openExecutor(name))
    let rounds = 0
    for (let seed = 0; rounds < 12; seed++) {
      const made = makers(0).separableConv2d!(new Cases(seed))
      const inputs = made.inputs.slice(0, 8).map((input) => input && filled(input.shape, input.data))
      const attributes = { ...made.attributes, activation: 'none', statistics: true }
      const outputs = inferred('separableConv2d', inputs, attributes)
      if (outputs[0]!.shape.slice(0, 3).reduce((a, b) => a * b) < 2) continue
      const expected = runOp('separableConv2d', inputs, attributes)
      const got = runCall(modes[rounds++ % modes.length]!, 'separableConv2d', inputs, attributes, outputs)
      expected.forEach(({ data }, i) =>
        expect(relativeError(decode(outputs[i]!, got[i]!), data), `seed ${seed} output ${i}`).toBeLessThan(2e-5),
      )
    }
  })
  it('refuses what could not have them', () => {
    const executor = emulator().openExecutor('emulator')
    const inputs = [tensor(1, 4, 4, 8), tensor(3, 3, 8, 1), tensor(8, 8)]
    const [y] = inferred('separableConv2d', inputs, same)
    expect(() => runCall(executor, 'separableConv2d', inputs, { ...same, statistics: true }, [y!])).toThrow(/expected 3 outputs/)
    expect(() => runCall(executor, 'separableConv2d', inputs, { ...same, statistics: true }, [y!, type(8), type(7)])).toThrow(/output 2/)
  })
})

describe('the pass', () => {
  const executor = new NativeDeviceExecutor('emulator')
  const always: Target = { ...executor.target, fusesSeparable: () => true, recomputesSeparable: () => true }
  const never: Target = { ...executor.target, fusesSeparable: () => false, recomputesSeparable: () => false }
  const [n, h, w, c, cout] = [2, 9, 10, 16, 24]

  /** loss(batchNorm(separable(relu(x)))) with gradients of everything; `readsBetween`: somebody else reads the depthwise result. */
  const graph = (options: { intermediateActivation?: 'relu' | 'none'; bias?: boolean } = {}) =>
    trace(
      (traced) => {
        const x = traced.input('x', type(n, h, w, c))
        const [d, p] = [traced.input('d', type(3, 3, c, 1)), traced.input('p', type(c, cout))]
        const y = separableConv2d(relu(x), d, p, { intermediateActivation: options.intermediateActivation ?? 'none' })
        const [normal] = emitAll(opDefinition('batchNorm'), [y, traced.input('gamma', type(cout)), null], { epsilon: 1e-3 })
        const loss = mean(square(normal!))
        differentiate(traced, loss, [x, d, p]).forEach((gradient, i) => traced.output(`g${i}`, gradient!))
        traced.output('loss', loss)
      },
      { training: true },
    )
  const kernels = (target: Target, options?: Parameters<typeof graph>[0]) =>
    compileGraph(graph(options), target).main.program.calls.map(({ kernel }) => kernel)

  it('leaves no depthwise result in training where the target computes it again', () => {
    const made = kernels(always)
    expect(made).toContain('separableConv2d')
    expect(made).toContain('separableConv2dPointwiseGradient')
    for (const gone of ['depthwiseConv2d', 'pointwiseConv2d', 'pointwiseConv2dFilterGradient', 'batchNormStatistics'])
      expect(made).not.toContain(gone)
  })
  it('leaves it where two kernels are faster, and where a data gradient needs it as a mask', () => {
    expect(kernels(never)).toContain('depthwiseConv2d')
    expect(kernels(never)).not.toContain('separableConv2d')
    const masked = kernels(always, { intermediateActivation: 'relu' })
    expect(masked).toContain('depthwiseConv2d')
    expect(masked).not.toContain('separableConv2dPointwiseGradient')
  })
  it('saves the memory of the depthwise result', () => {
    const arena = (target: Target) => compileGraph(graph(), target).main.program.arenaBytes
    expect(arena(always)).toBeLessThan(arena(never))
  })
})

describe('memory traffic, counted', () => {
  const executor = emulator().openExecutor('emulator:counting')
  const count = (kernel: string, inputs: Filled[], attributes: Record<string, unknown>) => {
    emulator().takeAccounts()
    runCall(executor, kernel, inputs, attributes as never)
    return emulator().takeAccounts()
  }
  const [n, side, c, cout] = [1, 16, 64, 128]

  it.each(['tf32', 'bfloat16'] as const)(
    '%s: the gradient of the pointwise filter reads x and dy as planned, without bank conflicts',
    (precision) => {
      const store = precision === 'bfloat16' ? half : (t: Filled) => t
      const bytesPer = precision === 'bfloat16' ? 2 : 4
      const [x, d, dy] = [store(tensor(n, side, side, c)), store(tensor(3, 3, c, 1)), store(tensor(n, side, side, cout))]
      const moved = count('separableConv2dPointwiseGradient', [x, d, dy], { ...same, ...(precision === 'tf32' && { precision }) })
      const account = moved.separableConv2dPointwiseGradient!
      console.log(precision, JSON.stringify(moved))
      expect(account.conflicts).toEqual({})
      // Per strip of four pixels and four channels: three rows of six columns (fewer at the border) and nine taps, all through the caches.
      const strips = (n * side * side * c) / 16
      const tiles = { rows: Math.ceil(c / 64), columns: Math.ceil(cout / 64) }
      const plan = strips * (18 + 9) * 4 * bytesPer * tiles.columns + byteLength(dy.type) * tiles.rows
      expect(account.bytesRead).toBeLessThanOrEqual(plan)
      expect(account.bytesRead).toBeGreaterThan(0.75 * plan)
      // Partial products and their sum; nothing of the depthwise result, whose bytes the two kernels write and read.
      const partials = moved['separableConv2dPointwiseGradient (splits)']!
      expect(account.bytesWritten % (4 * c * cout)).toBe(0)
      expect(partials.bytesWritten).toBe(4 * c * cout)
    },
  )
  it('forward and filter gradient write less by the depthwise result than apart', () => {
    const [x, d, p, dy] = [
      half(tensor(n, side, side, c)),
      half(tensor(3, 3, c, 1)),
      half(tensor(c, cout)),
      half(tensor(n, side, side, cout)),
    ]
    const written = (...all: Record<string, { readonly bytesWritten: number }>[]) =>
      all.flatMap((counted) => Object.values(counted)).reduce((sum, { bytesWritten }) => sum + bytesWritten, 0)
    const forward = count('separableConv2d', [x, d, p], same)
    const apart = [count('depthwiseConv2d', [x, d], same), count('pointwiseConv2d', [x, p], {})]
    expect(written(...apart) - written(forward)).toBe(byteLength(x.type))
    expect(written(forward)).toBe(byteLength(dy.type))
  })
})
