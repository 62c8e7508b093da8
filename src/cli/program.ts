/**
 * The command line: `runCli` parses, runs one command and returns the exit status. 0: done; 1: the command failed, or what it
 * checked did not hold; 2: it was called wrongly (every ERR_ARGUMENT); 130: Ctrl-C. stdout carries data only, messages go to stderr.
 *
 * Command files import nothing but this folder at the top; what they need of the library they load when they run, so that help
 * costs no more than Node itself.
 */

import { readFileSync } from 'node:fs'
import { Command, CommanderError } from 'commander'
import { SepconvError } from '../errors.js'
import { benchCommand } from './commands/bench.js'
import { buildCommand } from './commands/build.js'
import { convertCommand } from './commands/convert.js'
import { devicesCommand } from './commands/devices.js'
import { embedCommand } from './commands/embed.js'
import { experimentCommand } from './commands/experiment.js'
import { evaluateCommand } from './commands/evaluate.js'
import { predictCommand } from './commands/predict.js'
import { prepareCommand } from './commands/prepare.js'
import { reportCommand } from './commands/report.js'
import { summaryCommand } from './commands/summary.js'
import { trainCommand } from './commands/train.js'
import { tuneCommand } from './commands/tune.js'
import { verifyCommand } from './commands/verify.js'
import { bold, red, say } from './ui.js'

/** Thrown by a command that has said what there is to say and ends with this status. */
export { ExitStatus } from './status.js'
import { ExitStatus } from './status.js'

const EXAMPLES = `
Examples:
  $ sepconv predict cat.jpg --weights runs/pets/best.safetensors
  $ sepconv train pets/ --epochs 10
  $ sepconv bench kernels

Run sepconv <command> --help for the options of a command.`

export function createProgram(): Command {
  const program = new Command('sepconv')
    .description('Depthwise-separable convolutions for Node.js, and Xception on top of them')
    .version(packageVersion(), '-V, --version')
    .helpCommand(true)
    .showHelpAfterError('(add --help for all options)')
    .addHelpText('after', EXAMPLES)
  for (const command of [
    ...[predictCommand(), trainCommand(), evaluateCommand(), prepareCommand(), reportCommand(), summaryCommand()],
    ...[embedCommand(), convertCommand(), experimentCommand()],
    ...[devicesCommand(), verifyCommand(), benchCommand(), tuneCommand(), buildCommand()],
  ])
    program.addCommand(command)
  for (const command of everyCommand(program))
    command
      .exitOverride()
      .configureOutput({ outputError: (text, write) => write(red(text.trimEnd()) + '\n') })
      .copyInheritedSettings(program)
  return program
}

function* everyCommand(command: Command): Generator<Command> {
  yield command
  for (const child of command.commands) yield* everyCommand(child)
}

/** Runs `sepconv` with the given arguments. @returns the exit status. */
export async function runCli(args: readonly string[]): Promise<number> {
  const program = createProgram()
  try {
    if (args.length === 0) {
      program.outputHelp({ error: true })
      return 2
    }
    await program.parseAsync(args, { from: 'user' })
    return 0
  } catch (error) {
    return report(error)
  }
}

/** Says what went wrong; returns the exit status. */
export function report(error: unknown): number {
  if (error instanceof ExitStatus) return error.status
  // Help and version end by this error too, with exit code 0; its message has been printed.
  if (error instanceof CommanderError) return error.exitCode === 0 ? 0 : 2
  if (error instanceof SepconvError) {
    say(`${red(bold('error'))} ${error.message} ${error.code.length > 0 ? `[${error.code}]` : ''}`.trimEnd())
    if (process.env.SEPCONV_DEBUG) say(String(error.stack) + causes(error.cause))
    return error.code === 'ERR_ARGUMENT' ? 2 : 1
  }
  if (error instanceof Error && error.name === 'AbortError') return 130
  say(`${red(bold('error'))} ${error instanceof Error ? error.message : String(error)}`)
  if (process.env.SEPCONV_DEBUG) say(error instanceof Error ? `${error.stack}${causes(error.cause)}` : String(error))
  else say('This looks like a defect of sepconv; SEPCONV_DEBUG=1 prints where it happened')
  return 1
}

const causes = (cause: unknown): string => (cause instanceof Error ? `\ncaused by ${cause.stack}${causes(cause.cause)}` : '')

function packageVersion(): string {
  return (JSON.parse(readFileSync(new URL('../../package.json', import.meta.url), 'utf8')) as { version: string }).version
}
