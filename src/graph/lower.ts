/**
 * Graph → Program: calls in execution order on planned memory. Values that are aliases (reshape), that an op may overwrite in
 * place, or that live in a variable's memory share a buffer; whatever writes state comes last, so that an abort before it
 * leaves no half-updated weights.
 */

import { SepconvError } from '../errors.js'
import type { Call, Place, Program, ProgramBuffer } from '../runtime/program.js'
import { type Attributes, definitionOf, type Graph, type Node, type Value } from './graph.js'
import { align, type Plan, planMemory } from './plan.js'
import type { Target } from './target.js'
import { byteLength, type TensorType } from './types.js'
import type { Variable } from './variable.js'

export interface Lowered {
  readonly program: Program
  /** The variables behind the program's state buffers: buffer index → variable. */
  readonly variables: ReadonlyMap<number, Variable>
  readonly plan: Plan
}

/** Memory that one or more values share. */
interface Storage {
  place: Place
  readonly type: TensorType
  readonly value: Value
  /** Steps at which it is first written and last read. */
  from: number
  to: number
  name?: string
  data?: string
  variable?: Variable
  /** The storages that lie side by side with this one, in order. */
  bucket?: readonly Storage[]
}

interface Step {
  readonly node: Node
  readonly inputs: readonly (Value | null)[]
  readonly outputs: readonly Value[]
}

/** Inputs and outputs of an update, and whether it also moves averages (src/ops/optimizerUpdate.ts). */
interface UpdateCall {
  readonly inputs: { readonly length: number }
  readonly outputs: { readonly length: number }
  readonly attributes: Attributes
}

/** Input that an output overwrites; the averages are the last inputs and outputs, behind groups of `size` tensors. */
const averagedUpdate =
  (scalars: number, size: number, plain: (output: number) => number) =>
  (output: number, { inputs, outputs, attributes }: UpdateCall): number => {
    if (!attributes.averaged) return plain(output)
    const core = outputs.length - (inputs.length - scalars - 1) / (size + 1)
    return output < core ? plain(output) : inputs.length - outputs.length + output
  }

/** Ops whose outputs are the new content of the state that they read. */
export const UPDATE_OPS: Readonly<Record<string, (output: number, call: UpdateCall) => number>> = {
  // (rate, flag, scale, ...(parameter, velocity, gradient)) → ...(parameter', velocity')
  sgdUpdate: averagedUpdate(3, 3, (output) => 3 + Math.floor(output / 2) * 3 + (output % 2)),
  // (rate, flag, scale, ...(parameter, mean square, velocity, gradient)) → ...(parameter', mean square', velocity')
  rmspropUpdate: averagedUpdate(3, 4, (output) => 3 + Math.floor(output / 3) * 4 + (output % 3)),
  // (rate, flag, scale, count, ...(parameter, mean, square, gradient)) → count', ...(parameter', mean', square')
  adamUpdate: averagedUpdate(4, 4, (output) => (output === 0 ? 3 : 4 + Math.floor((output - 1) / 3) * 4 + ((output - 1) % 3))),
  // (decay, flag, ...(average, value)) → ...(average')
  averageUpdate: (output) => 2 + output * 2,
}

export function lower(graph: Graph, target: Target): Lowered {
  const steps = schedule(graph)
  const storages = new Map<Value, Storage>()
  const all: Storage[] = []
  const lastRead = lastReads(steps, graph)
  const add = (value: Value, place: Place, step: number, extra: Partial<Storage> = {}): Storage => {
    const storage: Storage = { place, type: value.type, value, from: step, to: step, ...extra }
    storages.set(value, storage)
    all.push(storage)
    return storage
  }

  for (const node of graph.nodes) {
    const value = node.outputs[0]!
    if (node.kind === 'input') add(value, 'input', 0, { name: node.name })
    else if (node.kind === 'state') add(value, 'state', 0, { name: node.variable!.name, variable: node.variable! })
    else if (node.kind === 'prepared') add(value, 'prepared', 0, { name: node.name })
    else if (node.kind === 'constant')
      add(value, 'constant', 0, { data: Buffer.from(node.data!.buffer, node.data!.byteOffset, node.data!.byteLength).toString('base64') })
  }

  const calls: { step: number; kernel: string; inputs: (Value | null)[]; outputs: Storage[]; node: Node }[] = []
  const extents = new Map<Storage, number>() // last step of any value in the storage
  const touch = (storage: Storage, step: number) => extents.set(storage, Math.max(extents.get(storage) ?? 0, step))
  const outputOf = claimOutputs(graph)
  let updateStart = steps.length

  steps.forEach(({ node, inputs, outputs }, step) => {
    const definition = definitionOf(node)
    const overwrite = UPDATE_OPS[node.name]
    if (overwrite) updateStart = Math.min(updateStart, calls.length)
    if (definition.alias) {
      const storage = storages.get(inputs[0]!)!
      storages.set(outputs[0]!, storage)
      touch(storage, lastRead.get(outputs[0]!) ?? step)
      return
    }
    if (definition.memory) {
      const mine = outputs.map((output, i) => {
        const own = storages.get(inputs[i]!)!
        const storage = definition.memory === 'inputs' || movable(own, i) ? own : add(output, 'arena', step)
        storages.set(output, storage)
        touch(storage, lastRead.get(output) ?? step)
        return storage
      })
      if (definition.memory === 'bucket') for (const storage of mine) storage.bucket = mine
      calls.push({ step, kernel: node.name, inputs: [...inputs], outputs: mine, node })
      return
    }
    /** Whether a storage may become part of a bucket: nobody reads what it holds but this step, by this input. */
    function movable(storage: Storage, i: number): boolean {
      return (
        storage.place === 'arena' &&
        !storage.bucket &&
        (extents.get(storage) ?? 0) <= step &&
        byteLength(storage.type) === byteLength(outputs[i]!.type) &&
        inputs.every((other, j) => j === i || storages.get(other!) !== storage)
      )
    }
    const mine = outputs.map((output, i) => {
      if (overwrite) {
        const storage = storages.get(inputs[overwrite(i, { inputs, outputs, attributes: node.attributes })]!)!
        if (storage.place !== 'state') throw new SepconvError('ERR_INTERNAL', `${node.name} would overwrite a value that is not state`)
        storages.set(output, storage)
        return storage
      }
      const claimed = outputOf.get(output)
      const storage =
        (!claimed && i === 0 && reusable(node, inputs, output)) ||
        add(output, claimed ? 'output' : 'arena', step, claimed ? { name: claimed } : {})
      storages.set(output, storage)
      touch(storage, lastRead.get(output) ?? step)
      return storage
    })
    calls.push({ step, kernel: node.name, inputs: [...inputs], outputs: mine, node })

    function reusable(producer: Node, from: readonly (Value | null)[], output: Value): Storage | undefined {
      for (const i of definitionOf(producer).inPlace ?? []) {
        const input = from[i]
        const storage = input && storages.get(input)
        if (!storage || storage.place !== 'arena' || byteLength(storage.type) !== byteLength(output.type)) continue
        // A sum over ranks writes it while this op runs.
        if (storage.bucket) continue
        if ((extents.get(storage) ?? 0) > step || from.some((other, j) => j !== i && other && storages.get(other) === storage)) continue
        return storage
      }
      return undefined
    }
  })

  // What no call could write in place is copied: outputs that are inputs or state, values listed twice, state set to a plain value.
  const updated = new Set(graph.updates.map(({ variable }) => variable))
  const copies: { from: Value; to: Storage; scope: string }[] = []
  const outputs = graph.outputs.map(({ name, value }) => {
    const own = storages.get(value)
    if (own?.place === 'output' && own.name === name) return own
    const storage: Storage = { place: 'output', type: value.type, value, from: steps.length, to: steps.length, name }
    all.push(storage)
    copies.push({ from: value, to: storage, scope: name })
    return storage
  })
  for (const { variable, value } of graph.updates) {
    const storage = storages.get(value)!
    if (storage.variable === variable) continue
    if (value.node.kind === 'state' && updated.has(value.node.variable!))
      throw new SepconvError(
        'ERR_ARGUMENT',
        `'${variable.name}' cannot be set to '${value.node.variable!.name}', which the same program changes`,
      )
    const destination =
      all.find((other) => other.variable === variable) ?? add(graph.state(variable), 'state', 0, { name: variable.name, variable })
    copies.push({ from: value, to: destination, scope: variable.name })
  }
  for (const { from } of copies) touch(storages.get(from)!, steps.length)
  updateStart = Math.min(updateStart, calls.length)

  const index = new Map<Storage, number>()
  const inputs = graph.inputs.map((value) => storages.get(value)!)
  const used = new Set<Storage>([...inputs, ...outputs])
  for (const call of calls)
    for (const storage of [...call.inputs.map((value) => value && storages.get(value)!), ...call.outputs]) if (storage) used.add(storage)
  for (const { from, to } of copies) used.add(storages.get(from)!).add(to)
  for (const storage of all) if (used.has(storage)) index.set(storage, index.size)

  const signature = ({ kernel, inputs, node }: (typeof calls)[number]) =>
    [kernel, inputs.map((value) => value && value.type), node.outputs.map(({ type }) => type)] as const
  const attributes = calls.map((call) => {
    const tile = target.tile?.(...signature(call), call.node.attributes)
    return tile === undefined ? call.node.attributes : { ...call.node.attributes, tile }
  })
  const workspaces = calls.map((call, i) => target.workspaceBytes(...signature(call), attributes[i]!))
  const arena = [...index.keys()].filter(({ place }) => place === 'arena')
  const scratch = calls.flatMap(({ step }, i) => (workspaces[i]! > 0 ? [{ bytes: workspaces[i]!, from: step, to: step, call: i }] : []))
  // What lies side by side is planned as one block, which lives as long as any of it.
  const blocks = [...new Set(arena.map((storage) => storage.bucket ?? [storage]))]
  const plan = planMemory([
    ...blocks.map((block) => ({
      bytes: block.reduce((sum, { type }) => sum + align(byteLength(type)), 0),
      from: Math.min(...block.map(({ from }) => from)),
      to: Math.max(...block.map((storage) => Math.max(storage.from, extents.get(storage) ?? 0))),
    })),
    ...scratch,
  ])
  const offsetOf = new Map<Storage, number>()
  blocks.forEach((block, i) => {
    let offset = plan.offsets[i]!
    for (const storage of block) {
      offsetOf.set(storage, offset)
      offset += align(byteLength(storage.type))
    }
  })
  const workspaceAt = new Map(scratch.map(({ call }, i) => [call, plan.offsets[blocks.length + i]!]))

  const buffers: ProgramBuffer[] = [...index.keys()].map((storage) => ({
    place: storage.place,
    dtype: storage.type.dtype,
    shape: storage.type.shape,
    bytes: byteLength(storage.type),
    ...(storage.place === 'arena' && { offset: offsetOf.get(storage)! }),
    ...(storage.name !== undefined && { name: storage.name }),
    ...(storage.data !== undefined && { data: storage.data }),
  }))
  // A call sees the types of its values, which may differ from their storage's (reshape): views are buffers of their own.
  const view = (value: Value): number => {
    const storage = storages.get(value)!
    const base = index.get(storage)!
    if (storage.type === value.type || String(storage.type.shape) === String(value.type.shape)) return base
    const key = `${base}:${value.type.shape}`
    let at = views.get(key)
    if (at === undefined) {
      views.set(key, (at = buffers.length))
      buffers.push({ ...buffers[base]!, shape: value.type.shape, view: base })
    }
    return at
  }
  const views = new Map<string, number>()
  const finished: Call[] = calls.map((call, i) => ({
    kernel: call.kernel,
    inputs: call.inputs.map((value) => value && view(value)),
    outputs: call.node.outputs.map((value, j) => (sameStorageShape(call.outputs[j]!, value) ? index.get(call.outputs[j]!)! : view(value))),
    attributes: attributes[i]!,
    scope: call.node.scope,
    ...(workspaceAt.has(i) && { workspace: { offset: workspaceAt.get(i)!, bytes: workspaces[i]! } }),
  }))
  const copy = ({ from, to, scope }: (typeof copies)[number]): Call => ({
    kernel: 'copy',
    inputs: [viewAs(from, to)],
    outputs: [index.get(to)!],
    attributes: {},
    scope,
  })
  // Outputs are read out before the first write of state; what an update op itself produced comes out after it.
  const outCopies = copies.filter(({ to }) => to.place === 'output')
  const early = outCopies.filter(({ from }) => !(from.node.name in UPDATE_OPS))
  const late = [...outCopies.filter(({ from }) => from.node.name in UPDATE_OPS), ...copies.filter(({ to }) => to.place !== 'output')]
  finished.splice(updateStart, 0, ...early.map(copy))
  finished.push(...late.map(copy))
  updateStart += early.length
  function viewAs(from: Value, to: Storage): number {
    return sameStorageShape(storages.get(from)!, to.value) ? index.get(storages.get(from)!)! : view(from)
  }

  const program: Program = {
    format: 'sepconv-program',
    version: 1,
    target: target.name,
    buffers,
    calls: finished,
    inputs: inputs.map((storage) => index.get(storage)!),
    outputs: outputs.map((storage) => index.get(storage)!),
    arenaBytes: plan.arenaBytes,
    updateStart: Math.min(updateStart, finished.length),
  }
  const variables = new Map<number, Variable>()
  for (const [storage, i] of index) if (storage.variable) variables.set(i, storage.variable)
  return { program, variables, plan }
}

const sameStorageShape = (storage: Storage, value: Value): boolean => String(storage.type.shape) === String(value.type.shape)

/** Op nodes in their order, update ops moved behind everything else. */
function schedule(graph: Graph): Step[] {
  const ops = graph.nodes.filter((node) => node.kind === 'op')
  const late = new Set<Node>()
  for (const node of ops) if (node.name in UPDATE_OPS || node.inputs.some((input) => input && late.has(input.node))) late.add(node)
  return [...ops.filter((node) => !late.has(node)), ...ops.filter((node) => late.has(node))].map((node) => ({
    node,
    inputs: node.inputs,
    outputs: node.outputs,
  }))
}

/** The last step that reads each value, readers of its aliases included; outputs and updates are read after the last step. */
function lastReads(steps: readonly Step[], graph: Graph): Map<Value, number> {
  const last = new Map<Value, number>()
  for (const { value } of [...graph.outputs, ...graph.updates]) last.set(value, steps.length)
  for (let step = steps.length - 1; step >= 0; step--) {
    const { node, inputs, outputs } = steps[step]!
    const until = definitionOf(node).alias ? (last.get(outputs[0]!) ?? step) : step
    for (const input of inputs) if (input) last.set(input, Math.max(last.get(input) ?? 0, until))
  }
  return last
}

/** Which values are computed straight into an output buffer: op results that are an output exactly once. */
function claimOutputs(graph: Graph): Map<Value, string> {
  const claimed = new Map<Value, string>()
  for (const { name, value } of graph.outputs)
    if (
      value.node.kind === 'op' &&
      !definitionOf(value.node).alias &&
      !definitionOf(value.node).memory &&
      !(value.node.name in UPDATE_OPS) &&
      !claimed.has(value)
    )
      claimed.set(value, name)
  return claimed
}
