/**
 * Writing that survives a crash: whole files appear at once or not at all, log lines are appended whole, and an output folder
 * belongs to one process at a time.
 *
 * A file is written under a temporary name in its own folder, flushed to the disk, then renamed over the old one, and the folder
 * is flushed: whoever looks, or comes back after a power cut, finds either the old or the new content. A lock is a small file that
 * names its process; a lock whose process no longer exists is taken over.
 */

import { constants, existsSync, readFileSync, unlinkSync } from 'node:fs'
import type { FileHandle } from 'node:fs/promises'
import { access, link, lstat, mkdir, open, readdir, readFile, realpath, rename, stat, unlink, writeFile } from 'node:fs/promises'
import { hostname } from 'node:os'
import { basename, dirname, join } from 'node:path'
import { SepconvError } from './errors.js'

/** What a callback given to {@link writeAtomic} writes through. */
export interface FileSink {
  /** Bytes written so far. */
  readonly position: number
  /** Appends `bytes`; resolved when the operating system has taken them, after which the caller may reuse the array. */
  write(bytes: Uint8Array): Promise<void>
}

export interface WriteOptions {
  /** Wait until the disk has the bytes (fsync of file and folder), so that a power cut cannot lose them. Default true. */
  durable?: boolean
}

const TEMPORARY = /^\.sepconv-(\d+)-\d+\.tmp$/
let temporaries = 0

/** The largest piece handed to one system call, so that a write of gigabytes stays below the platform's limit of 2 GiB. */
const PIECE = 64 << 20

const HINTS: Record<string, string> = {
  ENOENT: 'Check the path',
  EACCES: 'Check the permissions of the file and its folder',
  EPERM: 'Check the permissions of the file and its folder',
  EROFS: 'The file system is read-only: choose another folder',
  ENOSPC: 'The disk is full: free some space or choose another folder, then run again',
  EDQUOT: 'The disk quota is used up: free some space or choose another folder, then run again',
  ENOTDIR: 'A part of the path is a file and not a folder: check the path',
  EISDIR: 'The path is a folder and not a file: check the path',
  EMFILE: 'Too many files are open: raise the limit (ulimit -n)',
  EFBIG: 'The file system does not take files of this size: choose another folder',
  EIO: 'The disk reports a failure: check its health',
  EEXIST: 'Choose another name',
}

/**
 * A SepconvError (`ERR_FILE`) for a failed file operation: names the file, the operating system's reason and what to do. Errors
 * that are SepconvErrors already, or that do not come from the operating system, are returned as they are.
 * @param action what was tried, as it should read in "cannot ACTION PATH".
 */
export function fileError(cause: unknown, path: string, action: string): Error {
  const error = cause as NodeJS.ErrnoException
  if (error instanceof SepconvError || typeof error?.code !== 'string' || error.syscall === undefined) return error
  const reason = REASONS[error.code] ?? error.message
  return new SepconvError('ERR_FILE', `cannot ${action} ${path}: ${reason} (${error.code})`, {
    subject: path,
    given: error.code,
    hint: HINTS[error.code],
    cause,
  })
}

const REASONS: Record<string, string> = {
  ENOENT: 'no such file or folder',
  EACCES: 'permission denied',
  EPERM: 'operation not permitted',
  EROFS: 'read-only file system',
  ENOSPC: 'no space left on the disk',
  EDQUOT: 'disk quota exceeded',
  ENOTDIR: 'a part of the path is not a folder',
  EISDIR: 'it is a folder',
  EMFILE: 'too many open files',
  EFBIG: 'file too large',
  EIO: 'input/output error',
  EEXIST: 'a file of that name is in the way',
}

/**
 * Replaces the file at `path` by `content` in one step: readers see the old content or the new, never a part. When anything
 * fails (a full disk, an error thrown by the callback, `kill -9`) the old file is still there, untouched. A symbolic link is
 * followed, and the permissions of a file that is replaced are kept.
 *
 * @param content text (UTF-8), bytes, or a function that writes piece by piece, so that large content never exists as a whole.
 * @throws SepconvError `ERR_FILE` when the folder is missing, read-only or full. What the callback throws is passed on.
 */
export async function writeAtomic(
  path: string,
  content: string | Uint8Array | ((file: FileSink) => Promise<void> | void),
  options: WriteOptions = {},
): Promise<void> {
  const durable = options.durable ?? true
  let temporary: string | undefined
  let handle: FileHandle | undefined
  try {
    const { target, mode } = await replaced(path)
    const folder = dirname(target)
    temporary = join(folder, `.sepconv-${process.pid}-${temporaries++}.tmp`)
    handle = await open(temporary, 'wx', mode)
    const sink = new HandleSink(handle)
    if (typeof content === 'function') await content(sink)
    else await sink.write(typeof content === 'string' ? Buffer.from(content) : content)
    if (durable) await handle.sync()
    await handle.close()
    handle = undefined
    await rename(temporary, target)
    temporary = undefined
    if (durable) await syncFolder(folder)
  } catch (error) {
    await handle?.close().catch(() => {})
    if (temporary !== undefined) await unlink(temporary).catch(() => {})
    throw fileError(error, path, 'write')
  }
}

class HandleSink implements FileSink {
  position = 0

  constructor(private readonly handle: FileHandle) {}

  async write(bytes: Uint8Array): Promise<void> {
    for (let at = 0; at < bytes.byteLength; ) {
      const { bytesWritten } = await this.handle.write(bytes, at, Math.min(PIECE, bytes.byteLength - at), this.position)
      at += bytesWritten
      this.position += bytesWritten
    }
  }
}

/** The file that writing to `path` replaces, links followed, and the permissions that it has. */
async function replaced(path: string): Promise<{ target: string; mode: number }> {
  try {
    const target = (await lstat(path)).isSymbolicLink() ? await realpath(path) : path
    return { target, mode: (await stat(target)).mode & 0o777 }
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw error
    return { target: path, mode: 0o666 }
  }
}

/** Makes a rename last through a power cut. Windows has no such call and needs none. */
async function syncFolder(folder: string): Promise<void> {
  if (process.platform === 'win32') return
  const handle = await open(folder, 'r')
  try {
    await handle.sync()
  } catch (error) {
    // Some network file systems refuse to flush a folder; the content itself is flushed by then.
    if ((error as NodeJS.ErrnoException).code !== 'EINVAL') throw error
  } finally {
    await handle.close()
  }
}

/**
 * Appends one line to a log in one write. A torn line that a crash left at the end is closed first, so that it never swallows the
 * new one.
 *
 * @param line without its line break.
 * @param options.durable wait until the disk has it; default false, since a log is written at every step.
 * @throws SepconvError `ERR_FILE` when the file cannot be written, `ERR_ARGUMENT` when `line` holds a line break.
 */
export async function appendLine(path: string, line: string, options: WriteOptions = {}): Promise<void> {
  if (line.includes('\n'))
    throw new SepconvError('ERR_ARGUMENT', 'appendLine: the line must not hold a line break', { subject: path, given: line })
  let handle: FileHandle | undefined
  try {
    handle = await open(path, 'a+')
    const { size } = await handle.stat()
    const last = Buffer.alloc(1)
    if (size > 0) await handle.read(last, 0, 1, size - 1)
    const torn = size > 0 && last[0] !== 0x0a
    await handle.appendFile(`${torn ? '\n' : ''}${line}\n`)
    if (options.durable) await handle.sync()
  } catch (error) {
    throw fileError(error, path, 'append to')
  } finally {
    await handle?.close().catch(() => {})
  }
}

/** A file's text, UTF-8. @throws SepconvError `ERR_FILE` when the file cannot be read. */
export async function readText(path: string): Promise<string> {
  try {
    return await readFile(path, 'utf8')
  } catch (error) {
    throw fileError(error, path, 'read')
  }
}

/**
 * The values of a JSON-lines file. Lines that are no JSON are left out when a crash can have torn them, which is any line that
 * stops in mid-value; {@link appendLine} starts a new line after one.
 * @throws SepconvError `ERR_FILE` when the file cannot be read.
 */
export async function readJsonLines(path: string): Promise<unknown[]> {
  const text = await readText(path)
  const values: unknown[] = []
  for (const line of text.split('\n')) {
    if (line.trim() === '') continue
    try {
      values.push(JSON.parse(line))
    } catch {
      // A torn line: its event was never acknowledged to anyone.
    }
  }
  return values
}

/** Ownership of an output folder; see {@link lockFolder}. */
export interface FolderLock extends AsyncDisposable {
  readonly folder: string
  /** The lock file itself. */
  readonly path: string
  /** Gives the folder back. May be called twice. */
  release(): Promise<void>
}

interface Owner {
  pid: number
  host: string
  /** Tells this process from a later one that was given the same number. */
  process: string
  since: string
}

const held = new Set<string>()

/**
 * Takes an output folder for this process (creating it where it is missing), and removes what writers that were killed left in
 * it. The lock is given back by `release()` or when the process exits; after `kill -9` or a reboot the next run takes it over.
 *
 * @param options.name the lock file's name; default `.lock`.
 * @throws SepconvError `ERR_BUSY` naming the process that owns the folder, `ERR_FILE` when the folder cannot be written.
 */
export async function lockFolder(folder: string, options: { name?: string } = {}): Promise<FolderLock> {
  const path = join(folder, options.name ?? '.lock')
  const owner: Owner = { pid: process.pid, host: hostname(), process: processIdentity(process.pid) ?? '', since: new Date().toISOString() }
  try {
    await makeFolder(folder)
    // Each round either takes the lock, finds a living owner, or removes one dead lock that another process may also be removing.
    for (let round = 0; ; round++) {
      if (await createExclusive(path, JSON.stringify(owner))) break
      const text = await readFile(path, 'utf8').catch((error: NodeJS.ErrnoException) => {
        if (error.code === 'ENOENT') return undefined
        throw error
      })
      if (text === undefined) continue
      const other = parseOwner(text)
      if ((other && isAlive(other)) || round > 20) throw busy(folder, path, other)
      await removeDead(path, text)
    }
    await sweep(folder)
  } catch (error) {
    throw fileError(error, path, 'create')
  }
  if (held.size === 0) process.once('exit', releaseAll)
  held.add(path)
  const release = async (): Promise<void> => {
    if (!held.delete(path)) return
    if (held.size === 0) process.removeListener('exit', releaseAll)
    await unlink(path).catch(() => {})
  }
  return { folder, path, release, [Symbol.asyncDispose]: release }
}

/** mkdir -p. On a read-only file system Node reports ENOENT; the first folder that exists knows better. */
async function makeFolder(folder: string): Promise<void> {
  try {
    await mkdir(folder, { recursive: true })
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw error
    let existing = dirname(folder)
    while (existing !== dirname(existing) && !existsSync(existing)) existing = dirname(existing)
    await access(existing, constants.W_OK)
    throw error
  }
}

function releaseAll(): void {
  for (const path of held) {
    try {
      unlinkSync(path)
    } catch {
      // The folder may be gone; a lock that stays is taken over, since its process no longer exists.
    }
  }
  held.clear()
}

function busy(folder: string, path: string, owner: Owner | undefined): SepconvError {
  const who = owner
    ? `process ${owner.pid}${owner.host === hostname() ? '' : ` on ${owner.host}`} (since ${owner.since})`
    : 'another process'
  return new SepconvError('ERR_BUSY', `${folder} is in use by ${who}`, {
    subject: folder,
    given: owner?.pid,
    hint: `Wait for it, stop it, or choose another folder; if that process no longer exists, delete ${path}`,
  })
}

/** Creates the file with its content in one step, so that nobody ever reads half a lock. False: it exists. */
async function createExclusive(path: string, content: string): Promise<boolean> {
  const temporary = join(dirname(path), `.sepconv-${process.pid}-${temporaries++}.tmp`)
  await writeFile(temporary, content, { flag: 'wx' })
  try {
    await link(temporary, path)
    return true
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException
    if (code === 'EEXIST') return false
    // File systems without hard links (FAT, some network shares).
    return await writeFile(path, content, { flag: 'wx' }).then(
      () => true,
      (failure: NodeJS.ErrnoException) => {
        if (failure.code === 'EEXIST') return false
        throw failure
      },
    )
  } finally {
    await unlink(temporary).catch(() => {})
  }
}

/**
 * Removes the lock whose content was judged dead. Renaming first makes sure that of several processes only one removes it, and
 * that a fresh lock, taken in between, is seen and put back.
 */
async function removeDead(path: string, judged: string): Promise<void> {
  const aside = join(dirname(path), `.sepconv-${process.pid}-${temporaries++}.tmp`)
  try {
    await rename(path, aside)
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return
    throw error
  }
  if ((await readFile(aside, 'utf8')) !== judged) await link(aside, path).catch(() => {})
  await unlink(aside).catch(() => {})
}

/** Removes temporary files of processes that no longer exist. */
async function sweep(folder: string): Promise<void> {
  for (const name of await readdir(folder)) {
    const pid = TEMPORARY.exec(name)?.[1]
    if (pid !== undefined && Number(pid) !== process.pid && !processExists(Number(pid)))
      await unlink(join(folder, basename(name))).catch(() => {})
  }
}

function parseOwner(text: string): Owner | undefined {
  try {
    const owner = JSON.parse(text) as Partial<Owner> | null
    if (owner && Number.isInteger(owner.pid) && typeof owner.host === 'string') {
      return { pid: owner.pid!, host: owner.host, process: String(owner.process ?? ''), since: String(owner.since ?? 'unknown') }
    }
  } catch {
    // Not a lock that this package wrote whole: a crash of the file system. Nobody owns it.
  }
  return undefined
}

/** On another machine nothing can be known, so its locks count as alive. */
function isAlive(owner: Owner): boolean {
  if (owner.host !== hostname()) return true
  if (!processExists(owner.pid)) return false
  const identity = processIdentity(owner.pid)
  return identity === undefined || owner.process === '' || identity === owner.process
}

function processExists(pid: number): boolean {
  try {
    process.kill(pid, 0)
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === 'EPERM'
  }
  return processState(pid)?.state !== 'Z'
}

/** Boot and start time of a process, where the system tells (Linux): process numbers are used again, these are not. */
function processIdentity(pid: number): string | undefined {
  const started = processState(pid)?.started
  if (started === undefined) return undefined
  try {
    return `${readFileSync('/proc/sys/kernel/random/boot_id', 'utf8').trim()}:${started}`
  } catch {
    return undefined
  }
}

function processState(pid: number): { state: string; started: string } | undefined {
  if (process.platform !== 'linux') return undefined
  try {
    // "pid (name) state ppid ...": the name may hold anything, so count fields from its last parenthesis.
    const text = readFileSync(`/proc/${pid}/stat`, 'latin1')
    const fields = text.slice(text.lastIndexOf(')') + 2).split(' ')
    const [state, started] = [fields[0], fields[19]]
    return state === undefined || started === undefined ? undefined : { state, started }
  } catch {
    return undefined
  }
}
