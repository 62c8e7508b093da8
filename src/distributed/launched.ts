/** Whether a launcher (mpirun, srun, an MPI operator's) has started this process as one of several ranks. */

/** A rank as the launcher's environment describes it. */
export interface Launched {
  readonly rank: number
  readonly size: number
  /** Among the ranks of the same machine, where the launcher says so. */
  readonly localRank?: number
  /** The launcher that has set the variables. */
  readonly by: 'Open MPI' | 'MPICH' | 'Slurm'
}

/** Names of variables: rank, size, local rank. Slurm stands last: its variables are there in an mpirun inside of a job too. */
const LAUNCHERS = [
  ['Open MPI', 'OMPI_COMM_WORLD_RANK', 'OMPI_COMM_WORLD_SIZE', 'OMPI_COMM_WORLD_LOCAL_RANK'],
  ['MPICH', 'PMI_RANK', 'PMI_SIZE', 'MPI_LOCALRANKID'],
  // Not SLURM_NTASKS, which a batch script has too, although it is one process.
  ['Slurm', 'SLURM_PROCID', 'SLURM_STEP_NUM_TASKS', 'SLURM_LOCALID'],
] as const

/**
 * What the environment says; `undefined` for a process that is alone, and everywhere under `SEPCONV_MPI=none`, for ranks that have
 * nothing to do with each other.
 */
export function launched(environment: NodeJS.ProcessEnv = process.env): Launched | undefined {
  if (environment.SEPCONV_MPI === 'none') return undefined
  for (const [by, ...names] of LAUNCHERS) {
    const [rank, size, localRank] = names.map((name) => number(environment[name]))
    if (rank === undefined || size === undefined || size < 2) continue
    return { rank, size, by, ...(localRank !== undefined && { localRank }) }
  }
  return undefined
}

function number(text: string | undefined): number | undefined {
  return text !== undefined && /^\d+$/.test(text) ? Number(text) : undefined
}
