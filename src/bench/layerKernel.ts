/** One kernel of a layer, or an unfused pair, as a program of its own with operands in place: what `bench kernels` checks and times. */

import { compileGraph } from '../graph/compile.js'
import type { Attributes, Graph, Value } from '../graph/graph.js'
import { type HostTensor, opDefinition } from '../graph/op.js'
import type { Precision } from '../graph/precision.js'
import { emit, trace } from '../graph/trace.js'
import type { TensorType } from '../graph/types.js'
import { Variable } from '../graph/variable.js'
import { conv2d, depthwiseConv2d, pointwiseConv2d, separableConv2d } from '../ops/index.js'
import { Executable } from '../runtime/executable.js'
import type { Executor } from '../runtime/executor.js'
import { releaseState, writeState } from '../runtime/state.js'
import { type Tensor, upload } from '../runtime/tensor.js'
import { relativeError } from '../runtime/verify.js'
import type { Layer } from './layers.js'
import { compareSamples, geometryOf, type KernelOp, type OperandName, type Operands, type Pass } from './operands.js'

/** One kernel (or unfused pair) of a layer on a device, with its operands in place. */
export class LayerKernel {
  readonly #executable: Executable
  readonly #inputs: Tensor[]
  readonly #variables: Variable[] = []

  constructor(
    executor: Executor,
    readonly op: KernelOp,
    readonly pass: Pass,
    readonly operands: Operands,
    precision: Precision = 'float32',
  ) {
    const sources: HostTensor[] = []
    const graph = trace((traced) => {
      const input = (name: OperandName): Value => {
        sources.push(operands[name])
        return traced.input(name, typeOf(operands[name]))
      }
      const weights = (name: 'depthwise' | 'pointwise' | 'regular'): Value => this.#weights(traced, name, operands, executor)
      const outputs =
        pass === 'forward'
          ? forward(op, operands.layer, input, weights)
          : pass === 'data'
            ? dataGradient(op, operands.layer, input, weights)
            : filterGradient(op, operands.layer, input)
      for (const [i, output] of outputs.entries()) traced.output(String(i), output)
    })
    const target = { ...executor.target, fusesSeparable: () => op === 'fused' }
    this.#executable = new Executable(executor, compileGraph(graph, target, { precision }))
    this.#inputs = sources.map((source) => upload(executor, typeOf(source), source.data as Float32Array))
  }

  /** Largest error on samples; also the first run, which packs the weights. */
  verify(): number {
    const outputs = this.#executable.runSync(this.#inputs)
    const host = outputs.map((tensor): HostTensor => ({ shape: tensor.shape, data: tensor.dataSync() as Float32Array }))
    for (const tensor of outputs) tensor.dispose()
    const { actual, expected } = compareSamples(this.op, this.pass, this.operands, host)
    return relativeError(actual, expected)
  }

  /** Milliseconds of the kernels' calls in one run; in a network, operands of bfloat16 come as such, so rounding them does not count. */
  run(): number {
    const { calls } = this.#executable.program
    return this.#executable.profile(this.#inputs).reduce((sum, ns, i) => sum + (calls[i]!.kernel === 'cast' ? 0 : ns), 0) / 1e6
  }

  dispose(): void {
    this.#executable.dispose()
    for (const tensor of this.#inputs) tensor.dispose()
    for (const variable of this.#variables) releaseState(variable)
  }

  #weights(graph: Graph, name: 'depthwise' | 'pointwise' | 'regular', operands: Operands, executor: Executor): Value {
    const { shape, data } = operands[name]
    const variable = new Variable(name, { shape, dtype: 'float32' }, { name: 'given', fill: (out) => out.set(data as Float32Array) })
    writeState(variable, data as Float32Array, executor)
    this.#variables.push(variable)
    return graph.state(variable)
  }
}

const typeOf = ({ shape }: HostTensor): TensorType => ({ shape, dtype: 'float32' })

type Input = (name: OperandName) => Value
type Weights = (name: 'depthwise' | 'pointwise' | 'regular') => Value

function forward(op: KernelOp, { stride, dilation }: Layer, input: Input, weights: Weights): Value[] {
  const window = { strides: stride, dilations: dilation }
  switch (op) {
    case 'regular':
      return [conv2d(input('x'), weights('regular'), window)]
    case 'depthwise':
      return [depthwiseConv2d(input('x'), weights('depthwise'), window)]
    case 'pointwise':
      return [pointwiseConv2d(input('between'), weights('pointwise'))]
    default:
      return [separableConv2d(input('x'), weights('depthwise'), weights('pointwise'), window)]
  }
}

const windowOf = (layer: Layer): Attributes => ({ ...geometryOf(layer), inputActivation: 'none' })

function dataGradient(op: KernelOp, layer: Layer, input: Input, weights: Weights): Value[] {
  const attributes = { ...windowOf(layer), inputSize: [layer.size, layer.size] }
  const pointwise = () =>
    emit(opDefinition('pointwiseConv2dInputGradient'), [input('gradient'), weights('pointwise'), null], { inputActivation: 'none' })
  if (op === 'pointwise') return [pointwise()]
  if (op === 'regular')
    return [emit(opDefinition('conv2dInputGradient'), [input('gradient'), weights('regular'), null], { ...attributes, groups: 1 })]
  const dy = op === 'depthwise' ? input('between') : pointwise()
  return [emit(opDefinition('depthwiseConv2dInputGradient'), [dy, weights('depthwise'), null, null, null], attributes)]
}

function filterGradient(op: KernelOp, layer: Layer, input: Input): Value[] {
  const attributes = { ...windowOf(layer), kernelSize: [layer.kernel, layer.kernel] }
  const depthwise = (between: Value) => emit(opDefinition('depthwiseConv2dFilterGradient'), [input('x'), between, null, null], attributes)
  const pointwise = (between: Value) =>
    emit(opDefinition('pointwiseConv2dFilterGradient'), [between, input('gradient')], { inputActivation: 'none' })
  if (op === 'regular') return [emit(opDefinition('conv2dFilterGradient'), [input('x'), input('gradient')], { ...attributes, groups: 1 })]
  if (op === 'depthwise') return [depthwise(input('between'))]
  if (op === 'pointwise') return [pointwise(input('between'))]
  const between = input('between')
  return [pointwise(between), depthwise(between)]
}
