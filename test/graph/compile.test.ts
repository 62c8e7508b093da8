import { describe, expect, it } from 'vitest'
import { compileGraph } from '../../src/graph/compile.js'
import { differentiate } from '../../src/graph/differentiate.js'
import type { Graph } from '../../src/graph/graph.js'
import { planMemory } from '../../src/graph/plan.js'
import type { Target } from '../../src/graph/target.js'
import { trace } from '../../src/graph/trace.js'
import * as ops from '../../src/ops/index.js'
import { buildXception } from '../../src/models/index.js'
import { PhiloxStream } from '../../src/ops/philox.js'

const target: Target = { name: 'cpu', dtypes: ['float32'], panel: 16, cacheBytes: 0, fusesSeparable: () => true, workspaceBytes: () => 0 }

const forward = (batch = 1, size = 299): Graph =>
  trace((graph) =>
    graph.output('y', buildXception({}).forward(graph.input('x', { shape: [batch, size, size, 3], dtype: 'float32' })) as never),
  )

const training = (batch: number, size: number): Graph =>
  trace(
    (graph) => {
      const logits = buildXception({ classes: 10 }).forward(graph.input('x', { shape: [batch, size, size, 3], dtype: 'float32' })) as never
      const loss = ops.mean(ops.softmaxCrossEntropy(logits, graph.input('labels', { shape: [batch], dtype: 'int32' })))
      const sources = graph.nodes.flatMap((node) => (node.variable?.trainable ? [node.outputs[0]!] : []))
      differentiate(graph, loss, sources).forEach((gradient, i) => graph.output(`d${i}`, gradient!))
      graph.output('loss', loss)
    },
    { training: true },
  )

const kernels = (graph: Graph): Record<string, number> => {
  const counts: Record<string, number> = {}
  for (const { kernel } of compileGraph(graph, target).main.program.calls) counts[kernel] = (counts[kernel] ?? 0) + 1
  return counts
}

describe('fusion', () => {
  it('leaves 46 calls of Xception: batch norm, activations and sums have vanished into their neighbours', () => {
    expect(kernels(forward())).toEqual({ conv2d: 6, separableConv2d: 34, maxPool2d: 4, reduce: 1, pointwiseConv2d: 1 })
  })

  it('normalises in prologues in training: no scaleShift or ReLU of its own inside the middle flow', () => {
    const { program } = compileGraph(training(2, 75), target).main
    const middle = program.calls.filter(({ scope }) => /block([5-9]|1[01])\b/.test(scope)).map(({ kernel }) => kernel)
    expect(middle).toContain('depthwiseConv2dInputGradient')
    expect(middle).not.toContain('unary')
    expect(middle).not.toContain('batchNormStatistics')
  })

  it('can be switched off', () => {
    const { program } = compileGraph(forward(), target, { optimise: false }).main
    expect(program.calls.length).toBeGreaterThan(150)
  })
})

describe('memory plan', () => {
  it('never lets buffers that live at the same time overlap, and stays near the lower bound', () => {
    const random = new PhiloxStream(7, 0)
    const below = (n: number) => Math.floor(random.uniform() * n)
    for (let round = 0; round < 50; round++) {
      const buffers = Array.from({ length: 60 }, () => {
        const from = below(40)
        return { bytes: 1 + below(5000), from, to: from + below(12) }
      })
      const { offsets, arenaBytes, lowerBound } = planMemory(buffers)
      for (const [i, a] of buffers.entries())
        for (const [j, b] of buffers.entries())
          if (i < j && a.from <= b.to && b.from <= a.to)
            expect(offsets[i]! + a.bytes <= offsets[j]! || offsets[j]! + b.bytes <= offsets[i]!).toBe(true)
      expect(offsets.every((offset, i) => offset % 64 === 0 && offset + buffers[i]!.bytes <= arenaBytes)).toBe(true)
      expect(arenaBytes).toBeGreaterThanOrEqual(lowerBound)
      expect(arenaBytes).toBeLessThan(lowerBound * 1.35)
    }
  })

  it('plans Xception at its lower bound, training within half a percent of it', () => {
    const inference = compileGraph(forward(), target).main.plan
    expect(inference.arenaBytes).toBe(inference.lowerBound)
    const step = compileGraph(training(4, 299), target).main.plan
    expect(step.arenaBytes).toBeLessThan(step.lowerBound * 1.005)
  })

  it('recomputes under a limit, and says what it would need when none fits', () => {
    const graph = training(2, 150)
    const { arenaBytes } = compileGraph(graph, target).main.program
    const limited = compileGraph(graph, target, { memoryLimit: Math.floor(arenaBytes * 0.9) }).main.program
    expect(limited.arenaBytes).toBeLessThanOrEqual(arenaBytes * 0.9)
    const scarcely = compileGraph(graph, target, { memoryLimit: arenaBytes - 1 }).main.program
    expect(scarcely.arenaBytes).toBeLessThan(arenaBytes)
    expect(scarcely.calls.length).toBeLessThan(limited.calls.length)
    expect(() => compileGraph(graph, target, { memoryLimit: 1000 })).toThrow(expect.objectContaining({ code: 'ERR_MEMORY' }))
  })
})

describe('programs', () => {
  it('are plain data that survives JSON, and the same for the same model', () => {
    const { program } = compileGraph(forward(), target).main
    expect(JSON.parse(JSON.stringify(program))).toEqual(program)
    expect(program.updateStart).toBe(program.calls.length)
  })

  it('name the layer in shape errors', () => {
    expect(() => trace((graph) => void buildXception({}).forward(graph.input('x', { shape: [1, 299, 299, 4], dtype: 'float32' })))).toThrow(
      /xception\.block1\.conv1/,
    )
  })
})
