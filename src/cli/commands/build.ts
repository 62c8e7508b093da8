/** `sepconv build`: compiles the native addon on this machine from the sources that the package carries. */

import { Command } from 'commander'
import { jsonOption } from '../options.js'
import { say, writeJson } from '../ui.js'

export const buildCommand = (): Command =>
  new Command('build')
    .summary('compile the native addon on this machine')
    .description(
      'Compiles the native addon from the sources in the package, with CUDA where nvcc is found. Needs a C++17 compiler and cmake or make.',
    )
    .addOption(jsonOption())
    .addHelpText('after', '\nExample:\n  $ sepconv build && sepconv devices')
    .action(async ({ json = false }: { json?: boolean }) => {
      const { buildNative } = await import('../../runtime/build.js')
      const built = await buildNative()
      if (json) writeJson(built)
      else say(`built ${built.file} with ${built.tool}`)
    })
