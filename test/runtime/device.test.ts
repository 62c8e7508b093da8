/** What `auto` takes: the best device that opens, with a word about those that do not. The devices are made up. */

import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest'

const made = vi.hoisted(() => ({
  known: [] as { name: string; available: boolean; reason?: string }[],
  failing: new Set<string>(),
  opened: [] as string[],
}))
vi.mock('../../src/runtime/executors/native.js', () => ({
  nativeExecutors: () => made.known,
  openNative: (name: string) => {
    made.opened.push(name)
    if (made.failing.has(name)) throw new Error(`${name} is held by another process`)
    return { name }
  },
}))

describe('auto', () => {
  const warnings: string[] = []
  beforeEach(() => {
    vi.resetModules()
    vi.spyOn(process, 'emitWarning').mockImplementation((warning) => void warnings.push(String(warning)))
    made.known = [
      { name: 'cuda:0', available: true },
      { name: 'cpu', available: true },
      { name: 'cuda:1', available: false, reason: 'too old' },
    ]
  })
  afterEach(() => {
    vi.restoreAllMocks()
    made.failing.clear()
    made.opened.length = 0
    warnings.length = 0
  })
  const open = async (name?: string) => (await import('../../src/runtime/device.js')).openDevice(name).name

  it('takes a GPU that opens', async () => {
    expect(await open('auto')).toBe('cuda:0')
    expect(await open('cuda')).toBe('cuda:0')
    expect([made.opened, warnings]).toEqual([['cuda:0'], []])
  })
  it('goes on to the CPU where the GPU does not open, says so once and does not ask again', async () => {
    made.failing.add('cuda:0')
    expect([await open('auto'), await open('auto')]).toEqual(['cpu', 'cpu'])
    expect(warnings).toEqual(["device 'auto' passes over cuda:0: cuda:0 is held by another process"])
    expect(made.opened).toEqual(['cuda:0', 'cpu'])
    // Asked for by name it throws.
    await expect(open('cuda')).rejects.toThrow(/held by another process/)
  })
  it('ends with the reference, never with an error', async () => {
    for (const { name } of made.known) made.failing.add(name)
    expect(await open('auto')).toBe('reference')
    expect(warnings).toHaveLength(3)
    made.known = []
    expect(await open('auto')).toBe('reference')
  })
  it('names the reason where a device is asked for that is not available', async () => {
    await expect(open('cuda:1')).rejects.toThrow(/device 'cuda:1' is not available: too old/)
    await expect(open('cuda:7')).rejects.toThrow(/there is no device 'cuda:7'/)
  })
})
