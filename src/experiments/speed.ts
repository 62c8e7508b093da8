/** Training steps of several models in turns in one process, and where their time goes. */

import { round } from '../bench/machine.js'
import { sampleRounds } from '../bench/sampling.js'
import type { Value } from '../graph/graph.js'
import { createModel } from '../models/index.js'
import { softmaxCrossEntropy } from '../ops/index.js'
import { compile } from '../runtime/function.js'
import { type Tensor, tensor } from '../runtime/tensor.js'
import { weightAverage } from '../train/average.js'
import { sgd } from '../train/optimizer.js'
import type { SizedVariant } from './models.js'
import type { TimingResult } from './results.js'

/** What a call of a step's program is counted as, by its kernel and the shapes that it reads and writes. */
export function kindOf(kernel: string, shapes: readonly (readonly number[])[] = []): string {
  if (/separable/i.test(kernel)) return 'separable (fused)'
  if (/depthwise/i.test(kernel)) return 'depthwise'
  if (/pointwise/i.test(kernel)) return 'pointwise'
  // A regular convolution whose window is one pixel, as in Inception's towers and in shortcuts.
  if (/^conv2d/i.test(kernel))
    return shapes.some(([h, w, ...rest]) => h === 1 && w === 1 && rest.length === 2) ? 'pointwise' : 'regular convolution'
  if (/Update$|allFinite/.test(kernel)) return 'update'
  return 'everything else'
}

/** A step as a recipe of the paper does it: SGD with momentum and decay, averages kept. */
export async function timeVariants(
  variants: readonly SizedVariant[],
  options: {
    device: string
    batch: number
    /** Seconds for which a variant is timed in each turn. Default 1. */
    turnSeconds?: number
    signal?: AbortSignal
    onProgress?(progress: { done: number; total: number; label: string }): void
  },
): Promise<TimingResult[]> {
  const { device, batch, turnSeconds = 1, signal, onProgress } = options
  const made = []
  try {
    for (const variant of variants) {
      const model = await createModel(variant.architecture, { ...variant.options, device })
      const step = compile(({ images, labels }: { images: Value; labels: Value }) => softmaxCrossEntropy(model(images), labels), {
        device,
        train: sgd({ weightDecay: 1e-5 }),
        average: weightAverage(),
      })
      const { size } = model.config.preprocessing
      const { classes } = model.network
      const images = Uint8Array.from({ length: batch * size * size * 3 }, (_, i) => (i * 37 + (i >> 5) * 11) % 256)
      const inputs = {
        images: tensor(images, [batch, size, size, 3], { device }),
        labels: tensor(
          Int32Array.from({ length: batch }, (_, i) => i % classes),
          [batch],
          { device },
        ),
      }
      const executable = step.executable(inputs)
      // The step's own scalars: rate, decay of the average, place of the sample.
      const all = executable.inputs.map(({ name, type }): Tensor => {
        if (name.endsWith('images')) return inputs.images
        if (name.endsWith('labels')) return inputs.labels
        const zeros = type.dtype === 'int32' ? new Int32Array(2) : Float32Array.of(name.endsWith('decay') ? 0.99 : 1e-6)
        return tensor(zeros, type.shape, { device })
      })
      made.push({ variant, model, step, executable, inputs: all })
    }
    const timings = new Map<string, number[]>()
    const turns = 4
    for (let turn = 0; turn < turns; turn++) {
      signal?.throwIfAborted()
      onProgress?.({ done: turn, total: turns, label: 'training steps in turns' })
      const sampled = await sampleRounds(
        made.map(({ variant, executable, inputs }) => ({
          name: variant.name,
          run: () => {
            const since = performance.now()
            const outputs = executable.runSync(inputs)
            const ms = performance.now() - since
            for (const output of outputs) output.dispose()
            return ms
          },
        })),
        { rounds: 1, seconds: turnSeconds },
      )
      // The first turn warms up.
      if (turn > 0) for (const [name, { ms }] of sampled) timings.set(name, [...(timings.get(name) ?? []), ms])
    }
    return made.map(({ variant, executable, inputs }) => {
      const own = [...timings.get(variant.name)!].sort((a, b) => a - b)
      const stepMs = own[own.length >> 1]!
      const times = executable.profile(inputs)
      const total = times.reduce((sum, time) => sum + time, 0)
      const shares: Record<string, number> = {}
      const { buffers } = executable.program
      for (const [i, { kernel, inputs: read, outputs: written }] of executable.program.calls.entries()) {
        const kind = kindOf(
          kernel,
          [...read, ...written].flatMap((buffer) => (buffer === null ? [] : [buffers[buffer]!.shape])),
        )
        shares[kind] = (shares[kind] ?? 0) + times[i]! / total
      }
      return {
        ...{ variant: variant.name, batch, stepMs: round(stepMs), stepsPerSecond: round(1000 / stepMs) },
        ...{ imagesPerSecond: round((1000 * batch) / stepMs), samples: own.length },
        shares: Object.fromEntries(Object.entries(shares).map(([kind, share]) => [kind, round(share)])),
      }
    })
  } finally {
    for (const { model, step, inputs } of made) {
      step.dispose()
      model.dispose()
      for (const input of inputs) input.dispose()
    }
  }
}
