/**
 * ONNX export: the model's inference graph, node by node, in the layout that ONNX has (NCHW), with a batch of any size. Batch norm is
 * multiplied into the convolution before it, or stays a node of its own. The input is float32 and normalised; mean, deviation and
 * labels stand in the file's metadata.
 */

import { SepconvError } from '../errors.js'
import { writeAtomic } from '../files.js'
import type { Node, Value } from '../graph/graph.js'
import { trace } from '../graph/trace.js'
import type { Variable } from '../graph/variable.js'
import { pytorchShape, toPytorch } from '../weights/conventions.js'
import { Message } from '../weights/protobuf.js'
import type { Model } from './model.js'

/** The operator set that the nodes below are defined in, and the file format of its time. */
const OPSET = 17
const IR_VERSION = 8
const FLOAT = 1

export interface OnnxOptions {
  readonly fold: boolean
  readonly read: (variable: Variable) => Promise<Float32Array>
}

/** @throws ERR_ARGUMENT for ops that have no form here; ERR_FILE. */
export async function writeOnnx(path: string, model: Model, options: OnnxOptions): Promise<void> {
  const bytes = await encodeOnnx(model, options)
  await writeAtomic(path, async (file) => {
    for (const piece of bytes.pieces()) await file.write(piece)
  })
}

async function encodeOnnx(model: Model, options: OnnxOptions): Promise<Message> {
  const { inputSize, inputChannels } = model.network
  const { size } = model.config.preprocessing
  const side = model.network.variableInputSize ? size : inputSize
  const graph = trace((traced) => {
    const result = model(traced.input('images', { shape: [1, side, side, inputChannels], dtype: 'float32' }))
    const outputs =
      'node' in (result as object)
        ? { [model.network.classes > 0 ? 'logits' : 'embedding']: result }
        : (result as unknown as Record<string, Value>)
    for (const [name, value] of Object.entries(outputs)) traced.output(name, value)
  })
  const exporter = new Exporter(options, new Set(graph.outputs.map(({ value }) => value)))
  for (const value of graph.inputs) exporter.name(value, 'images')
  for (const node of graph.nodes) if (node.kind === 'op') await exporter.node(node, graph.nodes)
  const body = new Message()
  for (const node of exporter.nodes) body.message(1, node)
  body.bytes(2, model.config.architecture)
  for (const initializer of exporter.initializers) body.message(5, initializer)
  for (const value of graph.inputs) body.message(11, valueInfo('images', value))
  for (const { name, value } of graph.outputs) {
    body.message(12, valueInfo(name, value))
    exporter.rename(value, name)
  }
  for (const node of exporter.identities) body.message(1, node)
  const { preprocessing, labels, architecture, options: architectureOptions } = model.config
  const file = new Message().int(1, IR_VERSION).bytes(2, 'sepconv').message(7, body).message(8, new Message().bytes(1, '').int(2, OPSET))
  const metadata = { architecture, options: architectureOptions, preprocessing, ...(labels && { labels }) }
  for (const [key, value] of Object.entries(metadata))
    file.message(14, new Message().bytes(1, key).bytes(2, typeof value === 'string' ? value : JSON.stringify(value)))
  return file
}

/** [n, h, w, c] as [batch, c, h, w]; the batch has a name in place of a size. */
function valueInfo(name: string, { shape }: Value): Message {
  const sizes = shape.length === 4 ? [shape[3]!, shape[1]!, shape[2]!] : shape.slice(1)
  const dimensions = new Message().message(1, new Message().bytes(2, 'batch'))
  for (const size of sizes) dimensions.message(1, new Message().int(1, size))
  return new Message().bytes(1, name).message(2, new Message().message(1, new Message().int(1, FLOAT).message(2, dimensions)))
}

type AttributeValue = number | { readonly float: number } | readonly number[]

function attribute(name: string, value: AttributeValue): Message {
  const message = new Message().bytes(1, name)
  if (typeof value === 'number') return message.int(3, value).int(20, 2)
  if ('float' in value) return message.float(2, value.float).int(20, 1)
  for (const entry of value) message.int(8, entry)
  return message.int(20, 7)
}

/** Per-channel factors and summands. */
interface Coefficients {
  scale?: Float32Array
  shift?: Float32Array
}

const UNARY: Readonly<Record<string, string>> = {
  relu: 'Relu',
  elu: 'Elu',
  sigmoid: 'Sigmoid',
  tanh: 'Tanh',
  exp: 'Exp',
  sqrt: 'Sqrt',
  abs: 'Abs',
  negate: 'Neg',
}
const BINARY: Readonly<Record<string, string>> = { add: 'Add', subtract: 'Sub', multiply: 'Mul', divide: 'Div' }
const CONVOLUTIONS = new Set(['conv2d', 'depthwiseConv2d', 'pointwiseConv2d'])

class Exporter {
  readonly nodes: Message[] = []
  readonly initializers: Message[] = []
  /** Outputs that are also read inside, under the name that users see. */
  readonly identities: Message[] = []
  readonly #names = new Map<Value, string>()
  #count = 0

  constructor(
    private readonly options: OnnxOptions,
    private readonly outputs: ReadonlySet<Value>,
  ) {}

  name(value: Value, name: string): void {
    this.#names.set(value, name)
  }

  rename(value: Value, name: string): void {
    this.identities.push(this.#message('Identity', [this.#of(value)], name, 'output', {}))
  }

  async node(node: Node, all: readonly Node[]): Promise<void> {
    if (this.#names.has(node.outputs[0]!) || node.name === 'batchNormCoefficients') return
    const [x] = node.inputs
    const { attributes } = node
    if (CONVOLUTIONS.has(node.name)) return await this.#convolution(node, all)
    switch (node.name) {
      case 'scaleShift':
        return await this.#scaleShift(node)
      case 'unary': {
        const operator = UNARY[attributes.function as string]
        if (operator) return this.#emit(node, operator, [this.#of(x!)])
        break
      }
      case 'binary': {
        const operator = BINARY[attributes.function as string]
        // Values of another rank would need their axes moved.
        if (operator && node.inputs.every((input) => input!.shape.length === node.outputs[0]!.shape.length))
          return this.#emit(
            node,
            operator,
            node.inputs.map((input) => this.#of(input!)),
          )
        break
      }
      case 'maxPool2d':
        return this.#emit(node, 'MaxPool', [this.#of(x!)], window(node))
      case 'avgPool2d':
        return this.#emit(node, 'AveragePool', [this.#of(x!)], {
          ...window(node),
          count_include_pad: attributes.countPadding === true ? 1 : 0,
        })
      case 'reduce': {
        const operator = { mean: 'GlobalAveragePool', max: 'GlobalMaxPool' }[attributes.function as string]
        if (!operator || x!.shape.length !== 4 || String(attributes.axes) !== '1,2' || attributes.keepDims === true) break
        const pooled = this.#fresh('pooled')
        this.nodes.push(this.#message(operator, [this.#of(x!)], pooled, node.scope, {}))
        return this.#emit(node, 'Flatten', [pooled], { axis: 1 })
      }
      case 'concat':
        return this.#emit(
          node,
          'Concat',
          node.inputs.map((input) => this.#of(input!)),
          { axis: moved(attributes.axis as number, x!.shape.length) },
        )
      case 'slice':
        return this.#slice(node)
      case 'softmax':
        return this.#emit(node, 'Softmax', [this.#of(x!)], { axis: 1 })
    }
    throw new SepconvError('ERR_ARGUMENT', `${node.scope}: ${node.name} ${JSON.stringify(attributes)} has no form in the ONNX export`, {
      subject: node.name,
    })
  }

  async #convolution(node: Node, all: readonly Node[]): Promise<void> {
    const [x, filter] = node.inputs as [Value, Value]
    const out = node.outputs[0]!
    const channels = out.shape.at(-1)!
    const { value, coefficients } = await this.#foldable(out, all)
    const own = await this.#read(filter)
    const layout = node.name === 'conv2d' ? '.filter' : node.name === 'depthwiseConv2d' ? '.depthwise' : '.pointwise'
    const dense = x.shape.length === 2
    const weights = Float32Array.from(own)
    // Output channels are innermost in every one of our filters.
    if (coefficients.scale) for (let i = 0; i < weights.length; i++) weights[i]! *= coefficients.scale[i % channels]!
    const shape = filter.type.shape
    const w = dense
      ? this.#initializer(`${node.scope}.weight`, shape, weights)
      : this.#initializer(`${node.scope}.${node.name}`, pytorchShape(layout, shape), toPytorch(layout, shape, weights))
    const inputs = [this.#of(x), w]
    if (coefficients.shift) inputs.push(this.#initializer(`${node.scope}.${node.name}.bias`, [channels], coefficients.shift))
    this.#names.set(out, '')
    if (dense) this.#emitAs(value, 'Gemm', inputs, node.scope, {})
    else this.#emitAs(value, 'Conv', inputs, node.scope, convolution(node))
  }

  /** What follows a convolution and can go into its weights: every scale and shift with folding, else a plain bias. */
  async #foldable(out: Value, all: readonly Node[]): Promise<{ value: Value; coefficients: Coefficients }> {
    const coefficients: Coefficients = {}
    let value = out
    for (;;) {
      const readers = all.filter((node) => node.inputs.includes(value))
      const [next] = readers
      // What users see must stay as it is, batch norm behind it or not.
      if (this.outputs.has(value) || readers.length !== 1 || next?.name !== 'scaleShift' || next.inputs[0] !== value) break
      if (next.inputs[3] || next.attributes.activation !== 'none') break
      const plainBias = !next.inputs[1] && next.inputs[2]?.node.name !== 'batchNormCoefficients'
      if (!this.options.fold && !plainBias) break
      const { scale, shift } = await this.#coefficients(next)
      if (scale) {
        coefficients.scale = coefficients.scale ? coefficients.scale.map((v, i) => v * scale[i]!) : scale
        coefficients.shift = coefficients.shift?.map((v, i) => v * scale[i]!)
      }
      if (shift) coefficients.shift = coefficients.shift ? coefficients.shift.map((v, i) => v + shift[i]!) : shift
      this.#names.set(value, '')
      value = next.outputs[0]!
    }
    return { value, coefficients }
  }

  async #scaleShift(node: Node): Promise<void> {
    const [x, scale, shift] = node.inputs
    const source = scale?.node
    const channels = x!.shape.at(-1)!
    if (source?.name === 'batchNormCoefficients' && shift?.node === source && x!.shape.length === 4) {
      const [mean, variance, gamma, beta] = await Promise.all(
        [0, 1, 2, 3].map(async (i) =>
          source.inputs[i] ? await this.#read(source.inputs[i]) : new Float32Array(channels).fill(i === 2 ? 1 : 0),
        ),
      )
      const parts = { gamma, beta, mean, variance }
      const names = Object.entries(parts).map(([part, data]) => this.#initializer(`${node.scope}.${part}`, [channels], data!))
      return this.#emit(node, 'BatchNormalization', [this.#of(x!), ...names], { epsilon: { float: source.attributes.epsilon as number } })
    }
    const coefficients = await this.#coefficients(node)
    const shape = x!.shape.length === 4 ? [1, channels, 1, 1] : [1, channels]
    let name = this.#of(x!)
    for (const [operator, data] of [
      ['Mul', coefficients.scale],
      ['Add', coefficients.shift],
    ] as const) {
      if (!data) continue
      const result = this.#fresh('scaled')
      this.nodes.push(this.#message(operator, [name, this.#initializer(`${node.scope}.${operator}`, shape, data)], result, node.scope, {}))
      name = result
    }
    this.#names.set(node.outputs[0]!, name)
  }

  async #coefficients(node: Node): Promise<Coefficients> {
    const [, scale, shift] = node.inputs
    return { ...(scale && { scale: await this.#read(scale) }), ...(shift && { shift: await this.#read(shift) }) }
  }

  /** The content of a value that does not depend on the input. */
  async #read(value: Value): Promise<Float32Array> {
    const { node, index } = value
    if (node.kind === 'state') return await this.options.read(node.variable!)
    if (node.kind === 'constant') return Float32Array.from(node.data!)
    if (node.name === 'batchNormCoefficients') {
      const [mean, variance, gamma, beta] = await Promise.all(node.inputs.map(async (input) => input && (await this.#read(input))))
      const scale = variance!.map((v, i) => (gamma ? gamma[i]! : 1) / Math.sqrt(v + (node.attributes.epsilon as number)))
      return index === 0 ? scale : scale.map((s, i) => (beta ? beta[i]! : 0) - mean![i]! * s)
    }
    throw new SepconvError('ERR_ARGUMENT', `${node.scope}: a coefficient that depends on the input has no form in the ONNX export`, {
      subject: node.scope,
    })
  }

  #slice(node: Node): void {
    const [x] = node.inputs as [Value]
    const list = (name: string) => order(node.attributes[name] as readonly number[])
    const [begin, size, strides] = [list('begin'), list('size'), list('strides')]
    // The batch, whose size is free, is taken whole.
    const axes = begin.map((_, axis) => axis).slice(1)
    const ends = axes.map((axis) => begin[axis]! + (size[axis]! - 1) * strides[axis]! + 1)
    const parts = { starts: axes.map((axis) => begin[axis]!), ends, axes, steps: axes.map((axis) => strides[axis]!) }
    const names = Object.entries(parts).map(([part, data]) => this.#integers(`${node.scope}.${part}`, data))
    this.#emit(node, 'Slice', [this.#of(x), ...names])
  }

  #emit(node: Node, operator: string, inputs: readonly string[], attributes: Record<string, AttributeValue> = {}): void {
    this.#emitAs(node.outputs[0]!, operator, inputs, node.scope, attributes)
  }

  #emitAs(value: Value, operator: string, inputs: readonly string[], scope: string, attributes: Record<string, AttributeValue>): void {
    const name = this.#fresh(scope || operator)
    this.#names.set(value, name)
    this.nodes.push(this.#message(operator, inputs, name, scope, attributes))
  }

  #message(
    operator: string,
    inputs: readonly string[],
    output: string,
    scope: string,
    attributes: Record<string, AttributeValue>,
  ): Message {
    const message = new Message()
    for (const input of inputs) message.bytes(1, input)
    message
      .bytes(2, output)
      .bytes(3, this.#fresh(`${scope || 'node'}/${operator}`))
      .bytes(4, operator)
    for (const [name, value] of Object.entries(attributes)) message.message(5, attribute(name, value))
    return message
  }

  #initializer(name: string, shape: readonly number[], data: Float32Array): string {
    const unique = this.#fresh(name)
    const message = new Message()
    for (const size of shape) message.int(1, size)
    this.initializers.push(
      message
        .int(2, FLOAT)
        .bytes(8, unique)
        .bytes(9, new Uint8Array(data.buffer, data.byteOffset, data.byteLength)),
    )
    return unique
  }

  #integers(name: string, values: readonly number[]): string {
    const unique = this.#fresh(name)
    const data = BigInt64Array.from(values, BigInt)
    this.initializers.push(new Message().int(1, values.length).int(2, 7).bytes(8, unique).bytes(9, new Uint8Array(data.buffer)))
    return unique
  }

  #fresh(name: string): string {
    return `${name}#${this.#count++}`
  }

  #of(value: Value): string {
    const name = this.#names.get(value)
    if (!name) throw new SepconvError('ERR_INTERNAL', `${value.node.scope}: ${value.node.name} was read before it was exported`)
    return name
  }
}

/** [n, h, w, c] → [n, c, h, w], for lists with one entry per axis. */
const order = (list: readonly number[]): number[] => (list.length === 4 ? [list[0]!, list[3]!, list[1]!, list[2]!] : [...list])
const moved = (axis: number, rank: number): number => (rank === 4 ? [0, 2, 3, 1][axis]! : axis)

/** ONNX counts padding as (top, left, bottom, right). */
function pads(node: Node): number[] {
  const [top, bottom, left, right] = (node.attributes.padding ?? [0, 0, 0, 0]) as readonly number[]
  return [top!, left!, bottom!, right!]
}

const window = (node: Node): Record<string, AttributeValue> => ({
  kernel_shape: node.attributes.windowSize as readonly number[],
  strides: node.attributes.strides as readonly number[],
  pads: pads(node),
})

function convolution(node: Node): Record<string, AttributeValue> {
  if (node.name === 'pointwiseConv2d') return { kernel_shape: [1, 1] }
  const { strides, dilations } = node.attributes as Record<string, readonly number[]>
  const kernel = node.inputs[1]!.shape.slice(0, 2)
  const groups = node.name === 'depthwiseConv2d' ? node.inputs[0]!.shape[3]! : (node.attributes.groups as number)
  return { kernel_shape: kernel, strides: strides!, dilations: dilations!, pads: pads(node), group: groups }
}
