/**
 * Initial contents of variables, as functions of (seed, variable name, index) alone: the order in which layers are built or
 * devices fill them changes nothing. Fans are counted per group: a depthwise filter [kh, kw, c, m] has fan-in kh·kw.
 */

import { SepconvError } from '../errors.js'
import type { Initializer } from '../graph/variable.js'
import { PhiloxStream } from '../ops/philox.js'

/** 32 bits that spread a name over the generator's keys (FNV-1a). */
function hashName(name: string): number {
  let hash = 0x811c9dc5
  for (let i = 0; i < name.length; i++) hash = Math.imul(hash ^ name.charCodeAt(i), 0x01000193)
  return hash >>> 0
}

const stream = ({ seed, name }: { seed: number; name: string }) => new PhiloxStream(seed, hashName(name))

export const constant = (value: number): Initializer => ({ name: `constant(${value})`, fill: (data) => void data.fill(value) })
export const zeros = constant(0)
export const ones = constant(1)

/** Elements that one output reads, and outputs that one element feeds. */
export interface Fans {
  readonly fanIn: number
  readonly fanOut: number
}

/** Uniform in ±sqrt(6 / (fanIn + fanOut)) (Glorot and Bengio 2010): the default of Keras and of this package. */
export const glorotUniform = ({ fanIn, fanOut }: Fans): Initializer => {
  const limit = Math.sqrt(6 / (fanIn + fanOut))
  return {
    name: 'glorotUniform',
    fill(data, _shape, key) {
      const random = stream(key)
      for (let i = 0; i < data.length; i++) data[i] = (2 * random.uniform() - 1) * limit
    },
  }
}

/** Normal with deviation sqrt(2 / fanIn) (He et al. 2015), for layers that a ReLU follows. */
export const heNormal = ({ fanIn }: Fans): Initializer => ({
  name: 'heNormal',
  fill(data, _shape, key) {
    const random = stream(key)
    const deviation = Math.sqrt(2 / fanIn)
    for (let i = 0; i < data.length; i++) data[i] = random.normal() * deviation
  },
})

const initializers = { glorotUniform, heNormal } as const
/** The initialisers that layers and models take by name. */
export type InitializerName = keyof typeof initializers

/** @throws ERR_ARGUMENT for a name that is none. */
export function initializerOf(kind: string, name: InitializerName, fans: Fans): Initializer {
  if (!Object.hasOwn(initializers, name))
    throw new SepconvError('ERR_ARGUMENT', `${kind}: initializer must be ${Object.keys(initializers).join(' or ')}, got ${String(name)}`, {
      subject: 'initializer',
      expected: Object.keys(initializers),
      given: name,
    })
  return initializers[name](fans)
}
