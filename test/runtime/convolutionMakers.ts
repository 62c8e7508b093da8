/** Random calls of convolutions and their gradients. */

import type { HostTensor } from '../../src/graph/op.js'
import { type Maker, reference } from './cases.js'

const packed = (filter: HostTensor, panel: number): HostTensor =>
  reference({ kernel: 'packFilter', inputs: [filter], attributes: { panel } })[0]!
const flat = ({ shape, data }: HostTensor): HostTensor => ({ shape: [data.length / shape.at(-1)!, shape.at(-1)!], data })

/** By kernel; `panel` is the executor's. */
export const convolutionMakers = (panel: number): Readonly<Record<string, Maker>> => ({
  conv2d(c) {
    const { n, h, w, kh, kw, oh, ow, geometry } = c.window()
    const groups = c.pick(1, 1, 2, 4, 11)
    const [cin, cout] = [groups * c.pick(1, 3, 4, 8, 9), groups * c.pick(1, 2, 5, 8, 16, 19)]
    const filter = c.float(kh, kw, cin / groups, cout)
    const pack = groups === 1 && panel > 0 && c.pick(true, false)
    return {
      inputs: [
        c.float(n, h, w, cin),
        pack ? packed(flat(filter), panel) : filter,
        c.maybe(() => c.float(cout)),
        c.maybe(() => c.float(cout)),
        c.maybe(() => c.float(n, oh, ow, cout)),
      ],
      attributes: {
        ...geometry,
        groups,
        inputActivation: c.activation(),
        activation: c.activation(),
        packed: pack,
        kernelSize: [kh, kw],
        cout,
      },
    }
  },
  conv2dInputGradient(c) {
    const { n, h, w, kh, kw, oh, ow, geometry } = c.window()
    const groups = c.pick(1, 1, 2, 3, 11)
    const [cin, cout] = [groups * c.pick(1, 3, 4, 8), groups * c.pick(1, 2, 5, 8, 19)]
    const inputActivation = c.activation()
    return {
      inputs: [c.float(n, oh, ow, cout), c.float(kh, kw, cin / groups, cout), inputActivation === 'none' ? null : c.float(n, h, w, cin)],
      attributes: { ...geometry, groups, inputActivation, inputSize: [h, w], kernelSize: [kh, kw] },
    }
  },
  conv2dFilterGradient(c) {
    const { n, h, w, kh, kw, oh, ow, geometry } = c.window()
    const groups = c.pick(1, 1, 2, 3, 11)
    const [cin, cout] = [groups * c.pick(1, 3, 4, 8), groups * c.pick(1, 2, 5, 8, 19)]
    return {
      inputs: [c.float(n, h, w, cin), c.float(n, oh, ow, cout)],
      attributes: { ...geometry, groups, inputActivation: c.activation(), kernelSize: [kh, kw] },
    }
  },
  depthwiseConv2d(c) {
    const { n, h, w, kh, kw, oh, ow, geometry } = c.window()
    const [ch, m] = [c.channels(), c.pick(1, 1, 1, 2, 3)]
    return {
      inputs: [
        c.float(n, h, w, ch),
        c.float(kh, kw, ch, m),
        c.maybe(() => c.float(ch)),
        c.maybe(() => c.float(ch)),
        c.maybe(() => c.float(ch * m)),
        c.maybe(() => c.float(ch * m)),
        c.maybe(() => c.float(n, oh, ow, ch * m)),
      ],
      attributes: { ...geometry, inputActivation: c.activation(), activation: c.activation() },
    }
  },
  depthwiseConv2dInputGradient(c) {
    const { n, h, w, kh, kw, oh, ow, geometry } = c.window()
    const [ch, m] = [c.channels(), c.pick(1, 1, 2)]
    const inputActivation = c.activation()
    const x = inputActivation === 'none' ? null : c.float(n, h, w, ch)
    return {
      inputs: [c.float(n, oh, ow, ch * m), c.float(kh, kw, ch, m), x, x && c.maybe(() => c.float(ch)), x && c.maybe(() => c.float(ch))],
      attributes: { ...geometry, inputActivation, inputSize: [h, w] },
    }
  },
  depthwiseConv2dFilterGradient(c) {
    const { n, h, w, kh, kw, oh, ow, geometry } = c.window()
    const [ch, m] = [c.channels(), c.pick(1, 1, 2)]
    return {
      inputs: [c.float(n, h, w, ch), c.float(n, oh, ow, ch * m), c.maybe(() => c.float(ch)), c.maybe(() => c.float(ch))],
      attributes: { ...geometry, inputActivation: c.activation(), kernelSize: [kh, kw] },
    }
  },
  depthwiseConv2dGradients(c) {
    const [n, h, w, ch] = [c.whole(1, 2), c.whole(2, 21), c.whole(2, 21), 8 * c.whole(1, 9)]
    const [top, left, bottom, right] = [c.whole(0, 2), c.whole(0, 2), c.whole(0, 2), c.whole(0, 2)]
    const [oh, ow] = [h + top + bottom - 2, w + left + right - 2]
    if (oh < 1 || ow < 1) return this.depthwiseConv2dGradients!(c)
    const statistics = c.pick(true, false)
    const inputActivation = c.activation()
    return {
      inputs: [
        c.float(n, h, w, ch),
        c.float(n, oh, ow, ch),
        c.float(3, 3, ch, 1),
        c.maybe(() => c.float(ch)),
        c.maybe(() => c.float(ch)),
        c.maybe(() => c.float(n, h, w, ch)),
        ...(statistics ? [c.float(ch), c.positive(ch)] : []),
      ],
      attributes: {
        ...{ strides: [1, 1], dilations: [1, 1], padding: [top, bottom, left, right], inputActivation },
        ...{ masked: c.pick('none', 'own', 'sum'), epsilon: c.pick(1e-3, 0.1) },
      },
    }
  },
  pointwiseConv2d(c) {
    const [rows, cin, cout] = [c.whole(1, 130), c.channels(), c.channels()]
    const filter = c.float(cin, cout)
    const pack = panel > 0 && c.pick(true, false)
    const statistics = c.pick(true, false, false) && rows > 1
    const residual = statistics ? null : c.maybe(() => c.float(rows, cout))
    return {
      inputs: [
        c.float(rows, cin),
        pack ? packed(filter, panel) : filter,
        c.maybe(() => c.float(cout)),
        c.maybe(() => c.float(cout)),
        residual,
      ],
      attributes: {
        inputActivation: c.activation(),
        activation: statistics ? 'none' : c.activation(),
        packed: pack,
        cout,
        strassen: !statistics && cin % 2 === 0 && c.pick(true, false),
        ...(statistics && { statistics }),
      },
    }
  },
  pointwiseConv2dInputGradient(c) {
    const [rows, cin, cout] = [c.whole(1, 130), c.channels(), c.channels()]
    const inputActivation = c.activation()
    return {
      inputs: [c.float(rows, cout), c.float(cin, cout), inputActivation === 'none' ? null : c.float(rows, cin)],
      attributes: { inputActivation },
    }
  },
  pointwiseConv2dFilterGradient(c) {
    const [rows, cin, cout] = [c.whole(1, 300), c.channels(), c.channels()]
    return { inputs: [c.float(rows, cin), c.float(rows, cout)], attributes: { inputActivation: c.activation() } }
  },
  separableConv2d(c) {
    const { n, h, w, kh, kw, oh, ow, geometry } = c.window()
    const [ch, m, cout] = [c.channels(), c.pick(1, 1, 1, 2), c.channels()]
    const pointwise = c.float(ch * m, cout)
    const pack = panel > 0 && c.pick(true, false)
    const optional = (size: number) => c.maybe(() => c.float(size))
    return {
      inputs: [
        c.float(n, h, w, ch),
        c.float(kh, kw, ch, m),
        pack ? packed(pointwise, panel) : pointwise,
        optional(ch),
        optional(ch),
        optional(ch * m),
        optional(cout),
        optional(cout),
        c.maybe(() => c.float(n, oh, ow, cout)),
      ],
      attributes: {
        ...geometry,
        inputActivation: c.activation(),
        intermediateActivation: c.activation(),
        activation: c.activation(),
        packed: pack,
        cout,
        strassen: (ch * m) % 2 === 0 && c.pick(true, false),
      },
    }
  },
  separableConv2dPointwiseGradient(c) {
    const { n, h, w, kh, kw, oh, ow, geometry } = c.window()
    const [ch, m, cout] = [c.channels(), c.pick(1, 1, 1, 2), c.channels()]
    const optional = (size: number) => c.maybe(() => c.float(size))
    return {
      inputs: [c.float(n, h, w, ch), c.float(kh, kw, ch, m), c.float(n, oh, ow, cout), optional(ch), optional(ch), optional(ch * m)],
      attributes: { ...geometry, inputActivation: c.activation(), intermediateActivation: c.activation() },
    }
  },
})
