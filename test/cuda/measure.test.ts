/** `npm run gpu:measure` without a GPU: what it would run, what becomes of steps that fail, hang or find no time, and that it says so. */

import { spawnSync } from 'node:child_process'
import { join } from 'node:path'
import { describe, expect, it } from 'vitest'
import { packageRoot } from '../../src/runtime/native.js'
import './emulator.js' // builds the addon that stands for a GPU

// A plain script: no types.
const { plan, runSteps } = await import(new URL('../../scripts/gpu-measure.mjs', import.meta.url).href)

interface Step {
  readonly name: string
  readonly command: string[]
  readonly seconds: number
  readonly output: string
}

describe('gpu:measure', () => {
  it('checks first, and fits into one lease of half an hour', () => {
    const steps = plan('cuda:1') as Step[]
    expect(steps.map(({ name }) => name)).toEqual([
      'check',
      'libraries',
      'pytorch-limits',
      'kernels',
      'backward',
      'model',
      'nccl',
      'pytorch-layers',
      'pytorch-net',
    ])
    for (const { command } of steps) expect(command.some((word) => word.endsWith('.py') || word === 'cuda:1')).toBe(true)
    for (const { seconds } of steps) expect(seconds).toBeLessThanOrEqual(600)
  })
  it('keeps what was measured when a step fails, is stopped or finds no time', () => {
    let clock = 0
    const step = (name: string, output: string): Step => ({ name, command: [name], seconds: 60, output })
    const answers: Record<string, object> = {
      check: { status: 0, stdout: 'fine\n' },
      kernels: { status: 0, stdout: '{"a": 1}' },
      half: { status: null, stdout: '{"a": 1}\n{"a"', error: 'stopped after 60 s' },
      lines: { status: 1, stdout: '{"a": 1}\n{"a": 2}\n' },
    }
    const saved: Record<string, unknown>[] = []
    const good = runSteps(
      [step('check', 'text'), step('kernels', 'json'), step('half', 'lines'), step('lines', 'lines'), step('late', 'json')],
      {
        minutes: 2,
        now: () => clock,
        run: ({ name }: Step) => {
          clock += 29_000
          return answers[name]
        },
        save: (records: Record<string, unknown>) => saved.push(structuredClone(records)),
      },
    )
    expect(good).toBe(false)
    expect(saved.map((records) => Object.keys(records).length)).toEqual([1, 2, 3, 4, 5])
    expect(saved.at(-1)).toEqual({
      check: { command: 'check', status: 0, seconds: 29, text: ['fine'] },
      kernels: { command: 'kernels', status: 0, seconds: 29, result: { a: 1 } },
      half: { command: 'half', status: 'stopped after 60 s', seconds: 29, text: ['{"a": 1}', '{"a"'] },
      lines: { command: 'lines', status: 1, seconds: 29, result: [{ a: 1 }, { a: 2 }] },
      late: { command: 'late', status: 'no time was left' },
    })
  })
  it.each(['gpu-check', 'gpu-measure'])('%s ends with 77 and one line where there is no GPU', (script) => {
    const { status, stdout, stderr } = spawnSync(process.execPath, [join(packageRoot, `scripts/${script}.mjs`)], {
      encoding: 'utf8',
      env: { ...process.env, CUDA_VISIBLE_DEVICES: '' },
    })
    expect([status, stdout]).toEqual([77, ''])
    expect(stderr).toMatch(/^gpu:(check|measure): no GPU to (check on|measure): .+\n$/)
  })
})

describe('the checks themselves, on a device that stands for the GPU', () => {
  it.each([
    ['kernels', { SEPCONV_GPU: 'emulator:fair', SEPCONV_GPU_ROUNDS: '2', SEPCONV_NATIVE: process.env.SEPCONV_NATIVE }],
    ['layers', { SEPCONV_GPU: 'cpu', SEPCONV_NATIVE: undefined }],
  ])(
    '%s',
    (file, environment) => {
      const args = [join(packageRoot, 'node_modules/vitest/vitest.mjs'), 'run', '--mode', 'gpu', `test/gpu/${file}.test.ts`]
      const { status, stdout } = spawnSync(process.execPath, args, {
        cwd: packageRoot,
        encoding: 'utf8',
        env: { ...process.env, ...environment, VITEST_POOL_ID: undefined, VITEST_WORKER_ID: undefined },
      })
      expect(status, stdout).toBe(0)
      expect(stdout).toMatch(/Tests .*\d+ passed/)
    },
    120_000,
  )
})

const python = spawnSync('/usr/bin/python3', ['-c', 'import torch'], { encoding: 'utf8' })
describe.runIf(python.status === 0)("PyTorch's side", () => {
  it.each([
    ['limits', 'matmul'],
    ['layers', 'layer'],
  ])('%s runs on tiny shapes', (what, kind) => {
    const program = join(packageRoot, 'bench/peers/programs/pytorch_gpu.py')
    const { status, stdout, stderr } = spawnSync(
      '/usr/bin/python3',
      [program, what, '--device', 'cpu', '--batch', '1', '--dtype', 'fp32'],
      {
        encoding: 'utf8',
      },
    )
    expect(status, stderr).toBe(0)
    const rows = stdout
      .trim()
      .split('\n')
      .map((line) => JSON.parse(line) as { kind: string; ms: number })
    expect(rows.some((row) => row.kind === kind)).toBe(true)
    for (const { ms } of rows) expect(ms).toBeGreaterThan(0)
  })
})
