/** The process's peak resident memory, which Linux lets a program reset: so every case of a benchmark has its own. */

import { readFileSync, writeFileSync } from 'node:fs'

/** Starts the peak anew at what is resident now. @returns whether the system can do that. */
export function resetPeakResident(): boolean {
  try {
    writeFileSync('/proc/self/clear_refs', '5')
    return true
  } catch {
    return false
  }
}

/** Bytes; `null` where the system does not say. */
export function peakResidentBytes(): number | null {
  try {
    const kilobytes = /^VmHWM:\s+(\d+) kB/m.exec(readFileSync('/proc/self/status', 'utf8'))?.[1]
    return kilobytes === undefined ? null : 1024 * Number(kilobytes)
  } catch {
    return null
  }
}
