import { describe, expect, it } from 'vitest'
import { compileGraph } from '../../src/graph/compile.js'
import { differentiate } from '../../src/graph/differentiate.js'
import type { Graph } from '../../src/graph/graph.js'
import type { Precision } from '../../src/graph/precision.js'
import type { Target } from '../../src/graph/target.js'
import { trace } from '../../src/graph/trace.js'
import type { DType } from '../../src/graph/types.js'
import * as ops from '../../src/ops/index.js'
import { compile, createModel, tensor } from '../../src/index.js'
import { buildXception } from '../../src/models/index.js'
import { opDefinition } from '../../src/graph/op.js'
import { emit } from '../../src/graph/trace.js'

const target: Target = {
  name: 'cpu',
  dtypes: ['float32', 'bfloat16'],
  panel: 32,
  cacheBytes: 0,
  fusesSeparable: () => true,
  workspaceBytes: () => 0,
}

const xception = (precision: Precision, dtype: DType = 'float32') =>
  compileGraph(
    trace((graph) => {
      const images = graph.input('x', { shape: [1, 299, 299, 3], dtype })
      const x = dtype === 'uint8' ? emit(opDefinition('cast'), [images], { dtype: 'float32', scale: 1 / 127.5, offset: -1 }) : images
      graph.output('y', buildXception({}).forward(x) as never)
    }),
    target,
    { precision },
  )

describe('bfloat16 storage', () => {
  it('holds feature maps and packed filters; vectors, folded shifts, inputs and outputs stay float32', () => {
    const { main, prepare } = xception('bfloat16')
    const { buffers, calls } = main.program
    for (const { place, dtype, shape, name } of buffers) {
      const map = place === 'arena' && shape.length === 4 && shape[1]! > 1
      const filter = place === 'prepared' && shape.length === 4
      if (name?.includes('predictions')) expect(dtype, name).toBe('float32')
      else if (map || filter) expect(dtype === 'bfloat16' || shape[3] === 2048, `${place} ${shape}`).toBe(true)
      else expect(dtype, `${place} ${shape}`).toBe('float32')
    }
    expect(calls.map(({ kernel }) => kernel).filter((kernel) => kernel === 'cast')).toHaveLength(2) // the picture, the pooled map
    expect(calls).toHaveLength(48)
    expect(prepare!.program.calls.filter(({ kernel }) => kernel === 'packFilter').length).toBe(41)
    const plain = xception('float32').main.program
    expect(main.program.arenaBytes).toBe(plain.arenaBytes / 2)
  })

  it('makes bfloat16 of uint8 pictures in the cast that normalises them', () => {
    const { buffers, calls } = xception('bfloat16', 'uint8').main.program
    expect(calls[0]).toMatchObject({ kernel: 'cast', attributes: { dtype: 'bfloat16', offset: -1 } })
    expect(buffers[calls[0]!.outputs[0]!]!.dtype).toBe('bfloat16')
    expect(calls[1]!.kernel).toBe('conv2d')
  })

  it("leaves a user's arithmetic on maps float32", () => {
    const { main } = compileGraph(
      trace((graph) => {
        const x = graph.input('x', { shape: [1, 8, 8, 4], dtype: 'float32' })
        const w = graph.input('w', { shape: [4, 4], dtype: 'float32' })
        graph.output('y', ops.exp(ops.relu(ops.pointwiseConv2d(x, w))))
      }),
      target,
      { precision: 'bfloat16' },
    )
    const { buffers, calls } = main.program
    const exp = calls.find(({ attributes }) => attributes.function === 'exp')!
    expect(buffers[exp.inputs[0]!]!.dtype).toBe('float32')
  })

  it('is refused by name where it is unknown or the device lacks it', async () => {
    expect(() => compile((x) => ops.relu(x), { precision: 'float16' as never })).toThrow(
      /precision must be float32 or tf32 or bfloat16, got "float16"/,
    )
    await expect(createModel('xception', { precision: 'half' as never, width: 0.05 })).rejects.toMatchObject({ code: 'ERR_ARGUMENT' })
    const graph = trace((traced) => traced.output('y', ops.relu(traced.input('x', { shape: [2], dtype: 'float32' }))))
    expect(() => compileGraph(graph, { ...target, dtypes: ['float32'] }, { precision: 'bfloat16' })).toThrow(
      /precision 'bfloat16': device 'cpu' takes float32 only/,
    )
    expect(() => compileGraph(graph, target, { precision: 'tf32' })).toThrow(/precision 'tf32': device 'cpu' takes float32, bfloat16 only/)
  })

  it('tf32 marks the products of feature maps, stores float32 and leaves dense layers exact, also in fused and gradient calls', () => {
    const build = (graph: Graph) => {
      const x = graph.input('x', { shape: [1, 8, 8, 4], dtype: 'float32' })
      const d = graph.input('d', { shape: [3, 3, 4, 1], dtype: 'float32' })
      const p = graph.input('p', { shape: [4, 4], dtype: 'float32' })
      const y = ops.separableConv2d(x, d, p, { activation: 'relu' })
      const logits = ops.dense(ops.mean(y, { axes: [1, 2] }), p)
      const loss = ops.mean(ops.square(logits))
      differentiate(graph, loss, [x, d, p]).forEach((gradient, i) => graph.output(`g${i}`, gradient!))
      graph.output('loss', loss)
    }
    const { main } = compileGraph(trace(build), { ...target, tensorFloat: true }, { precision: 'tf32' })
    const { buffers, calls } = main.program
    expect(buffers.every(({ dtype }) => dtype === 'float32')).toBe(true)
    const marked = calls.filter(({ attributes }) => attributes.precision === 'tf32')
    expect(new Set(marked.map(({ kernel }) => kernel))).toEqual(
      new Set(['pointwiseConv2d', 'pointwiseConv2dInputGradient', 'pointwiseConv2dFilterGradient']),
    )
    for (const { inputs } of marked) expect(buffers[inputs[0]!]!.shape).toHaveLength(4)
    expect(calls.length).toBeGreaterThan(marked.length + 3)
  })

  it('rounds on the reference exactly what is stored', async () => {
    const x = tensor([1 + 2 ** -10, 2], [1, 1, 1, 2], { device: 'reference' })
    const w = tensor([1, 0, 0, 1], [2, 2], { device: 'reference' })
    const product = compile((a, b) => ops.pointwiseConv2d(a, b), { device: 'reference', precision: 'bfloat16' })
    const y = await product(x, w)
    expect(y.dtype).toBe('float32')
    expect(Array.from(await y.data())).toEqual([1, 2])
  })
})
