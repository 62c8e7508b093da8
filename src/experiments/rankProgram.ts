/** What each rank of an experiment runs: `node rankProgram.js <job as JSON>`. Rank 0 prints events, or measurements, a line each. */

import { existsSync } from 'node:fs'
import { join } from 'node:path'
import { openDataset } from '../data/open.js'
import { type Communicator, openCommunicator } from '../distributed/communicator.js'
import { deviceOfRank } from '../distributed/device.js'
import { onStopRequest } from '../distributed/stop.js'
import { SepconvError } from '../errors.js'
import { createModel } from '../models/index.js'
import { LAST } from '../train/checkpoint.js'
import { fit } from '../train/fit.js'
import type { RankJob, TrainingJob } from './overRanks.js'
import { patternSet } from './patterns.js'
import { measureExchange, measureSteps } from './rankTimes.js'

const print = (value: unknown) => process.stdout.write(`${JSON.stringify(value)}\n`)

async function train({ variant, pictures, settings, seed, out, device }: TrainingJob, ranks: Communicator | undefined): Promise<void> {
  const data = typeof pictures === 'string' ? await openDataset(pictures) : patternSet(pictures)
  const stop = new AbortController()
  onStopRequest(() => stop.abort())
  const own = await deviceOfRank(device.startsWith('cuda') ? 'cuda' : device, ranks)
  using model = await createModel(variant.architecture, { ...variant.options, ...(own !== undefined && { device: own }), seed })
  const resume = existsSync(join(out, LAST))
  for await (const event of fit({ ...settings, model, data, seed, out, resume, ranks, signal: stop.signal }))
    if ((ranks?.rank ?? 0) === 0) print(event)
}

async function main(): Promise<void> {
  const job = JSON.parse(process.argv[2]!) as RankJob
  const ranks = await openCommunicator()
  try {
    if (job.kind === 'train') await train(job, ranks)
    else {
      const all = job.kind === 'steps' ? await measureSteps(job, ranks) : await measureExchange(job, ranks)
      if ((ranks?.rank ?? 0) === 0) print(all)
    }
  } catch (error) {
    const { code = 'ERR_RANK', message } = error as { code?: string; message: string }
    // What another rank has caused is that rank's to say.
    if (!(error instanceof SepconvError && error.code === 'ERR_RANK')) print({ type: 'error', code, message })
    ranks?.fail(error)
    await ranks?.close(1)
    process.exit(1)
  }
  await ranks?.close()
}

await main()
