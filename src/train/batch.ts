/** From a loader's batch to the tensors of training steps: targets in the form that the loss takes, mixing, cutting into parts. */

import type { Sample } from '../data/folder.js'
import type { Batch } from '../data/loader.js'
import { drawMixing, mixes, mixImages, mixTargets } from '../data/mix.js'
import { add, mean, multiply, sigmoidCrossEntropy, softmaxCrossEntropy } from '../ops/index.js'
import type { Value } from '../graph/graph.js'
import { currentTrace } from '../graph/trace.js'
import type { Model } from '../models/model.js'
import { type Tensor, upload } from '../runtime/tensor.js'
import type { Settings } from './settings.js'

export interface StepInputs {
  readonly images: Tensor
  readonly labels: Tensor
}

/** What each row is labelled with: one class, or several. */
export type RowLabels = Int32Array | readonly (number | readonly number[])[]

/** Makes the inputs of steps. */
export class BatchMaker {
  /** Targets are float32 [n, classes] where one class index per row is not enough, else int32 [n]. */
  readonly #dense: boolean
  /** Written anew for each step: a write is ordered after the runs before it. */
  #inputs: StepInputs | undefined

  constructor(
    private readonly model: Model,
    private readonly samples: readonly Sample[],
    private readonly settings: Settings,
    private readonly multiLabel: boolean,
    /** Ranks that share each batch: the rows of a batch that come in are this one's, then those that they are mixed with. */
    private readonly ranks = 1,
  ) {
    this.#dense = multiLabel || mixes(settings.mix) || settings.loss === 'sigmoid'
  }

  /** Of a part. */
  get rows(): number {
    return this.settings.batch / this.ranks / this.settings.accumulate
  }

  /** What the rows of a batch are labelled with, before mixing. */
  labels({ labels, indices }: Pick<Batch, 'labels' | 'indices'>): RowLabels {
    if (!this.multiLabel) return labels
    return Array.from(labels, (label, row) => this.samples[indices[row]!]?.labels ?? label)
  }

  /** The parts of a batch, one after another in the same two tensors. */
  *parts({ images, labels, indices, start }: Batch): Generator<StepInputs, void, void> {
    const { size, mix, seed, accumulate } = this.settings
    const given = labels.length
    const { classes, inputChannels } = this.model.network
    const rows = this.rows
    let targets: Int32Array | Float32Array = labels
    if (this.#dense) {
      targets = new Float32Array(given * classes)
      for (const [row, own] of this.labels({ labels, indices }).entries()) {
        if (typeof own !== 'number') for (const c of own) targets[row * classes + c] = 1
        else if (own >= 0) targets[row * classes + own] = 1
      }
      const mixing = mixes(mix) ? drawMixing(seed, start, size, mix) : null
      if (mixing) {
        mixImages(images, given, size, mixing)
        mixTargets(targets, given, mixing)
      }
    }
    const [pixels, width] = [size * size * inputChannels, targets.length / given]
    const inputs = this.inputs
    for (let part = 0; part < accumulate; part++) {
      write(inputs.images, images.subarray(part * rows * pixels, (part + 1) * rows * pixels))
      write(inputs.labels, targets.subarray(part * rows * width, (part + 1) * rows * width))
      yield inputs
    }
  }

  /** The tensors that each step reads; before the first one their content is zero. */
  get inputs(): StepInputs {
    if (this.#inputs) return this.#inputs
    const { rows } = this
    const { size } = this.settings
    const { executor } = this.model
    const { classes, inputChannels } = this.model.network
    const images = new Uint8Array(rows * size * size * inputChannels)
    this.#inputs = {
      images: upload(executor, { shape: [rows, size, size, inputChannels], dtype: 'uint8' }, images),
      labels: this.#dense
        ? upload(executor, { shape: [rows, classes], dtype: 'float32' }, new Float32Array(rows * classes))
        : upload(executor, { shape: [rows], dtype: 'int32' }, new Int32Array(rows)),
    }
    return this.#inputs
  }

  dispose(): void {
    this.#inputs?.images.dispose()
    this.#inputs?.labels.dispose()
  }
}

function write(tensor: Tensor, data: Uint8Array | Int32Array | Float32Array): void {
  const { memory, offset } = tensor.binding
  memory.executor.write(memory, offset, new Uint8Array(data.buffer, data.byteOffset, data.byteLength))
}

/** The traced loss of a batch, auxiliary towers included: a scalar. */
export function lossOf(logits: Value, targets: Value, { loss, labelSmoothing }: Settings): Value {
  const criterion = (of: Value): Value => {
    if (typeof loss === 'function') return loss(of, targets)
    return loss === 'sigmoid' ? sigmoidCrossEntropy(of, targets, { labelSmoothing }) : softmaxCrossEntropy(of, targets, { labelSmoothing })
  }
  const scalarOf = (value: Value): Value => (value.shape.length === 0 ? value : mean(value))
  const { auxiliary } = currentTrace()
  return auxiliary.reduce(
    (total, { logits: tower, weight }) => add(total, multiply(scalarOf(criterion(tower)), weight)),
    scalarOf(criterion(logits)),
  )
}
