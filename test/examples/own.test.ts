/** The examples that need no weights run as they stand, against the built package. */

import { execFile } from 'node:child_process'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import { beforeAll, expect, it } from 'vitest'
import { builtCli } from '../cli/built.js'

const folder = fileURLToPath(new URL('../../examples/', import.meta.url))
beforeAll(() => void builtCli(), 120_000)

it.each(['own-loss', 'own-data', 'own-schedule'])(
  '%s',
  async (name) => {
    const { stdout, stderr } = await promisify(execFile)(process.execPath, [join(folder, `${name}.mjs`)])
    expect(stderr).toBe('')
    expect(stdout.trim().split('\n').at(-1)).toMatch(/^epoch \d+ .*top-1 [01]\.\d{3}$/)
  },
  120_000,
)
