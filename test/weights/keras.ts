/** Files as Keras writes them, made of a model's variables: the layouts of Keras 1, 2, 3 and the zip of `.keras`. */

import { readFileSync } from 'node:fs'
import { writeFile } from 'node:fs/promises'
import h5wasm, { type Group } from 'h5wasm/node'
// @ts-expect-error a script without types
import { storedZip } from '../../scripts/fuzz-weights.mjs'

export interface PublishedLayer {
  readonly keras: string
  readonly keras1: string
  readonly timm: string[]
  readonly lucid: string[]
  readonly shapes: Readonly<Record<string, number[]>>
}

const FIXTURES = new URL('fixtures/', import.meta.url)
export const fixture = (name: string): string => new URL(name, FIXTURES).pathname

/** The name table as published, one entry per layer with weights. */
export function publishedLayers(): PublishedLayer[] {
  const lines = readFileSync(fixture('xception-names.tsv'), 'utf8').trim().split('\n').slice(1)
  return lines.map((line) => {
    const [keras, keras1, timm, lucid, shapes] = line.split('\t') as [string, string, string, string, string]
    const same = '{weight,bias,running_mean,running_var}'
    return { keras, keras1, timm: expand(timm), lucid: expand(lucid.replace('{same}', same)), shapes: parseShapes(shapes) }
  })
}

/** `a.{b,c}.{d,e}` → a.b.d, a.b.e, a.c.d, a.c.e */
function expand(text: string): string[] {
  const braces = /\{([^}]*)\}/.exec(text)
  if (!braces) return [text]
  return braces[1]!.split(',').flatMap((word) => expand(text.replace(braces[0], word)))
}

function parseShapes(text: string): Record<string, number[]> {
  return Object.fromEntries(
    text.split('; ').flatMap((part) => {
      const [names, sizes] = part.split(' ') as [string, string]
      return names.split(',').map((name) => [name, sizes.split(',').map(Number)])
    }),
  )
}

export interface KerasLayer {
  readonly name: string
  readonly weights: readonly { readonly name: string; readonly shape: readonly number[]; readonly data: Float32Array }[]
}

const bytes = (list: readonly string[]): [string[], number[], string] => [
  [...list],
  [list.length],
  `S${Math.max(1, ...list.map((text) => text.length))}`,
]

/** A weights-only or whole-model file with `layer_names` and `weight_names`. */
export async function writeLegacy(
  path: string,
  layers: readonly KerasLayer[],
  options: { root?: string; nameOf?: (layer: string, weight: string) => string; parts?: number } = {},
): Promise<void> {
  await h5wasm.ready
  const file = new h5wasm.File(path, 'w')
  const root: Group = options.root ? file.create_group(options.root) : file
  const names = layers.map(({ name }) => name)
  const { parts = 1, nameOf = (layer, weight) => `${layer}/${weight}:0` } = options
  for (let part = 0; part < parts; part++)
    root.create_attribute(
      parts === 1 ? 'layer_names' : `layer_names${part}`,
      ...bytes(names.slice((part * names.length) / parts, ((part + 1) * names.length) / parts)),
    )
  for (const { name, weights } of layers) {
    const group = root.create_group(name)
    if (weights.length === 0) {
      group.create_attribute('weight_names', new Float64Array(0), [0], '<d')
      continue
    }
    group.create_attribute('weight_names', ...bytes(weights.map((weight) => nameOf(name, weight.name))))
    for (const weight of weights) {
      const path = nameOf(name, weight.name).split('/')
      let target = group
      for (const folder of path.slice(0, -1))
        target = (target.keys().includes(folder) ? target.get(folder) : target.create_group(folder)) as Group
      target.create_dataset({ name: path.at(-1)!, data: weight.data, shape: [...weight.shape], dtype: '<f' })
    }
  }
  file.close()
}

/** `layers/<class>[_n]/vars/<i>`. */
export async function writeByClass(
  path: string,
  layers: readonly { readonly kind: string; readonly weights: KerasLayer['weights'] }[],
): Promise<void> {
  await h5wasm.ready
  const file = new h5wasm.File(path, 'w')
  const root = file.create_group('layers')
  const counts = new Map<string, number>()
  for (const { kind, weights } of layers) {
    const count = counts.get(kind) ?? 0
    counts.set(kind, count + 1)
    const vars = root.create_group(count === 0 ? kind : `${kind}_${count}`).create_group('vars')
    for (const [i, { data, shape }] of weights.entries()) vars.create_dataset({ name: String(i), data, shape: [...shape], dtype: '<f' })
  }
  file.close()
}

/** A zip of stored entries. */
export const writeZip = (path: string, entries: Readonly<Record<string, Uint8Array>>): Promise<void> => writeFile(path, storedZip(entries))
