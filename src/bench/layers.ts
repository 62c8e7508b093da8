/** The separable layers that `sepconv bench kernels` measures: Xception's at 299 × 299, and the shapes that users of the library bring. */

import { SepconvError } from '../errors.js'
import { samePadding } from '../ops/geometry.js'

/** A separable convolution over a square feature map, padding 'same'. */
export interface Layer {
  /** `728->728@19`: channels in and out, and the side of the input; then `:k5:s2:d2:m2` for what is not 3 × 3 with stride, dilation and multiplier 1. */
  readonly name: string
  readonly cin: number
  readonly cout: number
  /** Height and width of the input. */
  readonly size: number
  /** Height and width of the depthwise filter, and of the regular one beside it. */
  readonly kernel: number
  readonly stride: number
  readonly dilation: number
  /** Depthwise outputs per input channel. */
  readonly multiplier: number
  /** How many of the network's 34 separable convolutions have this shape; 0 for a shape that a user brings. */
  readonly count: number
}

type Variation = Partial<Pick<Layer, 'kernel' | 'stride' | 'dilation' | 'multiplier'>>

function layer(cin: number, cout: number, size: number, { kernel = 3, stride = 1, dilation = 1, multiplier = 1 }: Variation = {}): Layer {
  const suffix = [kernel === 3 ? '' : `:k${kernel}`, stride > 1 ? `:s${stride}` : '', dilation > 1 ? `:d${dilation}` : '']
  const name = `${cin}->${cout}@${size}${suffix.join('')}${multiplier > 1 ? `:m${multiplier}` : ''}`
  return { name, cin, cout, size, kernel, stride, dilation, multiplier, count: 0 }
}

/** The distinct separable layers of Xception at 299 × 299: all 3 × 3, stride 1. */
export const XCEPTION_LAYERS: readonly Layer[] = [
  { ...layer(64, 128, 147), count: 1 },
  { ...layer(128, 128, 147), count: 1 },
  { ...layer(128, 256, 74), count: 1 },
  { ...layer(256, 256, 74), count: 1 },
  { ...layer(256, 728, 37), count: 1 },
  { ...layer(728, 728, 37), count: 1 },
  { ...layer(728, 728, 19), count: 25 },
  { ...layer(728, 1024, 19), count: 1 },
  { ...layer(1024, 1536, 10), count: 1 },
  { ...layer(1536, 2048, 10), count: 1 },
]

/** Odd channels, large filters, dilation, stride, multiplier, small and large pictures, and some of them together. */
export const LIBRARY_LAYERS: readonly Layer[] = [
  layer(37, 37, 56),
  layer(100, 100, 28),
  layer(129, 129, 28),
  layer(3, 32, 112),
  layer(128, 128, 28, { kernel: 5 }),
  layer(128, 128, 28, { kernel: 7 }),
  layer(128, 128, 28, { dilation: 2 }),
  layer(128, 128, 56, { stride: 2 }),
  layer(64, 128, 28, { multiplier: 2 }),
  layer(256, 256, 4),
  layer(32, 32, 299),
  layer(100, 129, 57, { kernel: 5, stride: 2 }),
  layer(129, 100, 28, { kernel: 7, dilation: 2 }),
  layer(37, 64, 57, { stride: 2, multiplier: 2 }),
]

/** Sets of layers by name. */
export const LAYER_SETS = { xception: XCEPTION_LAYERS, library: LIBRARY_LAYERS } as const

/** Height and width of a layer's output. */
export const outputSide = ({ size, stride }: Layer): number => Math.ceil(size / stride)

/** Rows of padding before and after, which columns share. */
export const paddingOf = ({ size, kernel, stride, dilation }: Layer): [number, number] => samePadding(size, kernel, stride, dilation)

/**
 * The layer that a user would have chosen for speed: 3 × 3 without stride, dilation and multiplier, with as many outputs of about as
 * many channels, these in whole vectors, and a map between 14 and 112. A kernel that is general enough keeps at least half of its rate.
 */
export function nearestFast(of: Layer): Layer {
  const channels = (count: number) => Math.max(1, Math.round(count / 32)) * 32
  return layer(channels(of.cin * of.multiplier), channels(of.cout), Math.min(112, Math.max(14, outputSide(of))))
}

/**
 * A layer by its name, one of Xception's or any other `<in>-><out>@<size>`, with `:k5`, `:s2`, `:d2`, `:m2` for another kernel,
 * stride, dilation or multiplier. @throws ERR_ARGUMENT.
 */
export function parseLayer(name: string): Layer {
  const known = XCEPTION_LAYERS.find((candidate) => candidate.name === name)
  if (known) return known
  const [cin, cout, size, kernel = 3, stride = 1, dilation = 1, multiplier = 1] = (
    /^(\d+)->(\d+)@(\d+)(?::k(\d+))?(?::s(\d+))?(?::d(\d+))?(?::m(\d+))?$/.exec(name)?.slice(1) ?? []
  ).map((digits) => (digits === undefined ? undefined : Number(digits)))
  if (!cin || !cout || !size || !kernel || !stride || !dilation || !multiplier)
    throw new SepconvError('ERR_ARGUMENT', `'${name}' is no layer`, {
      subject: 'layers',
      given: name,
      expected: '<channels in>-><channels out>@<size>[:k<kernel>][:s<stride>][:d<dilation>][:m<multiplier>]',
      hint: 'Write channels in, channels out and the side of the feature map, such as 728->728@19 or 100->100@28:k5:s2; or xception, or library',
    })
  return layer(cin, cout, size, { kernel, stride, dilation, multiplier })
}

/** The layers of a list of names, in which a set's name stands for its layers. @throws ERR_ARGUMENT. */
export const parseLayers = (names: readonly string[]): Layer[] =>
  names.flatMap((name) => (Object.hasOwn(LAYER_SETS, name) ? LAYER_SETS[name as keyof typeof LAYER_SETS] : [parseLayer(name)]))
