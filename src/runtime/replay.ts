/** Programs that were saved as JSON, loaded again: for looking at, for comparing executors, for running without the code that made them. */

import { checkOptions, SepconvError } from '../errors.js'
import { formatType, sameType, type TensorType } from '../graph/types.js'
import { type DeviceName, openDevice } from './device.js'
import type { RunOptions } from './executor.js'
import type { Program } from './program.js'
import { Tensor } from './tensor.js'

/** Options of {@link loadProgram}. */
export interface LoadProgramOptions {
  /** Default `'auto'`. A program runs on any device; one with packed filters only where panels have its width. */
  device?: DeviceName
  /**
   * Memory behind the program's state and prepared values, by name, on the same device: what `ReplayProgram.state` lists. Prepared
   * values are the outputs of the prepare program, which is saved and replayed like any other.
   */
  state?: Readonly<Record<string, Tensor>>
}

/** A named, typed argument of a program. */
export interface ProgramArgument {
  readonly name: string
  readonly type: TensorType
}

/** A saved program on a device. */
export interface ReplayProgram {
  readonly inputs: readonly ProgramArgument[]
  readonly outputs: readonly ProgramArgument[]
  readonly state: readonly ProgramArgument[]
  /**
   * One run. Programs that update state write it into the tensors given to {@link loadProgram}.
   * @returns the outputs, in the order of `outputs`
   * @throws ERR_ARGUMENT, ERR_SHAPE, ERR_DTYPE, ERR_DEVICE for inputs that do not fit; the signal's reason when aborted in time
   */
  run(inputs: readonly Tensor[], options?: RunOptions): Promise<Tensor[]>
  /** Gives back what the program holds on the device; tensors stay. */
  dispose(): void
}

/**
 * Loads a program that was saved as JSON: `JSON.stringify(f.program(x))`, or `f.executable(x).prepareProgram` for the one that folds
 * and packs its weights.
 * @param program the JSON text, or the object that it parses to
 * @throws ERR_FORMAT for what is no program or a damaged one; ERR_ARGUMENT when state is missing; ERR_SHAPE, ERR_DTYPE, ERR_DEVICE
 * @example const again = loadProgram(await readFile('relu.json', 'utf8')); const [y] = await again.run([x])
 */
export function loadProgram(program: string | Program, options: LoadProgramOptions = {}): ReplayProgram {
  checkOptions('loadProgram', options, ['device', 'state'])
  const plain = parse(program)
  const executor = openDevice(options.device)
  const { buffers } = plain
  const argument = (index: number): ProgramArgument => {
    const { name = `buffer ${index}`, shape, dtype } = buffers[index]!
    return { name, type: { shape, dtype } }
  }
  const loaded = executor.load(plain)
  const state = buffers.flatMap(({ place, view }, i) => ((place === 'state' || place === 'prepared') && view === undefined ? [i] : []))
  for (const index of state) {
    const { name, type } = argument(index)
    const tensor = options.state?.[name]
    if (!tensor)
      throw new SepconvError('ERR_ARGUMENT', `loadProgram: the program needs '${name}', ${formatType(type)}`, {
        subject: 'state',
        expected: name,
        hint: 'Pass it in state; prepared values are the outputs of the prepare program',
      })
    check(`state '${name}'`, tensor, type, executor.name)
    loaded.bind(index, tensor.binding)
  }
  const inputs = plain.inputs.map(argument)
  const outputs = plain.outputs.map(argument)
  return {
    inputs,
    outputs,
    state: state.map(argument),
    async run(given, run = {}) {
      if (!Array.isArray(given) || given.length !== inputs.length)
        throw new SepconvError('ERR_ARGUMENT', `run: the program takes ${inputs.length} inputs, got ${given?.length}`, {
          subject: 'inputs',
          expected: inputs.map(({ name }) => name),
          given: given?.length,
        })
      inputs.forEach(({ name, type }, i) => {
        check(`input '${name}'`, given[i]!, type, executor.name)
      })
      const results = plain.outputs.map((index) => new Tensor(argument(index).type, executor.allocate(buffers[index]!.bytes)))
      try {
        await loaded.run(
          given.map((tensor) => tensor.binding),
          results.map((tensor) => tensor.binding),
          run,
        )
      } catch (error) {
        for (const tensor of results) tensor.dispose()
        throw error
      }
      return results
    },
    dispose: () => loaded.dispose(),
  }
}

function check(what: string, tensor: Tensor, type: TensorType, device: string): void {
  if (!(tensor instanceof Tensor)) throw new SepconvError('ERR_ARGUMENT', `loadProgram: ${what} must be a tensor`, { subject: what })
  if (tensor.device !== device)
    throw new SepconvError('ERR_DEVICE', `loadProgram: ${what} is on '${tensor.device}', the program on '${device}'`, {
      subject: what,
      expected: device,
      given: tensor.device,
    })
  if (!sameType(tensor.type, type))
    throw new SepconvError(
      tensor.dtype === type.dtype ? 'ERR_SHAPE' : 'ERR_DTYPE',
      `loadProgram: ${what} must be ${formatType(type)}, got ${formatType(tensor.type)}`,
      { subject: what, expected: formatType(type), given: formatType(tensor.type) },
    )
}

function parse(program: string | Program): Program {
  let value: unknown = program
  if (typeof program === 'string')
    try {
      value = JSON.parse(program)
    } catch (cause) {
      throw new SepconvError('ERR_FORMAT', 'loadProgram: the text is not valid JSON', { subject: 'program', cause })
    }
  const { format, version, buffers, calls, inputs, outputs } = (value ?? {}) as Partial<Program>
  if (format !== 'sepconv-program' || version !== 1)
    throw new SepconvError('ERR_FORMAT', `loadProgram: expected a sepconv-program of version 1, got ${String(format)} ${String(version)}`, {
      subject: 'program',
      hint: 'Save one with JSON.stringify(f.program(x))',
    })
  const lists = [buffers, calls, inputs, outputs]
  const known = (index: unknown) => Number.isInteger(index) && (index as number) >= 0 && (index as number) < buffers!.length
  if (!lists.every(Array.isArray) || ![...inputs!, ...outputs!].every(known))
    throw new SepconvError(
      'ERR_FORMAT',
      'loadProgram: the program is damaged: buffers, calls, inputs and outputs must be lists that fit together',
      {
        subject: 'program',
      },
    )
  return value as Program
}
