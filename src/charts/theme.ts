/**
 * Rendering Vega specifications as SVG files that are legible on light and dark pages: the ground is transparent, text and rules take
 * their colour from a style sheet inside the file that follows the reader's preference, series have colours with contrast on both.
 * vega is loaded on first use: it is needed for charts alone.
 */

import { writeFile } from 'node:fs/promises'
import type { Spec } from 'vega'
import { SepconvError } from '../errors.js'
import { fileError } from '../files.js'

/** Stand-ins, replaced by classes after rendering; not used as real colours anywhere. */
export const INK = '#010203'
export const FAINT = '#030201'

/** At least 3:1 against white and against #0d1117. */
export const SERIES_COLOURS = ['#868e96', '#e8590c', '#3b82f6', '#2f9e44', '#ae3ec9', '#e64980', '#b08900', '#0c8599'] as const

const STYLE = [
  '.ink{fill:#24292f}',
  '.rule{stroke:#24292f}',
  '.faint{stroke:#d0d7de}',
  '@media (prefers-color-scheme:dark){.ink{fill:#e6edf3}.rule{stroke:#e6edf3}.faint{stroke:#30363d}}',
].join('')

/** Common settings of all charts. */
export const CONFIG = {
  background: 'transparent',
  padding: 8,
  config: {
    axis: {
      labelColor: INK,
      titleColor: INK,
      domainColor: INK,
      tickColor: INK,
      gridColor: FAINT,
      labelFontSize: 11,
      titleFontSize: 12,
      labelLimit: 0,
    },
    legend: { labelColor: INK, titleColor: INK, labelFontSize: 12, labelLimit: 0, symbolType: 'square' },
    title: { color: INK, fontSize: 14, anchor: 'start', offset: 12, subtitleColor: INK, subtitleFontSize: 11 },
  },
} as const

/** @returns the SVG's text. @throws ERR_NATIVE when vega is not installed. */
export async function renderSvg(spec: Spec): Promise<string> {
  const vega = await import('vega').catch((cause: unknown) => {
    throw new SepconvError('ERR_NATIVE', 'the chart library vega could not be loaded', { subject: 'vega', hint: 'npm install vega', cause })
  })
  const view = new vega.View(vega.parse(spec), { renderer: 'none', logLevel: vega.Error })
  const svg = await view.toSVG()
  view.finalize()
  return svg
    .replaceAll(`fill="${INK}"`, 'class="ink"')
    .replaceAll(`stroke="${INK}"`, 'class="rule"')
    .replaceAll(`stroke="${FAINT}"`, 'class="faint"')
    .replace('>', `><style>${STYLE}</style>`)
}

/** @throws ERR_FILE. */
export async function writeSvg(path: string, svg: string): Promise<void> {
  try {
    await writeFile(path, svg)
  } catch (error) {
    throw fileError(error, path, 'write')
  }
}
