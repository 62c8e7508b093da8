/** A line chart: one line with points per series, in a band of its spread where that is known. */

import type { Spec } from 'vega'
import { CONFIG, renderSvg, SERIES_COLOURS } from './theme.js'

/** Where a line is, and between what its values lie there. */
export type Point = readonly [x: number, y: number] | readonly [x: number, y: number, low: number, high: number]

export interface LineChart {
  readonly title: string
  readonly subtitle?: string
  readonly xAxis: string
  readonly yAxis: string
  readonly lines: readonly { readonly name: string; readonly points: readonly Point[] }[]
  /** Default `'linear'`; `'log'` is of base 2, for sizes that double. */
  readonly xScale?: 'linear' | 'log'
  /** Whether the y axis begins at 0. Default true. */
  readonly zero?: boolean
  /** A dot at every point. Default true. */
  readonly points?: boolean
}

/** @returns the chart as the text of an SVG file. */
export function lineChart(chart: LineChart): Promise<string> {
  return renderSvg(lineSpec(chart))
}

const WIDTH = 560

/** As many names side by side as fit above the picture: a letter takes some 7 pixels, a symbol and the space between 40. */
const legendColumns = (lines: LineChart['lines']): number =>
  Math.max(1, Math.floor(WIDTH / (7 * Math.max(1, ...lines.map(({ name }) => name.length)) + 40)))

export function lineSpec({ title, subtitle, xAxis, yAxis, lines, xScale = 'linear', zero = true, points = true }: LineChart): Spec {
  const values = lines.flatMap(({ name, points }) =>
    points.filter(([, y]) => Number.isFinite(y)).map(([x, y, low = y, high = y]) => ({ series: name, x, y, low, high })),
  )
  const xs = [...new Set(values.map(({ x }) => x))].sort((a, b) => a - b)
  const encodeXY = { x: { scale: 'x', field: 'x' }, y: { scale: 'y', field: 'y' } }
  const spread = {
    type: 'area' as const,
    from: { data: 'facet' },
    encode: {
      enter: {
        x: { scale: 'x', field: 'x' },
        y: { scale: 'y', field: 'low' },
        y2: { scale: 'y', field: 'high' },
        fill: { scale: 'series', field: 'series' },
        fillOpacity: { value: 0.18 },
      },
    },
  }
  const spreads = values.some(({ low, high }) => high > low)
  const dots = {
    type: 'symbol' as const,
    from: { data: 'facet' },
    encode: { enter: { ...encodeXY, fill: { scale: 'series', field: 'series' }, size: { value: 36 } } },
  }
  return {
    $schema: 'https://vega.github.io/schema/vega/v6.json',
    ...structuredClone(CONFIG),
    title: { text: title, ...(subtitle !== undefined && { subtitle }) },
    width: WIDTH,
    height: 300,
    data: [{ name: 'table', values }],
    scales: [
      xScale === 'log'
        ? { name: 'x', type: 'log', base: 2, domain: { data: 'table', field: 'x' }, range: 'width' }
        : { name: 'x', type: 'linear', domain: { data: 'table', field: 'x' }, range: 'width', zero: false },
      { name: 'y', type: 'linear', domain: { data: 'table', fields: ['low', 'high'] }, range: 'height', zero, nice: true },
      { name: 'series', type: 'ordinal', domain: lines.map(({ name }) => name), range: SERIES_COLOURS.slice(1, lines.length + 1) },
    ],
    axes: [
      { orient: 'bottom', scale: 'x', title: xAxis, ...(xs.length <= 12 && { values: xs, format: 'd' }) },
      { orient: 'left', scale: 'y', title: yAxis, grid: true, domain: false, tickCount: 6 },
    ],
    legends: [{ fill: 'series', orient: 'top', direction: 'horizontal', columnPadding: 18, columns: legendColumns(lines) }],
    marks: [
      {
        type: 'group',
        from: { facet: { data: 'table', name: 'facet', groupby: 'series' } },
        marks: [
          ...(spreads ? [spread] : []),
          {
            type: 'line',
            from: { data: 'facet' },
            encode: { enter: { ...encodeXY, stroke: { scale: 'series', field: 'series' }, strokeWidth: { value: 2 } } },
          },
          ...(points ? [dots] : []),
        ],
      },
    ],
  }
}
