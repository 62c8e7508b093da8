// docs/xception.md: every snippet prints what stands below it.

import { spawnSync } from 'node:child_process'
import { existsSync, readFileSync } from 'node:fs'
import { fileURLToPath, pathToFileURL } from 'node:url'
import { join } from 'node:path'
import { describe, expect, it } from 'vitest'
import { experimentNames } from '../../src/experiments/definition.js'
import { builtCli } from '../cli/built.js'

const root = fileURLToPath(new URL('../../', import.meta.url))
const text = readFileSync(join(root, 'docs/xception.md'), 'utf8')
const snippets = [...text.matchAll(/```js\n([\s\S]*?)```\n\n```text\n([\s\S]*?)```/g)].map(([, code, output]) => ({
  code: code!,
  output: output!,
}))
const moduleOf = (path: string) => pathToFileURL(join(root, 'dist', path)).href

describe('the walk', () => {
  it('has a printed outcome below every snippet, and links to what is there', () => {
    expect(snippets).toHaveLength(text.match(/```js/g)!.length)
    for (const [, target] of text.matchAll(/\]\(([^)#]+)\)/g)) expect(existsSync(join(root, 'docs', target!)), target).toBe(true)
    for (const [, name] of text.matchAll(/`sepconv experiment (\w+)`/g)) expect(experimentNames()).toContain(name)
  })

  it.each(snippets.map(({ code, output }, i) => [i + 1, code, output] as const))(
    'snippet %i prints what stands below it',
    (_, code, output) => {
      builtCli()
      const source = code
        .replace(/from 'sepconv\/nn'/g, `from '${moduleOf('nn/index.js')}'`)
        .replace(/from 'sepconv'/g, `from '${moduleOf('index.js')}'`)
      const { stdout, stderr } = spawnSync(process.execPath, ['--input-type=module', '-'], { input: source, encoding: 'utf8' })
      expect(stderr).toBe('')
      expect(stdout).toBe(output)
    },
  )
})
