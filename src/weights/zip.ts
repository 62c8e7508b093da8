/**
 * Zip containers of weights: PyTorch's (a pickle and one file per storage) and Keras 3's `.keras` (an HDF5 file and JSON). Nothing is
 * ever unpacked under a name that the archive chooses.
 */

import { type FileHandle, mkdtemp, open, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { Readable } from 'node:stream'
import type { Entry, ZipFile } from 'yauzl'
import { SepconvError } from '../errors.js'
import { fileError } from '../files.js'
import type { WeightsFile } from './file.js'
import { readPickle } from './pickle.js'
import { type Extent, pytorchFile } from './pytorch.js'

const MAX_ENTRIES = 100_000
const MAX_PICKLE_BYTES = 64 << 20
/** Of the HDF5 file inside a `.keras`: twice the largest of Keras' published models. */
const MAX_HDF5_BYTES = 2 ** 32

/** @throws ERR_FORMAT when it is neither, or its directory is damaged; ERR_FILE. */
export async function openZippedWeights(path: string): Promise<WeightsFile> {
  const zip = await openZip(path)
  try {
    const entries = await directory(path, zip)
    const pickle = [...entries.keys()].find((name) => /^([^/]+\/)?data\.pkl$/.test(name))
    if (pickle !== undefined) return await openPytorchZip(path, zip, entries, pickle)
    const hdf5 = entries.get('model.weights.h5')
    if (hdf5) return await openKerasZip(path, zip, hdf5)
    throw new SepconvError('ERR_FORMAT', `${path} is a zip without weights that are known here`, {
      subject: path,
      expected: ['data.pkl (PyTorch)', 'model.weights.h5 (Keras 3)'],
      given: [...entries.keys()].slice(0, 5),
    })
  } finally {
    zip.close()
  }
}

/** A zip whose directory points nowhere must fail, not throw from a callback of the file system, which would end the process. */
async function openZip(path: string): Promise<ZipFile> {
  const yauzl = await import('yauzl')
  const handle = await open(path, 'r')
  const { size } = await handle.stat()
  class Reader extends yauzl.RandomAccessReader {
    override read(buffer: Buffer, offset: number, length: number, position: number, callback: (error: Error | null) => void): void {
      if (!(Number.isSafeInteger(position) && position >= 0 && length >= 0 && position + length <= size)) {
        callback(new Error(`it points to byte ${position} of ${size}`))
        return
      }
      handle
        .read(buffer, offset, length, position)
        .then(({ bytesRead }) => callback(bytesRead < length ? new Error('unexpected EOF') : null), callback)
    }
    override _readStreamForRange(start: number, end: number): Readable {
      return Readable.from(pieces(handle, start, Math.min(end, size)))
    }
    override close(callback: (error: Error | null) => void): void {
      handle.close().then(() => callback(null), callback)
    }
  }
  try {
    return await yauzl.fromRandomAccessReaderPromise(new Reader(), size, { autoClose: false })
  } catch (error) {
    await handle.close().catch(() => {})
    throw damaged(path, error)
  }
}

async function* pieces(handle: FileHandle, start: number, end: number): AsyncGenerator<Buffer, void, undefined> {
  for (let at = start; at < end; ) {
    const { bytesRead, buffer } = await handle.read(Buffer.alloc(Math.min(1 << 16, end - at)), 0, null, at)
    if (bytesRead === 0) return
    yield buffer.subarray(0, bytesRead)
    at += bytesRead
  }
}

function damaged(path: string, cause: unknown): Error {
  const error = fileError(cause, path, 'read')
  if (error instanceof SepconvError) return error
  return new SepconvError('ERR_FORMAT', `${path}: damaged zip (${(cause as Error).message})`, { subject: path, cause })
}

async function directory(path: string, zip: ZipFile): Promise<Map<string, Entry>> {
  if (zip.entryCount > MAX_ENTRIES)
    throw new SepconvError('ERR_FORMAT', `${path}: a zip of ${zip.entryCount} entries; the limit is ${MAX_ENTRIES}`, { subject: path })
  const entries = new Map<string, Entry>()
  try {
    for await (const entry of zip.eachEntry()) {
      if (entries.has(entry.fileName))
        throw new SepconvError('ERR_FORMAT', `${path}: the zip holds ${JSON.stringify(entry.fileName.slice(0, 80))} twice`, {
          subject: path,
        })
      entries.set(entry.fileName, entry)
    }
  } catch (error) {
    throw damaged(path, error)
  }
  return entries
}

async function openPytorchZip(path: string, zip: ZipFile, entries: ReadonlyMap<string, Entry>, pickle: string): Promise<WeightsFile> {
  const prefix = pickle.slice(0, -'data.pkl'.length)
  const order = entries.get(`${prefix}byteorder`)
  if (order && (await content(path, zip, order, 64)).toString() === 'big')
    throw new SepconvError('ERR_FORMAT', `${path} was written on a big-endian machine`, { subject: path })
  const { value } = readPickle(await content(path, zip, entries.get(pickle)!, MAX_PICKLE_BYTES), path)
  const extents = new Map<string, Extent>()
  for (const [name, entry] of entries) {
    const key = name.startsWith(`${prefix}data/`) ? name.slice(`${prefix}data/`.length) : undefined
    if (key === undefined) continue
    if (entry.compressionMethod !== 0 || entry.isEncrypted())
      throw new SepconvError(
        'ERR_FORMAT',
        `${path}: ${JSON.stringify(name.slice(0, 80))} is compressed or encrypted; torch.save does neither`,
        {
          subject: path,
        },
      )
    const { fileDataStart } = await zip.readLocalFileHeaderPromise(entry, { minimal: true }).catch((error) => {
      throw damaged(path, error)
    })
    extents.set(key, { offset: fileDataStart, byteLength: entry.uncompressedSize })
  }
  const handle = await open(path, 'r')
  try {
    return pytorchFile(path, handle, value, extents)
  } catch (error) {
    await handle.close()
    throw error
  }
}

/** HDF5 needs a file of its own: the archive's is copied into a folder that goes when the weights are closed. */
async function openKerasZip(path: string, zip: ZipFile, entry: Entry): Promise<WeightsFile> {
  if (entry.uncompressedSize > MAX_HDF5_BYTES) throw tooLarge(path, entry, MAX_HDF5_BYTES)
  const folder = await mkdtemp(join(tmpdir(), 'sepconv-'))
  const remove = () => rm(folder, { recursive: true, force: true })
  try {
    const copy = join(folder, 'model.weights.h5')
    const target = await open(copy, 'wx')
    try {
      await unpack(path, zip, entry, MAX_HDF5_BYTES, (piece) => target.write(piece))
    } finally {
      await target.close()
    }
    const { openHdf5 } = await import('./hdf5.js')
    const file = await openHdf5(copy, path)
    const close = async () => {
      await file.close()
      await remove()
    }
    return { ...file, close, [Symbol.asyncDispose]: close }
  } catch (error) {
    await remove()
    throw error
  }
}

async function content(path: string, zip: ZipFile, entry: Entry, limit: number): Promise<Buffer> {
  if (entry.uncompressedSize > limit) throw tooLarge(path, entry, limit)
  const pieces: Buffer[] = []
  await unpack(path, zip, entry, limit, async (piece) => void pieces.push(piece))
  return Buffer.concat(pieces)
}

/** Unpacks an entry, of which the library checks that it has exactly the size that the directory says. */
async function unpack(path: string, zip: ZipFile, entry: Entry, limit: number, take: (piece: Buffer) => Promise<unknown>): Promise<void> {
  let total = 0
  try {
    for await (const piece of await zip.openReadStreamPromise(entry)) {
      total += (piece as Buffer).length
      if (total > limit) throw tooLarge(path, entry, limit)
      await take(piece as Buffer)
    }
  } catch (error) {
    throw damaged(path, error)
  }
}

const tooLarge = (path: string, entry: Entry, limit: number) =>
  new SepconvError('ERR_FORMAT', `${path}: ${JSON.stringify(entry.fileName.slice(0, 80))} has more than ${limit} bytes`, {
    subject: path,
    expected: limit,
    given: entry.uncompressedSize,
  })
