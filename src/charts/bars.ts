/** A grouped bar chart: one group per row, one bar per series, from left to right, with the value at its end. */

import type { Spec } from 'vega'
import { CONFIG, INK, renderSvg, SERIES_COLOURS } from './theme.js'

export interface BarChart {
  readonly title: string
  readonly subtitle?: string
  /** Of the value axis, with its unit. */
  readonly axis: string
  /** Order of the bars in each group. */
  readonly series: readonly string[]
  /** A group of bars; a series without a value has none. */
  readonly groups: readonly { readonly label: string; readonly values: Readonly<Record<string, number | undefined>> }[]
  /** Default `'linear'`; `'log'` where values span orders of magnitude. */
  readonly scale?: 'linear' | 'log'
  /** Text at the end of a bar. Default three significant digits. */
  readonly format?: (value: number) => string
}

const BAR = 13
const GAP = 12

/** @returns the chart as the text of an SVG file. */
export function barChart(chart: BarChart): Promise<string> {
  return renderSvg(barSpec(chart))
}

export function barSpec({
  title,
  subtitle,
  axis,
  series,
  groups,
  scale = 'linear',
  format = (x) => String(Number(x.toPrecision(3))),
}: BarChart): Spec {
  const values = groups.flatMap(({ label, values: row }) =>
    series.flatMap((name) => {
      const value = row[name]
      return value === undefined || !Number.isFinite(value) ? [] : [{ group: label, series: name, value, text: format(value) }]
    }),
  )
  const least = Math.min(...values.map(({ value }) => value).filter((value) => value > 0))
  const band = series.length * BAR + GAP
  return {
    $schema: 'https://vega.github.io/schema/vega/v6.json',
    ...structuredClone(CONFIG),
    title: { text: title, ...(subtitle !== undefined && { subtitle }) },
    width: 620,
    height: groups.length * band,
    data: [{ name: 'table', values }],
    scales: [
      { name: 'groups', type: 'band', domain: groups.map(({ label }) => label), range: 'height', padding: GAP / band },
      { name: 'series', type: 'ordinal', domain: [...series], range: SERIES_COLOURS.slice(0, series.length) },
      scale === 'log'
        ? { name: 'values', type: 'log', domain: { data: 'table', field: 'value' }, domainMin: least / 2, range: 'width', nice: true }
        : { name: 'values', type: 'linear', domain: { data: 'table', field: 'value' }, range: 'width', zero: true, nice: true },
    ],
    axes: [
      { orient: 'left', scale: 'groups', domain: false, ticks: false, labelPadding: 8 },
      { orient: 'bottom', scale: 'values', title: axis, grid: true, domain: false, tickCount: 6 },
    ],
    legends: [{ fill: 'series', orient: 'top', direction: 'horizontal', columnPadding: 18 }],
    marks: [
      {
        type: 'group',
        from: { facet: { data: 'table', name: 'facet', groupby: 'group' } },
        encode: { enter: { y: { scale: 'groups', field: 'group' } } },
        signals: [{ name: 'height', update: "bandwidth('groups')" }],
        scales: [{ name: 'place', type: 'band', range: 'height', domain: [...series], padding: 0.08 }],
        marks: [
          {
            name: 'bars',
            from: { data: 'facet' },
            type: 'rect',
            encode: {
              enter: {
                y: { scale: 'place', field: 'series' },
                height: { scale: 'place', band: 1 },
                x: { value: 0 },
                x2: { scale: 'values', field: 'value' },
                fill: { scale: 'series', field: 'series' },
              },
            },
          },
          {
            type: 'text',
            from: { data: 'bars' },
            encode: {
              enter: {
                x: { field: 'x2', offset: 5 },
                y: { field: 'y', offset: { field: 'height', mult: 0.5 } },
                fill: { value: INK },
                fontSize: { value: 10 },
                align: { value: 'left' },
                baseline: { value: 'middle' },
                text: { field: 'datum.text' },
              },
            },
          },
        ],
      },
    ],
  }
}
