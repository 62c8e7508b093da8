/**
 * The thread in which h5wasm reads HDF5 files, and the only one that ever touches what a file of unknown origin makes of it: every error
 * of the library leaves memory, file handles and locks of its behind, and some end it. See hdf5Library.ts, which asks and replaces it.
 * JavaScript, so that the sources run in tests as they are.
 */

import { parentPort } from 'node:worker_threads'
import * as h5wasm from 'h5wasm/node'

// Otherwise the library prints its errors on stderr and goes on with invalid handles.
const ready = h5wasm.ready.then((library) => library.activate_throwing_error_handler())

/** @typedef {{ file: import('h5wasm/node').File, groups: Map<string, any> }} Open */
/** @type {Map<number, Open>} */
const files = new Map()
let next = 0

/**
 * What is at a path, reached name by name, so that asking for what is not there is no error of the library.
 * @param {Open} open @param {string} path
 * @returns {any}
 */
function find({ file, groups }, path) {
  let [at, entry] = ['', /** @type {any} */ (file)]
  for (const name of path.split('/').filter(Boolean)) {
    const inside = groups.get(at) ?? { entry, names: new Set(isGroup(entry) ? entry.keys() : []) }
    groups.set(at, inside)
    if (!inside.names.has(name)) return null
    at += `/${name}`
    entry = groups.get(at)?.entry ?? inside.entry.get(name)
  }
  return entry
}

/** @param {any} entry */
const isGroup = (entry) => typeof entry?.keys === 'function'

const operations = {
  /** @param {string} path */
  open(path) {
    const file = new h5wasm.File(path, 'r')
    files.set(++next, { file, groups: new Map() })
    return next
  },
  /** @param {number} id */
  close(id) {
    files.get(id)?.file.close()
    files.delete(id)
  },
  /** Names in a group, and how large its attributes are. @param {number} id @param {string} path */
  group(id, path) {
    const entry = find(/** @type {Open} */ (files.get(id)), path)
    if (!isGroup(entry)) return null
    const attributes = Object.entries(/** @type {Record<string, any>} */ (entry.attrs)).map(([name, { shape, metadata }]) => {
      const count = (shape ?? []).reduce((/** @type {number} */ product, /** @type {number} */ size) => product * size, 1)
      return [name, { count, bytes: count * metadata.size }]
    })
    return { names: entry.keys(), attributes: Object.fromEntries(attributes) }
  },
  /** @param {number} id @param {string} path @param {string} name */
  attribute(id, path, name) {
    return find(/** @type {Open} */ (files.get(id)), path).attrs[name].value
  },
  /** Shape of a dataset. @param {number} id @param {string} path */
  shape(id, path) {
    const shape = find(/** @type {Open} */ (files.get(id)), path)?.shape
    return Array.isArray(shape) ? shape : null
  },
  /** Numbers of a dataset; null where it holds none. @param {number} id @param {string} path */
  read(id, path) {
    const { value } = find(/** @type {Open} */ (files.get(id)), path)
    return ArrayBuffer.isView(value) ? value : null
  },
}

parentPort?.on('message', async ({ id, operation, given }) => {
  try {
    await ready
    const result = /** @type {any} */ (operations)[operation](...given)
    parentPort?.postMessage({ id, result }, ArrayBuffer.isView(result) ? [/** @type {ArrayBuffer} */ (result.buffer)] : [])
  } catch (error) {
    const reason = error instanceof Error ? error.message : String(error)
    parentPort?.postMessage({ id, reason, fatal: error instanceof Error && error.name === 'RuntimeError' })
  }
})
