// Fine-tunes published weights on a folder of pictures: node fine-tune.mjs pets/ [weights]
import { createModel, fit, imageFolder } from 'sepconv'

const [directory, weights = 'timm/legacy_xception.tf_in1k'] = process.argv.slice(2)
const data = await imageFolder(directory)
const model = await createModel('xception', { weights, classes: data.classes.length, head: 'new' })
const options = { batch: Math.min(16, data.train.length), epochs: 4, rate: 0.01, freeze: 'entry', rates: { middle: 0.1, exit: 0.3 } }
for await (const event of fit({ model, data, out: 'runs/fine-tuned', ...options }))
  if (event.type === 'epoch') console.log(`epoch ${event.epoch}: top-1 ${event.validation?.top1.toFixed(3)}, loss ${event.loss.toFixed(3)}`)
console.log('runs/fine-tuned/best.safetensors')
model.dispose()
