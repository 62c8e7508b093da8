/** Which devices there are, and opening them. */

import { SepconvError } from '../errors.js'
import type { Executor } from './executor.js'
import { nativeExecutors, openNative } from './executors/native.js'
import { ReferenceExecutor } from './executors/reference.js'

/** `auto` never fails: it takes the first of {@link devices} that is available and opens, a GPU before `cpu` before `reference`. `cuda` means `cuda:0`. */
export type DeviceName = 'auto' | 'cpu' | 'cuda' | `cuda:${number}` | 'reference' | (string & {})

/** A device that programs can run on, or the reason why it is not available. */
export interface DeviceInfo {
  readonly name: string
  readonly available: boolean
  /** Why it is not available. */
  readonly reason?: string
  /** What else there is to know: instruction set, threads, memory, driver. */
  readonly [detail: string]: unknown
}

/** Every device that sepconv knows, best first, and for those that are not available, why. Never throws. */
export function devices(): DeviceInfo[] {
  return [
    ...nativeExecutors(),
    { name: 'reference', available: true, description: 'plain TypeScript loops: slow, and right by inspection' },
  ]
}

const open = new Map<string, Executor>()
/** Devices that `auto` could not open. */
const passedOver = new Set<string>()

/**
 * The executor behind a device name; opened once per process.
 * @param name default: the environment's `SEPCONV_DEVICE`, else `auto`.
 * @throws ERR_DEVICE when there is no such device, with the reason.
 */
export function openDevice(name: DeviceName = process.env.SEPCONV_DEVICE ?? 'auto'): Executor {
  const known = devices()
  const wanted = name === 'cuda' ? 'cuda:0' : String(name)
  if (wanted === 'auto') return openBest(known)
  const device =
    known.find((candidate) => candidate.name === wanted) ??
    known.find((candidate) => wanted.startsWith('cuda') && candidate.name === 'cuda')
  if (!device)
    throw new SepconvError('ERR_DEVICE', `there is no device '${name}'`, {
      subject: 'device',
      expected: known.map((candidate) => candidate.name),
      given: name,
      hint: `Known devices: auto, ${known.map((candidate) => candidate.name).join(', ')}`,
    })
  if (!device.available)
    throw new SepconvError('ERR_DEVICE', `device '${name}' is not available: ${device.reason}`, {
      subject: 'device',
      given: name,
      hint: "Use device 'auto' to take the best one there is",
    })
  return openByName(device.name)
}

/** The first device that opens; says once why a better one did not. */
function openBest(known: readonly DeviceInfo[]): Executor {
  for (const { name, available } of known) {
    if (!available || passedOver.has(name)) continue
    if (name === 'reference' && !open.has(name)) {
      const reason = known.find((device) => device.name === 'cpu')?.reason ?? 'see the warnings before'
      process.emitWarning(`no native executor is available (${reason}): using the slow TypeScript reference`, { code: 'SEPCONV_REFERENCE' })
    }
    try {
      return openByName(name)
    } catch (error) {
      passedOver.add(name)
      process.emitWarning(`device 'auto' passes over ${name}: ${error instanceof Error ? error.message : String(error)}`, {
        code: 'SEPCONV_DEVICE',
      })
    }
  }
  return openByName('reference')
}

function openByName(name: string): Executor {
  let executor = open.get(name)
  if (!executor) open.set(name, (executor = name === 'reference' ? new ReferenceExecutor() : openNative(name)))
  return executor
}
