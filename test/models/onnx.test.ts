// ONNX files against ONNX Runtime: its WebAssembly build, a development dependency, and onnxruntime-node where bench/peers has it.

import { existsSync } from 'node:fs'
import { mkdtemp, readFile, rm } from 'node:fs/promises'
import { createRequire } from 'node:module'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { createModel, type Model, tensor } from '../../src/index.js'
import { writeState } from '../../src/runtime/state.js'
import { generator } from '../helpers.js'

interface Runtime {
  InferenceSession: { create(bytes: Uint8Array): Promise<Session> }
  Tensor: new (type: 'float32', data: Float32Array, shape: readonly number[]) => unknown
}
interface Session {
  readonly inputNames: readonly string[]
  readonly outputNames: readonly string[]
  run(inputs: Record<string, unknown>): Promise<Record<string, { dims: readonly number[]; data: Float32Array }>>
}

const web = async () => (await import('onnxruntime-web')) as unknown as Runtime
const PEERS = new URL('../../bench/peers/package.json', import.meta.url)
const native = existsSync(new URL('node_modules/onnxruntime-node', PEERS))
  ? () => createRequire(PEERS)('onnxruntime-node') as Runtime
  : undefined

let folder: string
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'sepconv-'))
})
afterAll(() => rm(folder, { recursive: true }))

/** A model whose batch norms do something. */
async function scrambled(options: Record<string, unknown>, name = 'xception'): Promise<Model> {
  const model = await createModel(name, { inputSize: 74, ...options })
  const random = generator(5)
  for (const [name, variable] of model.variables)
    if (variable.type.shape.length === 1) {
      const values = Float32Array.from({ length: variable.type.shape[0]! }, () => random() - 0.5 + (/gamma|Variance/.test(name) ? 1 : 0))
      writeState(variable, values, model.executor)
    }
  return model
}

const transposed = (data: Float32Array, [, h, w, c]: readonly [number, number, number, number]): Float32Array =>
  Float32Array.from({ length: data.length }, (_, i) => {
    const [x, y, channel, image] = [i % w, Math.floor(i / w) % h, Math.floor(i / (w * h)) % c, Math.floor(i / (w * h * c))]
    return data[((image * h + y) * w + x) * c + channel]!
  })

/** Exports, runs in ONNX Runtime and in ours, and compares every output. @returns the names of the operators' outputs. */
async function expectSame(model: Model, runtime: Runtime, fold: boolean, batch = 2): Promise<Session> {
  const path = join(folder, 'model.onnx')
  await model.saveWeights(path, { fold })
  const session = await runtime.InferenceSession.create(await readFile(path))
  const { inputSize: side, inputChannels: c } = model.network
  const random = generator(9)
  const data = Float32Array.from({ length: batch * side * side * c }, () => random() * 2 - 1)
  const x = new runtime.Tensor('float32', transposed(data, [batch, side, side, c]), [batch, c, side, side])
  const theirs = await session.run({ images: x })
  const result = (await model.run(tensor(data, [batch, side, side, c], { device: model.device }))) as unknown
  const ours = (result as { data?: unknown }).data ? { [session.outputNames[0]!]: result } : result
  expect(Object.keys(theirs).sort()).toEqual(Object.keys(ours as object).sort())
  for (const [name, value] of Object.entries(ours as Record<string, { shape: number[]; data(): Promise<Float32Array> }>)) {
    const raw = await value.data()
    const expected = value.shape.length === 4 ? transposed(raw, value.shape as never) : raw
    const actual = theirs[name]!.data
    expect(actual).toHaveLength(expected.length)
    const scale = expected.reduce((a, b) => Math.max(a, Math.abs(b)), 0)
    const worst = expected.reduce((a, b, i) => Math.max(a, Math.abs(b - actual[i]!)), 0)
    expect(scale).toBeGreaterThan(0)
    expect(worst, `${name}, of ${scale}`).toBeLessThan(1e-4 * scale)
  }
  return session
}

describe('ONNX Runtime gives the same outputs', () => {
  const TINY = { width: 0.05, middleRepeats: 1, classes: 7 }
  it.each<[string, Record<string, unknown>]>([
    ["Keras' pools", {}],
    ['symmetric pools', { poolPadding: 'symmetric', epsilon: 1e-5 }],
    ['biases in the exit flow', { exitBias: true }],
    ['intermediate batch norm and ELU', { intermediateBatchNorm: true, intermediateActivation: 'elu' }],
    ['uneven segments', { segments: 3 }],
    ['equal segments', { segments: 2 }],
    ['fully connected layers, max pooling', { fullyConnected: [16], pooling: 'max' }],
    ['an embedding', { classes: 0 }],
    ['the feature pyramid', { featuresOnly: true }],
    ['without shortcuts', { residual: false }],
  ])('%s', async (_name, options) => {
    using model = await scrambled({ ...TINY, ...options })
    for (const fold of [true, false]) await expectSame(model, await web(), fold, fold ? 3 : 1)
  })

  it.each(['xception41', 'xception41p'])('%s', async (name) => {
    for (const options of [{}, { featuresOnly: true }]) {
      using model = await scrambled({ ...TINY, ...options }, name)
      for (const fold of [true, false]) await expectSame(model, await web(), fold)
    }
  })

  it('a whole Xception', async () => {
    using model = await scrambled({})
    const session = await expectSame(model, await web(), true, 1)
    expect([session.inputNames, session.outputNames]).toEqual([['images'], ['logits']])
  })

  it.skipIf(!native)('onnxruntime-node (skipped unless bench/peers is installed)', async () => {
    using model = await scrambled({})
    await expectSame(model, native!(), true, 2)
  })
})
