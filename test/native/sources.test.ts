import { spawnSync } from 'node:child_process'
import { fileURLToPath } from 'node:url'
import { describe, expect, it } from 'vitest'

const script = fileURLToPath(new URL('../../scripts/sources.mjs', import.meta.url))
const ask = (what: string, env: Record<string, string>) =>
  spawnSync(process.execPath, [script, what], { env: { ...process.env, ...env }, encoding: 'utf8' })

describe('settings of the native build', () => {
  it('choose architectures in the notation of CMake', () => {
    expect(ask('gencode', { SEPCONV_CUDA_ARCHITECTURES: '80;90a-real,120-virtual' }).stdout.trim().split('\n')).toEqual([
      '-gencode=arch=compute_80,code=[sm_80,compute_80]',
      '-gencode=arch=compute_90a,code=sm_90a',
      '-gencode=arch=compute_120,code=compute_120',
    ])
  })

  it('leave CUDA out where it is not wanted', () => {
    expect(ask('nvcc', { SEPCONV_CUDA: '0' }).stdout.trim()).toBe('')
    expect(ask('cudart', { SEPCONV_CUDA: '0' }).stdout.trim()).toBe('')
  })

  it.each([
    ['SEPCONV_CUDA', 'off', '0 or 1'],
    ['SEPCONV_WIDE', 'yes', '0 or 1'],
    ['SEPCONV_CUDA_ARCHITECTURES', 'sm_90', '90a-real'],
  ])('are refused by name: %s=%s', (name, value, expected) => {
    const { status, stderr } = ask('gencode', { [name]: value })
    expect(status).toBe(1)
    expect(stderr).toContain(`${name}: expected`)
    expect(stderr).toContain(expected)
    expect(stderr).toContain(`'${value}'`)
  })
})
