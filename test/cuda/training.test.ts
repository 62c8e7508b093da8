/**
 * A reduced Xception trains on the CUDA kernels' own source: the whole step (forward, loss with dropout, backward, update, average)
 * is one program, launched, recorded and replayed, and stays with the reference within tolerance.
 */

import { describe, expect, it } from 'vitest'
import './emulator.js'
import { buildXception } from '../../src/models/index.js'
import { nameVariables, variablesOf } from '../../src/nn/layer.js'
import { PhiloxStream } from '../../src/ops/philox.js'
import type { Value } from '../../src/graph/graph.js'
import { compile, sgd, softmaxCrossEntropy, tensor } from '../../src/index.js'
import { readState } from '../../src/runtime/state.js'
import { verifyModel } from '../../src/runtime/verify.js'

const options = { classes: 5, inputSize: 71, width: 0.1, middleRepeats: 1, dropout: 0.3 }
const [batch, size, steps] = [2, 71, 3]

async function train(device: string) {
  const network = buildXception(options)
  nameVariables(network.root)
  const random = new PhiloxStream(11, 0)
  const loss = ({ images, labels }: { images: Value; labels: Value }) => softmaxCrossEntropy(network.forward(images) as Value, labels)
  const step = compile(loss, {
    train: sgd({ rate: 0.05, momentum: 0.9, weightDecay: 1e-4 }),
    device,
    clipNorm: 5,
  })
  const losses: number[] = []
  for (let i = 0; i < steps; i++) {
    const images = Float32Array.from({ length: batch * size * size * 3 }, () => 2 * random.uniform() - 1)
    const result = await step.run({
      images: tensor(images, [batch, size, size, 3], { device }),
      labels: tensor(Int32Array.of(i % 5, (i + 2) % 5), [batch], { device }),
    })
    losses.push(((await result.loss.data()) as Float32Array)[0]!)
  }
  const weights = new Map<string, Float32Array>()
  for (const variable of variablesOf(network.root)) weights.set(variable.name, (await readState(variable)) as Float32Array)
  step.dispose()
  return { losses, weights }
}

describe('a reduced Xception', () => {
  it.each(['float32', 'tf32', 'bfloat16'] as const)(
    'agrees with the reference call by call in %s, forward and backward',
    async (precision) => {
      const rows = await verifyModel({
        device: 'emulator:random-late-shuffled',
        task: 'train',
        precision,
        size,
        batch,
        options: { ...options, dropout: 0 },
      })
      expect(rows.filter(({ ok }) => !ok)).toEqual([])
      expect(rows.length).toBeGreaterThan(12)
    },
    120_000,
  )

  it('trains steps to the same losses and weights as the reference', async () => {
    const [expected, actual] = [await train('reference'), await train('emulator:fair')]
    console.log('losses', expected.losses, actual.losses)
    actual.losses.forEach((loss, i) => expect(Math.abs(loss / expected.losses[i]! - 1)).toBeLessThan(1e-4))
    for (const [name, weights] of expected.weights) {
      const got = actual.weights.get(name)!
      const scale = weights.reduce((most, w) => Math.max(most, Math.abs(w)), 1e-6)
      const worst = weights.reduce((most, w, i) => Math.max(most, Math.abs(w - got[i]!)), 0)
      expect(worst / scale, name).toBeLessThan(2e-3)
    }
  }, 120_000)
})
