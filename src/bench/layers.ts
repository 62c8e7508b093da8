/** The distinct separable layers of Xception at 299 × 299: all 3 × 3, stride 1, padding 'same'. */

import { SepconvError } from '../errors.js'

export interface Layer {
  /** `728->728@19`: channels in and out, and the side of the feature map. */
  readonly name: string
  readonly cin: number
  readonly cout: number
  /** Height and width. */
  readonly size: number
  /** How many of the network's 34 separable convolutions have this shape; 0 for a shape that a user brings. */
  readonly count: number
}

const layer = (cin: number, cout: number, size: number, count: number): Layer => ({
  name: `${cin}->${cout}@${size}`,
  cin,
  cout,
  size,
  count,
})

export const XCEPTION_LAYERS: readonly Layer[] = [
  layer(64, 128, 147, 1),
  layer(128, 128, 147, 1),
  layer(128, 256, 74, 1),
  layer(256, 256, 74, 1),
  layer(256, 728, 37, 1),
  layer(728, 728, 37, 1),
  layer(728, 728, 19, 25),
  layer(728, 1024, 19, 1),
  layer(1024, 1536, 10, 1),
  layer(1536, 2048, 10, 1),
]

/** A layer by its name, one of Xception's or any other `<in>-><out>@<size>`. @throws ERR_ARGUMENT. */
export function parseLayer(name: string): Layer {
  const known = XCEPTION_LAYERS.find((candidate) => candidate.name === name)
  if (known) return known
  const [cin, cout, size] = (/^(\d+)->(\d+)@(\d+)$/.exec(name)?.slice(1) ?? []).map(Number)
  if (!cin || !cout || !size)
    throw new SepconvError('ERR_ARGUMENT', `'${name}' is no layer`, {
      subject: 'layers',
      given: name,
      expected: '<channels in>-><channels out>@<size>',
      hint: 'Write channels in, channels out and the side of the feature map, such as 728->728@19',
    })
  return layer(cin, cout, size, 0)
}
