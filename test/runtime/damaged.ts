/** Calls that contradict their own op: a program file that was edited or cut must be refused when it is loaded, never run. */

import { expect, it } from 'vitest'
import type { Attribute, Attributes } from '../../src/graph/graph.js'
import { type HostTensor, opDefinition } from '../../src/graph/op.js'
import { UPDATE_OPS } from '../../src/graph/lower.js'
import { type DType, elements, sameType, type TensorType, typedArray } from '../../src/graph/types.js'
import type { NativeDeviceExecutor } from '../../src/runtime/executors/native.js'
import { runCall } from '../../src/runtime/verify.js'
import { Cases, reference, typeOf } from './cases.js'
import type { makers } from './makers.js'

const ROUNDS = 12

type Operand = HostTensor | null

const filled = (dtype: DType, shape: readonly number[]): HostTensor => ({
  shape,
  ...(dtype === 'bfloat16' && { dtype }),
  data: typedArray(
    dtype === 'bfloat16' ? 'float32' : dtype,
    new ArrayBuffer(elements(shape) * (dtype === 'uint8' ? 1 : 4)),
    0,
    elements(shape),
  ) as HostTensor['data'],
})

/** The tensor with one size, its rank or its dtype changed. */
function damaged(c: Cases, tensor: HostTensor): HostTensor {
  const { dtype } = typeOf(tensor)!
  const axis = c.whole(0, Math.max(0, tensor.shape.length - 1))
  return c.pick(
    () => filled(dtype, tensor.shape.length > 0 ? tensor.shape.with(axis, Math.max(1, tensor.shape[axis]! + c.pick(-1, 1, 7))) : [3]),
    () => filled(dtype, tensor.shape.toSpliced(axis, 1)),
    () => filled(dtype, [...tensor.shape, 2]),
    () => filled(dtype === 'float32' ? 'uint8' : 'float32', tensor.shape),
  )()
}

/** Attributes that only repeat the first output's type, which a kernel may take from there. */
const REPEATED: Readonly<Record<string, (output: TensorType) => Attribute>> = {
  dtype: ({ dtype }) => dtype,
  shape: ({ shape }) => shape,
  cout: ({ shape }) => shape.at(-1) ?? 1,
  inputSize: ({ shape }) => shape.slice(1, 3),
}

/** What the op's own rule says of the call. */
function fits(kernel: string, inputs: readonly Operand[], outputs: readonly HostTensor[], attributes: Attributes): boolean {
  if (outputs.length === 0) return false
  const repeated = Object.entries(REPEATED).filter(([name]) => name in attributes)
  const restated = Object.fromEntries(repeated.map(([name, from]) => [name, from(typeOf(outputs[0]!)!)]))
  let expected: readonly TensorType[]
  try {
    expected = opDefinition(kernel).infer(inputs.map(typeOf), { ...attributes, ...restated })
  } catch {
    return false
  }
  return expected.length === outputs.length && expected.every((type, i) => sameType(type, typeOf(outputs[i]!)!))
}

export function testDamagedCalls(executor: NativeDeviceExecutor, all: ReturnType<typeof makers>): void {
  const outcome = (kernel: string, inputs: readonly Operand[], outputs: readonly HostTensor[], attributes: Attributes) => {
    try {
      runCall(executor, { kernel, scope: kernel, inputs: [], outputs: [], attributes }, inputs, outputs)
      return 'ran'
    } catch (error) {
      return (error as { code?: string }).code ?? String(error)
    }
  }

  it.each(Object.keys(all))('%s refuses operands that do not fit', (kernel) => {
    for (let round = 0; round < ROUNDS; round++) {
      const c = new Cases(5000 + 100 * round + kernel.length)
      const made = { kernel, ...all[kernel]!(c) }
      const outputs = reference(made)
      // What an update overwrites stands in the outputs' own memory: it has their type whatever is given.
      const overwritten = outputs.map((_, i) => UPDATE_OPS[kernel]?.(i, { ...made, outputs }))
      const present = made.inputs.flatMap((input, i) => (input && !overwritten.includes(i) ? [i] : []))
      const changes: [readonly Operand[], readonly HostTensor[]][] = [
        ...present.map((i) => [made.inputs.with(i, damaged(c, made.inputs[i]!)), outputs] as [readonly Operand[], readonly HostTensor[]]),
        ...outputs.map((output, i) => [made.inputs, outputs.with(i, damaged(c, output))] as [readonly Operand[], readonly HostTensor[]]),
        [made.inputs.slice(0, c.whole(0, Math.max(0, present.length - 1))), outputs],
        [made.inputs.with(c.pick(...present), null), outputs],
        [made.inputs, outputs.slice(1)],
        [made.inputs, [...outputs, outputs[0]!]],
      ]
      for (const [inputs, targets] of changes) {
        if (fits(kernel, inputs, targets, made.attributes)) continue
        const shapes = { inputs: inputs.map((x) => x && typeOf(x)), outputs: targets.map((x) => typeOf(x)), attributes: made.attributes }
        expect(outcome(kernel, inputs, targets, made.attributes), `${kernel}: ${JSON.stringify(shapes)}`).toMatch(/^ERR_/)
      }
    }
  })

  it.each(Object.keys(all))('%s survives attributes that make no sense', (kernel) => {
    for (let round = 0; round < ROUNDS; round++) {
      const c = new Cases(9000 + 100 * round + kernel.length)
      const made = { kernel, ...all[kernel]!(c) }
      const outputs = reference(made)
      for (const name of Object.keys(made.attributes)) {
        const old = made.attributes[name]!
        const wild = (): number => c.pick(0, -1, 2, 1000, 2 ** 40, -(2 ** 31), 0.5, Number.NaN, Infinity)
        const changed: Attribute = Array.isArray(old)
          ? c.pick<Attribute>(
              (old as number[]).with(c.whole(0, old.length - 1), wild()),
              (old as number[]).slice(1),
              [...(old as number[]), 1],
              'none',
            )
          : typeof old === 'number'
            ? wild()
            : c.pick<Attribute>('nonsense', 3, true, false)
        const { [name]: _, ...without } = made.attributes
        for (const attributes of [{ ...made.attributes, [name]: changed }, without])
          expect(outcome(kernel, made.inputs, outputs, attributes), `${kernel}: ${JSON.stringify(attributes)}`).toMatch(/^(ERR_|ran)/)
      }
    }
  })
}
