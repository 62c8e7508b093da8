import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest'
import { formatBytes, formatTable, grouped, milliseconds, percent } from '../../src/cli/table.js'
import { formatDuration, Progress, say, significant } from '../../src/cli/ui.js'

describe('numbers', () => {
  test.each([
    [formatDuration(5), '0:05'],
    [formatDuration(132), '2:12'],
    [formatDuration(3725), '1:02:05'],
    [significant(0.21437), '0.214'],
    [significant(1279.6), '1280'],
    [significant(Number.NaN), 'NaN'],
    [formatBytes(1023), '1023 B'],
    [formatBytes(1536), '1.5 KiB'],
    [formatBytes(300 * 2 ** 20), '300 MiB'],
    [grouped(22855952), '22,855,952'],
    [percent(0.6214), '62.1 %'],
    [milliseconds(0.0152), '0.0152 ms'],
    [milliseconds(1234.5), '1235 ms'],
  ])('%s', (actual, expected) => expect(actual).toBe(expected))
})

test('tables: numbers to the right, no trailing blanks', () => {
  const table = formatTable(
    [{ title: 'layer' }, { title: 'n', align: 'right' }],
    [
      ['conv', '7'],
      ['b', '12,345'],
    ],
  )
  expect(table).toBe('layer       n\n─────  ──────\nconv        7\nb      12,345')
})

describe('progress', () => {
  let written = ''
  const tty = process.stderr.isTTY
  beforeEach(() => {
    written = ''
    vi.useFakeTimers({ toFake: ['performance'] })
    vi.spyOn(process.stderr, 'write').mockImplementation((chunk) => {
      written += String(chunk)
      return true
    })
  })
  afterEach(() => {
    process.stderr.isTTY = tty
    vi.restoreAllMocks()
    vi.useRealTimers()
    vi.unstubAllEnvs()
  })

  const run = (progress: Progress, seconds: number, perSecond: number) => {
    for (let i = 1; i <= seconds * 10; i++) {
      vi.advanceTimersByTime(100)
      progress.update((i * perSecond) / 10, 'loss 0.5')
    }
  }

  test('work under two seconds shows nothing', () => {
    process.stderr.isTTY = true
    run(new Progress({ label: 'x', total: 100, unit: 'img' }), 1.9, 50)
    expect(written).toBe('')
  })

  test('elsewhere: whole lines, every five seconds, with rate and ETA', () => {
    process.stderr.isTTY = false
    run(new Progress({ label: 'epoch 1/2', total: 400, unit: 'img' }), 13, 20)
    const lines = written.trimEnd().split('\n')
    expect(lines).toHaveLength(3)
    expect(lines[0]).toBe('epoch 1/2    10 %   20 img/s   loss 0.5   ETA 0:18')
    expect(written).not.toContain('\x1b')
  })

  test('on a terminal: one line drawn anew, without colours under NO_COLOR', () => {
    process.stderr.isTTY = true
    vi.stubEnv('NO_COLOR', '1')
    vi.stubEnv('TERM', 'xterm')
    const progress = new Progress({ label: 'epoch', total: 80, unit: 'img' })
    run(progress, 3, 20)
    expect(written).not.toContain('\n')
    expect(written).toContain('━')
    expect(written.replaceAll('\r\x1b[2K', '')).not.toContain('\x1b')
    const before = written.length
    say('a message')
    expect(written.slice(before)).toBe('\r\x1b[2Ka message\n')
  })

  test('work that goes on counts its rate from where it began', () => {
    process.stderr.isTTY = false
    const progress = new Progress({ label: 'x', total: 1000, unit: 'img', done: 900 })
    vi.advanceTimersByTime(5000)
    progress.update(950)
    expect(written).toContain('10 img/s')
    expect(written).toContain('ETA 0:05')
  })
})
