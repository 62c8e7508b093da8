// What `npm run prepare` (hence `npm ci` in a clone) does: compiles the TypeScript, then the native addon by whichever tool chain is
// complete, and says which executors came out. Wants a compiler, but does not need one: without an addon the reference executor
// serves. With --strict (`npm run build`, CI) a missing addon is an error; with --werror so are warnings in our own C++.

import { spawnSync } from 'node:child_process'
import { existsSync } from 'node:fs'
import { createRequire } from 'node:module'
import path from 'node:path'
import { fileURLToPath, pathToFileURL } from 'node:url'

const root = path.dirname(path.dirname(fileURLToPath(import.meta.url)))
const strict = process.argv.includes('--strict')
const say = (text) => console.error(`prepare: ${text}`)

compileTypeScript()
await buildAddon()
listExecutors()

function compileTypeScript() {
  let compiler
  try {
    compiler = createRequire(import.meta.url).resolve('typescript/bin/tsc')
  } catch {
    if (existsSync(path.join(root, 'dist/index.js'))) return say('TypeScript is not installed: dist stays as it is')
    say('TypeScript is not installed: run npm ci without --omit=dev')
    process.exit(1)
  }
  const started = performance.now()
  const { status } = spawnSync(process.execPath, [compiler, '-p', path.join(root, 'tsconfig.json')], { stdio: ['ignore', 2, 2] })
  if (status !== 0) process.exit(status ?? 1)
  say(`TypeScript compiled in ${((performance.now() - started) / 1000).toFixed(1)} s`)
}

async function buildAddon() {
  const { buildNative } = await import(pathToFileURL(path.join(root, 'dist/runtime/build.js')).href)
  const started = performance.now()
  try {
    const { tool } = await buildNative({ werror: process.argv.includes('--werror') })
    say(`native addon built with ${tool} in ${((performance.now() - started) / 1000).toFixed(1)} s`)
  } catch (error) {
    say(error.message)
    if (strict) process.exit(1)
  }
}

/** In a process of its own: an addon that crashes while it loads must not take the build down without a word. */
function listExecutors() {
  const script = `import(${JSON.stringify(pathToFileURL(path.join(root, 'dist/runtime/executors/native.js')).href)}).then(({ nativeExecutors }) => console.log(JSON.stringify(nativeExecutors())))`
  const { status, stdout, stderr, signal } = spawnSync(process.execPath, ['-e', script], {
    encoding: 'utf8',
    cwd: root,
    env: { ...process.env, SEPCONV_NATIVE: '' },
  })
  if (status !== 0) {
    say(`the addon does not load (${signal ?? status}): ${stderr.trim()}`)
    process.exit(strict ? 1 : 0)
  }
  for (const { name, available, isa, threads, reason } of JSON.parse(stdout))
    say(available ? `${name}: available${isa ? ` (${isa}, ${threads} threads)` : ''}` : `${name}: not available: ${reason}`)
  say('reference: available')
}
