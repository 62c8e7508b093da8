/**
 * Builds the native addon on this machine: by cmake-js where CMake is complete, else by node-gyp where Python and make are. Serves
 * `npm run prepare` in a clone and `sepconv build` in an installed package; both end with build/Release/sepconv.node in the package.
 */

import { spawn, spawnSync } from 'node:child_process'
import {
  accessSync,
  constants,
  copyFileSync,
  cpSync,
  existsSync,
  mkdirSync,
  readFileSync,
  renameSync,
  rmSync,
  writeFileSync,
} from 'node:fs'
import { createRequire } from 'node:module'
import { availableParallelism } from 'node:os'
import path from 'node:path'
import { SepconvError } from '../errors.js'
import { localAddon, packageRoot } from './native.js'

export interface BuildOptions {
  /** Warnings in our own code are errors (cmake-js only). Default `false`. */
  werror?: boolean
  /** Receives what the tools print, line by line. Default: stderr as it comes. */
  onLine?: (line: string) => void
}

export interface BuildResult {
  readonly tool: 'cmake-js' | 'node-gyp'
  /** The addon. */
  readonly file: string
}

// Fetched by npx where they are not installed: users need them for this command only.
const CMAKE_JS = '8.0.0'
const NODE_GYP = '12.4.0'

/**
 * Compiles the addon; a build that is up to date costs a second.
 * @throws ERR_NATIVE when no complete tool chain is found (with what is missing) or the compiler fails; ERR_FILE when the package's
 * folder cannot be written.
 */
export async function buildNative(options: BuildOptions = {}): Promise<BuildResult> {
  const tool = chooseTool()
  const folder = path.join(packageRoot, 'build')
  try {
    mkdirSync(folder, { recursive: true })
    accessSync(folder, constants.W_OK)
  } catch (cause) {
    throw new SepconvError('ERR_FILE', `cannot write to ${folder}`, {
      cause,
      given: folder,
      hint: 'Run the command as the owner of the installation',
    })
  }
  // What another tool or other options have left there does not mix; CMake's cache in a copied clone would build the original's sources.
  const stamp = path.join(folder, 'sepconv-build.json')
  const configuration = JSON.stringify({
    tool,
    root: packageRoot,
    node: process.version,
    werror: options.werror ?? false,
    cuda: process.env.SEPCONV_CUDA ?? '',
    wide: process.env.SEPCONV_WIDE ?? '',
    architectures: process.env.SEPCONV_CUDA_ARCHITECTURES ?? '',
  })
  const before = existsSync(stamp) ? readFileSync(stamp, 'utf8') : ''
  const last = before ? (JSON.parse(before) as { tool?: string; root?: string }) : undefined
  if (last && (last.tool !== tool || last.root !== packageRoot)) rmSync(folder, { recursive: true })
  mkdirSync(folder, { recursive: true })
  if (tool === 'cmake-js') await cmakeJs(options, before !== configuration)
  else await nodeGyp(options)
  writeFileSync(stamp, configuration)
  if (!existsSync(localAddon)) throw new SepconvError('ERR_NATIVE', `the build ended without ${localAddon}`)
  return { tool, file: localAddon }
}

function chooseTool(): BuildResult['tool'] {
  const compiler = process.env.CXX || ['c++', 'g++', 'clang++'].find(onPath)
  const make = ['make', 'gmake'].find(onPath)
  const missing: string[] = []
  if (!compiler) missing.push('a C++17 compiler (g++ or clang++)')
  if (!onPath('cmake') && !onPath('python3')) missing.push('cmake, or python3 and make')
  else if (!make && !(onPath('cmake') && onPath('ninja'))) missing.push(onPath('cmake') ? 'ninja or make' : 'make')
  if (missing.length)
    throw new SepconvError('ERR_NATIVE', `the native addon cannot be built here: ${missing.join(' and ')} not found`, {
      expected: missing,
      hint: 'Install what is missing (Debian: apt install g++ cmake ninja-build) and run `sepconv build`',
    })
  return onPath('cmake') && (make || onPath('ninja')) ? 'cmake-js' : 'node-gyp'
}

function onPath(command: string): boolean {
  return (process.env.PATH ?? '').split(path.delimiter).some((folder) => {
    try {
      accessSync(path.join(folder, command), constants.X_OK)
      return folder !== ''
    } catch {
      return false
    }
  })
}

async function cmakeJs(options: BuildOptions, configure: boolean): Promise<void> {
  const command = locate('cmake-js/bin/cmake-js', `cmake-js@${CMAKE_JS}`)
  const parallel = ['--parallel', String(availableParallelism())]
  const settings = [`--CDSEPCONV_WERROR=${options.werror ? 'ON' : 'OFF'}`]
  // `build` configures only where that was never done; Ninja or make do it again when a list of sources changed.
  if (configure) await run([...command, 'configure', ...settings], packageRoot, options)
  await run([...command, 'build', ...parallel, ...settings], packageRoot, options)
}

/**
 * The published package keeps binding.gyp in native/, because npm would run node-gyp on its own for one at the root, so there the
 * build happens in a copy.
 */
async function nodeGyp(options: BuildOptions): Promise<void> {
  const command = locate('node-gyp/bin/node-gyp.js', `node-gyp@${NODE_GYP}`)
  const headers = nodeHeaders()
  const flags = headers ? [`--nodedir=${headers}`] : []
  let folder = packageRoot
  if (!existsSync(path.join(packageRoot, 'binding.gyp'))) {
    folder = path.join(packageRoot, 'build', 'gyp')
    mkdirSync(folder, { recursive: true })
    for (const part of ['native', 'scripts', 'package.json'])
      cpSync(path.join(packageRoot, part), path.join(folder, part), { recursive: true, preserveTimestamps: true })
    copyFileSync(path.join(packageRoot, 'native', 'binding.gyp'), path.join(folder, 'binding.gyp'))
  }
  await run([...command, 'configure', ...flags], folder, options)
  await run([...command, 'build', ...flags, `--jobs=${availableParallelism()}`], folder, options)
  if (folder === packageRoot) return
  mkdirSync(path.dirname(localAddon), { recursive: true })
  const copy = `${localAddon}.new`
  copyFileSync(path.join(folder, 'build', 'Release', 'sepconv.node'), copy)
  renameSync(copy, localAddon)
}

/** The folder that holds include/node of this very Node, when it was installed with its headers; spares node-gyp the download. */
function nodeHeaders(): string | undefined {
  if (process.env.npm_config_nodedir) return process.env.npm_config_nodedir
  const prefix = path.dirname(path.dirname(process.execPath))
  const file = path.join(prefix, 'include/node/node_version.h')
  if (!existsSync(file)) return undefined
  const text = readFileSync(file, 'utf8')
  const number = (name: string) => new RegExp(`#define NODE_${name}_VERSION (\\d+)`).exec(text)?.[1]
  return `v${number('MAJOR')}.${number('MINOR')}.${number('PATCH')}` === process.version ? prefix : undefined
}

/** The command line of a tool: as it is installed beside the package, else through npx. */
function locate(module: string, packageName: string): string[] {
  try {
    return [process.execPath, createRequire(path.join(packageRoot, 'package.json')).resolve(module)]
  } catch {
    if (spawnSync('npx', ['--version'], { stdio: 'ignore' }).status === 0) return ['npx', '--yes', packageName]
    throw new SepconvError('ERR_NATIVE', `${packageName} is not installed and npx was not found`, {
      hint: `Run \`npm install ${packageName}\` beside sepconv`,
    })
  }
}

function run([program, ...args]: string[], cwd: string, { onLine }: BuildOptions): Promise<void> {
  return new Promise((resolve, reject) => {
    const child = spawn(program!, args, { cwd, stdio: ['ignore', onLine ? 'pipe' : 2, onLine ? 'pipe' : 2] })
    for (const stream of [child.stdout, child.stderr]) {
      let rest = ''
      stream?.setEncoding('utf8').on('data', (text: string) => {
        const lines = (rest + text).split('\n')
        rest = lines.pop()!
        for (const line of lines) onLine!(line)
      })
    }
    const failed = (what: string, cause?: unknown) =>
      reject(
        new SepconvError('ERR_NATIVE', `building the native addon failed: ${what}`, {
          cause,
          hint: 'The messages above say where; without the addon everything runs on the slow reference executor',
        }),
      )
    child.on('error', (error) => failed(error.message, error))
    child.on('close', (code, signal) =>
      code === 0
        ? resolve()
        : failed(
            `${path.basename(program!)} ${args
              .slice(0, 2)
              .map((arg) => path.basename(arg))
              .join(' ')} ended with ${signal ?? code}`,
          ),
    )
  })
}
