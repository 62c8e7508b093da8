/** Other forms of data from the command line: prepared pictures, WebDataset shards. */

import { execFileSync } from 'node:child_process'
import { existsSync, readFileSync } from 'node:fs'
import { mkdtemp, readdir, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { writeShapes } from '../../src/data/shapes.js'
import { json, sepconv, TINY } from './run.js'

let folder: string
let pictures: string
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'sepconv-prepare-'))
  pictures = join(folder, 'shapes')
  await writeShapes(pictures, { train: 16, validation: 8, size: 90 })
})
afterAll(() => rm(folder, { recursive: true }))

const train = async (data: string, out: string, ...flags: string[]) => {
  const run = await sepconv('train', data, '--out', join(folder, out), ...TINY, '--epochs', '2', '--batch', '8', ...flags)
  expect(run.status, run.stderr).toBe(0)
  return readFileSync(join(folder, out, 'best.safetensors'))
}

test('a run on prepared pictures ends with the bytes of a run on their files', async () => {
  const out = join(folder, 'prepared')
  const prepared = await json('prepare', pictures, '--out', out, '--size', '71')
  expect(prepared).toMatchObject({ folder: out, train: 16, validation: 8, skipped: 0 })
  const documentation = readFileSync(new URL('../../docs/json.md', import.meta.url), 'utf8')
  for (const key of Object.keys(prepared as object)) expect(documentation).toContain(`"${key}":`)
  expect((await train(out, 'mapped')).equals(await train(pictures, 'files'))).toBe(true)
  const again = await sepconv('prepare', pictures, '--out', out)
  expect([again.status, again.stderr]).toEqual([1, expect.stringContaining('holds prepared pictures already')])
  expect(await json('evaluate', out, '--weights', join(folder, 'mapped', 'best.safetensors'))).toEqual(
    await json('evaluate', pictures, '--weights', join(folder, 'mapped', 'best.safetensors')),
  )
})

test('WebDataset shards train as they are, and a report finds their pictures', async () => {
  const shards = join(folder, 'shards')
  for (const half of ['train', 'val']) {
    const content = join(folder, `${half}-content`)
    execFileSync('mkdir', ['-p', content, shards])
    const names = (await readdir(join(pictures, half), { recursive: true })).filter((name) => name.endsWith('.png')).sort()
    for (const [i, name] of names.entries()) {
      execFileSync('cp', [join(pictures, half, name), join(content, `${i}.png`)])
      await writeFile(join(content, `${i}.cls`), name.split('/')[0]!)
    }
    execFileSync('tar', ['-cf', join(shards, `${half}-0.tar`), '-C', content, '--sort=name', '.'])
  }
  await train(shards, 'sharded')
  const page = join(folder, 'page.html')
  expect((await sepconv('report', join(folder, 'sharded'), '--out', page)).status).toBe(0)
  const html = readFileSync(page, 'utf8')
  // An untrained model errs, and its mistakes come out of the shard.
  expect(html).toContain('data:image/jpeg;base64,')
  expect(html).not.toContain('not found')
  expect(existsSync(join(folder, 'sharded', 'predictions.json'))).toBe(true)
})
