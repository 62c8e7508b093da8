import { describe, expect, test } from 'vitest'
import { costs } from '../../src/bench/costs.js'
import { benchKernels, KERNEL_OPS, type KernelReport, PASSES } from '../../src/bench/kernels.js'
import {
  type Layer,
  LIBRARY_LAYERS,
  nearestFast,
  outputSide,
  paddingOf,
  parseLayer,
  parseLayers,
  XCEPTION_LAYERS,
} from '../../src/bench/layers.js'
import { origin, Roofline } from '../../src/bench/machine.js'
import { compareSamples, type KernelOp, makeOperands } from '../../src/bench/operands.js'
import { compareKernels, differencesOf, layerRows, layerTitle, slowPath } from '../../src/bench/report.js'
import { median, sampleRounds } from '../../src/bench/sampling.js'
import { type HostTensor, opDefinition } from '../../src/graph/op.js'
import { elements } from '../../src/graph/types.js'
import { architecture } from '../../src/models/registry.js'
import { summarize } from '../../src/models/summary.js'
import '../../src/models/index.js'
import { openDevice } from '../../src/runtime/device.js'
import { loadNative } from '../../src/runtime/native.js'
import { relativeError } from '../../src/runtime/verify.js'

describe('layers', () => {
  test("are Xception's separable convolutions", () => {
    const layers = summarize(architecture('xception').build({})).layers.filter(({ ops }) => /depthwiseConv2d/.test(ops))
    expect(layers).toHaveLength(34)
    const macs = layers.reduce((sum, layer) => sum + layer.macs, 0)
    const counted = XCEPTION_LAYERS.reduce((sum, layer) => sum + layer.count * costs('fused', 'forward', layer, 1)[0]!.flops, 0) / 2
    expect(counted).toBe(macs)
    expect(XCEPTION_LAYERS.reduce((sum, { count }) => sum + count, 0)).toBe(34)
  })

  test('any other by its name', () => {
    const plain = { kernel: 3, stride: 1, dilation: 1, multiplier: 1, count: 0 }
    expect(parseLayer('12->34@5')).toEqual({ name: '12->34@5', cin: 12, cout: 34, size: 5, ...plain })
    const varied = { kernel: 5, stride: 2, dilation: 3, multiplier: 4, count: 0 }
    expect(parseLayer('7->9@11:k5:s2:d3:m4')).toEqual({ name: '7->9@11:k5:s2:d3:m4', cin: 7, cout: 9, size: 11, ...varied })
    expect(parseLayer('7->9@11:m2')).toEqual({ name: '7->9@11:m2', cin: 7, cout: 9, size: 11, ...plain, multiplier: 2 })
    expect(parseLayer('728->728@19').count).toBe(25)
    expect(() => parseLayer('12x34')).toThrow(/is no layer/)
    for (const name of ['0->34@5', '8->8@5:k0', '8->8@5:s2:k5', '8->8@5:x2']) expect(() => parseLayer(name)).toThrow(/is no layer/)
    expect(layerTitle('728->728@19')).toBe('728 → 728 @ 19²')
    expect(layerTitle('7->9@11:k5:s2:d3:m4')).toBe('7 → 9 @ 11², 5×5, stride 2, dilation 3, multiplier 4')
  })

  test('sets by name, among layers', () => {
    expect(parseLayers(['xception'])).toEqual(XCEPTION_LAYERS)
    expect(parseLayers(['8->8@5', 'library'])).toEqual([parseLayer('8->8@5'), ...LIBRARY_LAYERS])
    expect(LIBRARY_LAYERS.map(({ name }) => parseLayer(name))).toEqual(LIBRARY_LAYERS)
  })

  test('the nearest fast one is plain and of about the same work', () => {
    expect(nearestFast(parseLayer('100->129@57:k5:s2')).name).toBe('96->128@29')
    expect(nearestFast(parseLayer('64->128@28:m2')).name).toBe('128->128@28')
    expect(nearestFast(parseLayer('3->32@299')).name).toBe('32->32@112')
    expect(nearestFast(parseLayer('256->256@4')).name).toBe('256->256@14')
  })
})

describe('sampling', () => {
  test('candidates take turns, medians of what they report', async () => {
    const order: string[] = []
    const candidate = (name: string, times: number[]) => {
      let i = 0
      return {
        name,
        run() {
          order.push(name)
          return times[i++ % times.length]!
        },
      }
    }
    const timings = await sampleRounds([candidate('a', [5, 1, 9]), candidate('b', [2])], { rounds: 3, seconds: 0.002 })
    expect(timings.get('b')).toMatchObject({ ms: 2, least: 2 })
    expect(timings.get('a')!.least).toBe(1)
    expect(timings.get('a')!.samples).toBe(order.filter((name) => name === 'a').length)
    expect(order.filter((name, i) => name !== order[i - 1])).toEqual(['a', 'b', 'a', 'b', 'a', 'b'])
  })

  test("a candidate's error is thrown", async () => {
    const run = (): number => {
      throw new Error('no such kernel')
    }
    await expect(sampleRounds([{ name: 'x', run }], { rounds: 1 })).rejects.toThrow('no such kernel')
  })

  test('median', () => {
    expect([median([3]), median([4, 1, 2]), median([1, 2, 3, 10])]).toEqual([3, 2, 2.5])
  })
})

describe.each(['7->40@6', '5->9@9:k5:s2', '6->7@8:k7:d2', '5->8@7:s2:d2:m3', '3->4@2:k5'])('verification on samples, %s', (name) => {
  const layer = parseLayer(name)
  const { size, cin, cout, kernel, stride, dilation, multiplier } = layer
  const batch = 2
  const operands = makeOperands(layer, batch)
  const [before, after] = paddingOf(layer)
  const attributes = {
    strides: [stride, stride],
    dilations: [dilation, dilation],
    padding: [before, after, before, after],
    inputActivation: 'none',
    activation: 'none',
    groups: 1,
    packed: false,
    cout,
    kernelSize: [kernel, kernel],
    inputSize: [size, size],
  }
  const { x, depthwise, pointwise, regular, gradient, between } = operands

  /** The whole result by the reference's loops. */
  function full(op: string, inputs: HostTensor[], shape: number[]): HostTensor {
    const output = { shape, data: new Float32Array(elements(shape)) }
    const definition = opDefinition(op)
    definition.reference({ inputs: definition.inputs.map((_, i) => inputs[i] ?? null), outputs: [output], attributes })
    return output
  }
  const dx = [batch, size, size, cin]
  const y = (channels: number) => [batch, outputSide(layer), outputSide(layer), channels]
  const d = full('depthwiseConv2d', [x, depthwise], y(cin * multiplier))
  const dd = full('pointwiseConv2dInputGradient', [gradient, pointwise], y(cin * multiplier))
  const pointwiseFilter = full('pointwiseConv2dFilterGradient', [between, gradient], [cin * multiplier, cout])
  const depthwiseFilter = full('depthwiseConv2dFilterGradient', [x, between], [kernel, kernel, cin, multiplier])
  const cases: [KernelOp, (typeof PASSES)[number], HostTensor[]][] = [
    ['regular', 'forward', [full('conv2d', [x, regular], y(cout))]],
    ['depthwise', 'forward', [d]],
    ['pointwise', 'forward', [full('pointwiseConv2d', [between, pointwise], y(cout))]],
    ['unfused', 'forward', [full('pointwiseConv2d', [d, pointwise], y(cout))]],
    ['fused', 'forward', [full('separableConv2d', [x, depthwise, pointwise], y(cout))]],
    ['regular', 'data', [full('conv2dInputGradient', [gradient, regular], dx)]],
    ['depthwise', 'data', [full('depthwiseConv2dInputGradient', [between, depthwise], dx)]],
    ['pointwise', 'data', [dd]],
    ['unfused', 'data', [full('depthwiseConv2dInputGradient', [dd, depthwise], dx)]],
    ['regular', 'filter', [full('conv2dFilterGradient', [x, gradient], [kernel, kernel, cin, cout])]],
    ['depthwise', 'filter', [depthwiseFilter]],
    ['pointwise', 'filter', [pointwiseFilter]],
    ['unfused', 'filter', [pointwiseFilter, depthwiseFilter]],
  ]
  const errorOf = (op: KernelOp, pass: (typeof PASSES)[number], results: readonly HostTensor[]) => {
    const { actual, expected } = compareSamples(op, pass, operands, results)
    return relativeError(actual, expected)
  }

  test.each(cases)('%s %s: right results agree, wrong ones do not', (op, pass, results) => {
    expect(errorOf(op, pass, results)).toBeLessThan(1e-6)
    // The first and the last element: a corner's first and the opposite corner's last channel, or a filter's corners.
    for (const [which, result] of results.entries())
      for (const at of [0, result.data.length - 1]) {
        const data = Float32Array.from(result.data)
        data[at]! += 0.1
        expect(
          errorOf(
            op,
            pass,
            results.map((other, i) => (i === which ? { ...result, data } : other)),
          ),
        ).toBeGreaterThan(1e-4)
      }
  })
})

describe('costs', () => {
  const layer = parseLayer('728->728@19')
  test('728 → 728 @ 19²', () => {
    const macs = 19 * 19 * 728 * (9 + 728)
    expect(costs('fused', 'forward', layer, 1)).toEqual([{ flops: 2 * macs, bytes: 4 * (2 * 361 * 728 + 9 * 728 + 728 * 728) }])
    expect(costs('unfused', 'forward', layer, 1).reduce((sum, { flops }) => sum + flops, 0)).toBe(2 * macs)
    expect(costs('regular', 'data', layer, 3)[0]!.flops).toBe(2 * 9 * 3 * 361 * 728 * 728)
  })

  test('of a filter with stride and multiplier', () => {
    const varied: Layer = parseLayer('4->6@9:k5:s2:m2')
    expect(costs('unfused', 'forward', varied, 2)).toEqual([
      { flops: 2 * 25 * 2 * 25 * 8, bytes: 4 * (2 * 81 * 4 + 2 * 25 * 8 + 25 * 8), simt: true },
      { flops: 2 * 2 * 25 * 8 * 6, bytes: 4 * (2 * 25 * (8 + 6) + 8 * 6) },
    ])
  })
})

test('where a result comes from', () => {
  const { machine, versions, commit, date } = origin('avx2')
  expect(machine).toMatchObject({ isa: 'avx2' })
  expect(machine.cores).toBeGreaterThan(0)
  expect(versions.node).toBe(process.versions.node)
  expect(commit === null || /^[0-9a-f]{40}\+?$/.test(commit)).toBe(true)
  expect(Math.abs(Date.parse(date) - Date.now())).toBeLessThan(60_000)
})

test('speed-up is regular over fused, or over the pair', () => {
  const row = (op: KernelOp, ms: number, pass: 'forward' | 'data') =>
    ({ op, ms, pass, layer: 'a' }) as Parameters<typeof layerRows>[0][number]
  const rows = layerRows([
    row('regular', 9, 'forward'),
    row('unfused', 2, 'forward'),
    row('fused', 1, 'forward'),
    row('regular', 8, 'data'),
    row('unfused', 2, 'data'),
  ])
  expect(rows.map(({ pass, speedUp }) => [pass, speedUp])).toEqual([
    ['forward', 9],
    ['data', 4],
  ])
})

describe('two runs side by side', () => {
  const machine = { cpu: 'a', cores: 2, isa: 'avx2', memoryBytes: 1, system: 's' }
  const report = (isa: string, ms: number, ...layers: string[]) =>
    ({
      date: 'd',
      machine: { ...machine, isa },
      versions: {},
      commit: '0123456789',
      roofline: null,
      wrong: [],
      results: layers.map((layer) => ({
        layer,
        ms,
        op: 'fused',
        pass: 'forward',
        device: 'cpu',
        precision: 'float32',
        batch: 1,
        threads: 1,
      })),
    }) as unknown as KernelReport

  test('what both have, how much faster, and in what else they differ', () => {
    const comparison = compareKernels(report('avx512', 2, 'a', 'b', 'c'), report('avx2', 3, 'b', 'a'), 'old.json')
    expect(comparison.rows.map(({ layer, before, ms, faster }) => [layer, before, ms, faster])).toEqual([
      ['a', 3, 2, 1.5],
      ['b', 3, 2, 1.5],
    ])
    expect(comparison.differences).toEqual(['isa (avx2 then, avx512 now)'])
    expect(differencesOf(comparison)).toEqual([
      'old.json comes from another setting: isa (avx2 then, avx512 now)',
      '1 of these kernels are not in old.json',
    ])
    expect(differencesOf(compareKernels(report('avx2', 2, 'a'), report('avx2', 3, 'b'), 'old.json'))).toEqual([
      'all of these kernels are not in old.json',
    ])
  })

  test('another precision is another kernel', () => {
    const half = report('avx2', 1, 'a')
    const results = half.results.map((row) => ({ ...row, precision: 'bfloat16' as const }))
    expect(compareKernels({ ...half, results }, report('avx2', 1, 'a'), 'old.json').unmatched).toBe(1)
  })
})

test('the scalar path is named', () => {
  expect(slowPath(origin('scalar'))).toMatch(/without AVX2/)
  expect(slowPath(origin('avx2'))).toBeUndefined()
})

const { addon } = loadNative()
const cpu = addon?.executors().find(({ name }) => name === 'cpu')
describe.skipIf(!cpu)('roofline of this machine', () => {
  test('is measured, and bounds time from below', () => {
    const roofline = Roofline.measure(openDevice('cpu'), cpu!.isa!, 1)!
    expect(roofline.peakGflops).toBeGreaterThan(1)
    expect(roofline.floor(roofline.peakGflops * 1e6, 8)).toBeCloseTo(1, 6)
    const bytes = 2 ** 20
    expect(roofline.floor(1, bytes)).toBeCloseTo(bytes / (roofline.gbps(bytes) * 1e6), 6)
    expect(roofline.toJSON().copies.map((copy) => copy.bytes)).toContain(bytes)
  })

  test('arguments are checked', () => {
    expect(() => addon!.peakGflops('avx2', 0)).toThrow(/between 1 and 1024/)
    expect(() => addon!.copyGbps(-1, 1)).toThrow(/bytes/)
  })
})

describe.skipIf(!cpu)('beside the nearest fast layer', () => {
  test('both are measured in one run, and the share is of the roofline', async () => {
    const { results, wrong } = await benchKernels({
      layers: [parseLayer('9->10@13:k5')],
      ops: ['depthwise', 'fused'],
      passes: ['forward', 'filter'],
      nearest: true,
      device: 'cpu',
      rounds: 1,
      seconds: 0.005,
    })
    expect(wrong).toEqual([])
    expect(results.map(({ op, pass, layer, nearest }) => [op, pass, layer, nearest!.layer])).toEqual([
      ['depthwise', 'forward', '9->10@13:k5', '32->32@14'],
      ['fused', 'forward', '9->10@13:k5', '32->32@14'],
      ['depthwise', 'filter', '9->10@13:k5', '32->32@14'],
    ])
    for (const { nearest } of results) expect(nearest!.share).toBeGreaterThan(0)
  })

  test('bfloat16 is checked and measured beside float32, against a peak of its own', async () => {
    const layer = parseLayer('40->33@9')
    const { results, wrong, roofline } = await benchKernels({
      ...{ layers: [layer], device: 'cpu', precisions: ['float32', 'bfloat16'], rounds: 1, seconds: 0.005 },
    })
    expect(wrong).toEqual([])
    const half = results.filter(({ precision }) => precision === 'bfloat16')
    expect(half).toHaveLength(KERNEL_OPS.length * PASSES.length - 2) // fused kernels have no gradients of their own
    for (const { maxError } of half) expect(maxError).toBeGreaterThan(1e-4) // of float32 it would be less
    expect(roofline!.toJSON().peaks).toHaveProperty('bfloat16')
  })

  test('a precision that is not there is refused by name', async () => {
    await expect(benchKernels({ device: 'cpu', precisions: ['tf32'] })).rejects.toThrow(/precision 'tf32' is not measured on device 'cpu'/)
  })
})

test('the reference has no roofline', () => {
  expect(Roofline.measure(openDevice('reference'), null, 1)).toBeNull()
})
