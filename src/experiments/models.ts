/** The networks of an experiment at a scale: options complete, widths chosen so that those that shall be equally large are. */

import { architecture } from '../models/registry.js'
import '../models/index.js'
import { summarize } from '../models/summary.js'
import type { Experiment, Sizes, Variant } from './definition.js'

export interface SizedVariant extends Variant {
  /** Complete, for `createModel`. */
  readonly options: Readonly<Record<string, unknown>>
  readonly parameters: number
  readonly macs: number
}

/** A width may be at most 16 times as large as wanted or as small; channels go in steps of 8, so counts differ by some percent. */
const HALVINGS = 12

/** Every variant with its options, parameters and multiply-adds. */
export function sizeVariants({ variants }: Experiment, sizes: Sizes, classes: number): SizedVariant[] {
  const done = new Map<string, SizedVariant>()
  const size = (variant: Variant): SizedVariant => {
    const known = done.get(variant.name)
    if (known) return known
    const target = variant.asLargeAs === undefined ? undefined : variants.find(({ name }) => name === variant.asLargeAs)
    const sized = measured(variant, target ? widthFor(variant, size(target).parameters, sizes, classes) : sizes.width, sizes, classes)
    done.set(variant.name, sized)
    return sized
  }
  return variants.map(size)
}

function measured(variant: Variant, width: number, sizes: Sizes, classes: number): SizedVariant {
  const { fullyConnected, ...own } = variant.options
  const units = Math.max(8, Math.round((4096 * sizes.width) / 8) * 8)
  const options = {
    ...{ classes, inputSize: sizes.size, ...(width !== 1 && { width }) },
    ...sizes.architectures[variant.architecture],
    ...own,
    ...(fullyConnected === true && { fullyConnected: [units, units] }),
  }
  const { parameters, macs } = summarize(architecture(variant.architecture).build(options))
  return { ...variant, options, parameters: parameters.trainable, macs }
}

/** The width whose parameters come nearest to the target. */
function widthFor(variant: Variant, target: number, sizes: Sizes, classes: number): number {
  let [low, high] = [sizes.width / 16, Math.min(16, sizes.width * 16)]
  let best = { width: sizes.width, off: Number.POSITIVE_INFINITY }
  for (let i = 0; i < HALVINGS; i++) {
    const width = Number(Math.sqrt(low * high).toPrecision(4))
    const { parameters } = measured(variant, width, sizes, classes)
    const off = Math.abs(Math.log(parameters / target))
    if (off < best.off) best = { width, off }
    if (parameters < target) low = width
    else high = width
  }
  return best.width
}
