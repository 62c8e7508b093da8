/**
 * The shim between the addon and MPI (native/mpi): MPI's binary interface differs between its implementations, so a small C file is
 * compiled on the machine that has the library, by the library's own `mpicc`, when it is first needed. Installing sepconv wants neither.
 */

import { execFile } from 'node:child_process'
import { createHash } from 'node:crypto'
import { existsSync, readFileSync } from 'node:fs'
import { mkdir, rename, rm } from 'node:fs/promises'
import { homedir } from 'node:os'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { SepconvError } from '../errors.js'
import { packageRoot } from '../runtime/native.js'

const run = promisify(execFile)
/** How to get MPI, in one sentence. */
export const INSTALL = 'Install it (Debian, Ubuntu: apt-get install openmpi-bin libopenmpi-dev), or load the module of your cluster'

const folder = (): string => process.env.SEPCONV_CACHE ?? join(process.env.XDG_CACHE_HOME ?? join(homedir(), '.cache'), 'sepconv')

/**
 * The compiled shim, made where it is missing: some 0.2 s, once per MPI installation.
 * `SEPCONV_MPICC` names the compiler, `SEPCONV_MPI_SHIM` a shim that was compiled elsewhere (for nodes without a compiler).
 * @throws ERR_MPI when there is no mpicc, or it fails.
 */
export async function mpiShim(): Promise<string> {
  const given = process.env.SEPCONV_MPI_SHIM
  if (given) {
    if (existsSync(given)) return given
    throw new SepconvError('ERR_MPI', `SEPCONV_MPI_SHIM names '${given}', which does not exist`, { subject: 'SEPCONV_MPI_SHIM', given })
  }
  const compiler = process.env.SEPCONV_MPICC ?? 'mpicc'
  const source = join(packageRoot, 'native/mpi/shim.c')
  const [show, version] = await Promise.all([ask(compiler, ['-show']), ask(compiler, ['--showme:version'])])
  if (show === undefined)
    throw new SepconvError('ERR_MPI', `there is no MPI here: '${compiler}' was not found`, { subject: 'mpicc', hint: INSTALL })
  const key = createHash('sha256')
    .update([show, version ?? '', readFileSync(source, 'utf8'), readFileSync(join(packageRoot, 'native/mpi/shim.h'), 'utf8')].join('\0'))
    .digest('hex')
    .slice(0, 16)
  const target = join(folder(), `mpi-${key}.so`)
  if (existsSync(target)) return target
  // Ranks may compile at the same time: each into a file of its own, and the last one to move it there wins.
  const fresh = `${target}.${process.pid}`
  try {
    await mkdir(folder(), { recursive: true })
    await run(compiler, ['-std=c11', '-O2', '-shared', '-fPIC', '-o', fresh, source])
    await rename(fresh, target)
  } catch (cause) {
    await rm(fresh, { force: true })
    const { stderr, message } = cause as { stderr?: string; message: string }
    throw new SepconvError('ERR_MPI', `${compiler} cannot compile ${source}: ${(stderr || message).trim().split('\n')[0]}`, {
      subject: compiler,
      hint: INSTALL,
      cause,
    })
  }
  return target
}

/** What a command prints, `undefined` where it does not exist or refuses. */
async function ask(command: string, args: readonly string[]): Promise<string | undefined> {
  try {
    return (await run(command, args)).stdout.trim()
  } catch {
    return undefined
  }
}
