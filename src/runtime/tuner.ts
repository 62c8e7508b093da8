/**
 * The tile of each kernel call by measurement: every tile that serves the call is timed on the device, and the times are kept, in memory and
 * on disk, so that a call is measured once per device, driver and version of the package. Times come from the user's own cache, else from the
 * table that ships; what neither knows is measured, or left to a rule (native/cuda/choose.cc).
 * Tiles change the order of float32 sums: two machines that tuned apart may differ in the last bits.
 */

import type { Attributes } from '../graph/graph.js'
import { byteLength, type TensorType } from '../graph/types.js'
import { cachePath, readCache, readShipped, shippedTable, type TileTimes, writeCache } from './measuredTiles.js'
import { type NativeExecutor, type NativeExecutorInfo, type NativeMemory, packageVersion } from './native.js'
import type { Program, ProgramBuffer } from './program.js'

/** A kernel call without its operands. */
export type TunedCall = readonly [
  kernel: string,
  inputs: readonly (TensorType | null)[],
  outputs: readonly TensorType[],
  attributes: Attributes,
]

/** The kernel calls of a program, in order. */
export function tunedCalls({ calls, buffers }: Program): TunedCall[] {
  const type = (index: number): TensorType => ({ dtype: buffers[index]!.dtype, shape: buffers[index]!.shape })
  return calls.map(({ kernel, inputs, outputs, attributes }) => [
    kernel,
    inputs.map((index) => (index === null ? null : type(index))),
    outputs.map(type),
    attributes,
  ])
}

/** What is measured, and where it is kept. */
export interface TunerOptions {
  /** Device, driver and version: whoever has another one measures again. */
  readonly key: string
  /** The device as the shipped table names it. Default: none of its rows. */
  readonly device?: string
  /** Folder of the cache. Default `SEPCONV_CACHE`, else ~/.cache/sepconv. */
  readonly folder?: string
  /** The table that ships. */
  readonly table?: string
  /** Whether calls that no file knows are measured. Default true. */
  readonly measures?: boolean
  /** Nanoseconds of a call with this tile. Default: the device's own clock, the least of five runs after two. */
  readonly clock?: (call: TunedCall, tile: string) => number
  /** Told of files that are ignored. Default: a warning of the process. */
  readonly onWarning?: (message: string) => void
}

/** Measures tiles and remembers them. */
export class Tuner {
  /** File of the user's cache. */
  readonly path: string
  /** Calls that were measured in this process. */
  measured = 0
  readonly #cached: Map<string, TileTimes>
  readonly #shipped: ReadonlyMap<string, TileTimes>
  readonly #clock: (call: TunedCall, tile: string) => number

  constructor(
    private readonly executor: NativeExecutor,
    private readonly options: TunerOptions,
  ) {
    const { key, device, table = shippedTable } = options
    const warn = options.onWarning ?? ((message: string) => process.emitWarning(message, { code: 'SEPCONV_TILES' }))
    this.path = cachePath(key, options.folder)
    this.#clock = options.clock ?? ((call, tile) => timeCall(executor, call, tile))
    this.#cached = readCache(this.path, key, warn)
    this.#shipped = device === undefined ? new Map() : readShipped(table, device, warn)
  }

  /** The fastest tile of a call, or `undefined` where there is nothing to choose, or nothing known and `measures` is off. */
  tile(...call: TunedCall): string | undefined {
    const times = this.known(call)?.times ?? (this.options.measures === false ? undefined : this.measure(call))
    return times && fastest(times)
  }

  /** What the files say of a call; only where they name every tile that serves it. */
  known(call: TunedCall): { readonly times: TileTimes; readonly from: 'cache' | 'table' } | undefined {
    const signature = signatureOf(call)
    const [cached, shipped] = [this.#cached.get(signature), this.#shipped.get(signature)]
    if (!cached && !shipped) return undefined
    const tiles = this.executor.tiles(...call)
    const covers = (times: TileTimes | undefined) => times && tiles.length > 1 && tiles.every((tile) => tile in times) && pick(times, tiles)
    const own = covers(cached)
    if (own) return { times: own, from: 'cache' }
    const others = covers(shipped)
    return others ? { times: others, from: 'table' } : undefined
  }

  /** Times every tile of a call and keeps the times; `undefined` where there is nothing to choose. */
  measure(call: TunedCall): TileTimes | undefined {
    const tiles = this.executor.tiles(...call)
    if (tiles.length < 2) return undefined
    const times = Object.fromEntries(tiles.map((tile) => [tile, this.#clock(call, tile)]))
    this.measured++
    this.#cached.set(signatureOf(call), times)
    writeCache(this.path, this.options.key, this.#cached)
    return times
  }
}

const pick = (times: TileTimes, tiles: readonly string[]): TileTimes => Object.fromEntries(tiles.map((tile) => [tile, times[tile]!]))

/** Of equals the first. */
export function fastest(times: TileTimes): string {
  const entries = Object.entries(times)
  return entries.reduce((best, entry) => (entry[1] < best[1] ? entry : best), entries[0]!)[0]
}

/** A device as the shipped table names it. */
export const tunedDevice = ({ device, name, computeCapability, multiprocessors }: NativeExecutorInfo): string =>
  [device ?? name, computeCapability, multiprocessors].filter((part) => part !== undefined).join(' ')

/** Whatever a measured time may depend on. */
export const tuningKey = (info: NativeExecutorInfo): string =>
  [tunedDevice(info), info.driverVersion, packageVersion].filter((part) => part !== undefined).join(' ')

/** Everything that a kernel's speed depends on. */
export function signatureOf([kernel, inputs, outputs, attributes]: TunedCall): string {
  const type = (of: TensorType | null) => (of ? `${of.dtype}[${of.shape.join()}]` : '-')
  const sorted = Object.entries(attributes).sort(([a], [b]) => (a < b ? -1 : 1))
  return `${kernel} ${inputs.map(type).join(' ')} > ${outputs.map(type).join(' ')} ${JSON.stringify(sorted)}`
}

function timeCall(executor: NativeExecutor, [kernel, inputs, outputs, given]: TunedCall, tile: string): number {
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
