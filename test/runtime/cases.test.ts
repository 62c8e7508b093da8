/** The random suite is only as good as its cases: every attribute that a reference reads varies, every optional input comes and goes. */

import { describe, expect, it } from 'vitest'
import { opDefinition } from '../../src/graph/op.js'
import type { Attributes } from '../../src/graph/graph.js'
import { Cases, reference } from './cases.js'
import { makers } from './makers.js'

const DRAWS = 120
/**
 * What has one value: the width of a panel is the executor's, pairs are bfloat16's (bfloat16.test.ts), pools share the geometry of
 * convolutions but are not dilated, both gradients of a depthwise convolution come from one kernel where strides and dilations are 1. On cuda alone: updates that move averages too (test/cuda/average.test.ts), separable convolutions
 * that emit statistics (test/cuda/separable.test.ts).
 */
const FIXED: Readonly<Record<string, readonly string[]>> = {
  packFilter: ['panel', 'pair'],
  maxPool2d: ['dilations'],
  maxPool2dGradient: ['dilations'],
  avgPool2d: ['dilations'],
  avgPool2dGradient: ['dilations'],
  separableConv2d: ['statistics'],
  depthwiseConv2dGradients: ['strides', 'dilations'],
  sgdUpdate: ['averaged'],
  rmspropUpdate: ['averaged'],
  adamUpdate: ['averaged'],
}

describe('random cases', () => {
  it.each(Object.keys(makers(48)))('%s', (kernel) => {
    const cases = new Cases(11)
    const seen = new Map<string, Set<string>>()
    const present: Set<boolean>[] = []
    for (let draw = 0; draw < DRAWS; draw++) {
      const { inputs, attributes } = makers(48)[kernel]!(cases)
      const watched = new Proxy(attributes, {
        get(target, key) {
          if (typeof key === 'string') {
            const values = seen.get(key) ?? new Set<string>()
            seen.set(key, values.add(JSON.stringify(target[key])))
          }
          return Reflect.get(target, key) as unknown
        },
      }) as Attributes
      // References are slow on large shapes, and what they read of the attributes does not depend on the size.
      if (inputs.every((input) => !input || input.data.length < 3000)) reference({ kernel, inputs, attributes: watched })
      for (const [i, name] of opDefinition(kernel).inputs.entries())
        if (name.endsWith('?')) (present[i] ??= new Set()).add(Boolean(inputs[i]))
    }
    const constant = [...seen].filter(([key, values]) => values.size < 2 && !FIXED[kernel]?.includes(key)).map(([key]) => key)
    expect(constant, 'attributes that never vary').toEqual([])
    const stuck = opDefinition(kernel).inputs.filter((_, i) => present[i] && present[i].size < 2)
    expect(stuck, 'optional inputs that never come or go').toEqual([])
  })
})
