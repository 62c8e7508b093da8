/**
 * The tile of each kernel call by measurement: every tile that serves the call is timed on the device, and the fastest is kept, in memory and on
 * disk, so that it is measured once per device, driver and version of the package. Without it a rule decides (native/cuda/choose.cc).
 * Tiles change the order of float32 sums: two machines that tuned apart may differ in the last bits.
 */

import { mkdirSync, readFileSync, renameSync, writeFileSync } from 'node:fs'
import { homedir } from 'node:os'
import { join } from 'node:path'
import type { Attributes } from '../graph/graph.js'
import { byteLength, type TensorType } from '../graph/types.js'
import type { NativeExecutor, NativeMemory } from './native.js'
import type { Program, ProgramBuffer } from './program.js'

type Call = readonly [kernel: string, inputs: readonly (TensorType | null)[], outputs: readonly TensorType[], attributes: Attributes]

/** What is measured, and where it is kept. */
export interface TunerOptions {
  /** Device, driver and version: whoever has another one measures again. */
  readonly key: string
  /** Folder of the file. Default `SEPCONV_CACHE`, else ~/.cache/sepconv. */
  readonly folder?: string
  /** Nanoseconds of a call with this tile. Default: the device's own clock, the least of five runs after two. */
  readonly clock?: (call: Call, tile: string) => number
}

/** File of one key; what it holds is by signature of the call. */
interface Kept {
  readonly format: 'sepconv-tiles'
  readonly key: string
  readonly tiles: Record<string, string>
}

/** Measures tiles and remembers them. */
export class Tuner {
  readonly path: string
  /** Calls that were measured in this process. */
  measured = 0
  readonly #tiles: Map<string, string>
  readonly #clock: (call: Call, tile: string) => number

  constructor(
    private readonly executor: NativeExecutor,
    private readonly options: TunerOptions,
  ) {
    const folder = options.folder ?? process.env.SEPCONV_CACHE ?? join(homedir(), '.cache', 'sepconv')
    this.path = join(folder, `tiles-${options.key.toLowerCase().replaceAll(/[^a-z0-9.]+/g, '-')}.json`)
    this.#clock = options.clock ?? ((call, tile) => timeCall(executor, call, tile))
    this.#tiles = new Map(Object.entries(this.#read()))
  }

  /** The fastest tile of a call, or `undefined` where there is nothing to choose. Measures at most once per signature. */
  tile(...call: Call): string | undefined {
    const signature = signatureOf(call)
    const known = this.#tiles.get(signature)
    const tiles = this.executor.tiles(...call)
    if (tiles.length < 2) return undefined
    if (known !== undefined && tiles.includes(known)) return known
    const times = tiles.map((tile) => this.#clock(call, tile))
    const best = tiles[times.indexOf(Math.min(...times))]!
    this.measured++
    this.#tiles.set(signature, best)
    this.#write()
    return best
  }

  /** What is on disk for this key; a file that cannot be read or is damaged is as good as none. */
  #read(): Record<string, string> {
    try {
      const kept = JSON.parse(readFileSync(this.path, 'utf8')) as Kept
      if (kept.format !== 'sepconv-tiles' || kept.key !== this.options.key) return {}
      return Object.fromEntries(Object.entries(kept.tiles).filter(([, tile]) => typeof tile === 'string'))
    } catch {
      return {}
    }
  }

  /** Adds to what other processes have written meanwhile. A cache that cannot be written costs time, not results. */
  #write(): void {
    try {
      mkdirSync(join(this.path, '..'), { recursive: true })
      const tiles = { ...this.#read(), ...Object.fromEntries(this.#tiles) }
      const kept: Kept = { format: 'sepconv-tiles', key: this.options.key, tiles }
      const part = `${this.path}.${process.pid}`
      writeFileSync(part, `${JSON.stringify(kept, null, 1)}\n`)
      renameSync(part, this.path)
    } catch {
      // measured again next time
    }
  }
}

/** Everything that a kernel's speed depends on. */
function signatureOf([kernel, inputs, outputs, attributes]: Call): string {
  const type = (of: TensorType | null) => (of ? `${of.dtype}[${of.shape.join()}]` : '-')
  const sorted = Object.entries(attributes).sort(([a], [b]) => (a < b ? -1 : 1))
  return `${kernel} ${inputs.map(type).join(' ')} > ${outputs.map(type).join(' ')} ${JSON.stringify(sorted)}`
}

function timeCall(executor: NativeExecutor, [kernel, inputs, outputs, given]: Call, tile: string): number {
  const attributes = { ...given, tile }
  const buffers: ProgramBuffer[] = []
  const add = (place: 'input' | 'output', { dtype, shape }: TensorType): number =>
    buffers.push({ place, dtype, shape, bytes: byteLength({ dtype, shape }), name: `${place}${buffers.length}` }) - 1
  const from = inputs.map((input) => input && add('input', input))
  const to = outputs.map((output) => add('output', output))
  const bytes = executor.workspaceBytes(kernel, inputs, outputs, attributes)
  const program: Program = {
    ...{ format: 'sepconv-program', version: 1, target: 'cuda', buffers, arenaBytes: bytes, updateStart: 1 },
    calls: [{ kernel, inputs: from, outputs: to, attributes, scope: 'tuner', workspace: { offset: 0, bytes } }],
    ...{ inputs: from.filter((index) => index !== null), outputs: to },
  }
  const memories: NativeMemory[] = []
  const allocate = (index: number): NativeMemory => {
    const memory = executor.allocate(buffers[index]!.bytes)
    memories.push(memory)
    return memory
  }
  const loaded = executor.load(program)
  try {
    const [sources, targets] = [program.inputs.map(allocate), program.outputs.map(allocate)]
    // Numbers around 1 in either storage: zeros would draw less power than a network does, and so run faster.
    for (const [i, memory] of sources.entries()) executor.write(memory, 0, new Uint8Array(memory.bytes).fill(0x3f - (i % 2)))
    const zeros = (of: readonly unknown[]) => of.map(() => 0)
    const run = () => loaded.elapsed(sources, zeros(sources), targets, zeros(targets))
    for (let i = 0; i < 2; i++) run()
    return Math.min(...Array.from({ length: 5 }, run))
  } finally {
    loaded.dispose()
    for (const memory of memories) memory.dispose()
  }
}
