/**
 * Runs one program on the reference and, call by call, on one or two other executors that are fed the reference's own inputs: errors
 * do not pile up, and the first call that disagrees is the one that is wrong.
 */

import { checkOptions, SepconvError } from '../errors.js'
import { type Compiled, compileGraph } from '../graph/compile.js'
import type { Value } from '../graph/graph.js'
import { type Lowered, UPDATE_OPS } from '../graph/lower.js'
import { type HostTensor, opDefinition } from '../graph/op.js'
import { checkPrecision } from '../graph/passes/storage.js'
import type { Precision } from '../graph/precision.js'
import { trace } from '../graph/trace.js'
import { byteLength, type DType, elements, type TypedArray, typedArray } from '../graph/types.js'
import type { Variable } from '../graph/variable.js'
import { architecture, type Network } from '../models/registry.js'
import { nameVariables, variablesOf } from '../nn/layer.js'
import { softmaxCrossEntropy } from '../ops/index.js'
import { PhiloxStream } from '../ops/philox.js'
import { weightAverage } from '../train/average.js'
import { sgd } from '../train/optimizer.js'
import { type DeviceName, openDevice } from './device.js'
import type { Binding, Executor } from './executor.js'
import { ReferenceExecutor } from './executors/reference.js'
import { compile } from './function.js'
import type { Call, Program, ProgramBuffer } from './program.js'
import { initialContent, releaseState } from './state.js'
import { isValue } from './structure.js'
import { fromBfloat16, toBfloat16, upload } from './tensor.js'

/** All calls of one op together. */
export interface VerifyRow {
  readonly op: string
  /** Largest |difference| over the largest |expected value| of the same output. */
  readonly maxError: number
  readonly tolerance: number
  readonly ok: boolean
  readonly calls: number
  /** Layer of the worst call. */
  readonly layer: string
}

/** Options of {@link verifyModel}. */
export interface VerifyOptions {
  /** A registered model. Default `'xception'`. */
  model?: string
  /** Options of its architecture. */
  options?: Readonly<Record<string, unknown>>
  /** Forward pass alone, or a whole training step: forward, loss, backward, SGD update and averages. Default `'inference'`. */
  task?: 'inference' | 'train'
  /** The device under test. Default `'auto'`. */
  device?: DeviceName
  /** The device whose results are expected. Default `'reference'`. */
  against?: DeviceName
  /** Side of the input in pixels. Default 75: every layer, border and stride, in seconds. */
  size?: number
  /** Default 2. */
  batch?: number
  /** Storage of feature maps, in the program of both devices. Default `'float32'`. */
  precision?: Precision
  seed?: number
  signal?: AbortSignal
  /** Called after every call that has been compared. */
  onProgress?: (progress: { readonly done: number; readonly total: number; readonly op: string }) => void
}

/** float32 sums of up to a few thousand products in another order than the reference's float64. */
const TOLERANCE = 1e-4
/** Results rounded to eight bits (2⁻⁹), sums of products that were themselves rounded on the way, as in a fused separable convolution. */
const BFLOAT16_TOLERANCE = 8e-3
/** Operands rounded to eleven bits (2⁻¹¹), in sums over many of them. */
const TF32_TOLERANCE = 3e-3

/**
 * Compares every call of a model's program on two devices.
 * @returns a row per op, in the order of their first call.
 * @throws ERR_ARGUMENT for unknown models and options, ERR_DEVICE. Disagreement is no error: see `ok` of the rows.
 */
export async function verifyModel(options: VerifyOptions = {}): Promise<VerifyRow[]> {
  checkOptions('verify', options, [
    'model',
    'options',
    'task',
    'device',
    'against',
    'size',
    'batch',
    'seed',
    'precision',
    'signal',
    'onProgress',
  ])
  const { task = 'inference', size = 75, batch = 2, seed = 0, precision = 'float32' } = options
  checkPrecision('verify', precision)
  if (task !== 'inference' && task !== 'train')
    throw new SepconvError('ERR_ARGUMENT', `verify: task must be inference or train, got ${String(task)}`, { subject: 'task', given: task })
  const executor = openDevice(options.device)
  const against = openDevice(options.against ?? 'reference')
  const network = architecture(options.model ?? 'xception').build({ classes: 10, inputSize: Math.max(size, 71), ...options.options })
  nameVariables(network.root)
  const variables = variablesOf(network.root)
  const random = new PhiloxStream(seed, 1)
  const content = new Map(variables.map((variable) => [variable, randomContent(variable, random)]))
  const shape = [batch, size, size, network.inputChannels]
  const images = Float32Array.from({ length: elements(shape) }, () => 2 * random.uniform() - 1)
  const labels = Int32Array.from({ length: batch }, (_, i) => i % Math.max(network.classes, 1))
  const inputs: Record<string, TypedArray> = {
    images,
    'user.images': images,
    'user.labels': labels,
    rate: Float32Array.of(0.1),
    decay: Float32Array.of(0.9),
    sample: Int32Array.of(3, 0),
  }
  const { compiled, dispose } =
    task === 'train' ? trainingStep(network, shape, executor, precision) : forward(network, shape, executor, precision)
  try {
    const { main, prepare } = compiled
    const report = new Report(executor, against, main.program.calls.length + (prepare?.program.calls.length ?? 0), options)
    const prepared = prepare && (await replay(prepare, content, new Map(), {}, report))
    await replay(main, content, prepared ?? new Map(), inputs, report)
    return report.rows()
  } finally {
    dispose()
  }
}

function forward(
  network: Network,
  shape: readonly number[],
  executor: Executor,
  precision: Precision,
): { compiled: Compiled; dispose(): void } {
  const graph = trace((traced) => {
    const result = network.forward(traced.input('images', { shape, dtype: 'float32' }))
    for (const [name, value] of isValue(result) ? [['output', result] as const] : Object.entries(result)) traced.output(name, value)
  })
  return { compiled: compileGraph(graph, executor.target, { precision }), dispose() {} }
}

/** The very step that training compiles, down to the running statistics and the weight average. */
function trainingStep(
  network: Network,
  shape: readonly number[],
  executor: Executor,
  precision: Precision,
): { compiled: Compiled; dispose(): void } {
  if (network.classes === 0)
    throw new SepconvError('ERR_ARGUMENT', 'verify: a model without classes has no training step', {
      subject: 'task',
      hint: 'Verify its inference, or give it classes',
    })
  const [optimizer, average] = [sgd({ weightDecay: 1e-4 }), weightAverage('ema')]
  const step = compile(
    ({ images, labels }: { images: Value; labels: Value }) =>
      softmaxCrossEntropy(network.forward(images) as Value, labels, { labelSmoothing: 0.1 }),
    { device: executor.name, precision, train: optimizer, average, clipNorm: 1 },
  )
  const images = upload(executor, { shape, dtype: 'float32' }, new Float32Array(elements(shape)))
  const labels = upload(executor, { shape: shape.slice(0, 1), dtype: 'int32' }, new Int32Array(shape[0]!))
  const { compiled } = step.executable({ images, labels })
  return {
    compiled,
    dispose() {
      step.dispose()
      for (const tensor of [images, labels]) tensor.dispose()
      for (const variable of compiled.main.variables.values()) releaseState(variable)
    },
  }
}

/** Variables away from their neutral start, so that scale, shift and running statistics matter. */
function randomContent(variable: Variable, random: PhiloxStream): TypedArray {
  if (/(gamma|movingVariance)$/.test(variable.name))
    return Float32Array.from({ length: elements(variable.type.shape) }, () => 0.5 + random.uniform())
  if (/(beta|movingMean|[bB]ias)$/.test(variable.name))
    return Float32Array.from({ length: elements(variable.type.shape) }, () => random.uniform() - 0.5)
  return initialContent(variable)
}

/** Runs a program on a reference of its own, every call being compared; returns its outputs by name. */
async function replay(
  lowered: Lowered,
  content: ReadonlyMap<Variable, TypedArray>,
  prepared: ReadonlyMap<string, TypedArray>,
  inputs: Readonly<Record<string, TypedArray>>,
  report: Report,
): Promise<Map<string, TypedArray>> {
  const reference = new ReferenceExecutor()
  const { program, variables } = lowered
  const place = (buffer: ProgramBuffer, data?: TypedArray): Binding => {
    const memory = reference.allocate(buffer.bytes)
    if (data) reference.write(memory, 0, new Uint8Array(data.buffer, data.byteOffset, data.byteLength))
    return { memory, offset: 0 }
  }
  const loaded = reference.load(program, (call, given, expected) => report.compare(call, given, expected))
  program.buffers.forEach((buffer, i) => {
    if (buffer.view !== undefined) return
    const variable = variables.get(i)
    if (variable) loaded.bind(i, place(buffer, content.get(variable) ?? initialContent(variable)))
    if (buffer.place === 'prepared') loaded.bind(i, place(buffer, prepared.get(buffer.name!)))
  })
  const outputs = program.outputs.map((index) => place(program.buffers[index]!))
  await loaded.run(
    program.inputs.map((index) => place(program.buffers[index]!, inputs[program.buffers[index]!.name!.replace(/^\d+\.?/, '')])),
    outputs,
    report.options,
  )
  return new Map(
    program.outputs.map((index, i) => {
      const { name, bytes, dtype, shape } = program.buffers[index]!
      const data = new Uint8Array(bytes)
      reference.readSync(outputs[i]!.memory, 0, data)
      return [name!, typedArray(dtype, data.buffer, 0, elements(shape))]
    }),
  )
}

class Report {
  readonly #rows = new Map<string, { maxError: number; tolerance: number; calls: number; layer: string }>()
  #done = 0

  constructor(
    private readonly executor: Executor,
    private readonly against: Executor,
    private readonly total: number,
    readonly options: Pick<VerifyOptions, 'signal' | 'onProgress'>,
  ) {}

  compare(call: Call, inputs: readonly (HostTensor | null)[], outputs: readonly HostTensor[]): void {
    const actual = runCall(this.executor, call, inputs, outputs)
    const expected = this.against.name === 'reference' ? outputs.map(({ data }) => data) : runCall(this.against, call, inputs, outputs)
    // The gradient of a batch norm's shift is exactly zero where another batch norm follows linearly, as in the aligned Xceptions:
    // what is left of the sum is rounding of terms as large as dx.
    const firstSum = { batchNormGradient: 1, depthwiseConv2dGradients: 2 }[call.kernel] ?? Number.POSITIVE_INFINITY
    const error = Math.max(...expected.map((data, i) => relativeError(actual[i]!, data, i < firstSum ? 0 : largest(expected[0]!))))
    const row = this.#rows.get(call.kernel) ?? { maxError: 0, tolerance: TOLERANCE, calls: 0, layer: '' }
    const worse = error > row.maxError || Number.isNaN(error)
    // On a GPU, what is made of a bfloat16 operand on its way into a product is rounded to that type again, in its tile in shared
    // memory: by a normalising prologue, or the depthwise half of a separable convolution.
    const normalises =
      call.kernel === 'separableConv2dPointwiseGradient' ||
      opDefinition(call.kernel).inputs.some((name, i) => /^input(Scale|Shift)/.test(name) && inputs[i])
    const rounded = [...outputs, ...(this.executor.target.name === 'cuda' && normalises ? inputs : [])]
    const half = rounded.some((tensor) => tensor?.dtype === 'bfloat16')
    const tolerance = half ? BFLOAT16_TOLERANCE : call.attributes.precision === 'tf32' ? TF32_TOLERANCE : row.tolerance
    const { maxError, layer } = worse ? { maxError: error, layer: call.scope } : row
    this.#rows.set(call.kernel, { maxError, tolerance, calls: row.calls + 1, layer })
    this.options.onProgress?.({ done: ++this.#done, total: this.total, op: call.kernel })
  }

  rows(): VerifyRow[] {
    return [...this.#rows].map(([op, { maxError, tolerance, calls, layer }]) => ({
      op,
      maxError,
      tolerance,
      ok: maxError <= tolerance,
      calls,
      layer,
    }))
  }
}

/** Largest difference over the largest magnitude expected, or over `least`; NaN where one side has a NaN that the other lacks. */
export function relativeError(actual: ArrayLike<number>, expected: ArrayLike<number>, least = 0): number {
  let difference = 0
  for (let i = 0; i < expected.length; i++) {
    const [a, e] = [actual[i]!, expected[i]!]
    if (a === e || (Number.isNaN(a) && Number.isNaN(e))) continue
    if (!Number.isFinite(a - e)) return Number.NaN
    difference = Math.max(difference, Math.abs(a - e))
  }
  return difference / Math.max(largest(expected), least, 1e-30)
}

function largest(values: ArrayLike<number>): number {
  let magnitude = 0
  for (let i = 0; i < values.length; i++) magnitude = Math.max(magnitude, Math.abs(values[i]!) || 0)
  return magnitude
}

const dtypeOf = ({ data, dtype }: HostTensor): DType =>
  dtype ?? (data instanceof Int32Array ? 'int32' : data instanceof Uint8Array ? 'uint8' : 'float32')
const encode = (tensor: HostTensor): TypedArray => (tensor.dtype ? Uint16Array.from(tensor.data, toBfloat16) : tensor.data)

/** One call as a program of its own on `executor`; its outputs in host memory, bfloat16 widened. */
export function runCall(
  executor: Executor,
  call: Call,
  inputs: readonly (HostTensor | null)[],
  outputs: readonly HostTensor[],
): TypedArray[] {
  const present = inputs.flatMap((tensor) => (tensor ? [tensor] : []))
  const describe = (tensor: HostTensor, place: 'input' | 'output', i: number): ProgramBuffer => {
    const dtype = dtypeOf(tensor)
    return { place, dtype, shape: tensor.shape, bytes: byteLength({ shape: tensor.shape, dtype }), name: `${place}${i}` }
  }
  const buffers = [
    ...present.map((tensor, i) => describe(tensor, 'input', i)),
    ...outputs.map((tensor, i) => describe(tensor, 'output', i)),
  ]
  let next = 0
  const places = inputs.map((tensor) => (tensor ? next++ : null))
  // Updates work in place: the output buffer is filled with the old content first, and stands for the input too.
  const own = outputs.map((_, i) => present.length + i)
  const update = UPDATE_OPS[call.kernel]
  const updated = update ? outputs.map((_, i) => update(i, { inputs, outputs, attributes: call.attributes })) : []
  updated.forEach((input, i) => (places[input] = own[i]!))
  const bytes = executor.target.workspaceBytes(
    call.kernel,
    inputs.map((tensor, i) => (tensor ? { shape: tensor.shape, dtype: buffers[places[i]!]!.dtype } : null)),
    outputs.map((tensor, i) => ({ shape: tensor.shape, dtype: buffers[own[i]!]!.dtype })),
    call.attributes,
  )
  const program: Program = {
    format: 'sepconv-program',
    version: 1,
    target: executor.target.name,
    buffers,
    calls: [
      {
        kernel: call.kernel,
        inputs: places,
        outputs: own,
        attributes: call.attributes,
        scope: call.scope,
        ...(bytes > 0 && { workspace: { offset: 0, bytes } }),
      },
    ],
    inputs: present.map((_, i) => i),
    outputs: own,
    arenaBytes: bytes,
    updateStart: 0,
  }
  const loaded = executor.load(program)
  const memories = buffers.map((buffer) => executor.allocate(buffer.bytes))
  present.forEach((tensor, i) => {
    const data = encode(tensor)
    executor.write(memories[i]!, 0, new Uint8Array(data.buffer, data.byteOffset, data.byteLength))
  })
  updated.forEach((input, i) => {
    const data = encode(inputs[input]!)
    executor.write(memories[own[i]!]!, 0, new Uint8Array(data.buffer, data.byteOffset, data.byteLength))
  })
  try {
    loaded.runSync(
      present.map((_, i) => ({ memory: memories[i]!, offset: 0 })),
      own.map((i) => ({ memory: memories[i]!, offset: 0 })),
    )
    return own.map((i) => {
      const data = new Uint8Array(buffers[i]!.bytes)
      executor.readSync(memories[i]!, 0, data)
      const result = typedArray(buffers[i]!.dtype, data.buffer, 0, elements(buffers[i]!.shape))
      return result instanceof Uint16Array ? Float32Array.from(result, fromBfloat16) : result
    })
  } finally {
    loaded.dispose()
    for (const memory of memories) memory.dispose()
  }
}
