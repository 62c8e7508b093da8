/**
 * `sepconv tune`: times every tile that serves the kernel calls of a model on the GPU that is there, keeps the times for all programs to come
 * (runtime/tuner.ts), and says in words what the rule would have chosen and why the fastest is faster. Without a GPU it explains the
 * rule's choice for one of a given size.
 */

import { SepconvError } from '../errors.js'
import type { Precision } from '../graph/precision.js'
import { byteLength } from '../graph/types.js'
import '../models/index.js'
import { openDevice } from '../runtime/device.js'
import type { Executor } from '../runtime/executor.js'
import { cudaTarget, NativeDeviceExecutor, translated } from '../runtime/executors/native.js'
import type { TileTimes } from '../runtime/measuredTiles.js'
import { requireNative } from '../runtime/native.js'
import { fastest, signatureOf, type TunedCall, tunedCalls, tunedDevice, Tuner, type TunerOptions, tuningKey } from '../runtime/tuner.js'
import { planModel } from './plan.js'
import { tileGeometry } from './tileGeometry.js'

/** One tile of one call. */
export interface TileCandidate {
  readonly tile: string
  /** The least of five runs; `null` where it was not measured. */
  readonly microseconds: number | null
  /** Of one launch; `null` for kernels whose blocks no tile describes. */
  readonly blocks: number | null
  /** Blocks per multiprocessor. */
  readonly waves: number | null
  /** Share of what the blocks compute that is asked for, idle multiprocessors of the last wave included. */
  readonly useful: number | null
}

/** A kernel call of the model with everything it may be served by. */
export interface TuneRow {
  readonly kernel: string
  /** Operands and result, such as `bfloat16 [23104,728] [728,728] > [23104,728]`. */
  readonly shape: string
  /** What the shipped table and the cache know it by. */
  readonly call: string
  /** How many calls of the model's programs are this one. */
  readonly count: number
  /** The tile that the rule takes; `null` where it takes a kernel without tiles. */
  readonly rule: string | null
  /** The rule's kernel in full. */
  readonly variant: string
  readonly candidates: readonly TileCandidate[]
  /** The fastest; `null` where nothing was measured. */
  readonly winner: string | null
  /** Time of the rule's tile over that of the fastest. */
  readonly gain: number | null
  /** `measured` now, known from the user's `cache` or the shipped `table`, or why not: `dry-run`, `budget`, `interrupted`, `failed`. */
  readonly state: 'measured' | 'cache' | 'table' | 'dry-run' | 'budget' | 'interrupted' | 'failed'
  readonly why: string
}

export interface TuneReport {
  readonly device: string
  readonly multiprocessors: number
  /** Compute capability, its first number. */
  readonly major: number
  /** Rows measured now. */
  readonly measured: number
  /** Rows that no file knows and that were not measured. */
  readonly remaining: number
  readonly interrupted: boolean
  readonly seconds: number
  /** The cache that programs will read; `null` in a dry run. */
  readonly path: string | null
  readonly rows: readonly TuneRow[]
}

export interface TuneOptions {
  /** A registered model. Default `'xception'`. */
  readonly model?: string
  /** Options of its architecture. */
  readonly options?: Readonly<Record<string, unknown>>
  /** Default `[1, 32]`. */
  readonly batches?: readonly number[]
  /** Default `['bfloat16']`. */
  readonly precisions?: readonly Precision[]
  /** The training step too. Default false. */
  readonly training?: boolean
  /** Default `'cuda'`. */
  readonly device?: string
  /** Measures calls that a file knows already. Default false. */
  readonly again?: boolean
  /** Seconds after which nothing new is begun. Default 60. */
  readonly budget?: number
  /** Explains the rule's choice on such a GPU; nothing is measured and no GPU needed. */
  readonly dryRun?: { readonly major: number; readonly multiprocessors: number }
  /** Where times are kept and who measures them, for tests. */
  readonly tuner?: Partial<TunerOptions>
  /** Ends after the call that is being measured; what was measured is kept. */
  readonly signal?: AbortSignal
  readonly onProgress?: (progress: { readonly done: number; readonly total: number; readonly label: string }) => void
}

/**
 * Measures the tiles of a model's kernel calls, the largest calls first, or explains them.
 * @throws ERR_ARGUMENT for unknown models, options and a device without tiles, ERR_DEVICE where there is no such device, with the reason.
 */
export async function tune(options: TuneOptions = {}): Promise<TuneReport> {
  const began = performance.now()
  const { dryRun, budget = 60, signal } = options
  const executor = dryRun ? undefined : gpu(options.device ?? 'cuda')
  const info = executor?.info
  const major = dryRun?.major ?? Number(String(info?.computeCapability ?? '8').split('.')[0])
  const multiprocessors = dryRun?.multiprocessors ?? Number(info?.multiprocessors ?? 1)
  const tuner = executor && new Tuner(executor.handle, { key: tuningKey(info!), device: tunedDevice(info!), ...options.tuner })
  const calls = callsOf(options)
  const rows: TuneRow[] = []
  let measured = 0
  for (const [done, { call, count }] of calls.entries()) {
    options.onProgress?.({ done, total: calls.length, label: call[0] })
    // Lets Ctrl-C through: measuring itself is synchronous.
    await new Promise((resolve) => setImmediate(resolve))
    const choice = choiceOf(call, multiprocessors, major)
    if (choice.tiles.length < 2) continue
    let times: TileTimes | undefined
    let state: TuneRow['state'] = 'dry-run'
    let reason: string | undefined
    if (tuner) {
      const known = options.again ? undefined : tuner.known(call)
      if (known) [times, state] = [known.times, known.from]
      else if (signal?.aborted) state = 'interrupted'
      else if (performance.now() - began > budget * 1000) state = 'budget'
      else
        try {
          times = tuner.measure(call)
          measured++
          state = 'measured'
        } catch (error) {
          const cause = translated(error)
          // A device that has failed answers nothing more; a call that does not fit leaves the others.
          if (!(cause instanceof SepconvError) || cause.code !== 'ERR_MEMORY') throw cause
          ;[state, reason] = ['failed', cause.message]
        }
    }
    rows.push(rowOf(call, count, choice, times, state, multiprocessors, reason))
  }
  const left = (['budget', 'interrupted', 'failed'] as const).flatMap((state) => rows.filter((row) => row.state === state))
  return {
    device: executor ? tunedDevice(info!) : `compute capability ${major}.x`,
    ...{ multiprocessors, major, measured, remaining: left.length, interrupted: signal?.aborted ?? false },
    seconds: Math.round((performance.now() - began) / 100) / 10,
    path: tuner?.path ?? null,
    rows,
  }
}

function gpu(name: string): NativeDeviceExecutor {
  const executor: Executor = openDevice(name)
  if (executor instanceof NativeDeviceExecutor && executor.target.name === 'cuda') return executor
  throw new SepconvError('ERR_ARGUMENT', `device '${name}' has no tiles to choose: its kernels take one shape each`, {
    subject: 'device',
    given: name,
    hint: 'Name a GPU: cuda, cuda:0, …',
  })
}

/** Distinct calls of all programs asked for, those that move most bytes first: what the budget leaves out matters least. */
function callsOf(options: TuneOptions): { call: TunedCall; count: number }[] {
  const found = new Map<string, { call: TunedCall; count: number; bytes: number }>()
  const { batches = [1, 32], precisions = ['bfloat16'], model = 'xception' } = options
  for (const precision of precisions)
    for (const batch of batches)
      for (const task of options.training ? (['inference', 'train'] as const) : (['inference'] as const)) {
        const { main } = planModel({ model, task, batch, precision, ...(options.options && { options: options.options }) }, cudaTarget())
        for (const call of tunedCalls(main.program)) {
          const signature = signatureOf(call)
          const known = found.get(signature)
          if (known) known.count++
          else found.set(signature, { call, count: 1, bytes: bytesOf(call) })
        }
      }
  return [...found.values()].sort((a, b) => b.bytes * b.count - a.bytes * a.count)
}

const bytesOf = ([, inputs, outputs]: TunedCall): number =>
  [...inputs, ...outputs].reduce((sum, type) => sum + (type ? byteLength(type) : 0), 0)

interface Choice {
  readonly tiles: readonly string[]
  readonly description: string
  readonly rule: string | null
  /** Parts that this tile's product cuts its depth into. */
  splits(tile: string): number
}

/** The rule's kernel, and which of the tiles it is: the one that, named, gives the same kernel. */
function choiceOf(call: TunedCall, multiprocessors: number, major: number): Choice {
  const [kernel, inputs, outputs, attributes] = call
  const describe = (tile?: string) => {
    try {
      return requireNative().describeKernel(
        kernel,
        inputs,
        outputs,
        tile === undefined ? attributes : { ...attributes, tile },
        multiprocessors,
        major,
      )
    } catch (error) {
      throw translated(error)
    }
  }
  const { description, tiles } = describe()
  const variants = new Map(tiles.length < 2 ? [] : tiles.map((tile) => [tile, describe(tile).description]))
  const rule = tiles.find((tile) => variants.get(tile) === description) ?? null
  return { tiles, description, rule, splits: (tile) => Number(/(\d+) splits/.exec(variants.get(tile) ?? '')?.[1] ?? 1) }
}

function rowOf(
  call: TunedCall,
  count: number,
  { tiles, description, rule, splits }: Choice,
  times: TileTimes | undefined,
  state: TuneRow['state'],
  multiprocessors: number,
  reason: string | undefined,
): TuneRow {
  const candidates = tiles.map((tile): TileCandidate => {
    const geometry = tileGeometry(call, tile, multiprocessors, splits(tile))
    const time = times?.[tile]
    return {
      ...{ tile, microseconds: time === undefined ? null : Math.round(time / 10) / 100 },
      ...{
        blocks: geometry?.blocks ?? null,
        waves: geometry ? rounded(geometry.waves) : null,
        useful: geometry ? rounded(geometry.useful) : null,
      },
    }
  })
  const winner = times ? fastest(times) : null
  const gain = winner && rule && times ? rounded(times[rule]! / Math.max(times[winner]!, 1e-9)) : null
  return {
    ...{
      kernel: call[0],
      shape: shapeOf(call),
      call: signatureOf(call),
      count,
      rule,
      variant: description,
      candidates,
      winner,
      gain,
      state,
    },
    why: reason ?? explain(candidates, rule, winner),
  }
}

const rounded = (x: number): number => Math.round(x * 1000) / 1000

function shapeOf([, inputs, [y]]: TunedCall): string {
  const shapes = inputs.flatMap((type) => (type && type.shape.length > 1 ? [`[${type.shape.join()}]`] : []))
  return `${y!.dtype === 'float32' ? (inputs[0]?.dtype ?? y!.dtype) : y!.dtype} ${shapes.slice(0, 3).join(' ')} > [${y!.shape.join()}]`
}

/** Waves and efficiency of the tile that is taken, against the one that the rule would have taken. */
function explain(candidates: readonly TileCandidate[], rule: string | null, winner: string | null): string {
  const of = (tile: string | null) => candidates.find((candidate) => candidate.tile === tile)
  const words = (candidate: TileCandidate) =>
    candidate.blocks === null
      ? candidate.tile
      : `${candidate.tile}: ${candidate.blocks} blocks, ${candidate.waves!.toFixed(2)} per multiprocessor, ${(100 * candidate.useful!).toFixed(0)} % of the work wanted`
  const [chosen, ruled] = [of(winner ?? rule), of(rule)]
  if (!chosen) return 'the rule takes a kernel without tiles'
  if (winner === null) return `${words(chosen)} (by the rule, not measured)`
  if (!ruled || ruled === chosen) return `${words(chosen)}${ruled ? '; the rule agrees' : ''}`
  const [a, b] = [chosen.useful ?? 0, ruled.useful ?? 0]
  const because =
    a > b * 1.02
      ? 'less is computed in vain'
      : b > a * 1.02
        ? 'faster although more is computed in vain: the limit is elsewhere, in memory or in how blocks overlap'
        : 'as much is computed in vain: the difference is in memory or in how blocks overlap'
  return `${words(chosen)}, against ${words(ruled)}; ${because}`
}
