/**
 * `sepconv bench model`: a whole model's inference and training step over batch sizes and numbers of threads. Inputs are in place
 * before the clock starts; what is timed is one native call, on a GPU by its own events around the replayed graph. Memory is what the device holds for this configuration alone: weights
 * (with optimizer slots in training), prepared weights, arena, inputs and outputs.
 */

import { SepconvError } from '../errors.js'
import type { Value } from '../graph/graph.js'
import { byteLength, elements, type TensorType } from '../graph/types.js'
import { createModel, type Model } from '../models/index.js'
import { softmaxCrossEntropy } from '../ops/index.js'
import { type DeviceName, openDevice } from '../runtime/device.js'
import type { Executable } from '../runtime/executable.js'
import type { Executor } from '../runtime/executor.js'
import { compile } from '../runtime/function.js'
import { releaseState } from '../runtime/state.js'
import { type Tensor, upload } from '../runtime/tensor.js'
import { sgd } from '../train/optimizer.js'
import { useThreads } from './kernels.js'
import { type GpuState, gpuState, type Origin, origin, round } from './machine.js'
import { type SamplingOptions, sampleRounds } from './sampling.js'

export type Task = 'inference' | 'train'

export interface ModelResult {
  readonly task: Task
  readonly model: string
  readonly device: string
  readonly precision: 'float32'
  readonly batch: number
  readonly threads: number
  /** Median of one run. */
  readonly ms: number
  readonly imagesPerSecond: number
  readonly peakBytes: number
  readonly samples: number
}

export interface ModelReport extends Origin {
  /** On a GPU: as its driver described it at the end. */
  readonly gpu?: GpuState | null
  readonly results: readonly ModelResult[]
}

export interface ModelBenchOptions extends SamplingOptions {
  /** Registered models. Default `['xception']`. */
  readonly models?: readonly string[]
  /** Options of their architectures. */
  readonly options?: Readonly<Record<string, unknown>>
  /** Default both. */
  readonly tasks?: readonly Task[]
  readonly device?: DeviceName
  /** Default `[1, 8]`. */
  readonly batches?: readonly number[]
  /** Default: the device's own number. */
  readonly threads?: readonly number[]
  readonly precisions?: readonly string[]
  readonly memoryLimit?: number
  readonly onProgress?: (progress: { readonly done: number; readonly total: number; readonly label: string }) => void
}

/** @throws ERR_ARGUMENT for unknown models and for precisions other than float32. */
export async function benchModel(options: ModelBenchOptions = {}): Promise<ModelReport> {
  const { models = ['xception'], tasks = ['inference', 'train'], batches = [1, 8], precisions = ['float32'] } = options
  for (const precision of precisions)
    if (precision !== 'float32')
      throw new SepconvError('ERR_ARGUMENT', `precision '${precision}' is not available`, {
        subject: 'precision',
        expected: ['float32'],
        given: precision,
      })
  const executor = openDevice(options.device)
  const { isa, threads } = useThreads(executor, options.threads?.[0])
  const results: ModelResult[] = []
  const cases = models.flatMap((model) => tasks.flatMap((task) => batches.map((batch) => ({ model, task, batch }))))
  for (const [done, { model, task, batch }] of cases.entries()) {
    options.onProgress?.({ done, total: cases.length, label: `${model} ${task}, batch ${batch}` })
    results.push(...(await measure(executor, model, task, batch, options.threads ?? [threads], options)))
  }
  options.onProgress?.({ done: cases.length, total: cases.length, label: '' })
  const gpu = executor.target.name === 'cuda' && { gpu: gpuState(Number(executor.name.split(':')[1] ?? 0)) }
  return { ...origin(isa), ...gpu, results }
}

async function measure(
  executor: Executor,
  name: string,
  task: Task,
  batch: number,
  threads: readonly number[],
  options: ModelBenchOptions,
): Promise<ModelResult[]> {
  const before = executor.memory().allocated
  using model = await createModel(name, { ...options.options, device: executor.name })
  const { executable, dispose } = task === 'inference' ? inference(model, batch) : training(model, batch, options.memoryLimit)
  const inputs = executable.inputs.map(({ name: input, type }) => fill(executor, input, type, model.network.classes))
  try {
    const outputs = executable.runSync(inputs)
    const peakBytes = executor.memory().allocated - before
    for (const tensor of outputs) tensor.dispose()
    const run = (count: number) => () => {
      useThreads(executor, executor.name === 'cpu' ? count : undefined)
      return executable.elapsed(inputs) / 1e6
    }
    // Two runs per turn at least, so that a turn's first one, on caches that another candidate left behind, does not decide.
    const timings = await sampleRounds(
      threads.map((count) => ({ name: String(count), run: run(count) })),
      { rounds: options.rounds ?? 3, seconds: options.seconds ?? 0.5 },
    )
    return threads.map((count) => {
      const { ms, samples } = timings.get(String(count))!
      return {
        ...{ task, model: name, device: executor.name, precision: 'float32', batch, threads: count },
        ...{ ms: round(ms), imagesPerSecond: round((batch * 1000) / ms), peakBytes, samples },
      }
    })
  } finally {
    for (const tensor of inputs) tensor.dispose()
    dispose()
  }
}

interface Prepared {
  readonly executable: Executable
  dispose(): void
}

const imageType = (model: Model, batch: number): TensorType => {
  const { size } = model.config.preprocessing
  return { shape: [batch, size, size, model.network.inputChannels], dtype: 'float32' }
}

function inference(model: Model, batch: number): Prepared {
  const forward = compile((x: Value) => model(x), { device: model.device })
  const images = fill(model.executor, 'images', imageType(model, batch), model.network.classes)
  const executable = forward.executable(images)
  images.dispose()
  return { executable, dispose: () => forward.dispose() }
}

function training(model: Model, batch: number, memoryLimit: number | undefined): Prepared {
  const optimizer = sgd({ rate: 1e-4, momentum: 0.9, weightDecay: 1e-5 })
  const step = compile(({ images, labels }: { images: Value; labels: Value }) => softmaxCrossEntropy(model(images), labels), {
    device: model.device,
    train: optimizer,
    memoryLimit,
  })
  const images = fill(model.executor, 'images', imageType(model, batch), model.network.classes)
  const labels = fill(model.executor, 'labels', { shape: [batch], dtype: 'int32' }, model.network.classes)
  const executable = step.executable({ images, labels })
  images.dispose()
  labels.dispose()
  return {
    executable,
    dispose() {
      step.dispose()
      for (const variable of optimizer.state()) releaseState(variable)
    },
  }
}

/** An input of a model's program: pictures in [-1, 1), labels in turn, and the scalars of a training step. */
function fill(executor: Executor, name: string, type: TensorType, classes: number): Tensor {
  const count = elements(type.shape)
  if (type.dtype === 'int32')
    return upload(
      executor,
      type,
      name.endsWith('labels') ? Int32Array.from({ length: count }, (_, i) => i % Math.max(classes, 1)) : new Int32Array(count),
    )
  if (count === 1) return upload(executor, type, Float32Array.of(name.endsWith('decay') ? 0.999 : 1e-4))
  const data = new Float32Array(byteLength(type) / 4)
  let state = 0x9e3779b9
  for (let i = 0; i < count; i++) {
    state = (Math.imul(state, 1664525) + 1013904223) | 0
    data[i] = state / 2 ** 31
  }
  return upload(executor, type, data)
}
