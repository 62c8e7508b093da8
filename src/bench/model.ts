/**
 * `sepconv bench model`: a whole model's inference and training step over batch sizes and numbers of threads. Inputs are in place
 * before the clock starts; what is timed is one native call, on a GPU by its own events around the replayed graph. Memory is what the device holds for this configuration alone: weights
 * (with optimizer slots in training), prepared weights, arena, inputs and outputs.
 */

import type { Value } from '../graph/graph.js'
import { checkPrecision, checkStorage } from '../graph/passes/storage.js'
import { PRECISIONS, type Precision } from '../graph/precision.js'
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
import { peakResidentBytes, resetPeakResident } from './resident.js'
import { type SamplingOptions, sampleRounds } from './sampling.js'

export type Task = 'inference' | 'train'

export interface ModelResult {
  readonly task: Task
  readonly model: string
  readonly device: string
  readonly precision: Precision
  readonly batch: number
  readonly threads: number
  /** Median of one run. */
  readonly ms: number
  /** Of the fastest run. */
  readonly least: number
  readonly imagesPerSecond: number
  readonly peakBytes: number
  /** Of the whole process while this case was set up and ran, Node and whatever earlier cases left behind included; `null` where the system does not say. */
  readonly peakResidentBytes: number | null
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
  /** Default `['float32']`, on a GPU all. */
  readonly precisions?: readonly Precision[]
  readonly memoryLimit?: number
  readonly onProgress?: (progress: { readonly done: number; readonly total: number; readonly label: string }) => void
}

/** @throws ERR_ARGUMENT for unknown models, precisions and thread counts out of range, ERR_DEVICE where the device lacks a precision. */
export async function benchModel(options: ModelBenchOptions = {}): Promise<ModelReport> {
  const { models = ['xception'], tasks = ['inference', 'train'], batches = [1, 8] } = options
  const executor = openDevice(options.device)
  const precisions = options.precisions ?? (executor.target.name === 'cuda' ? PRECISIONS : ['float32'])
  for (const precision of precisions) checkPrecision('bench model', precision)
  for (const precision of precisions) checkStorage(precision, executor.target)
  const { isa, threads } = useThreads(executor, undefined)
  for (const count of options.threads ?? []) useThreads(executor, count)
  const results: ModelResult[] = []
  const cases = models.flatMap((model) =>
    tasks.flatMap((task) => precisions.flatMap((precision) => batches.map((batch) => ({ model, task, precision, batch })))),
  )
  for (const [done, each] of cases.entries()) {
    options.onProgress?.({ done, total: cases.length, label: `${each.model} ${each.task}, ${each.precision}, batch ${each.batch}` })
    results.push(...(await measure(executor, each, options.threads ?? [threads], options)))
  }
  options.onProgress?.({ done: cases.length, total: cases.length, label: '' })
  const gpu = executor.target.name === 'cuda' && { gpu: gpuState(Number(executor.name.split(':')[1] ?? 0)) }
  return { ...origin(isa), ...gpu, results }
}

interface Case {
  readonly model: string
  readonly task: Task
  readonly precision: Precision
  readonly batch: number
}

async function measure(
  executor: Executor,
  { model: name, task, precision, batch }: Case,
  threads: readonly number[],
  options: ModelBenchOptions,
): Promise<ModelResult[]> {
  const before = executor.memory().allocated
  const hasPeak = resetPeakResident()
  using model = await createModel(name, { ...options.options, device: executor.name, precision })
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
    const resident = hasPeak ? peakResidentBytes() : null
    return threads.map((count) => {
      const { ms, least, samples } = timings.get(String(count))!
      return {
        ...{ task, model: name, device: executor.name, precision, batch, threads: count },
        ...{
          ms: round(ms),
          least: round(least),
          imagesPerSecond: round((batch * 1000) / ms),
          peakBytes,
          peakResidentBytes: resident,
          samples,
        },
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
  const forward = compile((x: Value) => model(x), { device: model.device, precision: model.precision })
  const images = fill(model.executor, 'images', imageType(model, batch), model.network.classes)
  const executable = forward.executable(images)
  images.dispose()
  return { executable, dispose: () => forward.dispose() }
}

function training(model: Model, batch: number, memoryLimit: number | undefined): Prepared {
  const optimizer = sgd({ rate: 1e-4, momentum: 0.9, weightDecay: 1e-5 })
  const step = compile(({ images, labels }: { images: Value; labels: Value }) => softmaxCrossEntropy(model(images), labels), {
    device: model.device,
    precision: model.precision,
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
