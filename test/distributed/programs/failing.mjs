// fit over ranks, of which one fails at a step, or takes `slow` milliseconds longer for each. Rank 0 prints the events.
import { fit, imageFolder, loadImage, openCommunicator, xception } from '../../../dist/index.js'

const { data: folder, rank, step, slow, epochs = 2, batch = 6, device = 'cpu', asynchronous } = JSON.parse(process.argv[2])
const ranks = await openCommunicator()
const data = await imageFolder(folder)
const model = xception({ classes: data.classes.length, inputSize: 71, width: 0.04, middleRepeats: 0, device })
const mine = ranks.rank === rank
if (mine && slow)
  for (const sample of data.train) {
    sample.load = async () => {
      await new Promise((done) => setTimeout(done, slow))
      return loadImage(sample.path, { shorterSide: 71 })
    }
  }
const fail = (event) => {
  if (mine && event.type === 'step' && event.step === step) throw new Error('the cable came loose')
}
try {
  for await (const event of fit({
    model,
    data,
    epochs,
    batch,
    ranks,
    augment: {},
    ...(asynchronous && { asynchronous }),
    callbacks: [fail],
  }))
    if (ranks.rank === 0) console.log(JSON.stringify(event))
} catch (error) {
  console.error(`rank ${ranks.rank} ended with ${error.code ?? error.name}: ${error.message}`)
  process.exitCode = 1
}
await ranks.close(process.exitCode ?? 0)
