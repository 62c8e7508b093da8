/**
 * A layer is a function of values that owns variables and other layers. It is built once and may be traced any number of
 * times; names and scopes come from its place in the tree: the variable `depthwise` of the child `sepconv1` of the child
 * `block2` is `block2.sepconv1.depthwise`.
 */

import { SepconvError } from '../errors.js'
import type { Value } from '../graph/graph.js'
import { scoped } from '../graph/trace.js'
import type { Variable } from '../graph/variable.js'

/** A function of values with state of its own. */
export interface Layer {
  /** Emits the layer into the trace under way. */
  (x: Value): Value
  /** What it is, such as `separable`. */
  readonly kind: string
  /** Its name in the layer above; its kind until it is attached. */
  label: string
  readonly variables: Readonly<Record<string, Variable>>
  readonly children: Readonly<Record<string, Layer>>
}

/** What a layer owns; absent entries are left out. */
export interface LayerParts {
  readonly variables?: Readonly<Record<string, Variable | undefined>>
  readonly children?: Readonly<Record<string, Layer | undefined>>
}

let anonymous = 0

/** Makes a layer out of its variables, its children and its forward function. */
export function layer(kind: string, parts: LayerParts, forward: (x: Value) => Value): Layer {
  const present = <T>(record: Readonly<Record<string, T | undefined>> = {}) =>
    Object.fromEntries(Object.entries(record).filter(([, entry]) => entry !== undefined)) as Record<string, T>
  const made: Layer = Object.assign((x: Value): Value => scoped(made.label, () => forward(x)), {
    kind,
    label: kind,
    variables: present(parts.variables),
    children: present(parts.children),
  })
  for (const [name, child] of Object.entries(made.children)) child.label = name
  if (Object.keys(made.variables).length > 0) nameVariables(made, `${kind}_${anonymous++}`)
  return made
}

/** Names every variable below `root` by its path. A layer that stands at two places keeps the name of the first. */
export function nameVariables(root: Layer, path = ''): void {
  for (const { name, variable } of walk(root, path, new Set())) variable.name = name
}

/** Every variable below `root`, in the order of the tree. */
export const variablesOf = (root: Layer): Variable[] => [...walk(root, '', new Set())].map(({ variable }) => variable)

function* walk(root: Layer, path: string, seen: Set<Layer>): Generator<{ name: string; variable: Variable }> {
  if (seen.has(root)) return
  seen.add(root)
  const join = (name: string) => (path ? `${path}.${name}` : name)
  for (const [name, variable] of Object.entries(root.variables)) yield { name: join(name), variable }
  for (const [name, child] of Object.entries(root.children)) yield* walk(child, join(name), seen)
}

/** Whether `x` was made by {@link layer}. */
export const isLayer = (x: unknown): x is Layer => typeof x === 'function' && 'kind' in x && 'children' in x

/** Throws ERR_ARGUMENT unless `value` is a whole number of at least `least` and at most `most`. */
export function checkCount(kind: string, name: string, value: number, least = 1, most = Number.MAX_SAFE_INTEGER): void {
  if (Number.isInteger(value) && value >= least && value <= most) return
  const range = most < Number.MAX_SAFE_INTEGER ? `from ${least} to ${most}` : `of at least ${least}`
  throw new SepconvError('ERR_ARGUMENT', `${kind}: ${name} must be a whole number ${range}, got ${String(value)}`, {
    subject: name,
    given: value,
  })
}
