/** `sepconv experiment NAME`: a table or figure of the paper as one command. */

import { Command } from 'commander'
import { deviceOption, jsonOption, oneOf, selectDevice, threadsOption, wholeNumber } from '../options.js'
import { Progress, writeJson, writeText } from '../ui.js'

interface Settings {
  scale: 'tiny' | 'small' | 'full'
  seeds: number
  out?: string
  data?: string
  resume?: boolean
  device?: string
  threads?: number
  json?: boolean
}

export const experimentCommand = (): Command =>
  new Command('experiment')
    .summary('repeat a table or figure of the paper')
    .description(
      'Trains (or times) the models of a table or figure of the Xception paper side by side, with several seeds, and writes a folder:\nresults.json, curves as SVG, and a report that sets the paper’s numbers beside ours. tiny takes minutes on two cores, on generated\npictures; small is for one GPU, full is the paper’s protocol on pictures of your own.',
    )
    .argument('<name>', 'fig6, fig9, fig10, table1, table2 (with fig7 and fig8), table3, spectrum, stack or sync-async')
    .option('--scale <scale>', 'tiny, small or full', oneOf('tiny', 'small', 'full'), 'tiny')
    .option('--seeds <n>', 'runs of every model; below three nothing is decided', wholeNumber(), 3)
    .option('--out <dir>', 'folder for the results (default: experiments/<name>-<scale>)')
    .option('--data <dir>', 'pictures in any form that `sepconv train` takes, instead of generated ones; full needs them')
    .option('--resume', 'go on where an interrupted experiment stopped; finished runs are kept')
    .addOption(deviceOption())
    .addOption(threadsOption())
    .addOption(jsonOption())
    .addHelpText(
      'after',
      '\nExamples:\n  $ sepconv experiment fig9\n  $ sepconv experiment table1 --scale full --data imagenet/ --device cuda',
    )
    .action(run)

async function run(name: string, settings: Settings): Promise<void> {
  const [{ experiment }, { runExperiment }, { writeReport }] = await Promise.all([
    import('../../experiments/definition.js'),
    import('../../experiments/runner.js'),
    import('../../experiments/report.js'),
  ])
  const { scale, seeds, resume = false } = settings
  const defined = experiment(name)
  const out = settings.out ?? `experiments/${defined.name}-${scale}`
  const device = selectDevice(settings)
  const data = settings.data === undefined ? undefined : await (await import('../../data/open.js')).openDataset(settings.data)
  const stop = new AbortController()
  const interrupted = () => stop.abort(new Error('interrupted'))
  process.once('SIGINT', interrupted)
  let progress: Progress | undefined
  let counted = 0
  try {
    const results = await runExperiment(name, {
      ...{ out, scale, seeds, resume, signal: stop.signal },
      ...(device !== undefined && { device }),
      ...(data && { data }),
      onProgress({ done, total, label }) {
        // Timing counts turns where training counted steps.
        if (total !== counted) {
          progress?.finish()
          progress = new Progress({ label: defined.name, total, done })
          counted = total
        }
        progress?.update(done, label)
      },
    })
    progress?.finish()
    const files = await writeReport(out, results)
    if (settings.json) writeJson(results)
    else writeText(files.join('\n'))
  } catch (error) {
    progress?.finish()
    if (!stop.signal.aborted) throw error
    const [{ say }, { ExitStatus }] = await Promise.all([import('../ui.js'), import('../status.js')])
    say(`stopped; sepconv experiment ${name} --scale ${scale} --seeds ${seeds} --out ${out} --resume goes on`)
    throw new ExitStatus(130)
  } finally {
    process.off('SIGINT', interrupted)
  }
}
