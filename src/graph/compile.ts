/** The pipeline from a traced graph to programs: optimise for a target, split off what can be prepared, lower. */

import { decompose } from './passes/decompose.js'
import { mergeCommon } from './passes/common.js'
import { fuseAverage } from './passes/fuse-average.js'
import { fuseDepthwiseGradients } from './passes/fuse-depthwise.js'
import { fuseEpilogue } from './passes/fuse-epilogue.js'
import { fusePrologue } from './passes/fuse-prologue.js'
import { fuseSeparable, fuseStatistics } from './passes/fuse-separable.js'
import { hoist, packFilters } from './passes/prepare.js'
import { recompute } from './passes/recompute.js'
import { bucketReductions } from './passes/reductions.js'
import { chooseStrassen } from './passes/strassen.js'
import { assignStorage } from './passes/storage.js'
import type { Precision } from './precision.js'
import type { Graph } from './graph.js'
import { type Lowered, lower } from './lower.js'
import { eliminateDeadCode } from './rewrite.js'
import type { Target } from './target.js'

export interface CompileGraphOptions {
  /** Most bytes for the arena; what is cheap to compute again is then not kept (ERR_MEMORY when even that does not fit). */
  memoryLimit?: number
  /** Off: every op is a call of its own (verification, teaching). Default on. */
  optimise?: boolean
  /** What feature maps are stored in. Default `'float32'`. */
  precision?: Precision
  /** Off: products are plain sums, never computed by Strassen's algorithm. Default on. */
  fastProducts?: boolean
}

export interface Compiled {
  /** The optimised graph that `main` was lowered from. */
  readonly graph: Graph
  readonly main: Lowered
  /** Makes folded and packed weights out of state; its outputs are named by the keys of `main`'s prepared buffers. */
  readonly prepare?: Lowered
}

export function compileGraph(traced: Graph, target: Target, options: CompileGraphOptions = {}): Compiled {
  const { precision = 'float32', fastProducts = true } = options
  let graph = decompose(eliminateDeadCode(traced))
  if (options.optimise === false) {
    graph = bucketReductions(assignStorage(graph, precision, target))
    return { graph, main: lower(graph, target) }
  }
  graph = assignStorage(fusePrologue(fuseEpilogue(mergeCommon(graph))), precision, target)
  if (options.memoryLimit !== undefined) graph = recompute(graph, options.memoryLimit, target)
  graph = fuseStatistics(fuseSeparable(fuseDepthwiseGradients(graph, target), target), target)
  if (fastProducts) graph = chooseStrassen(graph, target)
  graph = packFilters(fuseAverage(graph, target), target)
  const { main: step, prepare } = hoist(graph)
  const main = bucketReductions(step)
  return { graph: main, main: lower(main, target), ...(prepare && { prepare: lower(prepare, target) }) }
}
