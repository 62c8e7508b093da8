// The network as an ONNX model (opset 17, NCHW), written with protobufjs from the few messages of onnx.proto that it takes.

import protobuf from 'protobufjs'
import { readNetwork } from '../plan.mjs'
import { depthwiseFirst, filterFirst, pointwiseFirst } from './layouts.mjs'

// Field numbers as in onnx/onnx.proto (onnx.ai).
const { root } = protobuf.parse(
  `
  syntax = "proto3";
  message ModelProto { int64 ir_version = 1; string producer_name = 2; GraphProto graph = 7; repeated OperatorSetIdProto opset_import = 8; }
  message OperatorSetIdProto { string domain = 1; int64 version = 2; }
  message GraphProto { repeated NodeProto node = 1; string name = 2; repeated TensorProto initializer = 5;
    repeated ValueInfoProto input = 11; repeated ValueInfoProto output = 12; }
  message NodeProto { repeated string input = 1; repeated string output = 2; string name = 3; string op_type = 4; repeated AttributeProto attribute = 5; }
  message AttributeProto { string name = 1; float f = 2; int64 i = 3; repeated int64 ints = 8; int32 type = 20; }
  message TensorProto { repeated int64 dims = 1; int32 data_type = 2; string name = 8; bytes raw_data = 9; }
  message ValueInfoProto { string name = 1; TypeProto type = 2; }
  message TypeProto { TensorTypeProto tensor_type = 1; }
  message TensorTypeProto { int32 elem_type = 1; TensorShapeProto shape = 2; }
  message TensorShapeProto { repeated Dimension dim = 1; }
  message Dimension { int64 dim_value = 1; }
`,
  { keepCase: true },
)

const FLOAT = 1
const attribute = (name, value) =>
  Array.isArray(value)
    ? { name, type: 7, ints: value }
    : Number.isInteger(value)
      ? { name, type: 2, i: value }
      : { name, type: 1, f: value }

/** @returns the bytes of a model for `batch` images; input `images` [batch, c, h, w], output `output`. */
export function onnxModel(folder, batch) {
  const { plan, weights } = readNetwork(folder)
  const node = []
  const initializer = []
  const names = ['images']
  const weight = (name, permute = (tensor) => tensor) => {
    const { shape, data } = permute(weights.get(name))
    initializer.push({ name, dims: shape, data_type: FLOAT, raw_data: new Uint8Array(data.buffer, data.byteOffset, data.byteLength) })
    return name
  }
  const pads = ([top, bottom, left, right]) => [top, left, bottom, right]
  for (const [i, entry] of plan.nodes.entries()) {
    const inputs = entry.inputs.map((input) => names[input])
    const output = i === plan.nodes.length - 1 ? 'output' : `value${i + 1}`
    const { strides, padding } = entry
    const add = (op_type, extra = [], attributes = {}) =>
      node.push({
        op_type,
        name: `${op_type}${i}`,
        input: [...inputs, ...extra],
        output: [output],
        attribute: Object.entries(attributes).map(([name, value]) => attribute(name, value)),
      })
    switch (entry.op) {
      case 'conv':
        add('Conv', [weight(entry.filter, filterFirst)], {
          kernel_shape: weights.get(entry.filter).shape.slice(0, 2),
          strides,
          pads: pads(padding),
        })
        break
      case 'depthwise': {
        const [kh, kw, channels] = weights.get(entry.filter).shape
        add('Conv', [weight(entry.filter, depthwiseFirst)], { kernel_shape: [kh, kw], strides, pads: pads(padding), group: channels })
        break
      }
      case 'pointwise':
        if (entry.shape.length === 1) add('Gemm', [weight(entry.filter), ...(entry.bias ? [weight(entry.bias)] : [])])
        else add('Conv', [weight(entry.filter, pointwiseFirst)], { kernel_shape: [1, 1] })
        break
      case 'batchNorm':
        add(
          'BatchNormalization',
          [entry.gamma, entry.beta, entry.mean, entry.variance].map((name) => weight(name)),
          { epsilon: entry.epsilon },
        )
        break
      case 'maxPool':
        add('MaxPool', [], { kernel_shape: entry.window, strides, pads: pads(padding) })
        break
      case 'relu':
        add('Relu')
        break
      case 'add':
        add('Add')
        break
      case 'mean':
        add('ReduceMean', [], { axes: [2, 3], keepdims: 0 })
        break
      default:
        throw new Error(`no ONNX op for ${entry.op}`)
    }
    names.push(output)
  }
  const [h, w, c] = plan.input
  const last = plan.nodes.at(-1).shape
  const info = (name, shape) => ({
    name,
    type: { tensor_type: { elem_type: FLOAT, shape: { dim: shape.map((dim_value) => ({ dim_value })) } } },
  })
  const shapeOf = (shape) => (shape.length === 3 ? [shape[2], shape[0], shape[1]] : shape)
  const graph = {
    ...{ node, initializer, name: 'sepconv' },
    input: [info('images', [batch, c, h, w])],
    output: [info('output', [batch, ...shapeOf(last)])],
  }
  const model = { ir_version: 8, producer_name: 'sepconv', graph, opset_import: [{ domain: '', version: 17 }] }
  return root.lookupType('ModelProto').encode(model).finish()
}
