/** Arguments and results of compiled functions: values or tensors standing in lists and plain objects, to any depth. */

import { SepconvError } from '../errors.js'
import { Value } from '../graph/graph.js'
import type { Lifted } from '../graph/trace.js'
import { isTensor, type Tensor } from './tensor.js'

/** A value, or lists and objects of structures. */
export type Structure = Value | readonly Structure[] | { readonly [name: string]: Structure }
export type TensorStructure = Lifted<Structure>

/** The leaves of a structure in a fixed order, with names made of their path (`x`, `batch.images`, `0`). */
export function flatten<L>(structure: unknown, isLeaf: (x: unknown) => x is L, name = ''): { name: string; leaf: L }[] {
  if (isLeaf(structure)) return [{ name, leaf: structure }]
  if (typeof structure !== 'object' || structure === null)
    throw new SepconvError(
      'ERR_ARGUMENT',
      `${name || 'argument'}: expected tensors, or lists and objects of tensors, got ${structure === null ? 'null' : typeof structure}`,
    )
  return Object.keys(structure).flatMap((key) =>
    flatten((structure as Record<string, unknown>)[key], isLeaf, name ? `${name}.${key}` : key),
  )
}

/** A structure of the same form with `leaves`, taken in the order of {@link flatten}. */
export function unflatten<L>(like: unknown, isLeaf: (x: unknown) => boolean, leaves: Iterator<L>): unknown {
  if (isLeaf(like)) return leaves.next().value
  if (Array.isArray(like)) return like.map((entry) => unflatten(entry, isLeaf, leaves))
  return Object.fromEntries(Object.entries(like as object).map(([key, entry]) => [key, unflatten(entry, isLeaf, leaves)]))
}

export const isValue = (x: unknown): x is Value => x instanceof Value
export const isTensorLeaf = (x: unknown): x is Tensor => isTensor(x)

/** The form of a structure without its leaves, as a string: part of a signature. */
export function formOf(structure: unknown, leafText: (leaf: never) => string, isLeaf: (x: unknown) => boolean): string {
  if (isLeaf(structure)) return leafText(structure as never)
  if (Array.isArray(structure)) return `[${structure.map((entry) => formOf(entry, leafText, isLeaf))}]`
  if (typeof structure === 'object' && structure !== null)
    return `{${Object.entries(structure).map(([key, entry]) => `${key}:${formOf(entry, leafText, isLeaf)}`)}}`
  return JSON.stringify(structure) ?? 'undefined'
}
