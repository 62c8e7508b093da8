/** Ops called on tensors outside of any traced function: each is a program of its own, compiled once per op, options and types. */

import { compileGraph } from '../graph/compile.js'
import type { Value } from '../graph/graph.js'
import { trace } from '../graph/trace.js'
import { ExecutableCache } from './cache.js'
import { Executable } from './executable.js'
import { typeText } from './specializer.js'
import { formOf, isTensorLeaf, isValue } from './structure.js'
import type { Tensor } from './tensor.js'

const eagerCache = new ExecutableCache()

export async function runEager(
  name: string,
  build: (...args: never[]) => Value | readonly Value[],
  args: readonly unknown[],
): Promise<unknown> {
  const leaves: Tensor[] = []
  collect(args, leaves)
  const { executor } = leaves[0]!
  const signature = `${executor.name}/${name}(${formOf(args, typeText, isTensorLeaf)})`
  const executable = eagerCache.get(signature, () => {
    const graph = trace((traced) => {
      const values = leaves.map((leaf, i) => traced.input(String(i), leaf.type)).values()
      const result = build(...(replace(args, values) as never[]))
      for (const [i, value] of (isValue(result) ? [result] : result).entries()) traced.output(String(i), value)
    })
    return new Executable(executor, compileGraph(graph, executor.target))
  })
  const outputs = await executable.run(leaves)
  return outputs.length === 1 ? outputs[0] : outputs
}

function collect(x: unknown, leaves: Tensor[]): void {
  if (isTensorLeaf(x)) leaves.push(x)
  else if (typeof x === 'object' && x !== null) for (const entry of Object.values(x)) collect(entry, leaves)
}

function replace(x: unknown, values: Iterator<Value>): unknown {
  if (isTensorLeaf(x)) return values.next().value
  if (Array.isArray(x)) return x.map((entry) => replace(entry, values))
  if (typeof x === 'object' && x !== null) return Object.fromEntries(Object.entries(x).map(([key, entry]) => [key, replace(entry, values)]))
  return x
}
