// The side of the protocol that runs inside a peer's process: requests as JSON lines on stdin, one reply line each on stdout.
//   { id, command: 'prepare', network, task, batch, threads, out }  →  { id, outputs: { name: file } }   results, to be compared first
//   { id, command: 'run', warm, count }                             →  { id, ms: [ … ] }                 count timed runs after warm others
//   { id, command: 'memory' }                                       →  { id, peakBytes }                 of this process, since it started
// A reply may be { id, error } instead, with `unsupported` where the peer cannot do such a task at all. The first line, without an id, is
// { ready, versions }. Whatever else a library writes goes to stderr.

import { readFileSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { createInterface } from 'node:readline'

/** The task is beyond the peer, which is a result and not a failure. */
export class Unsupported extends Error {}

/** Of an npm package of this folder, whatever its `exports` hide. */
export const installedVersion = (name) =>
  JSON.parse(readFileSync(new URL(`node_modules/${name}/package.json`, import.meta.url), 'utf8')).version

const send = (reply) => process.stdout.write(`${JSON.stringify(reply)}\n`)

/**
 * Answers requests until stdin ends.
 * @param versions of what is compared.
 * @param prepare takes { network, task, batch, threads }; resolves with `outputs` (name → Float32Array, NHWC) and `run`, one repetition.
 */
export async function serve(versions, prepare) {
  console.log = console.info = console.debug = console.error
  let run
  const commands = {
    async prepare({ out, ...request }) {
      const prepared = await prepare(request)
      run = prepared.run
      const outputs = {}
      for (const [name, data] of Object.entries(prepared.outputs)) writeFileSync((outputs[name] = path.join(out, `${name}.f32`)), data)
      return { outputs }
    },
    async run({ warm, count }) {
      for (let i = 0; i < warm; i++) await run()
      const ms = []
      for (let i = 0; i < count; i++) {
        const since = performance.now()
        await run()
        ms.push(performance.now() - since)
      }
      return { ms }
    },
    async memory() {
      return { peakBytes: peakBytes() }
    },
  }
  send({ ready: true, versions })
  for await (const line of createInterface({ input: process.stdin })) {
    const { id, command, ...request } = JSON.parse(line)
    try {
      send({ id, ...(await commands[command](request)) })
    } catch (error) {
      send({ id, error: String(error?.message ?? error), ...(error instanceof Unsupported && { unsupported: true }) })
    }
  }
  process.exit(0)
}

/** Linux counts per program; getrusage would also count what the parent held before it started this one. */
function peakBytes() {
  try {
    return 1024 * Number(/^VmHWM:\s+(\d+) kB/m.exec(readFileSync('/proc/self/status', 'utf8'))[1])
  } catch {
    return 1024 * process.resourceUsage().maxRSS
  }
}
