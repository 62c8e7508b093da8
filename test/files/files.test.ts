import { spawn } from 'node:child_process'
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync, symlinkSync, writeFileSync } from 'node:fs'
import { chmod, lstat, mkdir, stat } from 'node:fs/promises'
import { hostname, tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { SepconvError } from '../../src/errors.js'
import { appendLine, fileError, lockFolder, readJsonLines, writeAtomic } from '../../src/files.js'

/** A folder of a read-only file system, where this machine has one. */
const readOnly = (existsSync('/proc/mounts') ? readFileSync('/proc/mounts', 'utf8') : '')
  .split('\n')
  .map((line) => line.split(' '))
  .find(([, path, , options]) => options?.split(',').includes('ro') && statSync(path!, { throwIfNoEntry: false })?.isDirectory())?.[1]

let folder: string
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'sepconv-files-'))
})
afterEach(() => rmSync(folder, { recursive: true, force: true }))

const errorOf = async (promise: Promise<unknown>): Promise<SepconvError> => {
  const error = await promise.then(
    () => undefined,
    (reason: unknown) => reason,
  )
  expect(error).toBeInstanceOf(SepconvError)
  return error as SepconvError
}

describe('writeAtomic', () => {
  it('writes text, bytes and pieces, and leaves nothing else behind', async () => {
    const path = join(folder, 'a')
    await writeAtomic(path, 'grün')
    expect(readFileSync(path, 'utf8')).toBe('grün')
    await writeAtomic(path, Uint8Array.of(1, 2, 3), { durable: false })
    expect([...readFileSync(path)]).toEqual([1, 2, 3])
    await writeAtomic(path, async (file) => {
      for (let i = 0; i < 5; i++) await file.write(Uint8Array.of(i))
      expect(file.position).toBe(5)
    })
    expect([...readFileSync(path)]).toEqual([0, 1, 2, 3, 4])
    expect(readdirSync(folder)).toEqual(['a'])
  })

  it('keeps the old file when the writer fails half-way, and passes its error on', async () => {
    const path = join(folder, 'a')
    await writeAtomic(path, 'old')
    const failure = new Error('out of ideas')
    await expect(
      writeAtomic(path, async (file) => {
        await file.write(new Uint8Array(100_000))
        throw failure
      }),
    ).rejects.toBe(failure)
    expect(readFileSync(path, 'utf8')).toBe('old')
    expect(readdirSync(folder)).toEqual(['a'])
  })

  it('shows readers the old content until the end', async () => {
    const path = join(folder, 'a')
    await writeAtomic(path, 'old')
    await writeAtomic(path, async (file) => {
      await file.write(Buffer.from('new'))
      expect(readFileSync(path, 'utf8')).toBe('old')
    })
    expect(readFileSync(path, 'utf8')).toBe('new')
  })

  it('keeps permissions and follows links', async () => {
    const [path, link] = [join(folder, 'a'), join(folder, 'link')]
    writeFileSync(path, 'old')
    await chmod(path, 0o640)
    symlinkSync(path, link)
    await writeAtomic(link, 'new')
    expect((await lstat(link)).isSymbolicLink()).toBe(true)
    expect(readFileSync(path, 'utf8')).toBe('new')
    expect((await stat(path)).mode & 0o777).toBe(0o640)
  })

  it('says what to do about folders that are none, missing or not writable', async () => {
    writeFileSync(join(folder, 'file'), '')
    const through = await errorOf(writeAtomic(join(folder, 'file', 'a'), 'x'))
    expect(through).toMatchObject({ code: 'ERR_FILE', given: 'ENOTDIR', subject: join(folder, 'file', 'a') })
    expect(through.message).toMatch(/part of the path is not a folder/)
    expect((await errorOf(writeAtomic(join(folder, 'missing', 'a'), 'x'))).message).toMatch(/no such file or folder .*Check the path/)
    await mkdir(join(folder, 'dir'))
    expect((await errorOf(writeAtomic(join(folder, 'dir'), 'x'))).code).toBe('ERR_FILE')
    expect(readdirSync(folder).sort()).toEqual(['dir', 'file'])
  })

  it.each([
    ['ENOSPC', /no space left on the disk .*free some space/],
    ['EROFS', /read-only file system .*choose another folder/],
    ['EDQUOT', /quota/],
  ])('explains %s, with the old file intact', async (code, message) => {
    const path = join(folder, 'a')
    await writeAtomic(path, 'old')
    const error = await errorOf(
      writeAtomic(path, () => {
        throw Object.assign(new Error(code), { code, syscall: 'write' })
      }),
    )
    expect(error).toMatchObject({ code: 'ERR_FILE', given: code })
    expect(error.message).toMatch(message)
    expect(error.message).toContain(path)
    expect(readFileSync(path, 'utf8')).toBe('old')
  })

  it.runIf(existsSync('/dev/full'))('meets a really full device', async () => {
    const error = await errorOf(appendLine('/dev/full', 'x'))
    expect(error).toMatchObject({ code: 'ERR_FILE', given: 'ENOSPC' })
  })

  it('leaves errors that are not of the operating system alone', () => {
    const plain = new TypeError('mine')
    expect(fileError(plain, 'a', 'read')).toBe(plain)
    const own = new SepconvError('ERR_SHAPE', 'x')
    expect(fileError(own, 'a', 'read')).toBe(own)
  })
})

describe('appendLine', () => {
  it('appends whole lines and closes a torn one', async () => {
    const path = join(folder, 'log.jsonl')
    await appendLine(path, '{"step":1}')
    await appendLine(path, '{"step":2}', { durable: true })
    writeFileSync(path, '{"ste', { flag: 'a' })
    await appendLine(path, '{"step":3}')
    expect(readFileSync(path, 'utf8')).toBe('{"step":1}\n{"step":2}\n{"ste\n{"step":3}\n')
    expect(await readJsonLines(path)).toEqual([{ step: 1 }, { step: 2 }, { step: 3 }])
  })

  it('refuses line breaks and names missing folders', async () => {
    expect((await errorOf(appendLine(join(folder, 'a'), 'x\ny'))).code).toBe('ERR_ARGUMENT')
    expect((await errorOf(appendLine(join(folder, 'no', 'a'), 'x'))).message).toMatch(/cannot append to .*no such file/)
    expect((await errorOf(readJsonLines(join(folder, 'no')))).code).toBe('ERR_FILE')
  })
})

/** A process that exists until the test ends it. */
async function withProcess(use: (pid: number) => Promise<void>): Promise<number> {
  const child = spawn(process.execPath, ['-e', 'setInterval(() => {}, 1000)'], { stdio: 'ignore' })
  const ended = new Promise((resolve) => child.once('exit', resolve))
  const pid = child.pid!
  try {
    await use(pid)
  } finally {
    child.kill('SIGKILL')
    await ended
  }
  return pid
}

const lockText = (pid: number, host = hostname(), identity = ''): string =>
  JSON.stringify({ pid, host, process: identity, since: '2024-01-01T00:00:00Z' })

describe('lockFolder', () => {
  it.runIf(readOnly !== undefined)('says that a file system is read-only, however deep the folder', async () => {
    const error = await errorOf(lockFolder(join(readOnly!, 'runs', 'pets')))
    expect(error).toMatchObject({ code: 'ERR_FILE', given: 'EROFS' })
    expect(error.message).toMatch(/read-only/)
  })

  it('creates the folder, is exclusive, and gives it back', async () => {
    const out = join(folder, 'runs', 'a')
    const lock = await lockFolder(out)
    expect(JSON.parse(readFileSync(lock.path, 'utf8'))).toMatchObject({ pid: process.pid, host: hostname() })
    const error = await errorOf(lockFolder(out))
    expect(error).toMatchObject({ code: 'ERR_BUSY', subject: out, given: process.pid })
    expect(error.message).toContain(`process ${process.pid} (since `)
    await lock.release()
    await lock.release()
    expect(readdirSync(out)).toEqual([])
    await using again = await lockFolder(out)
    expect(again.folder).toBe(out)
  })

  it('names a living owner, and takes over from one that was killed', async () => {
    const path = join(folder, '.lock')
    const pid = await withProcess(async (living) => {
      writeFileSync(path, lockText(living))
      expect((await errorOf(lockFolder(folder))).message).toMatch(new RegExp(`in use by process ${living} .*delete .*\\.lock`))
    })
    expect(JSON.parse(readFileSync(path, 'utf8')).pid).toBe(pid)
    const lock = await lockFolder(folder)
    expect(JSON.parse(readFileSync(path, 'utf8')).pid).toBe(process.pid)
    await lock.release()
  })

  it.runIf(process.platform === 'linux')('is not fooled by a process number that was given again', async () => {
    await withProcess(async (living) => {
      writeFileSync(join(folder, '.lock'), lockText(living, hostname(), 'another-boot:1'))
      await (await lockFolder(folder)).release()
    })
  })

  it('cannot judge other machines, and says how to go on', async () => {
    writeFileSync(join(folder, '.lock'), lockText(1, 'elsewhere'))
    expect((await errorOf(lockFolder(folder))).message).toMatch(/process 1 on elsewhere .*delete/)
  })

  it('takes over a lock that no crash-free process writes', async () => {
    for (const text of ['', '{"pid":', 'null', '{"pid":"x","host":1}']) {
      writeFileSync(join(folder, '.lock'), text)
      await (await lockFolder(folder)).release()
    }
    expect(readdirSync(folder)).toEqual([])
  })

  it('lets exactly one of many have it, also when all find a dead lock', async () => {
    const dead = await withProcess(async () => {})
    writeFileSync(join(folder, '.lock'), lockText(dead))
    const results = await Promise.allSettled(Array.from({ length: 12 }, () => lockFolder(folder)))
    const winners = results.filter((result) => result.status === 'fulfilled')
    expect(winners).toHaveLength(1)
    for (const result of results)
      if (result.status === 'rejected') expect(result.reason).toMatchObject({ code: 'ERR_BUSY', given: process.pid })
    await winners[0]!.value.release()
    expect(readdirSync(folder)).toEqual([])
  })

  it('removes what killed writers left, and nothing else', async () => {
    const dead = await withProcess(async () => {})
    for (const name of [`.sepconv-${dead}-0.tmp`, `.sepconv-${process.pid}-999.tmp`, 'last.safetensors', '.sepconv-x-0.tmp'])
      writeFileSync(join(folder, name), '')
    await using lock = await lockFolder(folder)
    expect(readdirSync(folder).sort()).toEqual([`.sepconv-${process.pid}-999.tmp`, '.sepconv-x-0.tmp', '.lock', 'last.safetensors'].sort())
    expect(lock.path).toBe(join(folder, '.lock'))
  })

  it('names a path through a file', async () => {
    writeFileSync(join(folder, 'file'), '')
    expect((await errorOf(lockFolder(join(folder, 'file', 'out')))).code).toBe('ERR_FILE')
    expect((await errorOf(lockFolder(join(folder, 'file')))).code).toBe('ERR_FILE')
  })
})
