/** Which of a machine's devices is whose. */

import type { Communicator } from './communicator.js'

/**
 * The device of a rank where none was named by its number: for `cuda` one GPU of the machine after the other. Slurm may show each rank its own
 * GPU only, which is then the first one.
 */
export async function deviceOfRank(device: string | undefined, ranks: Communicator | undefined): Promise<string | undefined> {
  if (device !== 'cuda' || !ranks) return device
  // Commands that need no device load none.
  const { devices } = await import('../runtime/device.js')
  const gpus = devices().filter(({ name, available }) => available && name.startsWith('cuda')).length
  return `cuda:${ranks.localRank % Math.max(1, gpus)}`
}
