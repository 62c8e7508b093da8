/**
 * A Graph is a typed, static-shape DAG of ops in single-assignment form. Nodes stand in execution order: a node's inputs are
 * always produced by earlier nodes. Passes never edit a graph; they build another one (see rewrite.ts).
 */

import { SepconvError } from '../errors.js'
import { type OpDefinition, opDefinition } from './op.js'
import { checkShape, formatType, sameType, type TensorType, type TypedArray } from './types.js'
import type { Variable } from './variable.js'

export type Attribute = number | string | boolean | readonly number[] | readonly string[]
export type Attributes = Readonly<Record<string, Attribute>>

/** One result of one node. */
export class Value {
  constructor(
    readonly graph: Graph,
    readonly node: Node,
    readonly index: number,
    readonly type: TensorType,
  ) {}
  get shape() {
    return this.type.shape
  }
  get dtype() {
    return this.type.dtype
  }
}

/** `prepared`: a value that the prepare program makes out of state (see passes/hoist.ts). */
export type NodeKind = 'input' | 'state' | 'prepared' | 'constant' | 'op'

export interface Node {
  readonly id: number
  readonly kind: NodeKind
  /** The op's name; for leaves: the input's name, the state's name, or ''. */
  readonly name: string
  readonly inputs: readonly (Value | null)[]
  readonly attributes: Attributes
  readonly outputs: readonly Value[]
  /** Path of the layer that emitted the node, for messages, tables and reports, such as `block2.sepconv1`. */
  readonly scope: string
  /** Of a `state` leaf. */
  readonly variable?: Variable
  /** Of a `constant` leaf. */
  readonly data?: TypedArray
}

/** A variable's new value, written after every other call of the program has read the old one. */
export interface Update {
  readonly variable: Variable
  readonly value: Value
}

/** What a traced function leaves behind: nodes in execution order, inputs, outputs and updates of state. */
export class Graph {
  readonly nodes: Node[] = []
  readonly inputs: Value[] = []
  readonly outputs: { readonly name: string; readonly value: Value }[] = []
  readonly updates: Update[] = []
  readonly #states = new Map<Variable, Value>()
  readonly #scopes: string[] = []

  /** @throws ERR_SHAPE for sizes below 1: every kernel may count on at least one element. */
  input(name: string, type: TensorType): Value {
    checkShape(`input '${name}'`, type.shape)
    const value = this.#leaf('input', name, type)
    this.inputs.push(value)
    return value
  }

  /** The current value of a variable; one leaf per variable. */
  state(variable: Variable): Value {
    let value = this.#states.get(variable)
    if (!value) this.#states.set(variable, (value = this.#leaf('state', variable.name, variable.type, { variable })))
    return value
  }

  /** A value that another program has made out of state, known by its structural key. */
  prepared(key: string, type: TensorType): Value {
    return this.#leaf('prepared', key, type)
  }

  /** Data that is part of the program. */
  constant(type: TensorType, data: TypedArray): Value {
    return this.#leaf('constant', '', type, { data })
  }

  /** Names a value as the program's result. */
  output(name: string, value: Value): void {
    this.outputs.push({ name, value: this.own(value) })
  }

  /** Sets what a variable holds after the run. */
  update(variable: Variable, value: Value): void {
    if (!sameType(variable.type, value.type))
      throw new SepconvError(
        'ERR_SHAPE',
        `update of '${variable.name}': expected ${formatType(variable.type)}, got ${formatType(value.type)}`,
      )
    this.updates.push({ variable, value: this.own(value) })
  }

  /** Appends an op after checking its inputs by the op's own rule; errors name the layer that is being traced. */
  emit(definition: OpDefinition, inputs: readonly (Value | null)[], attributes: Attributes = {}, scope = this.scope): readonly Value[] {
    for (const input of inputs) if (input) this.own(input)
    let types: readonly TensorType[]
    try {
      types = definition.infer(
        inputs.map((input) => input && input.type),
        attributes,
      )
    } catch (error) {
      if (error instanceof SepconvError && scope && !error.message.startsWith(scope))
        throw new SepconvError(error.code, `${scope}: ${error.message}`, { subject: scope, expected: error.expected, given: error.given })
      throw error
    }
    const outputs: Value[] = []
    const node: Node = { id: this.nodes.length, kind: 'op', name: definition.name, inputs, attributes, outputs, scope }
    types.forEach((type, index) => outputs.push(new Value(this, node, index, type)))
    this.nodes.push(node)
    return outputs
  }

  /** The path of the layer that is being traced. */
  get scope(): string {
    return this.#scopes.at(-1) ?? ''
  }

  /** Runs `body` with `name` appended to the scope path. */
  inScope<T>(name: string, body: () => T): T {
    this.#scopes.push(this.scope ? `${this.scope}.${name}` : name)
    try {
      return body()
    } finally {
      this.#scopes.pop()
    }
  }

  /** Runs `body` with the scope path set to `path`: gradients and passes keep the scope of what they stand for. */
  atScope<T>(path: string, body: () => T): T {
    this.#scopes.push(path)
    try {
      return body()
    } finally {
      this.#scopes.pop()
    }
  }

  /** Returns `value`, or throws when it belongs to another trace. */
  own(value: Value): Value {
    if (value.graph !== this)
      throw new SepconvError('ERR_ARGUMENT', 'a value of another trace was used', {
        hint: 'A traced function may use only its own arguments, constants and layers',
      })
    return value
  }

  #leaf(kind: NodeKind, name: string, type: TensorType, extra: Partial<Node> = {}): Value {
    const outputs: Value[] = []
    const node: Node = { id: this.nodes.length, kind, name, inputs: [], attributes: {}, outputs, scope: this.scope, ...extra }
    outputs.push(new Value(this, node, 0, type))
    this.nodes.push(node)
    return outputs[0]!
  }
}

/** The op definition behind an `op` node. */
export const definitionOf = (node: Node): OpDefinition => opDefinition(node.name)
