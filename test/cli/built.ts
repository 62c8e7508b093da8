/** The built command line, for tests that need processes of their own. */

import { execFileSync } from 'node:child_process'
import { existsSync, readdirSync, statSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'

const root = fileURLToPath(new URL('../../', import.meta.url))

/** Path of the command's main file, compiled anew where a source is newer. */
export function builtCli(): string {
  const bin = join(root, 'dist/cli/main.js')
  const newest = Math.max(
    ...readdirSync(join(root, 'src'), { recursive: true }).map((name) => statSync(join(root, 'src', String(name))).mtimeMs),
  )
  // Type errors are the type check's business; the JavaScript is written in any case.
  if (!existsSync(bin) || statSync(bin).mtimeMs < newest)
    try {
      execFileSync(process.execPath, [join(root, 'node_modules/typescript/bin/tsc'), '-p', join(root, 'tsconfig.json')], {
        stdio: 'ignore',
      })
    } catch {}
  return bin
}
