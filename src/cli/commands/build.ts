/** `sepconv build`: compiles the native addon on this machine from the sources that the package carries. */

import { Command } from 'commander'
import { say } from '../ui.js'

export const buildCommand = (): Command =>
  new Command('build')
    .summary('compile the native addon on this machine')
    .description(
      'Compiles the native addon from the sources in the package, with CUDA where nvcc is found. Needs a C++17 compiler and cmake or make.',
    )
    .addHelpText('after', '\nExample:\n  $ sepconv build && sepconv devices')
    .action(async () => {
      const { buildNative } = await import('../../runtime/build.js')
      const { tool, file } = await buildNative()
      say(`built ${file} with ${tool}`)
    })
