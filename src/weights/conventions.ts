/**
 * How weights are called and laid out in other programs' files, layer kind by layer kind. An architecture lists its layers under
 * every convention (src/models/xceptionNames.ts); this file turns such a row into tensors.
 */

import { elements, type Shape } from '../graph/types.js'

/**
 * `timm`: also Cadene, tstandley and lucid 3. `lucid`: lucid 1 and 2. `torchvision`: the baselines. `keras`: `.h5` of Keras 2 and 3; `keras1`: the published
 * Xception files; `keras3`: `.weights.h5` and `.keras`, whose layers are known by class and number alone.
 */
export type Convention = 'timm' | 'lucid' | 'torchvision' | 'keras' | 'keras1' | 'keras3'

/** A layer with weights under its names; a convention that has none for it is left out. */
export interface LayerNames extends Partial<Readonly<Record<Convention, string>>> {
  readonly own: string
  readonly kind: 'conv' | 'separable' | 'depthwise' | 'pointwise' | 'batchNorm' | 'dense'
  /** Of the model's head, which a new task replaces. Default: whether it is dense. */
  readonly head?: boolean
  /** No batch norm follows, so a file without its bias does not fit. Default false: a missing bias is zero. */
  readonly needsBias?: boolean
  /** The filter that sees the picture, whose channels Keras has the other way round. */
  readonly bgr?: boolean
  /** Height and width of the map whose features a dense layer takes in a row: channels last in ours and Keras', first in PyTorch's. */
  readonly flattened?: readonly [number, number]
}

/** A variable of ours and the tensor that holds it in a file. */
export interface NamedTensor {
  /** Name of the variable. */
  readonly own: string
  /** Name of the tensor under the convention. */
  readonly name: string
  /** Of the model's head, which a new task replaces. */
  readonly head: boolean
  /** Zero where a file does not have it: biases that batch norm follows. */
  readonly optional: boolean
  /** How its elements stand there, beyond the convention's own order. */
  readonly order?: { readonly bgr?: boolean; readonly flattened?: readonly [number, number] }
}

const KERAS = {
  conv: { filter: 'kernel', bias: 'bias' },
  separable: { depthwise: 'depthwise_kernel', pointwise: 'pointwise_kernel', bias: 'bias' },
  depthwise: { depthwise: 'depthwise_kernel' },
  pointwise: { pointwise: 'kernel' },
  batchNorm: { gamma: 'gamma', beta: 'beta', movingMean: 'moving_mean', movingVariance: 'moving_variance' },
  dense: { weight: 'kernel', bias: 'bias' },
} as const

const pytorch = (depthwise: string) =>
  ({
    conv: { filter: 'weight', bias: 'bias' },
    separable: {
      depthwise: `${depthwise}.weight`,
      pointwise: 'pointwise.weight',
      depthwiseBias: `${depthwise}.bias`,
      bias: 'pointwise.bias',
    },
    depthwise: { depthwise: 'weight' },
    pointwise: { pointwise: 'weight' },
    batchNorm: { gamma: 'weight', beta: 'bias', movingMean: 'running_mean', movingVariance: 'running_var' },
    dense: { weight: 'weight', bias: 'bias' },
  }) as const

const PARTS: Readonly<Record<Convention, Readonly<Record<LayerNames['kind'], Readonly<Record<string, string>>>>>> = {
  timm: pytorch('conv1'),
  lucid: pytorch('depthwise'),
  torchvision: pytorch('depthwise'),
  keras: KERAS,
  keras1: KERAS,
  keras3: KERAS,
}

export const isPytorch = (convention: Convention): boolean => ['timm', 'lucid', 'torchvision'].includes(convention)
const separator = (convention: Convention): string => (isPytorch(convention) ? '.' : '/')
const OPTIONAL = new Set(['depthwiseBias', 'bias'])

/** Every tensor of the rows under a convention; rows without a name in it are left out. */
export function namedTensors(rows: readonly LayerNames[], convention: Convention): NamedTensor[] {
  return rows.flatMap((row) => {
    const name = row[convention]
    if (name === undefined) return []
    return Object.entries(PARTS[convention][row.kind]).map(([variable, part]) => ({
      own: `${row.own}.${variable}`,
      name: `${name}${separator(convention)}${part}`,
      head: row.head ?? row.kind === 'dense',
      optional: row.kind !== 'dense' && !row.needsBias && OPTIONAL.has(variable),
      ...(row.bgr && variable === 'filter' && !isPytorch(convention) && { order: { bgr: true } }),
      ...(row.flattened && variable === 'weight' && isPytorch(convention) && { order: { flattened: row.flattened } }),
    }))
  })
}

/** What the head may be called besides its name in the table. */
export const HEAD_ALIASES: Readonly<Record<Convention, readonly string[]>> = {
  timm: ['fc', 'last_linear', 'classifier.1', 'classifier', 'head.fc', 'head'],
  lucid: ['fc', 'last_linear', 'classifier.1', 'classifier'],
  torchvision: ['fc', 'classifier.6', 'last_linear'],
  keras: ['predictions', 'probs', 'dense#0'],
  keras1: ['dense#0', 'predictions'],
  keras3: ['dense#0'],
}

/** Tensors that belong to no layer's arithmetic. */
export const IGNORED = /(^|\.)num_batches_tracked$|^seed_generator|\/seed_generator|^train\./

/** The axes (window, in, out) of one of our variables as a three-dimensional array; `undefined` where both layouts agree. */
function axes(variable: string, shape: Shape): readonly [number, number, number] | undefined {
  if (shape.length < 2) return undefined
  if (variable.endsWith('.depthwise')) return [shape[0]! * shape[1]!, 1, shape[2]! * shape[3]!]
  if (shape.length === 2) return [1, shape[0]!, shape[1]!]
  return [shape[0]! * shape[1]!, shape[2]!, shape[3]!]
}

/** The shape of a variable in PyTorch's order: [out, in, h, w], [out, in] for dense layers. */
export function pytorchShape(variable: string, shape: Shape): number[] {
  if (variable.endsWith('.depthwise')) return [shape[2]! * shape[3]!, 1, shape[0]!, shape[1]!]
  if (variable.endsWith('.pointwise')) return [shape[1]!, shape[0]!, 1, 1]
  return shape.length === 4 ? [shape[3]!, shape[2]!, shape[0]!, shape[1]!] : [...shape].reverse()
}

/** The shape of a variable in Keras' order, which is ours but for the pointwise filter's window. */
export const kerasShape = (variable: string, shape: Shape): number[] => (variable.endsWith('.pointwise') ? [1, 1, ...shape] : [...shape])

/** PyTorch's order of a variable's elements into ours. */
export function fromPytorch(variable: string, shape: Shape, source: Float32Array): Float32Array {
  const sizes = axes(variable, shape)
  if (!sizes) return source
  const [window, channelsIn, channelsOut] = sizes
  return reversed(source, channelsOut, channelsIn, window)
}

/** Our order of a variable's elements into PyTorch's. */
export function toPytorch(variable: string, shape: Shape, source: Float32Array): Float32Array {
  const sizes = axes(variable, shape)
  return sizes ? reversed(source, ...sizes) : source
}

/** A file's order of elements into ours. */
export function decode({ own, order }: NamedTensor, convention: Convention, shape: Shape, source: Float32Array): Float32Array {
  if (order?.bgr) return channelsReversed(shape, source)
  if (!isPytorch(convention)) return source
  const ours = fromPytorch(own, shape, source)
  return order?.flattened ? rowsReordered(ours, shape, order.flattened, 'last') : ours
}

/** Our order of elements into a file's. */
export function encode({ own, order }: NamedTensor, convention: Convention, shape: Shape, source: Float32Array): Float32Array {
  if (order?.bgr) return channelsReversed(shape, source)
  if (!isPytorch(convention)) return source
  return toPytorch(own, shape, order?.flattened ? rowsReordered(source, shape, order.flattened, 'first') : source)
}

/** A filter [h, w, in, out] with its input channels the other way round. */
function channelsReversed([, , channelsIn = 1, channelsOut = 1]: Shape, source: Float32Array): Float32Array {
  const target = new Float32Array(source.length)
  for (let at = 0; at < source.length; at += channelsOut) {
    const channel = (at / channelsOut) % channelsIn
    target.set(source.subarray(at, at + channelsOut), at + (channelsIn - 1 - 2 * channel) * channelsOut)
  }
  return target
}

/** Rows of a dense weight [h · w · c, out] from channels first to channels last, or back. */
function rowsReordered(source: Float32Array, [rows, out]: Shape, [height, width]: readonly [number, number], channels: 'first' | 'last') {
  const pixels = height * width
  const count = rows! / pixels
  const target = new Float32Array(source.length)
  for (let pixel = 0; pixel < pixels; pixel++)
    for (let c = 0; c < count; c++) {
      const [first, last] = [c * pixels + pixel, pixel * count + c]
      const [from, to] = channels === 'last' ? [first, last] : [last, first]
      target.set(source.subarray(from * out!, (from + 1) * out!), to * out!)
    }
  return target
}

const TILE = 32

/** [a, b, c] → [c, b, a], in tiles that stay in the cache. */
function reversed(source: Float32Array, a: number, b: number, c: number): Float32Array {
  const target = new Float32Array(a * b * c)
  if (c === 1 || a === 1) {
    // Two axes remain: [rows, columns] → [columns, rows].
    const [rows, columns] = c === 1 ? [a, b] : [b, c]
    for (let top = 0; top < rows; top += TILE)
      for (let left = 0; left < columns; left += TILE)
        for (let row = top; row < Math.min(rows, top + TILE); row++)
          for (let column = left; column < Math.min(columns, left + TILE); column++)
            target[column * rows + row] = source[row * columns + column]!
    return target
  }
  for (let i = 0; i < a; i++)
    for (let j = 0; j < b; j++) for (let k = 0; k < c; k++) target[(k * b + j) * a + i] = source[(i * b + j) * c + k]!
  return target
}

/** Whether two shapes agree but for axes of size 1: old PyTorch files drop those. */
export function sameButOnes(a: Shape, b: Shape): boolean {
  const squeeze = (shape: Shape) => shape.filter((size) => size !== 1)
  return elements(a) === elements(b) && squeeze(a).join() === squeeze(b).join()
}
