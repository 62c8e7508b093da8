// One case (a task, a batch size, a number of threads) over all peers: start, compare, take turns, read the memory, end.

import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { round } from '../../dist/bench/machine.js'
import { parseLayer } from '../../dist/bench/layers.js'
import { PeerProcess } from './child.mjs'
import { compareOutputs, readOutputs } from './compare.mjs'
import { writeLayer, writeModel } from './network.mjs'
import { PEERS } from './peers.mjs'
import { interleave, ratioOf, summary } from './rounds.mjs'
import { SGD, STEPS, TRACKED } from './training.mjs'

/** Folders with networks, written when a case first needs one. */
export class Networks {
  #folders = new Map()

  /** @param model options of Xception. @param batch the most images that any case takes. @param onnx whether to write ONNX files. */
  constructor({ model, batch, onnx }) {
    Object.assign(this, { model, batch, onnx })
  }

  async folderOf({ task, layer, batch }) {
    const key = task === 'layer' ? `${layer} ${batch}` : 'model'
    let folder = this.#folders.get(key)
    if (!folder) {
      this.#folders.set(key, (folder = await mkdtemp(path.join(tmpdir(), 'sepconv-peers-'))))
      if (task === 'layer') await writeLayer(folder, parseLayer(layer), batch)
      else await writeModel(folder, this.model, this.batch)
    }
    if (this.onnx && task !== 'train') {
      const { onnxModel } = await import('./programs/onnx.mjs')
      await writeFile(path.join(folder, `batch${batch}.onnx`), onnxModel(folder, batch))
    }
    return folder
  }

  /** Layers are many and used once. */
  async release({ task, layer, batch }) {
    if (task !== 'layer') return
    const key = `${layer} ${batch}`
    await rm(this.#folders.get(key), { recursive: true, force: true })
    this.#folders.delete(key)
  }

  async dispose() {
    for (const folder of this.#folders.values()) await rm(folder, { recursive: true, force: true })
  }
}

/**
 * @param peers names; each has a result, whatever happens to it.
 * @returns a row per peer: `status` is 'measured', 'unsupported' (beyond this peer), 'wrong' (disagrees with the first that answered) or 'failed'.
 */
export async function measureCase(task, peers, networks, { rounds, seconds, isa, patience, onStep = () => {}, onStart = () => {} }) {
  const network = await networks.folderOf(task)
  const out = await mkdtemp(path.join(tmpdir(), 'sepconv-peers-'))
  const rows = new Map(peers.map((name) => [name, { ...task, peer: name }]))
  const running = new Map()
  const failed = (name, error) =>
    Object.assign(rows.get(name), { status: error.unsupported ? 'unsupported' : 'failed', reason: error.message })
  try {
    let expected
    for (const name of peers) {
      try {
        const { process, outputs } = await prepare(name, { task, network, out, isa, patience, onStart })
        running.set(name, process)
        expected ??= outputs
        const { agrees, maxError, output } = compareOutputs(outputs, expected, PEERS[name].tolerances)
        Object.assign(rows.get(name), { maxError: finite(maxError) })
        if (agrees) {
          const [ms] = (await process.request('run', { warm: 0, count: 1 })).ms
          process.pace = ms
        } else {
          Object.assign(rows.get(name), {
            status: 'wrong',
            reason: `${output} differs by ${maxError.toExponential(1)} of the largest value`,
          })
          running.delete(name)
          await process.close()
        }
      } catch (error) {
        failed(name, error)
        await running.get(name)?.close()
        running.delete(name)
      }
      onStep(name)
    }
    const turns = new Map(
      [...running].map(([name, process]) => [name, { ms: process.pace, run: async (turn) => (await process.request('run', turn)).ms }]),
    )
    const times = await interleave(turns, { rounds, seconds, onTurn: onStep, onFailure: failed })
    const own = times.get('sepconv')
    for (const [name, measured] of times) {
      const { ms, least, samples } = summary(measured)
      const { peakBytes } = await running.get(name).request('memory')
      Object.assign(rows.get(name), {
        ...{ status: 'measured', ms: round(ms), least: round(least), samples, imagesPerSecond: round((task.batch * 1000) / ms), peakBytes },
        ratio: own && name !== 'sepconv' ? round(ratioOf(own, measured)) : null,
      })
    }
  } finally {
    await Promise.all([...running.values()].map((process) => process.close()))
    await rm(out, { recursive: true, force: true })
    await networks.release(task)
  }
  return [...rows.values()]
}

async function prepare(name, { task, network, out, isa, patience, onStart }) {
  const { command, environment, missing } = PEERS[name]
  const reason = missing()
  if (reason) throw new Error(reason)
  const { threads, batch } = task
  const process = await PeerProcess.start(command(), {
    env: { ...globalThis.process.env, ...environment({ threads, isa }) },
    seconds: patience,
  })
  try {
    onStart(name, process)
    const training = { ...SGD, steps: STEPS, tracked: TRACKED }
    const { outputs } = await process.request('prepare', { task: task.task, batch, threads, network, out, training })
    return { process, outputs: readOutputs(outputs) }
  } catch (error) {
    await process.close()
    throw error
  }
}

const finite = (x) => (Number.isFinite(x) ? round(x) : null)
