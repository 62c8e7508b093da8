import { describe, expect, test } from 'vitest'
import { barChart } from '../../src/charts/bars.js'
import { lineChart } from '../../src/charts/lines.js'
import { FAINT, INK, SERIES_COLOURS } from '../../src/charts/theme.js'

const bars = {
  title: 'Separable against regular',
  axis: 'milliseconds',
  series: ['regular', 'fused'],
  groups: [
    { label: 'first', values: { regular: 8, fused: 1.25 } },
    { label: 'second', values: { regular: 16 } },
  ],
}

/** Widths of the bars of one series, from their paths. */
const widths = (svg: string, colour: string): number[] =>
  [...svg.matchAll(/<path [^>]*d="M0,[\d.]+h([\d.]+)v[^"]*"[^>]*fill="([^"]+)"/g)]
    .filter(([, , fill]) => fill === colour)
    .map(([, width]) => Number(width))

describe('bars', () => {
  test('a bar per value, as long as it says', async () => {
    const svg = await barChart(bars)
    for (const text of ['Separable against regular', 'milliseconds', 'first', 'second', '>8<', '>1.25<', '>16<'])
      expect(svg).toContain(text)
    const [regular, fused] = [widths(svg, SERIES_COLOURS[0]), widths(svg, SERIES_COLOURS[1])]
    expect(regular[1]! / regular[0]!).toBeCloseTo(2, 2)
    expect(regular[0]! / fused[0]!).toBeCloseTo(6.4, 2)
  })

  test('on a logarithmic axis equal ratios are equal lengths', async () => {
    const svg = await barChart({
      ...bars,
      scale: 'log',
      groups: [1, 10, 100].map((value) => ({ label: `${value}`, values: { regular: value } })),
    })
    const [a, b, c] = widths(svg, SERIES_COLOURS[0]) as [number, number, number]
    expect(c - b).toBeCloseTo(b - a, 1)
  })
})

test('lines have a point per value', async () => {
  const svg = await lineChart({
    title: 'Throughput',
    xAxis: 'batch',
    yAxis: 'pictures per second',
    lines: [
      {
        name: 'train',
        points: [
          [1, 10],
          [2, 15],
          [8, Number.NaN],
        ],
      },
    ],
    xScale: 'log',
  })
  expect(svg.match(/mark-symbol role-mark/g)).toHaveLength(1)
  expect(
    [...svg.matchAll(/<path aria-label="x: \d; y: \d+/g)].length ||
      (svg.match(/transform="translate\([\d.]+,[\d.]+\)" d="M3/g) ?? []).length,
  ).toBe(2)
  expect(svg).toContain('pictures per second')
})

test('text and rules follow the colour scheme of the page', async () => {
  const svg = await barChart(bars)
  expect(svg).toMatch(/^<svg [^>]*><style>[\s\S]*prefers-color-scheme:dark/)
  expect(svg).not.toContain(INK)
  expect(svg).not.toContain(FAINT)
  expect(svg).toContain('class="ink"')
  for (const colour of [...svg.matchAll(/<text [^>]*>/g)].map(([tag]) => tag)) expect(colour).toContain('class="ink"')
})

test('series colours stand out from white and from dark pages', () => {
  const luminance = (colour: string): number => {
    const [r, g, b] = [1, 3, 5]
      .map((at) => Number.parseInt(colour.slice(at, at + 2), 16) / 255)
      .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)) as [number, number, number]
    return 0.2126 * r + 0.7152 * g + 0.0722 * b
  }
  const contrast = (a: string, b: string): number => {
    const [x, y] = [luminance(a), luminance(b)].sort((p, q) => q - p) as [number, number]
    return (x + 0.05) / (y + 0.05)
  }
  for (const colour of SERIES_COLOURS)
    for (const page of ['#ffffff', '#0d1117']) expect(contrast(colour, page), `${colour} on ${page}`).toBeGreaterThanOrEqual(3)
})
