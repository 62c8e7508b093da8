/** Text tables: columns as wide as their widest cell, numbers to the right, a rule below the heading. */

export interface Column {
  readonly title: string
  /** Default `'left'`. */
  readonly align?: 'left' | 'right'
}

/** A column of prose needs no rule across the page. */
const LONGEST_RULE = 60

/** @returns the table's lines, joined, without a final newline. */
export function formatTable(columns: readonly Column[], rows: readonly (readonly string[])[]): string {
  const widths = columns.map(({ title }, i) => Math.max(title.length, ...rows.map((row) => (row[i] ?? '').length)))
  const line = (cells: readonly string[]) =>
    columns
      .map(({ align }, i) => (align === 'right' ? (cells[i] ?? '').padStart(widths[i]!) : (cells[i] ?? '').padEnd(widths[i]!)))
      .join('  ')
      .trimEnd()
  return [
    line(columns.map(({ title }) => title)),
    widths.map((width) => '─'.repeat(Math.min(width, LONGEST_RULE))).join('  '),
    ...rows.map(line),
  ].join('\n')
}

/** 22855952 → `22,855,952`. */
export const grouped = (x: number): string => x.toLocaleString('en-US')

/** Bytes with a unit of 1024: `1.5 MiB`. */
export function formatBytes(bytes: number): string {
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB']
  let unit = 0
  let value = bytes
  for (; value >= 1024 && unit < units.length - 1; unit++) value /= 1024
  return `${unit === 0 ? value : value.toFixed(value >= 100 ? 0 : 1)} ${units[unit]}`
}

/** A share as a percentage with one decimal: `62.1 %`. */
export const percent = (share: number): string => `${(share * 100).toFixed(1)} %`

/** Milliseconds with three significant digits. */
export const milliseconds = (ms: number): string => `${ms >= 100 ? ms.toFixed(0) : ms.toPrecision(3)} ms`
