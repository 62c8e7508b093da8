import { spawnSync } from 'node:child_process'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { expect, it } from 'vitest'

// typedoc.json makes every warning an error: a public name without a docstring, a link to nothing, a type that is used and not exported.
it('every public name is documented and the API docs build without a warning', { timeout: 120_000 }, () => {
  const cwd = fileURLToPath(new URL('..', import.meta.url))
  const args = [join(cwd, 'node_modules/typedoc/bin/typedoc'), '--emit', 'none', '--pretty', 'false']
  const { status, stdout, stderr } = spawnSync(process.execPath, args, { cwd, encoding: 'utf8' })
  expect(stdout + stderr).toBe('')
  expect(status).toBe(0)
})
