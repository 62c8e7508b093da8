/**
 * A layer's kernels on a GPU as programs of their own calls, ours and those of NVIDIA's libraries alike: many copies of the call, each on
 * operands of its own that together exceed the L2 cache several times, replayed as one CUDA graph and timed by the device's
 * events. So no launch, no event and no cached operand is part of what is measured.
 */

import { SepconvError } from '../errors.js'
import type { Attributes } from '../graph/graph.js'
import { type HostTensor, opDefinition } from '../graph/op.js'
import type { Precision } from '../graph/precision.js'
import { byteLength, type DType, elements, type Shape, type TensorType } from '../graph/types.js'
import type { DeviceMemory } from '../runtime/executor.js'
import type { NativeDeviceExecutor } from '../runtime/executors/native.js'
import type { Call, Program, ProgramBuffer } from '../runtime/program.js'
import { relativeError } from '../runtime/verify.js'
import { bfloat16ToFloat32, float32ToBfloat16 } from '../weights/half.js'
import { compareSamples, type KernelOp, type OperandName, type Operands, type Pass } from './operands.js'

/** Whose kernels: ours, or NVIDIA's by dlopen; an unfused pair of theirs takes one of each. */
export type Library = 'sepconv' | 'cudnn' | 'cublasLt' | 'cudnn+cublasLt'

type Name = OperandName | 'middle'

/** One call of a kernel on a layer's operands. */
interface Step {
  readonly kernel: string
  readonly inputs: readonly (Name | null)[]
  readonly attributes: Attributes
  /** Absent: by the op's shape rule. */
  readonly output?: Shape
  /** Filters of cuDNN are [cout, kh, kw, cin]. */
  readonly krsc?: boolean
}

const SAME = { strides: [1, 1], dilations: [1, 1], padding: [1, 1, 1, 1], inputActivation: 'none' } satisfies Attributes

/** Of float32 sums in another order than the reference's, of rounded operands; bfloat16 results are rounded once, an unfused pair's twice. */
export const TOLERANCE: Record<Precision, number> = { float32: 1e-4, tf32: 5e-3, bfloat16: 2e-2 }

/** Algorithms of a library's kernel by number, as its own enumerations count them; cuBLASLt proposes up to eight. */
const ALGORITHMS: Readonly<Record<string, number>> = {
  cudnnConv2d: 8,
  cudnnConv2dInputGradient: 6,
  cudnnConv2dFilterGradient: 7,
  cublasLtMatmul: 8,
  cublasLtMatmulInputGradient: 8,
  cublasLtMatmulFilterGradient: 8,
}

/** The calls of a kernel; `undefined` where the library has none. */
function stepsOf(op: KernelOp, pass: Pass, library: Library, { x, gradient, between }: Operands): Step[] | undefined {
  const [, size, , cin] = x.shape as [number, number, number, number]
  const cout = gradient.shape[3]!
  const middle: Name = 'middle'
  const ours: Record<Pass, Partial<Record<KernelOp, (from: Name) => Step>>> = {
    forward: {
      regular: () => ({
        kernel: 'conv2d',
        inputs: ['x', 'regular'],
        attributes: { ...SAME, activation: 'none', groups: 1, kernelSize: [3, 3], cout, packed: false },
      }),
      depthwise: () => ({ kernel: 'depthwiseConv2d', inputs: ['x', 'depthwise'], attributes: SAME }),
      pointwise: (from) => ({ kernel: 'pointwiseConv2d', inputs: [from, 'pointwise'], attributes: {} }),
      fused: () => ({ kernel: 'separableConv2d', inputs: ['x', 'depthwise', 'pointwise'], attributes: SAME }),
    },
    data: {
      regular: () => ({
        kernel: 'conv2dInputGradient',
        inputs: ['gradient', 'regular', null],
        attributes: { ...SAME, groups: 1, inputSize: [size, size] },
      }),
      depthwise: (from) => ({
        kernel: 'depthwiseConv2dInputGradient',
        inputs: [from, 'depthwise', null, null, null],
        attributes: { ...SAME, inputSize: [size, size] },
      }),
      pointwise: () => ({
        kernel: 'pointwiseConv2dInputGradient',
        inputs: ['gradient', 'pointwise', null],
        attributes: { inputActivation: 'none' },
      }),
    },
    filter: {
      regular: () => ({
        kernel: 'conv2dFilterGradient',
        inputs: ['x', 'gradient'],
        attributes: { ...SAME, groups: 1, kernelSize: [3, 3] },
      }),
      depthwise: () => ({
        kernel: 'depthwiseConv2dFilterGradient',
        inputs: ['x', 'between', null, null],
        attributes: { ...SAME, kernelSize: [3, 3] },
      }),
      pointwise: () => ({
        kernel: 'pointwiseConv2dFilterGradient',
        inputs: ['between', 'gradient'],
        attributes: { inputActivation: 'none' },
      }),
    },
  }
  const convolution = (filter: 'regular' | 'depthwise', from: Name, to: Shape): Step => {
    const kernel = { forward: 'cudnnConv2d', data: 'cudnnConv2dInputGradient', filter: 'cudnnConv2dFilterGradient' }[pass]
    const groups = filter === 'depthwise' ? cin : 1
    const krsc = [filter === 'depthwise' ? cin : cout, 3, 3, filter === 'depthwise' ? 1 : cin]
    const dy: Name = filter === 'depthwise' ? from : 'gradient'
    const inputs: Name[] = pass === 'forward' ? ['x', filter] : pass === 'data' ? [dy, filter] : ['x', dy]
    return { kernel, inputs, attributes: { ...SAME, groups }, output: pass === 'filter' ? krsc : to, krsc: true }
  }
  const product = (from: Name): Step =>
    pass === 'forward'
      ? { kernel: 'cublasLtMatmul', inputs: [from, 'pointwise'], attributes: {}, output: gradient.shape }
      : pass === 'data'
        ? { kernel: 'cublasLtMatmulInputGradient', inputs: ['gradient', 'pointwise'], attributes: {}, output: between.shape }
        : { kernel: 'cublasLtMatmulFilterGradient', inputs: ['between', 'gradient'], attributes: {}, output: [cin, cout] }
  const own = ours[pass]
  const depthwise = (from: Name) => (library === 'sepconv' ? own.depthwise!(from) : convolution('depthwise', from, x.shape))
  const pointwise = (from: Name) => (library === 'sepconv' ? own.pointwise!(from) : product(from))
  switch (op) {
    case 'fused':
      return library === 'sepconv' && own.fused ? [own.fused('x')] : undefined
    case 'unfused':
      if (library !== 'sepconv' && library !== 'cudnn+cublasLt') return undefined
      return pass === 'forward'
        ? [depthwise('x'), pointwise(middle)]
        : pass === 'data'
          ? [pointwise('gradient'), depthwise(middle)]
          : [pointwise('between'), depthwise('between')]
    case 'depthwise':
      return library === 'sepconv' || library === 'cudnn' ? [depthwise('between')] : undefined
    case 'regular':
      if (library === 'cudnn') return [convolution('regular', 'gradient', pass === 'forward' ? gradient.shape : x.shape)]
      return library === 'sepconv' ? [own.regular!('x')] : undefined
    case 'pointwise':
      return library === 'sepconv' || library === 'cublasLt' ? [pointwise('between')] : undefined
  }
}

/** [kh, kw, cin, cout] or [kh, kw, c, 1] as [cout, kh, kw, cin] or [c, kh, kw, 1], and back. */
export function toKrsc({ shape, data }: HostTensor, back = false): HostTensor {
  const [kh, kw, cin, cout] = (back ? [shape[1], shape[2], shape[3], shape[0]] : shape) as [number, number, number, number]
  const depthwise = back ? cin === 1 : cout === 1
  const [inner, outer] = depthwise ? [1, Math.max(cin, cout)] : [cin, cout]
  const out = new Float32Array(data.length)
  for (let tap = 0; tap < kh * kw; tap++)
    for (let c = 0; c < inner; c++)
      for (let k = 0; k < outer; k++) {
        const [ours, theirs] = [(tap * inner + c) * outer + k, (k * kh * kw + tap) * inner + c]
        if (back) out[ours] = data[theirs]!
        else out[theirs] = data[ours]!
      }
  const filter = depthwise ? [kh, kw, outer, 1] : [kh, kw, inner, outer]
  return { shape: back ? filter : [outer, kh, kw, inner], data: out }
}

function encode(data: ArrayLike<number>, dtype: DType): Uint8Array {
  const values = Float32Array.from(data)
  if (dtype === 'float32') return new Uint8Array(values.buffer)
  const halves = new Uint16Array(values.length)
  float32ToBfloat16(values, halves)
  return new Uint8Array(halves.buffer)
}

function decode(bytes: Uint8Array, dtype: DType): Float32Array {
  if (dtype === 'float32') return new Float32Array(bytes.buffer, bytes.byteOffset, bytes.byteLength / 4)
  const values = new Float32Array(bytes.byteLength / 2)
  bfloat16ToFloat32(new Uint16Array(bytes.buffer, bytes.byteOffset, values.length), values)
  return values
}

const rounded = (tensor: HostTensor, dtype: DType): HostTensor =>
  dtype === 'float32' ? tensor : { shape: tensor.shape, data: decode(encode(tensor.data as Float32Array, dtype), dtype) }

/** What is asked of a device. */
export interface DeviceKernelSettings {
  readonly op: KernelOp
  readonly pass: Pass
  readonly precision: Precision
  readonly library: Library
  readonly operands: Operands
}

/** Copies of a call on rotating operands, in place on a device. */
export class DeviceKernel {
  readonly #loaded
  readonly #memories: DeviceMemory[] = []
  readonly #inputs: DeviceMemory[] = []
  readonly #outputs: DeviceMemory[] = []
  readonly #calls: number
  readonly #results: readonly { readonly type: TensorType; readonly krsc: boolean }[]
  /** Bytes of all operand sets. */
  readonly footprint: number

  private constructor(
    private readonly executor: NativeDeviceExecutor,
    private readonly settings: DeviceKernelSettings,
    steps: readonly Step[],
    l2Bytes: number,
  ) {
    const { operands, precision, pass } = settings
    const dtype: DType = precision === 'bfloat16' ? 'bfloat16' : 'float32'
    const buffers: ProgramBuffer[] = []
    const add = (place: ProgramBuffer['place'], type: TensorType, extra: Partial<ProgramBuffer> = {}): number =>
      buffers.push({ place, dtype: type.dtype, shape: type.shape, bytes: byteLength(type), ...extra }) - 1
    const typeOf = (name: Name, krsc = false): TensorType => {
      if (name === 'middle') return { shape: operands.between.shape, dtype }
      const shape = operands[name].shape
      const filter = krsc && (name === 'regular' || name === 'depthwise')
      return { shape: filter ? toKrsc({ shape, data: new Float32Array(elements(shape)) }).shape : shape, dtype }
    }
    const planned = steps.map((step) => {
      const inputs = step.inputs.map((name) => name && typeOf(name, step.krsc))
      const attributes: Attributes = precision === 'tf32' ? { ...step.attributes, precision } : step.attributes
      const output: TensorType = step.output ? { shape: step.output, dtype } : opDefinition(step.kernel).infer(inputs, attributes)[0]!
      const bytes = executor.target.workspaceBytes(step.kernel, inputs, [output], attributes)
      return { step, inputs, output, attributes, bytes }
    })
    const chained = planned.length > 1 && pass !== 'filter'
    const middleBytes = chained ? Math.ceil(byteLength(planned[0]!.output) / 256) * 256 : 0
    const arenaBytes = middleBytes + Math.max(...planned.map(({ bytes }) => bytes))
    this.#results = (chained ? planned.slice(1) : planned).map(({ output, step }) => ({ type: output, krsc: step.krsc ?? false }))
    const setBytes = planned.reduce(
      (sum, { inputs, output }) => sum + inputs.reduce((all, type) => all + (type ? byteLength(type) : 0), byteLength(output)),
      0,
    )
    // Two and a half times the cache: what a call finds there is never what it reads. At least eight calls behind one pair of events.
    const sets = Math.min(64, Math.max(1, Math.ceil((2.5 * l2Bytes) / setBytes)))
    this.#calls = Math.max(8, sets)
    this.footprint = sets * setBytes
    const perSet = Array.from({ length: sets }, () => {
      const middle = chained ? add('arena', planned[0]!.output, { offset: 0 }) : -1
      return planned.map(({ step, inputs, output }, i) => ({
        inputs: step.inputs.map((name, j) => {
          if (name === null) return null
          if (name === 'middle') return middle
          const filter = step.krsc && (name === 'regular' || name === 'depthwise')
          const source = rounded(operands[name], dtype)
          const index = add('input', inputs[j]!, { name: `${name}${buffers.length}` })
          this.#keep(encode((filter ? toKrsc(source) : source).data as Float32Array, dtype))
          return index
        }),
        output: chained && i === 0 ? middle : this.#result(add('output', output, { name: `result${buffers.length}` }), output),
      }))
    })
    const calls: Call[] = Array.from({ length: this.#calls }, (_, copy) =>
      planned.map(({ step, attributes, bytes }, i): Call => {
        const { inputs, output } = perSet[copy % sets]![i]!
        const workspace = { offset: middleBytes, bytes }
        return { kernel: step.kernel, inputs, outputs: [output], attributes, scope: 'bench', workspace }
      }),
    ).flat()
    const indices = (place: string) => buffers.flatMap((buffer, i) => (buffer.place === place ? [i] : []))
    const program: Program = {
      ...{ format: 'sepconv-program', version: 1, target: executor.target.name },
      ...{ buffers, calls, inputs: indices('input'), outputs: indices('output'), arenaBytes, updateStart: calls.length },
    }
    try {
      this.#loaded = executor.load(program)
    } catch (error) {
      this.#free()
      throw error
    }
  }

  /**
   * The kernel, of a library with its fastest algorithm. `undefined` where the library has no such kernel.
   * @throws ERR_DEVICE where the library is not found, or takes none of the shapes.
   */
  static make(executor: NativeDeviceExecutor, settings: DeviceKernelSettings): DeviceKernel | undefined {
    const steps = stepsOf(settings.op, settings.pass, settings.library, settings.operands)
    if (!steps) return undefined
    const l2Bytes = Number(executor.info.l2Bytes ?? 0)
    const chosen = steps.map((step) => fastest(executor, settings, step))
    return new DeviceKernel(executor, settings, chosen, l2Bytes)
  }

  /** Copies of one step with an algorithm, for the choice among them. */
  static trial(executor: NativeDeviceExecutor, settings: DeviceKernelSettings, step: Step): DeviceKernel {
    // A step that reads the first one's result gets operands of the same shape.
    const alone = { ...step, inputs: step.inputs.map((name) => (name === 'middle' ? 'between' : name)) }
    return new DeviceKernel(executor, settings, [alone], 0)
  }

  /** Largest error on samples, over the tolerance of the precision: right up to 1. Also the first of two runs before replays. */
  verify(): { maxError: number; right: boolean } {
    this.#run()
    const { op, pass, operands, precision } = this.settings
    const results = this.#results.map(({ type, krsc }, i): HostTensor => {
      const memory = this.#outputs[i]!
      const bytes = new Uint8Array(memory.bytes)
      this.executor.readSync(memory, 0, bytes)
      const result = { shape: type.shape, data: decode(bytes, type.dtype) }
      return krsc && pass === 'filter' ? toKrsc(result, true) : result
    })
    const dtype: DType = precision === 'bfloat16' ? 'bfloat16' : 'float32'
    const given = Object.fromEntries(
      Object.entries(operands).map(([name, operand]) => [name, name === 'layer' ? operand : rounded(operand as HostTensor, dtype)]),
    ) as unknown as Operands
    const { actual, expected } = compareSamples(op, pass, given, results)
    const maxError = relativeError(actual, expected)
    this.#run()
    return { maxError, right: maxError <= TOLERANCE[precision] }
  }

  /** Milliseconds of one call, the mean over the copies of one replay. */
  run(): number {
    return this.#loaded.elapsed(this.#bind(this.#inputs), this.#bind(this.#outputs)) / 1e6 / this.#calls
  }

  dispose(): void {
    this.#loaded.dispose()
    this.#free()
  }

  #run(): void {
    // What is not written shows as NaN.
    for (const memory of this.#outputs) this.executor.write(memory, 0, new Uint8Array(memory.bytes).fill(0xff))
    this.#loaded.runSync(this.#bind(this.#inputs), this.#bind(this.#outputs))
  }
  #bind = (memories: readonly DeviceMemory[]) => memories.map((memory) => ({ memory, offset: 0 }))
  #keep(bytes: Uint8Array): void {
    const memory = this.#allocate(bytes.length)
    this.executor.write(memory, 0, bytes)
    this.#inputs.push(memory)
  }
  #result(index: number, type: TensorType): number {
    this.#outputs.push(this.#allocate(byteLength(type)))
    return index
  }
  #allocate(bytes: number): DeviceMemory {
    const memory = this.executor.allocate(bytes)
    this.#memories.push(memory)
    return memory
  }
  #free(): void {
    for (const memory of this.#memories) memory.dispose()
  }
}

/** The step with the algorithm that takes the least time here; ours as it is. */
function fastest(executor: NativeDeviceExecutor, settings: DeviceKernelSettings, step: Step): Step {
  const count = ALGORITHMS[step.kernel]
  if (count === undefined) return step
  let best: { step: Step; ms: number } | undefined
  let reason: unknown
  for (let algorithm = 0; algorithm < count; algorithm++) {
    const candidate = { ...step, attributes: { ...step.attributes, algorithm } }
    let kernel: DeviceKernel | undefined
    try {
      kernel = DeviceKernel.trial(executor, settings, candidate)
      const ms = Math.min(...Array.from({ length: 4 }, () => kernel!.run()))
      if (!best || ms < best.ms) best = { step: candidate, ms }
    } catch (error) {
      reason ??= error // an algorithm that does not take this shape
    } finally {
      kernel?.dispose()
    }
  }
  if (!best) throw reason instanceof Error ? reason : new SepconvError('ERR_DEVICE', `${step.kernel} takes no such layer`)
  return best.step
}
