/**
 * Sums over the ranks of a data parallel job: (...xs) → (...ys), all float32, every rank with the same shapes. What a training step emits
 * is `allReduce`; a pass (src/graph/passes/reductions.ts) cuts it into buckets, each started as soon as its last value is computed and
 * waited for where the first sum is read. Among one rank all three are the identity, which is what the reference loops do.
 */

import { SepconvError } from '../errors.js'
import type { Value } from '../graph/graph.js'
import { defineOp, type OpDefinition } from '../graph/op.js'
import { emitAll } from '../graph/trace.js'
import { formatType } from '../graph/types.js'

function define(name: string, memory: OpDefinition['memory']): OpDefinition {
  return defineOp({
    name,
    inputs: ['...xs'],
    outputs: ['...ys'],
    ...(memory && { memory }),
    infer(inputs) {
      return inputs.map((type, i) => {
        if (type?.dtype !== 'float32')
          throw new SepconvError('ERR_DTYPE', `${name}: input ${i} must be float32, got ${type ? formatType(type) : 'nothing'}`, {
            subject: name,
            expected: 'float32',
            given: type?.dtype,
          })
        return type
      })
    },
    reference({ inputs, outputs, attributes }) {
      if (attributes.ranks !== 1)
        throw new SepconvError(
          'ERR_DEVICE',
          `${name}: the reference device works alone, and this program is for ${attributes.ranks} ranks`,
          {
            subject: name,
            given: attributes.ranks,
            hint: "Use device 'cpu'",
          },
        )
      inputs.forEach((x, i) => outputs[i]!.data.set(x!.data))
    },
  })
}

export const allReduceDefinition = define('allReduce', 'bucket')
/** Begins the sums of a bucket; its outputs are the memory that the sums will be in. */
export const allReduceStartDefinition = define('allReduceStart', 'bucket')
export const allReduceWaitDefinition = define('allReduceWait', 'inputs')

/** Bytes of a bucket unless it is said otherwise: see bench/distributed. */
export const BUCKET_BYTES = 1 << 19

/**
 * The sums of values over all ranks.
 * @param ranks how many there are; a program knows it, as it knows its batch.
 * @param bucketBytes values are put together up to this size, in the order in which they are computed.
 */
export const allReduce = (values: readonly Value[], ranks: number, bucketBytes = BUCKET_BYTES): readonly Value[] =>
  emitAll(allReduceDefinition, values, { ranks, bucketBytes })
