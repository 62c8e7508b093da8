// A data source of one's own: nothing but a label and a picture by number. Order, augmentation and resuming are as for files.
import { dataset, fit, xception } from 'sepconv'

const size = 71
const data = dataset({
  classes: ['across', 'down'],
  train: 256,
  validation: 64,
  label: (i) => i % 2,
  load(i) {
    const pixels = new Uint8Array(size * size * 3)
    for (let y = 0; y < size; y++)
      for (let x = 0; x < size; x++)
        pixels.fill(127 + 100 * Math.sin((i % 2 ? x : y) / (2 + (i % 7))), (y * size + x) * 3, (y * size + x + 1) * 3)
    return { data: pixels, width: size, height: size }
  },
})
const model = xception({ classes: 2, inputSize: size, width: 0.1, middleRepeats: 0 })
for await (const event of fit({ model, data, epochs: 4, batch: 16, rate: 0.05, augment: { flip: 0.5 } }))
  if (event.type === 'epoch') console.log(`epoch ${event.epoch}   top-1 ${event.validation.top1.toFixed(3)}`)
model.dispose()
