/** Commands that may run as one of several ranks. */

import { availableParallelism, cpus } from 'node:os'
import type { Communicator } from '../distributed/communicator.js'
import { ExitStatus } from './status.js'

/**
 * Runs a command connected with the other ranks of its job, or alone. Where it fails, the others are told, and the job ends.
 * @param body gets the ranks; messages and data are for rank 0 alone.
 */
export async function withRanks(body: (ranks: Communicator | undefined) => Promise<void>): Promise<void> {
  const { openCommunicator } = await import('../distributed/communicator.js')
  const ranks = await openCommunicator()
  if (!ranks) return body(undefined)
  shareProcessor(ranks)
  try {
    await body(ranks)
  } catch (error) {
    if (error instanceof ExitStatus) {
      await ranks.close(error.status)
      throw error
    }
    ranks.fail(error)
    const { report } = await import('./program.js')
    // What another rank has caused is that rank's to say.
    const known = (error as { code?: unknown }).code === 'ERR_RANK' && ranks.rank !== 0
    const status = known ? 1 : report(error)
    await ranks.close(status)
    throw new ExitStatus(status)
  }
  await ranks.close()
}

/** Ranks of one machine that were not bound to parts of the processor share it equally, unless `SEPCONV_THREADS` or `--threads` says otherwise. */
function shareProcessor({ localSize }: Communicator): void {
  if (process.env.SEPCONV_THREADS || availableParallelism() < cpus().length) return
  process.env.SEPCONV_THREADS = String(Math.max(1, Math.floor(availableParallelism() / localSize)))
}
