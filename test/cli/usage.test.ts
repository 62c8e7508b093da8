import { describe, expect, test } from 'vitest'
import { createProgram } from '../../src/cli/program.js'
import { sepconv } from './run.js'

const commands = createProgram().commands.flatMap((command) => [command, ...command.commands])
const path = (command: (typeof commands)[number]): string[] => [
  ...(command.parent?.parent ? path(command.parent as typeof command) : []),
  command.name(),
]

describe('help', () => {
  test('without arguments: help on stderr, status 2', async () => {
    const { status, stdout, stderr } = await sepconv()
    expect([status, stdout]).toEqual([2, ''])
    expect(stderr).toContain('Usage: sepconv')
  })

  test('--help is data: stdout, status 0', async () => {
    const { status, stdout, stderr } = await sepconv('--help')
    expect([status, stderr]).toEqual([0, ''])
    for (const name of ['predict', 'train', 'evaluate', 'summary', 'devices', 'verify', 'bench', 'tune', 'build'])
      expect(stdout).toContain(name)
  })

  test.each(commands.map((command) => path(command)))('%s %s shows an example', async (...args) => {
    const { status, stdout } = await sepconv(...args.filter(Boolean), '--help')
    expect(status).toBe(0)
    expect(stdout).toMatch(/Examples?:\n {2}\$ sepconv /)
  })

  test('--version is that of the package', async () => {
    const { stdout } = await sepconv('--version')
    expect(stdout).toMatch(/^\d+\.\d+\.\d+\n$/)
  })
})

describe('wrong calls end with status 2 and say what is meant', () => {
  test.each([
    [['experiment', 'fig99'], /there is no experiment 'fig99'/],
    [['experiment', 'fig9', '--scale', 'huge'], /huge/],
    [['experiment', 'fig9', '--scale', 'full'], /needs pictures[\s\S]*--data/],
    [['summry'], /unknown command 'summry'[\s\S]*Did you mean summary/],
    [['summary', 'xception', '--widht', '2'], /unknown option '--widht'[\s\S]*Did you mean --width/],
    [['summary'], /missing required argument 'name'/],
    [['summary', 'xception', '--size', '1.5'], /--size[\s\S]*whole number of at least 1/],
    [['summary', 'xception', '--width', 'NaN'], /--width[\s\S]*above 0/],
    [['summary', 'xception', '--pooling', 'sum'], /Allowed choices are avg, max/],
    [['bench', 'model', '--batch', '1,,2'], /comma-separated list without empty entries/],
    [['bench', 'kernels', '--op', 'fused,sparse'], /Allowed choices are regular/],
    [['bench', 'kernels', '--threads', '0'], /--threads[\s\S]*whole number between 1 and 1024/],
    [['bench', 'model', '--threads', '1,1025'], /--threads[\s\S]*whole number between 1 and 1024/],
    [['predict', 'cat.jpg', '--threads', '5000'], /--threads[\s\S]*whole number between 1 and 1024/],
    [['bench', 'kernels', '--precision', 'float16'], /Allowed choices are float32, tf32, bfloat16/],
    [['bench', 'model', '--precision', 'float16'], /Allowed choices are float32, tf32, bfloat16/],
    [['train', 'photos', '--rate', '-1'], /--rate[\s\S]*above 0/],
    [['predict'], /missing required argument 'image'/],
  ])('%j', async (args, message) => {
    const { status, stdout, stderr } = await sepconv(...args)
    expect([status, stdout]).toEqual([2, ''])
    expect(stderr).toMatch(message)
  })

  // What only the library can judge: the message carries its code and a hint.
  test.each([
    [['summary', 'xceptoin'], /Did you mean 'xception'\? \[ERR_ARGUMENT\]/],
    [['summary', 'xception', '--size', '32'], /inputSize must be .*at least 71.*\[ERR_ARGUMENT\]/],
    [['predict', 'cat.jpg'], /predict needs --weights FILE.*would be random.*\[ERR_ARGUMENT\]/],
    [['evaluate', 'photos'], /evaluate needs --weights FILE/],
    [['train'], /train needs a folder of pictures/],
    [['train', '--resume'], /--resume needs the folder of the run/],
    [['bench', 'kernels', '--device', 'cpu', '--precision', 'tf32'], /precision 'tf32' is not measured on device 'cpu'/],
    [['bench', 'kernels', '--layers', '728'], /'728' is no layer.*728->728@19/],
    [['bench', 'kernels', '--layers', '8->8@9:k0'], /'8->8@9:k0' is no layer/],
  ])('%j', async (args, message) => {
    const { status, stdout, stderr } = await sepconv(...args)
    expect([status, stdout]).toEqual([2, ''])
    expect(stderr.replaceAll('\n', ' ')).toMatch(message)
  })
})

describe('failures end with status 1, the code and a hint', () => {
  test.each([
    [['predict', 'cat.jpg', '--weights', 'missing.safetensors'], /missing\.safetensors.*\[ERR_FILE\]/],
    [['train', '--resume', 'no-such-run'], /no-such-run holds no training run/],
    [['train', 'no-such-folder'], /no-such-folder.*\[ERR_FILE\]/],
    [['tune', '--device', 'cuda:31'], /device 'cuda:31'.*\[ERR_DEVICE\]/],
    [['verify', '--device', 'tpu'], /there is no device 'tpu'.*\[ERR_DEVICE\]/],
  ])('%j', async (args, message) => {
    const { status, stdout, stderr } = await sepconv(...args)
    expect([status, stdout]).toEqual([1, ''])
    expect(stderr.replaceAll('\n', ' ')).toMatch(message)
    expect(stderr).not.toMatch(/\n\s+at /)
  })

  test('SEPCONV_DEBUG prints the stack', async () => {
    process.env.SEPCONV_DEBUG = '1'
    try {
      expect((await sepconv('summary', 'xceptoin')).stderr).toMatch(/\n\s+at /)
    } finally {
      delete process.env.SEPCONV_DEBUG
    }
  })
})
