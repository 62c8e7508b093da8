/** The report page: what it holds, that it needs nothing else, and, where a Chromium is installed, that it is legible in light and dark. */

import { existsSync } from 'node:fs'
import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { pathToFileURL } from 'node:url'
import { chromium } from 'playwright-core'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { writeShapes } from '../../src/data/shapes.js'
import { imageFolder } from '../../src/data/folder.js'
import { reportPage, thin } from '../../src/report/page.js'
import { readRun } from '../../src/report/run.js'
import { json, sepconv } from '../cli/run.js'

const CHROMIUM = ['/usr/bin/chromium', '/usr/bin/chromium-browser', '/usr/bin/google-chrome'].find((path) => existsSync(path))

let folder: string
let shapes: string
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'sepconv-report-'))
  shapes = join(folder, 'shapes')
  await writeShapes(shapes, { train: 8, validation: 24, size: 32 })
  const { classes, validation } = await imageFolder(shapes)
  for (const [name, rate] of [
    ['first <run>', 0.1],
    ['second', 0.2],
  ] as const) {
    const out = join(folder, name)
    await mkdir(out)
    const settings = { batch: 8, rate, epochs: 3, optimizer: { kind: 'sgd' }, clipNorm: null }
    const config = { version: 2, model: { architecture: 'xception', options: {} }, data: { root: shapes, classes, train: 8 }, settings }
    await writeFile(join(out, 'config.json'), JSON.stringify(config))
    const speed = { imagesPerSecond: 90, waitShare: 0.02, decodeMs: 5, waitMs: 2, computeMs: 80 }
    const lines = Array.from({ length: 600 }, (_, i) => ({
      type: 'step',
      epoch: 1,
      step: i + 1,
      steps: 600,
      loss: 3 / (i + 1),
      rate,
      ...speed,
    }))
    const validationScores = (epoch: number) => ({ images: 24, top1: epoch / 4, top5: 1, loss: 1 / epoch })
    const epochs = [1, 2, 3].map((epoch) => ({ type: 'epoch', epoch, step: 200 * epoch, loss: 1, validation: validationScores(epoch) }))
    // A torn line, and a step that was done again after a resume.
    const again = { ...lines[9], loss: 77 }
    await writeFile(join(out, 'log.jsonl'), [...lines, again, ...epochs].map((line) => JSON.stringify(line)).join('\n') + '\n{"type":"st')
    const pictures = validation.map(({ name: picture, label }, i) => ({
      ...{ name: i === 5 ? 'gone.png' : picture, labels: [label], predicted: i % 5 ? label : (label + 1) % 8, confidence: 0.5 + i / 100 },
    }))
    await writeFile(join(out, 'predictions.json'), JSON.stringify({ epoch: 3, classes, pictures }))
  }
}, 60_000)
afterAll(() => rm(folder, { recursive: true }))

const page = async () => reportPage(await Promise.all(['first <run>', 'second'].map((name) => readRun(join(folder, name)))))

describe('reading a run', () => {
  it('takes the last of repeated steps and leaves out torn lines', async () => {
    const run = await readRun(join(folder, 'second'))
    expect(run.steps).toHaveLength(600)
    expect(run.steps[9]!.loss).toBe(77)
    expect(run.epochs.map(({ epoch }) => epoch)).toEqual([1, 2, 3])
  })
  it('says what is missing', async () => {
    await expect(readRun(shapes)).rejects.toMatchObject({ code: 'ERR_FILE', message: expect.stringContaining('holds no training run') })
    const empty = join(folder, 'empty')
    await mkdir(empty)
    await writeFile(join(empty, 'config.json'), '{}')
    await expect(readRun(empty)).rejects.toMatchObject({ code: 'ERR_DATA', message: expect.stringContaining('no step') })
  })
  it('thins lines to means', () => {
    const thinned = thin(Array.from({ length: 1000 }, (_, i) => [i, i % 2] as const))
    expect(thinned).toHaveLength(200)
    for (const [, y] of thinned) expect(y).toBeCloseTo(0.5, 0)
  })
})

describe('the page', () => {
  it('holds curves of all runs, configuration with what differs first, confusion and mistakes as thumbnails', async () => {
    const html = await page()
    expect(html.match(/<svg/g)!.length).toBe(6)
    expect(html).toContain('first &#60;run&#62;')
    expect(html).not.toContain('<run>')
    expect(html.indexOf('settings.rate')).toBeLessThan(html.indexOf('settings.batch'))
    expect(html).toMatch(/<tr class="differs"><td>settings\.rate<\/td><td>0\.1<\/td><td>0\.2<\/td>/)
    // 5 of 24 predictions are wrong; one of these pictures is gone.
    expect(html.match(/<figure>/g)!.length).toBe(2 * 5)
    expect(html.match(/data:image\/jpeg;base64,/g)!.length).toBe(2 * 4)
    expect(html).toContain('75.0 %')
  })

  it('needs nothing else: no script, no address', async () => {
    const html = (await page()).replaceAll('http://www.w3.org/', '')
    expect(html).not.toMatch(/<script|https?:|<link|@import|url\(/)
  })

  it('comes from the command line', async () => {
    const out = join(folder, 'out.html')
    const runs = [join(folder, 'first <run>'), join(folder, 'second')]
    expect(await json('report', ...runs, '--out', out)).toEqual({
      out,
      runs: [
        { name: 'first <run>', epochs: 3, steps: 600 },
        { name: 'second', epochs: 3, steps: 600 },
      ],
    })
    expect((await sepconv('report', shapes)).stderr).toContain('holds no training run')
  })

  it.skipIf(!CHROMIUM)(
    'is legible in light and dark, fits its window and loads nothing',
    async () => {
      const file = join(folder, 'page.html')
      await writeFile(file, await page())
      const browser = await chromium.launch({ executablePath: CHROMIUM!, args: ['--no-sandbox'] })
      try {
        const grounds: string[] = []
        for (const colorScheme of ['light', 'dark'] as const) {
          const tab = await browser.newPage({ colorScheme, viewport: { width: 1280, height: 900 } })
          const requests: string[] = []
          const problems: string[] = []
          tab.on('request', (request) => requests.push(request.url()))
          tab.on('console', (message) => problems.push(message.text()))
          tab.on('pageerror', (error) => problems.push(String(error)))
          await tab.goto(pathToFileURL(file).href)
          const { contrasts, overflow, ground, broken } = (await tab.evaluate(MEASURE)) as {
            contrasts: { text: string; contrast: number }[]
            overflow: number
            ground: string
            broken: number
          }
          expect(requests.filter((url) => !url.startsWith('data:'))).toEqual([pathToFileURL(file).href])
          expect(problems).toEqual([])
          expect(contrasts.length).toBeGreaterThan(100)
          // WCAG 2 asks for 4.5 : 1.
          expect(contrasts.filter(({ contrast }) => contrast < 4.5)).toEqual([])
          expect([overflow, broken]).toEqual([0, 0])
          grounds.push(ground)
        }
        expect(new Set(grounds).size).toBe(2)
      } finally {
        await browser.close()
      }
    },
    60_000,
  )
})

/** In the page: contrast of every text with what is behind it, axis labels included. */
const MEASURE = `(() => {
  const parse = (text) => (text.match(/[\\d.]+/g) ?? [0, 0, 0, 0]).map(Number)
  const over = ([r, g, b, a = 1], [R, G, B]) => [r * a + R * (1 - a), g * a + G * (1 - a), b * a + B * (1 - a)]
  const light = (rgb) => rgb.map((x) => x / 255).map((x) => (x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4)).reduce((sum, x, i) => sum + x * [0.2126, 0.7152, 0.0722][i], 0)
  const page = parse(getComputedStyle(document.body).backgroundColor)
  const behind = (element) => {
    const chain = []
    for (let at = element; at && at !== document.body; at = at.parentElement) chain.unshift(parse(getComputedStyle(at).backgroundColor))
    return chain.reduce((ground, colour) => over(colour.length === 4 ? colour : [...colour, 1], ground), page)
  }
  const contrasts = []
  for (const element of document.querySelectorAll('h1,h2,h3,td,th,p,figcaption,small,b,.none,svg text')) {
    const text = [...element.childNodes].filter((node) => node.nodeType === 3).map((node) => node.textContent.trim()).join('')
    if (!text) continue
    const style = getComputedStyle(element)
    const ink = parse(element instanceof SVGElement ? style.fill : style.color)
    const ground = behind(element)
    const [a, b] = [light(over(ink, ground)), light(ground)].sort((x, y) => y - x)
    contrasts.push({ text, contrast: (a + 0.05) / (b + 0.05) })
  }
  const broken = [...document.images].filter((image) => image.naturalWidth === 0).length
  return { contrasts, overflow: Math.max(0, document.documentElement.scrollWidth - window.innerWidth), ground: String(page), broken }
})()`
