/** Misuse as a JavaScript caller commits it: every case is refused by code, names the argument, and leaves the process alive. */

import { describe, expect, it } from 'vitest'
import {
  compile,
  convCost,
  createModel,
  evaluate,
  fit,
  imageFolder,
  loadImage,
  registerModel,
  relu,
  reshape,
  sgd,
  sum,
  tensor,
  Variable,
  verifyModel,
  weightAverage,
  xception,
} from '../src/index.js'
import * as nn from '../src/nn/index.js'

const device = 'reference'
const x = () => tensor([1, 2], [2], { device })
const small = (options: object) => xception({ width: 0.05, middleRepeats: 0, classes: 3, device, ...options })
const any = (value: unknown) => value as never

describe('misuse', () => {
  it.each<[string, () => unknown, string, RegExp]>([
    ['tensor: unknown option', () => tensor([1], [1], any({ devcie: 'cpu' })), 'ERR_ARGUMENT', /Did you mean 'device'/],
    ['tensor: nested lists', () => tensor(any([[1, 2]]), [1]), 'ERR_DTYPE', /entry of type array.*flat list/],
    ['tensor: texts', () => tensor(any(['1', '2']), [2]), 'ERR_DTYPE', /entry of type string/],
    ['tensor: shape is a number', () => tensor([1, 2], any(2)), 'ERR_SHAPE', /list of whole numbers/],
    ['tensor: zero-size batch', () => tensor([], [0, 3]), 'ERR_SHAPE', /at least 1/],
    ['tensor: device is a number', () => tensor([1], [1], { device: any(3) }), 'ERR_DEVICE', /no device '3'/],
    ['variable: negative size', () => new Variable('w', { shape: [-1], dtype: 'float32' }, nn.zeros), 'ERR_SHAPE', /at least 1/],
    ['reshape: no shape', () => reshape(x(), any(undefined)), 'ERR_SHAPE', /expected a shape/],
    ['convCost: nothing', () => convCost(any(undefined)), 'ERR_ARGUMENT', /in must be a whole number/],
    [
      'compile: async function',
      () =>
        compile(
          any(async (v: never) => relu(v)),
          { device },
        )(any(x())),
      'ERR_ARGUMENT',
      /must not be async/,
    ],
    ['compile: memoryLimit NaN', () => compile((v) => relu(any(v)), { memoryLimit: Number.NaN }), 'ERR_ARGUMENT', /memoryLimit/],
    [
      'compile: clipNorm 0',
      () =>
        compile(
          any((v: never) => sum(v)),
          any({ train: sgd(), clipNorm: 0 }),
        ),
      'ERR_ARGUMENT',
      /clipNorm/,
    ],
    ['sgd: decays', () => sgd({ decays: any('none') }), 'ERR_ARGUMENT', /filters, no-depthwise, all/],
    ['weightAverage: kind', () => weightAverage(any('mean')), 'ERR_ARGUMENT', /ema, polyak/],
    ['xception: initializer', () => small({ initializer: 'xavier' }), 'ERR_ARGUMENT', /glorotUniform or heNormal, got xavier/],
    ['xception: intermediateActivation', () => small({ intermediateActivation: 'gelu' }), 'ERR_ARGUMENT', /'none', 'relu' or 'elu'/],
    ['xception: residual', () => small({ residual: 'no' }), 'ERR_ARGUMENT', /residual must be one of true, false/],
    ['xception: fullyConnected', () => small({ fullyConnected: 'x' }), 'ERR_ARGUMENT', /fullyConnected/],
    ['xception: seed', () => small({ seed: 1.5 }), 'ERR_ARGUMENT', /seed must be a whole number/],
    ['preprocessing: unknown key', () => small({ preprocessing: { sise: 4 } }), 'ERR_ARGUMENT', /Did you mean 'size'/],
    ['preprocessing: mean per channel', () => small({ preprocessing: { mean: [0.5] } }), 'ERR_ARGUMENT', /mean must be 3 numbers/],
    ['preprocessing: deviation 0', () => small({ preprocessing: { deviation: [0, 1, 1] } }), 'ERR_ARGUMENT', /3 positive numbers/],
    ['model.run: no tensor', () => small({}).run(any([1])), 'ERR_ARGUMENT', /expected a tensor of images/],
    ['model.classify: a path', () => small({}).classify(any('cat.png')), 'ERR_ARGUMENT', /loadImage\(\) gives them/],
    ['createModel: no name', () => createModel(any(undefined)), 'ERR_ARGUMENT', /no model 'undefined'/],
    ['registerModel: no build', () => registerModel(any({ name: 'x' })), 'ERR_ARGUMENT', /needs name/],
    ['evaluate: unknown option', () => evaluate(small({}), [], any({ bacth: 1 })), 'ERR_ARGUMENT', /Did you mean 'batch'/],
    ['fit: nothing', () => fit(any({})).next(), 'ERR_ARGUMENT', /'model' is missing/],
    ['loadImage: a number', () => loadImage(any(5)), 'ERR_ARGUMENT', /expected a path/],
    ['imageFolder: nothing', () => imageFolder(any(undefined)), 'ERR_ARGUMENT', /expected the path/],
    ['verify: zero-size batch', () => verifyModel({ batch: 0 }), 'ERR_SHAPE', /at least 1, got \[0/],
    ['layer: kernel 0', () => nn.separable(3, 4, { kernel: 0 }), 'ERR_ARGUMENT', /kernel must be/],
    ['layer: strides NaN', () => nn.conv2d(3, 4, { strides: Number.NaN }), 'ERR_ARGUMENT', /strides must be/],
    ['layer: padding', () => nn.conv2d(3, 4, { padding: any('full') }), 'ERR_ARGUMENT', /padding must be/],
    ['layer: initializer', () => nn.dense(3, 4, { initializer: any('he') }), 'ERR_ARGUMENT', /initializer must be/],
    ['layer: pool option', () => nn.maxPool2d(any({ size: 2 })), 'ERR_ARGUMENT', /unknown option 'size'/],
    ['layer: activation', () => nn.activationLayer(any('gelu')), 'ERR_ARGUMENT', /'none', 'relu' or 'elu'/],
    ['sequential: no layer', () => nn.sequential(nn.relu(), any(5)), 'ERR_ARGUMENT', /argument 2 is no layer/],
    ['xceptionBlock: reps', () => nn.xceptionBlock({ in: 3, out: 4, reps: 1.5 }), 'ERR_ARGUMENT', /reps must be a whole number/],
    ['xceptionBlock: stride', () => nn.xceptionBlock({ in: 3, out: 4, reps: 1, stride: 0 }), 'ERR_ARGUMENT', /stride must be/],
  ])('%s', async (_, misuse, code, message) => {
    await expect((async () => misuse())()).rejects.toMatchObject({ name: 'SepconvError', code, message: expect.stringMatching(message) })
  })
})
