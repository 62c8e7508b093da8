/** Reading ptxas: what the check of registers and spills makes of its log, without a compiler. */

import { describe, expect, it } from 'vitest'

// A plain script: no types.
const { parsePtxas, complaints, serialised } = await import(new URL('../../scripts/check-ptxas.mjs', import.meta.url).href)

const log = `
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_Z4fastv' for 'sm_80'
ptxas info    : Function properties for _Z4fastv
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 72 registers, used 1 barriers, 488 bytes cmem[0]
ptxas info    : Compiling entry function '_Z5spilly' for 'sm_90a'
ptxas info    : Function properties for _Z5spilly
    24 bytes stack frame, 24 bytes spill stores, 28 bytes spill loads
ptxas info    : Used 128 registers, used 1 barriers, 24 bytes cumulative stack size
`

describe('check-ptxas', () => {
  it('reads registers, stack and spills per kernel', () => {
    expect(parsePtxas(log)).toEqual([
      { kernel: '_Z4fastv', architecture: 'sm_80', registers: 72, stack: 0, spillStores: 0, spillLoads: 0 },
      { kernel: '_Z5spilly', architecture: 'sm_90a', registers: 128, stack: 24, spillStores: 24, spillLoads: 28 },
    ])
  })
  it('names a kernel that spills, unless the list allows it', () => {
    expect(complaints(parsePtxas(log), [])).toEqual(['_Z5spilly (sm_90a): 24 bytes of stack, 24 bytes of spill stores, 28 of spill loads'])
    expect(complaints(parsePtxas(log), [{ kernel: 'spilly', architecture: 'sm_90a', bytes: 24, reason: 'test' }])).toEqual([])
    expect(complaints(parsePtxas(log), [{ kernel: 'spilly', architecture: 'sm_90a', bytes: 16, reason: 'test' }])).toHaveLength(2)
  })
  it('names products that ptxas serialises', () => {
    const line =
      "ptxas info    : (C7510) Potential Performance Loss: wgmma.mma_async instructions are serialized due to ... in function 'f'"
    expect(serialised(`${log}${line}\n`)).toEqual([line])
    expect(serialised(log)).toEqual([])
  })
  it('names entries of the list that nothing needs any more', () => {
    expect(complaints([], [{ kernel: 'gone', architecture: 'sm_80', bytes: 8, reason: 'test' }])).toEqual([
      'the allow-list names gone (sm_80), which no longer spills: remove it',
    ])
  })
})
