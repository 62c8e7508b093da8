/** Running the command line in this process, with everything that it writes. */

import { vi } from 'vitest'
import { runCli } from '../../src/cli/program.js'

export interface Outcome {
  readonly status: number
  readonly stdout: string
  readonly stderr: string
}

export async function sepconv(...args: string[]): Promise<Outcome> {
  const written = { stdout: '', stderr: '' }
  const capture = (stream: 'stdout' | 'stderr') =>
    vi.spyOn(process[stream], 'write').mockImplementation((chunk: string | Uint8Array) => {
      written[stream] += typeof chunk === 'string' ? chunk : Buffer.from(chunk).toString()
      return true
    })
  const spies = [capture('stdout'), capture('stderr')]
  try {
    return { status: await runCli(args), ...written }
  } finally {
    for (const spy of spies) spy.mockRestore()
  }
}

/** The one JSON value on stdout; throws when there is anything else. */
export async function json(...args: string[]): Promise<unknown> {
  const { status, stdout, stderr } = await sepconv(...args, '--json')
  if (status !== 0) throw new Error(`status ${status}: ${stderr}`)
  return JSON.parse(stdout)
}

/** Options of a model that trains in a second on any device. */
export const TINY = ['--width', '0.05', '--middle-repeats', '0', '--size', '71']
