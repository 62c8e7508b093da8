/**
 * The ranks of a data parallel job. Programs sum gradients by themselves (src/ops/allReduce.ts); what is here serves the event loop:
 * agreeing on something, collecting, messages, and the end of the job.
 */

import { hostname } from 'node:os'
import { SepconvError } from '../errors.js'
import { openDevice } from '../runtime/device.js'
import { NativeDeviceExecutor, translated } from '../runtime/executors/native.js'
import { type NativeCommunicator, packageVersion, requireNative } from '../runtime/native.js'
import { launched } from './launched.js'
import { mpiShim } from './shim.js'

/** What a rank's programs spent on sums over all ranks since it was last asked. */
export interface ReductionStatistics {
  readonly reductions: number
  readonly bytes: number
  /** While at least one sum was under way. */
  readonly busySeconds: number
  /** Of these, while the program stood still for one: the part that the computation did not hide. */
  readonly waitSeconds: number
}

/** A connected job; comes from {@link openCommunicator}. Every rank makes the same calls in the same order. */
export class Communicator {
  readonly rank: number
  readonly size: number
  /** Among the ranks of this machine: which of its devices is this one's. */
  readonly localRank: number
  readonly localSize: number
  /** What the MPI library says of itself. */
  readonly library: string
  /** The machine of each rank. */
  readonly hosts: readonly string[]
  #failed = false
  #connected: string | undefined

  private constructor(
    private readonly native: NativeCommunicator,
    hosts: readonly string[],
  ) {
    this.rank = native.rank
    this.size = native.size
    this.localRank = native.localRank
    this.localSize = native.localSize
    this.library = native.library
    this.hosts = hosts
  }

  /** @internal */
  static async open(): Promise<Communicator> {
    const shim = await mpiShim()
    // UCX, under MPICH and some builds of Open MPI, patches mmap, brk and their kin in the running process while the threads of V8 are
    // inside of them: with Debian's MPICH 4.0 one start in a hundred ended in a segmentation fault.
    process.env.UCX_MEM_MMAP_HOOK_MODE ??= 'none'
    let native: NativeCommunicator
    try {
      native = requireNative().openCommunicator(shim)
    } catch (error) {
      throw translated(error)
    }
    await checkVersions(native)
    const ranks = new Communicator(native, [])
    return new Communicator(native, (await ranks.share(hostname())) as string[])
  }

  /**
   * Makes programs on a GPU sum over all ranks, by NCCL. `fit` does it by itself; whoever compiles with `ranks` does it first, on every rank.
   * On other devices there is nothing to do.
   * @param device where this rank's programs run, such as `'cuda:0'`.
   * @throws ERR_DEVICE, naming the rank, where NCCL is missing or too old or two ranks share a GPU; ERR_RANK when versions differ.
   */
  async connect(device: string): Promise<void> {
    const executor = openDevice(device)
    if (!(executor instanceof NativeDeviceExecutor) || executor.target.name !== 'cuda' || this.#connected === device) return
    let problem: string | null = null
    let id: Uint8Array = new Uint8Array(0)
    try {
      id = executor.ranksId()
    } catch (error) {
      problem = (error as Error).message
    }
    const version = requireNative()
      .cudaLibraries()
      .find(({ name }) => name === 'nccl')?.version
    const gpu = (executor.info.uuid as string | undefined) ?? null
    const all = (await this.share({ problem, gpu, version })) as { problem: string | null; gpu: string | null; version: string }[]
    for (const [rank, own] of all.entries()) {
      if (own.problem !== null)
        throw new SepconvError('ERR_DEVICE', `${this.name(rank)} cannot sum over GPUs: ${own.problem}`, {
          subject: 'NCCL',
          hint: 'Install NCCL 2 (Debian, Ubuntu, from the CUDA repository: apt-get install libnccl2), or name its folder in SEPCONV_CUDA_LIBRARIES',
        })
      if (own.version !== all[0]!.version)
        throw new SepconvError('ERR_RANK', `${this.name(rank)} has NCCL ${own.version}, rank 0 has ${all[0]!.version}`, { subject: 'NCCL' })
      const twin = own.gpu === null ? rank : all.findIndex(({ gpu: other }) => other === own.gpu)
      if (twin !== rank)
        throw new SepconvError('ERR_DEVICE', `${this.name(rank)} has the same GPU as ${this.name(twin)}; NCCL needs one per rank`, {
          subject: 'device',
          hint: 'Start as many ranks per machine as it has GPUs, and leave the choice to --device cuda',
        })
    }
    await executor.joinRanks(await this.broadcast(id), this.size, this.rank)
    this.#connected = device
  }

  /** `rank 3 (node07)` */
  name(rank: number): string {
    return `rank ${rank} (${this.hosts[rank] ?? 'unknown host'})`
  }

  /** The bytes of every rank, in their order; each rank gives as many. @throws ERR_RANK when one has left, ERR_MPI */
  async allGather(own: Uint8Array): Promise<Uint8Array> {
    return this.#call(() => this.native.allGather(own))
  }

  /** {@link allGather} that only rank 0 gets; nothing for the others. */
  async gather(own: Uint8Array): Promise<Uint8Array> {
    return this.#call(() => this.native.gather(own))
  }

  /** The bytes of rank 0; each rank gives an array of that length. */
  async broadcast(bytes: Uint8Array): Promise<Uint8Array> {
    return this.#call(() => this.native.broadcast(bytes))
  }

  /** Some numbers of every rank: a row per rank. */
  async numbers(own: readonly number[]): Promise<Float64Array[]> {
    const all = await this.allGather(new Uint8Array(Float64Array.from(own).buffer))
    return Array.from({ length: this.size }, (_, rank) => new Float64Array(all.buffer, all.byteOffset + rank * own.length * 8, own.length))
  }

  /** A JSON value of every rank, in their order. */
  async share(own: unknown): Promise<unknown[]> {
    const text = Buffer.from(JSON.stringify(own) ?? 'null')
    const lengths = await this.numbers([text.length])
    const longest = Math.max(...lengths.map(([length]) => length!))
    const padded = new Uint8Array(longest)
    padded.set(text)
    const all = await this.allGather(padded)
    return lengths.map(([length], rank) => JSON.parse(Buffer.from(all.buffer, all.byteOffset + rank * longest, length).toString('utf8')))
  }

  /** A JSON value of rank 0. */
  async fromFirst<T>(own: T): Promise<T> {
    const text = Buffer.from(this.rank === 0 ? (JSON.stringify(own) ?? 'null') : '')
    const [length] = (await this.numbers([text.length]))[0]!
    const bytes = await this.broadcast(this.rank === 0 ? new Uint8Array(text) : new Uint8Array(length!))
    return JSON.parse(Buffer.from(bytes).toString('utf8')) as T
  }

  /** Waits for all ranks. */
  async barrier(): Promise<void> {
    await this.allGather(new Uint8Array(1))
  }

  /** Sends a message; done when the bytes may be written again. @param tag from 0 */
  async send(to: number, tag: number, bytes: Uint8Array): Promise<void> {
    await this.#call(() => this.native.send(to, tag, bytes))
  }

  /** Calls `receiver` with every message of other ranks; those of one rank arrive in the order in which they were sent. */
  receive(receiver: ((from: number, tag: number, bytes: Uint8Array) => void) | undefined): void {
    this.native.receive(receiver)
  }

  /** What programs on this rank have spent on sums since the last call. */
  statistics(): ReductionStatistics {
    return this.native.statistics()
  }

  /** Whether this rank or another one has left: nothing but {@link close} makes sense then. */
  get failed(): boolean {
    return this.#failed
  }

  /** Ends what the other ranks are waiting for: their calls throw ERR_RANK with this rank's name and reason. */
  fail(reason: unknown): void {
    if (this.#failed) return
    this.#failed = true
    this.native.fail(`${this.name(this.rank)}: ${reason instanceof Error ? reason.message : String(reason)}`)
  }

  /**
   * Ends the job on this rank, together with the others. After a failure the ranks take leave of each other and are aborted with `status`:
   * then this never returns.
   */
  async close(status = 0): Promise<void> {
    if (this.#failed) await Promise.all([process.stdout, process.stderr].map((stream) => new Promise((done) => stream.write('', done))))
    this.native.close(status)
  }

  async #call<T>(call: () => Promise<T>): Promise<T> {
    try {
      return await call()
    } catch (error) {
      const known = translated(error)
      if (known instanceof SepconvError && known.code === 'ERR_RANK') this.#failed = true
      throw known
    }
  }
}

/** Ranks of different versions may not even agree on what to compare, so this comes first, in a form that never changes. @internal */
export async function checkVersions(native: Pick<NativeCommunicator, 'size' | 'allGather'>): Promise<void> {
  const own = new Uint8Array(64)
  own.set(Buffer.from(packageVersion).subarray(0, 64))
  const all = await native.allGather(own)
  const versions = Array.from({ length: native.size }, (_, rank) =>
    Buffer.from(all.subarray(rank * 64, (rank + 1) * 64))
      .toString('utf8')
      .replace(/\0+$/, ''),
  )
  const other = versions.findIndex((version) => version !== versions[0])
  if (other < 0) return
  throw new SepconvError('ERR_RANK', `rank ${other} runs sepconv ${versions[other]}, rank 0 runs ${versions[0]}`, {
    subject: 'version',
    expected: versions[0],
    given: versions[other],
    hint: 'Install the same version on every machine of the job',
  })
}

let open: Promise<Communicator> | undefined

/**
 * Connects this process with the other ranks of the job that a launcher started (`mpirun -n 4 node train.js`, `srun`). Once per process;
 * later calls give the same one.
 * @returns `undefined` where no launcher did, that is where the process is alone.
 * @throws ERR_MPI when there is no library, with how to get it; when it was exchanged for another version; when it has no threads.
 *   ERR_RANK when ranks run different versions of sepconv. ERR_NATIVE without the native addon.
 * @example const ranks = await openCommunicator(); for await (const event of fit({ model, data, ranks })) …
 */
export async function openCommunicator(): Promise<Communicator | undefined> {
  if (!launched()) return undefined
  open ??= Communicator.open()
  return open
}
