// Every file of examples/ does what it says, on a small model; the page of the server in Chromium where that is installed.

import { type ChildProcess, execFile, spawn } from 'node:child_process'
import { existsSync } from 'node:fs'
import { cp, mkdtemp, readdir, readFile, rm } from 'node:fs/promises'
import { request } from 'node:http'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest'
import { writeShapes } from '../../src/data/shapes.js'
import { createModel, imageFolder } from '../../src/index.js'

const EXAMPLES = new URL('../../examples/', import.meta.url).pathname
const CHROMIUM = ['/usr/bin/chromium', '/usr/bin/chromium-browser', '/usr/bin/google-chrome'].find((path) => existsSync(path))

let folder: string
let weights: string
let picture: string
let classes: readonly string[]
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'sepconv-examples-'))
  await writeShapes(join(folder, 'shapes'), { train: 24, validation: 8, size: 71, seed: 3 })
  const data = await imageFolder(join(folder, 'shapes'))
  classes = data.classes
  picture = data.train[0]!.path
  weights = join(folder, 'weights.safetensors')
  using model = await createModel('xception', { classes: classes.length, labels: classes, width: 0.05, middleRepeats: 0, inputSize: 71 })
  await model.saveWeights(weights)
})
afterAll(() => rm(folder, { recursive: true }))

const run = async (name: string, ...args: string[]) =>
  (await promisify(execFile)(process.execPath, [join(EXAMPLES, name), ...args], { cwd: folder })).stdout

it('fine-tune.mjs', async () => {
  const lines = (await run('fine-tune.mjs', 'shapes', weights)).trim().split('\n')
  expect(lines).toHaveLength(5)
  expect(existsSync(join(folder, lines.at(-1)!))).toBe(true)
})

it('search.mjs finds the picture itself first', async () => {
  await cp(join(picture, '..'), join(folder, 'photos'), { recursive: true })
  const [name] = (await readdir(join(folder, 'photos'))).sort()
  const [first] = (await run('search.mjs', 'photos', join('photos', name!), weights)).split('\n')
  expect(first).toBe(`1.0000 ${name}`)
})

it('onnx.mjs', async () => {
  const text = await run('onnx.mjs', weights, 'model.onnx')
  expect(Number(/difference (\S+)/.exec(text)![1])).toBeLessThan(1e-4)
})

describe('serve.mjs', () => {
  let child: ChildProcess | undefined
  afterEach(() => child?.kill())

  const start = (limits: object = {}) =>
    new Promise<string>((resolve, reject) => {
      child = spawn(process.execPath, [join(EXAMPLES, 'serve.mjs'), weights, '0', JSON.stringify(limits)])
      child.stdout!.once('data', (text: Buffer) => resolve(text.toString().trim()))
      child.stderr!.once('data', (text: Buffer) => reject(new Error(text.toString())))
    })
  const post = async (url: string, body: Uint8Array<ArrayBuffer>) => {
    const response = await fetch(`${url}/predict`, { method: 'POST', body })
    return { status: response.status, body: (await response.json()) as { label: string; score: number }[] & { error?: string } }
  }
  const bytes = async () => Uint8Array.from(await readFile(picture))

  it('predicts, alone and for many clients at once', async () => {
    const url = await start()
    const body = await bytes()
    const one = await post(url, body)
    expect(one.status).toBe(200)
    expect(classes).toContain(one.body[0]!.label)
    const many = await Promise.all(Array.from({ length: 64 }, () => post(url, body)))
    for (const answer of many) expect(answer.body.map(({ label }) => label)).toEqual(one.body.map(({ label }) => label))
  })

  it('refuses what is no picture, too large, too slow or too much, and goes on', async () => {
    const url = await start({ bytes: 20_000, bodyMs: 300, queue: 2 })
    expect(await post(url, new Uint8Array(10))).toMatchObject({ status: 400, body: { error: expect.stringContaining('picture') } })
    expect((await post(url, new Uint8Array(20_001)).catch(() => ({ status: 413 }))).status).toBe(413)
    expect((await fetch(`${url}/nothing`)).status).toBe(404)
    const slow = () =>
      new Promise<number>((resolve, reject) => {
        const sending = request(`${url}/predict`, { method: 'POST', headers: { 'content-length': 1000 } }, (response) =>
          resolve(response.statusCode!),
        )
        sending.once('error', reject).write('x')
      })
    const busy = [slow(), slow()]
    await new Promise((resolve) => setTimeout(resolve, 100))
    expect((await post(url, await bytes())).status).toBe(503)
    expect(await Promise.all(busy)).toEqual([408, 408])
    expect((await post(url, await bytes())).status).toBe(200)
  })

  it.skipIf(!CHROMIUM)('the page shows predictions (skipped unless Chromium is installed)', async () => {
    const url = await start()
    const { chromium } = await import('playwright-core')
    const browser = await chromium.launch({ executablePath: CHROMIUM!, args: ['--no-sandbox'] })
    try {
      const page = await browser.newPage()
      await page.goto(url)
      await page.setInputFiles('#file', picture)
      await page.waitForSelector('#result tr')
      const text = await page.textContent('#result tr:first-child td:first-child')
      expect(classes).toContain(text)
      expect(await page.isVisible('#picture')).toBe(true)
      // What is no picture is said to be none, and its place is free again.
      await page.setInputFiles('#file', weights)
      await page.waitForSelector('#result >> text=no picture format')
      await page.waitForSelector('#drop span:visible')
      expect(await page.isVisible('#picture')).toBe(false)
    } finally {
      await browser.close()
    }
  })
})
