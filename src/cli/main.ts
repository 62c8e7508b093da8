#!/usr/bin/env node
/** The `sepconv` command. */

import { runCli } from './program.js'

// A reader that has seen enough (`sepconv summary xception | head`) is no error.
process.stdout.on('error', (error: NodeJS.ErrnoException) => {
  if (error.code === 'EPIPE') process.exit(0)
  throw error
})

process.exitCode = await runCli(process.argv.slice(2))
