/** What the environment says of the cpu device: refused by name where it makes no sense, obeyed where it does. */

import { execFile } from 'node:child_process'
import { promisify } from 'node:util'
import { afterEach, describe, expect, it } from 'vitest'
import { NativeCpuExecutor, nativeExecutors } from '../../src/runtime/executors/native.js'
import { builtCli } from '../cli/built.js'

const cpu = nativeExecutors().find(({ name }) => name === 'cpu')!
const before = { SEPCONV_ISA: process.env.SEPCONV_ISA, SEPCONV_THREADS: process.env.SEPCONV_THREADS }

describe.skipIf(!cpu.available)('settings of the cpu device', () => {
  afterEach(() => {
    for (const [name, value] of Object.entries(before)) {
      if (value === undefined) delete process.env[name]
      else process.env[name] = value
    }
  })

  it.each([
    ['SEPCONV_THREADS', '0'],
    ['SEPCONV_THREADS', '-1'],
    ['SEPCONV_THREADS', '1.5'],
    ['SEPCONV_THREADS', '1025'],
    ['SEPCONV_THREADS', 'many'],
    ['SEPCONV_ISA', 'sse9'],
    ['SEPCONV_ISA', 'AVX2'],
  ])('%s=%s is refused by name', (name, value) => {
    process.env[name] = value
    const error = expect.objectContaining({ code: 'ERR_ARGUMENT', subject: name, given: value, message: expect.stringContaining(name) })
    expect(() => new NativeCpuExecutor()).toThrow(error)
    // What was given outright does not ask the environment.
    expect(new NativeCpuExecutor({ isa: 'scalar', threads: 1 }).info).toMatchObject({ isa: 'scalar', threads: 1 })
  })

  it('an unknown instruction set names those that there are', () => {
    process.env.SEPCONV_ISA = 'sse9'
    expect(() => new NativeCpuExecutor()).toThrow(cpu.isas!.join(', '))
  })

  it.each(cpu.isas ?? [])('SEPCONV_ISA=%s is obeyed', (isa) => {
    process.env.SEPCONV_ISA = isa
    process.env.SEPCONV_THREADS = '3'
    expect(new NativeCpuExecutor().info).toMatchObject({ isa, threads: 3 })
  })

  it('the benchmark says that it measured the scalar path', async () => {
    const bench = ['bench', 'kernels', '--layers', '4->4@5', '--op', 'fused', '--pass', 'forward', '--rounds', '1', '--seconds', '0.001']
    const { stderr } = await promisify(execFile)(process.execPath, [builtCli(), ...bench], {
      env: { ...process.env, SEPCONV_ISA: 'scalar', NO_COLOR: '1' },
    })
    expect(stderr).toContain('scalar path: vectors of 16 bytes, as on a processor without AVX2')
  })
})
