/** What a registered model compiles to for a target: its inference or its training step, without a device. */

import type { Compiled } from '../graph/compile.js'
import { compileGraph } from '../graph/compile.js'
import type { Value } from '../graph/graph.js'
import type { Precision } from '../graph/precision.js'
import type { Target } from '../graph/target.js'
import { trace } from '../graph/trace.js'
import { elements, type TensorType } from '../graph/types.js'
import { architecture } from '../models/registry.js'
import { nameVariables } from '../nn/layer.js'
import { softmaxCrossEntropy } from '../ops/index.js'
import { openDevice } from '../runtime/device.js'
import { compile } from '../runtime/function.js'
import { isValue } from '../runtime/structure.js'
import { upload } from '../runtime/tensor.js'
import { sgd } from '../train/optimizer.js'
import type { Task } from './model.js'

/** What is planned. */
export interface PlanOptions {
  readonly model: string
  /** Of the architecture. */
  readonly options?: Readonly<Record<string, unknown>>
  readonly task: Task
  readonly batch: number
  readonly precision: Precision
}

/**
 * The program of a model for a target, tensors and kernels not needed: the step of `sepconv bench model` (SGD with momentum).
 * @throws ERR_ARGUMENT for unknown models and options, ERR_DEVICE where the target lacks the precision.
 */
export function planModel({ model, options = {}, task, batch, precision }: PlanOptions, target: Target): Compiled {
  const network = architecture(model).build(options)
  nameVariables(network.root)
  const size = network.inputSize
  const type: TensorType = { shape: [batch, size, size, network.inputChannels], dtype: 'float32' }
  if (task === 'inference') {
    const graph = trace((traced) => {
      const result = network.forward(traced.input('images', type))
      for (const [name, value] of isValue(result) ? [['output', result] as const] : Object.entries(result)) traced.output(name, value)
    })
    return compileGraph(graph, target, { precision })
  }
  const step = compile(
    ({ images, labels }: { images: Value; labels: Value }) => softmaxCrossEntropy(network.forward(images) as Value, labels),
    { device: 'reference', precision, train: sgd({ momentum: 0.9, weightDecay: 1e-5 }) },
  )
  const executor = openDevice('reference')
  const images = upload(executor, type, new Float32Array(elements(type.shape)))
  const labels = upload(executor, { shape: [batch], dtype: 'int32' }, new Int32Array(batch))
  try {
    return step.plan({ images, labels }, target)
  } finally {
    step.dispose()
    images.dispose()
    labels.dispose()
  }
}
