/** A confusion matrix as a heat map: rows are what pictures show, columns what they were taken for, colour the share of the row. */

import type { Spec } from 'vega'
import { CONFIG, INK, renderSvg, SERIES_COLOURS } from './theme.js'

/** @param counts [classes, classes], row-major. @returns the chart as the text of an SVG file. */
export function confusionChart(counts: ArrayLike<number>, names: readonly string[]): Promise<string> {
  return renderSvg(confusionSpec(counts, names))
}

export function confusionSpec(counts: ArrayLike<number>, names: readonly string[]): Spec {
  const n = names.length
  // Names may repeat; places do not.
  const keys = names.map((name, i) => `${i}\t${name}`)
  const values = keys.flatMap((row, i) => {
    const total = Array.from(keys, (_, j) => counts[i * n + j]!).reduce((a, b) => a + b, 0)
    return keys.flatMap((column, j) => (counts[i * n + j]! > 0 ? [{ row, column, share: counts[i * n + j]! / total }] : []))
  })
  const cell = Math.max(4, Math.min(24, Math.floor(600 / n)))
  const axis = {
    labelFontSize: Math.min(11, Math.max(4, cell - 1)),
    encode: { labels: { update: { text: { signal: "split(datum.value, '\\t')[1]" } } } },
  }
  return {
    ...CONFIG,
    width: n * cell,
    height: n * cell,
    title: { text: 'Confusion matrix', subtitle: 'rows: what pictures show; columns: what they were taken for; colour: share of the row' },
    data: [{ name: 'cells', values }],
    scales: [
      { name: 'x', type: 'band', domain: keys, range: 'width' },
      { name: 'y', type: 'band', domain: keys, range: 'height' },
    ],
    axes: [
      { orient: 'top', scale: 'x', labelAngle: -90, labelAlign: 'left', labelBaseline: 'middle', ...axis },
      { orient: 'left', scale: 'y', ...axis },
    ],
    marks: [
      {
        type: 'rect',
        from: { data: 'cells' },
        encode: {
          update: {
            x: { scale: 'x', field: 'column' },
            y: { scale: 'y', field: 'row' },
            width: { scale: 'x', band: 1 },
            height: { scale: 'y', band: 1 },
            fill: { value: SERIES_COLOURS[2] },
            fillOpacity: { field: 'share' },
            stroke: { value: INK },
            strokeOpacity: { value: 0.15 },
          },
        },
      },
    ],
  } as Spec
}
