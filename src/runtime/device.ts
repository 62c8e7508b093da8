/** Which devices there are, and opening them. */

import { SepconvError } from '../errors.js'
import type { Executor } from './executor.js'
import { nativeExecutors, openNative } from './executors/native.js'
import { ReferenceExecutor } from './executors/reference.js'

/** `auto` never fails: it takes the best device that runs every op, `cpu` where the addon is there, else `reference`. `cuda` means `cuda:0`. */
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

/** Every device that sepconv knows, and for those that are not available, why. Never throws. */
export function devices(): DeviceInfo[] {
  return [
    ...nativeExecutors(),
    { name: 'reference', available: true, description: 'plain TypeScript loops: slow, and right by inspection' },
  ]
}

const open = new Map<string, Executor>()
let warned = false

/**
 * The executor behind a device name; opened once per process.
 * @param name default: the environment's `SEPCONV_DEVICE`, else `auto`.
 * @throws ERR_DEVICE when there is no such device, with the reason.
 */
export function openDevice(name: DeviceName = process.env.SEPCONV_DEVICE ?? 'auto'): Executor {
  const known = devices()
  const wanted = name === 'cuda' ? 'cuda:0' : String(name)
  if (wanted === 'auto') {
    // cuda has not run on hardware yet: it is taken where it is asked for by name.
    const best = known.find((device) => device.available && !device.name.startsWith('cuda'))!
    if (best.name === 'reference' && !warned) {
      warned = true
      process.emitWarning(
        `no native executor is available (${known.find(({ name }) => name === 'cpu')?.reason ?? 'unknown reason'}): using the slow TypeScript reference`,
        { code: 'SEPCONV_REFERENCE' },
      )
    }
    return openByName(best.name)
  }
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

function openByName(name: string): Executor {
  let executor = open.get(name)
  if (!executor) open.set(name, (executor = name === 'reference' ? new ReferenceExecutor() : openNative(name)))
  return executor
}
