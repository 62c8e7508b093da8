// A schedule of one's own, as a function of the position in training, and a callback that ends the run when it is good enough.
import { fit, openDataset, xception } from 'sepconv'
import { pictures } from './pictures.mjs'

const data = await openDataset(process.argv[2] ?? (await pictures()))
const model = xception({ classes: data.classes.length, inputSize: 71, width: 0.1, middleRepeats: 1 })

// Three linear ramps down (warm restarts).
const sawtooth = ({ step, stepsPerEpoch, epochs }) => 0.08 * (1 - (((3 * step) / (stepsPerEpoch * epochs)) % 1))
const goodEnough = (event, run) => event.type === 'epoch' && event.validation?.top1 > 0.9 && run.stop()
for await (const event of fit({ model, data, epochs: 6, batch: 16, schedule: sawtooth, callbacks: [goodEnough] }))
  if (event.type === 'epoch') console.log(`epoch ${event.epoch}   top-1 ${event.validation.top1.toFixed(3)}`)
model.dispose()
