/** `sepconv report RUN…`: training runs as one HTML page. */

import { Command } from 'commander'
import { jsonOption } from '../options.js'
import { writeJson, writeText } from '../ui.js'

interface Settings {
  out: string
  json?: boolean
}

export const reportCommand = (): Command =>
  new Command('report')
    .summary('show training runs as one HTML page')
    .description(
      'Writes one HTML page that needs nothing else: curves of all runs side by side, throughput, configuration with what differs, and of each run\nthe confusion of its best weights and their worst mistakes as thumbnails.',
    )
    .argument('<run...>', 'output folders of `sepconv train`')
    .option('--out <file>', 'where the page goes', 'report.html')
    .addOption(jsonOption())
    .addHelpText('after', '\nExample:\n  $ sepconv report runs/pets runs/pets-rmsprop --out pets.html')
    .action(report)

async function report(folders: string[], { out, json }: Settings): Promise<void> {
  const [{ readRun }, { reportPage }, { writeAtomic }] = await Promise.all([
    import('../../report/run.js'),
    import('../../report/page.js'),
    import('../../files.js'),
  ])
  const runs = await Promise.all(folders.map(readRun))
  await writeAtomic(out, await reportPage(runs))
  if (json) writeJson({ out, runs: runs.map(({ name, epochs, steps }) => ({ name, epochs: epochs.length, steps: steps.at(-1)!.step })) })
  else writeText(out)
}
