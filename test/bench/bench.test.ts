import { describe, expect, test } from 'vitest'
import { costs, type PASSES } from '../../src/bench/kernels.js'
import { parseLayer, XCEPTION_LAYERS } from '../../src/bench/layers.js'
import { origin, Roofline } from '../../src/bench/machine.js'
import { compareSamples, type KernelOp, makeOperands } from '../../src/bench/operands.js'
import { layerRows, layerTitle } from '../../src/bench/report.js'
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
    expect(parseLayer('12->34@5')).toEqual({ name: '12->34@5', cin: 12, cout: 34, size: 5, count: 0 })
    expect(parseLayer('728->728@19').count).toBe(25)
    expect(() => parseLayer('12x34')).toThrow(/is no layer/)
    expect(() => parseLayer('0->34@5')).toThrow(/is no layer/)
    expect(layerTitle('728->728@19')).toBe('728 → 728 @ 19²')
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

describe('verification on samples', () => {
  const layer = parseLayer('7->40@6')
  const operands = makeOperands(layer, 2)
  const [batch, size, cin, cout] = [2, 6, 7, 40]
  const common = {
    strides: [1, 1],
    dilations: [1, 1],
    padding: [1, 1, 1, 1],
    inputActivation: 'none',
    activation: 'none',
    groups: 1,
    packed: false,
    cout,
  }
  const more = { kernelSize: [3, 3], inputSize: [size, size] }
  const { x, depthwise, pointwise, regular, gradient, between } = operands

  /** The whole result by the reference's loops. */
  function full(name: string, inputs: HostTensor[], shape: number[]): HostTensor {
    const output = { shape, data: new Float32Array(elements(shape)) }
    const definition = opDefinition(name)
    definition.reference({
      inputs: definition.inputs.map((_, i) => inputs[i] ?? null),
      outputs: [output],
      attributes: { ...common, ...more },
    })
    return output
  }
  const map = (channels: number) => [batch, size, size, channels]
  const d = full('depthwiseConv2d', [x, depthwise], map(cin))
  const dd = full('pointwiseConv2dInputGradient', [gradient, pointwise], map(cin))
  const pointwiseFilter = full('pointwiseConv2dFilterGradient', [between, gradient], [cin, cout])
  const depthwiseFilter = full('depthwiseConv2dFilterGradient', [x, between], [3, 3, cin, 1])
  const cases: [KernelOp, (typeof PASSES)[number], HostTensor[]][] = [
    ['regular', 'forward', [full('conv2d', [x, regular], map(cout))]],
    ['depthwise', 'forward', [d]],
    ['pointwise', 'forward', [full('pointwiseConv2d', [between, pointwise], map(cout))]],
    ['unfused', 'forward', [full('pointwiseConv2d', [d, pointwise], map(cout))]],
    ['fused', 'forward', [full('separableConv2d', [x, depthwise, pointwise], map(cout))]],
    ['regular', 'data', [full('conv2dInputGradient', [gradient, regular], map(cin))]],
    ['depthwise', 'data', [full('depthwiseConv2dInputGradient', [between, depthwise], map(cin))]],
    ['pointwise', 'data', [dd]],
    ['unfused', 'data', [full('depthwiseConv2dInputGradient', [dd, depthwise], map(cin))]],
    ['regular', 'filter', [full('conv2dFilterGradient', [x, gradient], [3, 3, cin, cout])]],
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

test('the reference has no roofline', () => {
  expect(Roofline.measure(openDevice('reference'), null, 1)).toBeNull()
})
