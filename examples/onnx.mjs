// Exports to ONNX and compares with ONNX Runtime (npm install onnxruntime-web): node onnx.mjs [weights] [out.onnx]
import { readFile } from 'node:fs/promises'
import * as ort from 'onnxruntime-web'
import { loadModel, tensor } from 'sepconv'

const [weights = 'timm/legacy_xception.tf_in1k', out = 'xception.onnx'] = process.argv.slice(2)
const model = await loadModel(weights)
await model.saveWeights(out)
const side = model.config.preprocessing.size
const nhwc = Float32Array.from({ length: side * side * 3 }, (_, i) => Math.sin(i))
const nchw = Float32Array.from(nhwc, (_, i) => nhwc[(i % (side * side)) * 3 + Math.floor(i / (side * side))])
const session = await ort.InferenceSession.create(await readFile(out))
const { logits } = await session.run({ images: new ort.Tensor('float32', nchw, [1, 3, side, side]) })
const ours = await (await model.run(tensor(nhwc, [1, side, side, 3], { device: model.device }))).data()
const largest = ours.reduce((a, b) => Math.max(a, Math.abs(b)), 0)
console.log(
  `largest difference ${(ours.reduce((a, b, i) => Math.max(a, Math.abs(b - logits.data[i])), 0) / largest).toExponential(1)} of the largest logit`,
)
model.dispose()
