/** Figures 2, 3 and 4 of Chollet 2017. */

import { describe, expect, it } from 'vitest'
import type { Value } from '../../src/graph/graph.js'
import type { Variable } from '../../src/graph/variable.js'
import { devices, multiply, summarize, sum, tensor, type Tensor, valueAndGrad } from '../../src/index.js'
import {
  equivalentInception,
  extremeInception,
  type Layer,
  layer,
  nameVariables,
  simplifiedInception,
  variablesOf,
} from '../../src/nn/index.js'
import { openDevice } from '../../src/runtime/device.js'
import { readState, writeState } from '../../src/runtime/state.js'

const [TOWERS, IN, REDUCE, OUT] = [3, 5, 4, 6]
const options = { towers: TOWERS, reduce: REDUCE, out: OUT }

/** Columns of several matrices [rows, columns], side by side. */
function beside(parts: readonly Float32Array[], columns: number): Float32Array {
  const rows = parts[0]!.length / columns
  const joined = new Float32Array(parts.length * parts[0]!.length)
  parts.forEach((part, p) => {
    for (let r = 0; r < rows; r++) joined.set(part.subarray(r * columns, (r + 1) * columns), (r * parts.length + p) * columns)
  })
  return joined
}

describe.each(
  devices()
    .filter(({ name, available }) => available && name !== 'cuda')
    .map(({ name }) => name),
)('on %s', (device) => {
  it('the simplified and the strictly equivalent module are equal, value and gradients, in training', async () => {
    const [simple, large] = [simplifiedInception(IN, options), equivalentInception(IN, options)]
    for (const root of [simple, large]) nameVariables(root)
    const executor = openDevice(device)
    const towers = variablesOf(simple)
    // Filters of the towers stand side by side along the output channels of the large module's two convolutions.
    const mine = (variable: Variable) => {
      const [part, ...rest] = variable.name.split('.')
      return towers.filter(({ name }) => name.split('.')[1] === (part === 'pointwise' ? '0' : '1') && name.endsWith(rest.join('.')))
    }
    for (const variable of variablesOf(large)) {
      const parts = await Promise.all(mine(variable).map(async (tower) => (await readState(tower)) as Float32Array))
      expect(parts).toHaveLength(TOWERS)
      writeState(variable, beside(parts, variable.type.shape.at(-1)! / TOWERS), executor)
    }
    const x = tensor(
      Float32Array.from({ length: 2 * 7 * 6 * IN }, (_, i) => Math.sin(i * 1.7)),
      [2, 7, 6, IN],
      { device },
    )
    const weights = Float32Array.from({ length: 2 * 7 * 6 * TOWERS * OUT }, (_, i) => Math.cos(i * 0.9))
    const w = tensor(weights, [2, 7, 6, TOWERS * OUT], { device })
    const run = async (module: Layer) => {
      const filters = variablesOf(module).filter(({ trainable }) => trainable)
      const result = await valueAndGrad((a: Value, b: Value) => sum(multiply(module(a), b)), {
        device,
        training: true,
        variables: filters,
      })(x, w)
      const { value, gradients, variables } = result as unknown as {
        value: Tensor
        gradients: [Tensor, Tensor]
        variables: Record<string, Tensor>
      }
      return { value: (await value.data())[0]!, dx: await gradients[0].data(), y: await gradients[1].data(), variables }
    }
    const [a, b] = [await run(simple), await run(large)]
    const close = (left: ArrayLike<number>, right: ArrayLike<number>) =>
      Array.from(left).forEach((value, i) => expect(value).toBeCloseTo(right[i]!, 4))
    // The gradient with respect to the weights of the sum is the module's output.
    close(a.y, b.y)
    close(a.dx, b.dx)
    expect(a.value).toBeCloseTo(b.value, 3)
    for (const variable of variablesOf(large).filter(({ trainable }) => trainable)) {
      const parts = await Promise.all(mine(variable).map(async (tower) => (await a.variables[tower.name]!.data()) as Float32Array))
      close(beside(parts, variable.type.shape.at(-1)! / TOWERS), await b.variables[variable.name]!.data())
    }
  })
})

describe('the extreme module', () => {
  it('has one spatial filter per output channel of its 1×1, which comes first', () => {
    const module = extremeInception(IN, 8)
    nameVariables(module)
    const shapes = Object.fromEntries(variablesOf(module).map(({ name, type }) => [name, type.shape]))
    expect(shapes['0.pointwise']).toEqual([IN, 8])
    expect(shapes['0.depthwise']).toEqual([3, 3, 8, 1])
    const root = layer('test', { children: { module } }, (x) => module(x))
    const network = { root, forward: (x: Value) => root(x), inputSize: 9, inputChannels: IN, classes: 0, variableInputSize: true }
    const ops = summarize(network).layers.flatMap((row) => row.ops.split(', '))
    expect(ops.indexOf('pointwiseConv2d')).toBeLessThan(ops.indexOf('depthwiseConv2d'))
    expect(ops.filter((op) => op === 'relu')).toHaveLength(1 + 1)
  })

  it('bad sizes are refused by name', () => {
    expect(() => simplifiedInception(3, { reduce: 0, out: 4 })).toThrowError(/simplifiedInception: reduce must be a whole number/)
    expect(() => equivalentInception(3, { reduce: 2, out: 4, width: 2 } as never)).toThrowError(/unknown option 'width'/)
  })
})
