// A loss of one's own: focal loss (Lin et al. 2017), which turns down what is easy already. It is a function of traced values, so its
// gradient comes by itself and the whole step stays one native call.
import { exp, fit, multiply, negate, openDataset, power, softmaxCrossEntropy, subtract, xception } from 'sepconv'
import { pictures } from './pictures.mjs'

const data = await openDataset(process.argv[2] ?? (await pictures()))
const model = xception({ classes: data.classes.length, inputSize: 71, width: 0.1, middleRepeats: 1 })

function focal(logits, targets) {
  const loss = softmaxCrossEntropy(logits, targets) // [n], −log p of the right class
  return multiply(power(subtract(1, exp(negate(loss))), 2), loss)
}
for await (const event of fit({ model, data, epochs: 3, batch: 16, rate: 0.05, loss: focal }))
  if (event.type === 'epoch')
    console.log(`epoch ${event.epoch}   loss ${event.loss.toFixed(3)}   top-1 ${event.validation.top1.toFixed(3)}`)
model.dispose()
