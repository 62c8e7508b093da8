/**
 * Measured times of tiles on disk: the user's own cache, one file per device, driver and version of the package, and the table that
 * ships with the package. Whatever does not fit is ignored by name and never fatal: a rule serves what no file knows.
 */

import { mkdirSync, readFileSync, renameSync, writeFileSync } from 'node:fs'
import { homedir } from 'node:os'
import { join } from 'node:path'
import { packageRoot } from './native.js'

/** Nanoseconds by tile. */
export type TileTimes = Readonly<Record<string, number>>

/** Counts changes of kernels or tiles after which times of old are worth nothing. */
export const KERNELS_VERSION = 1

/** The table that ships. It holds rows measured on hardware alone; until there are some it is empty. */
export const shippedTable: string = join(packageRoot, 'tiles', 'measured.json')

/** A row of the shipped table. */
export interface ShippedRow {
  /** Name, compute capability and multiprocessors, as `sepconv tune --json` gives them: `'NVIDIA H200 9.0 132'`. */
  readonly device: string
  /** Signature of the call (see signatureOf). */
  readonly call: string
  readonly nanoseconds: TileTimes
  /** Driver and day of the measurement. */
  readonly driver: string
  readonly date: string
}

type Warn = (message: string) => void

/** Where the times of a key are kept: `SEPCONV_CACHE`, else ~/.cache/sepconv. */
export const cachePath = (key: string, folder = process.env.SEPCONV_CACHE ?? join(homedir(), '.cache', 'sepconv')): string =>
  join(folder, `tiles-${key.toLowerCase().replaceAll(/[^a-z0-9.]+/g, '-')}.json`)

/** What a cache holds for this key. A file that is not there is silent; one that is damaged or another's is named. */
export function readCache(path: string, key: string, warn: Warn): Map<string, TileTimes> {
  const kept = readJson(path, warn)
  if (kept === undefined) return new Map()
  const { format, key: owner, calls } = (kept ?? {}) as { format?: unknown; key?: unknown; calls?: unknown }
  if (format !== 'sepconv-tiles' || !isRecord(calls)) {
    warn(`${path} is no cache of tiles and is ignored: what it held is measured again`)
    return new Map()
  }
  if (owner !== key) {
    warn(`${path} belongs to '${String(owner)}', not to '${key}', and is ignored`)
    return new Map()
  }
  const whole = Object.entries(calls).filter((entry): entry is [string, TileTimes] => isTimes(entry[1]))
  const damaged = Object.keys(calls).length - whole.length
  if (damaged > 0) warn(`${path}: ${damaged} damaged entries are ignored`)
  return new Map(whole)
}

/** Adds to what other processes have written meanwhile. A cache that cannot be written costs time, not results. */
export function writeCache(path: string, key: string, times: ReadonlyMap<string, TileTimes>): void {
  try {
    mkdirSync(join(path, '..'), { recursive: true })
    const calls = { ...Object.fromEntries(readCache(path, key, () => {})), ...Object.fromEntries(times) }
    const part = `${path}.${process.pid}`
    writeFileSync(part, `${JSON.stringify({ format: 'sepconv-tiles', key, calls }, null, 1)}\n`)
    renameSync(part, path)
  } catch {
    // measured again next time
  }
}

/** The shipped rows of a device, by signature. A table for other kernels is silent: it is out of date, not damaged. */
export function readShipped(path: string, device: string, warn: Warn): Map<string, TileTimes> {
  const table = readJson(path, warn)
  if (table === undefined) return new Map()
  const { format, kernels, rows } = (table ?? {}) as { format?: unknown; kernels?: unknown; rows?: unknown }
  if (format !== 'sepconv-measured-tiles' || !Array.isArray(rows)) {
    warn(`${path} is no table of measured tiles and is ignored`)
    return new Map()
  }
  if (kernels !== KERNELS_VERSION) return new Map()
  const whole = rows.filter(isRow)
  if (whole.length < rows.length) warn(`${path}: ${rows.length - whole.length} damaged rows are ignored`)
  return new Map(whole.filter((row) => row.device === device).map(({ call, nanoseconds }) => [call, nanoseconds]))
}

function readJson(path: string, warn: Warn): unknown {
  let text: string
  try {
    text = readFileSync(path, 'utf8')
  } catch (error) {
    if (!['ENOENT', 'ENOTDIR'].includes((error as NodeJS.ErrnoException).code ?? '')) warn(`${path} cannot be read: ${String(error)}`)
    return undefined
  }
  try {
    return JSON.parse(text) as unknown
  } catch {
    return null
  }
}

const isRecord = (x: unknown): x is Record<string, unknown> => typeof x === 'object' && x !== null && !Array.isArray(x)

const isTimes = (x: unknown): x is TileTimes =>
  isRecord(x) && Object.keys(x).length > 0 && Object.values(x).every((time) => typeof time === 'number' && time >= 0)

const isRow = (x: unknown): x is ShippedRow =>
  isRecord(x) && ['device', 'call', 'driver', 'date'].every((name) => typeof x[name] === 'string') && isTimes(x.nanoseconds)
