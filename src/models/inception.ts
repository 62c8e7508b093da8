/**
 * Inception V3 (Szegedy et al. 2016), the baseline that Xception replaces module by module. Names are torchvision's.
 *
 *     stem    3×3 32 /2 · 3×3 32 · 3×3 64 · pool · 1×1 80 · 3×3 192 · pool      299² → 35² × 192
 *     A × 3   1×1 | 5×5 | 3×3 3×3 | mean                                       →  35² × 288
 *     B       3×3 /2 | 3×3 3×3 /2 | max /2                                     →  17² × 768
 *     C × 4   1×1 | 1×7 7×1 | 7×1 1×7 7×1 1×7 | mean                           →  17² × 768
 *     D       3×3 /2 | 1×7 7×1 3×3 /2 | max /2                                 →   8² × 1280
 *     E × 2   1×1 | 3×3 → 1×3, 3×1 | 3×3 3×3 → 1×3, 3×1 | mean                 →   8² × 2048
 *
 * Every convolution is followed by batch norm and ReLU.
 */

import { checkChoice } from '../errors.js'
import type { Value } from '../graph/graph.js'
import { currentTrace } from '../graph/trace.js'
import { convBatchNormRelu } from '../nn/blocks.js'
import { type Layer, layer } from '../nn/layer.js'
import { avgPool2d, type Conv2dOptions, dense, globalAveragePool, maxPool2d } from '../nn/layers.js'
import * as ops from '../ops/index.js'
import { inceptionNames, MODULE_LETTERS } from './baselineNames.js'
import { BASELINE_OPTIONS, type BaselineOptions, inTurn, named, pooledClassifier, type Resolved, resolveBaseline } from './common.js'
import { type Network, registerModel } from './registry.js'

/** Options of Inception V3. */
export interface InceptionV3Options extends BaselineOptions {
  /** Height and width of the input in pixels, at least 75. Default 299. */
  inputSize?: number
  /** Modules of kinds A, C and E. Default [3, 4, 2]. */
  blocks?: readonly number[]
  /** `'keras'` (default): batch norm has no scale, means leave padding out. `'torchvision'`: it has, they count it as zeros. */
  variant?: 'keras' | 'torchvision'
  /**
   * Of the stem's 3×3 convolutions and of all that halves. `'valid'` (default) as published: from 75 pixels the last modules are left with one
   * position. `'same'` leaves them 3 × 3 there, as Xception has.
   */
  padding?: 'valid' | 'same'
  /** The auxiliary classifier after the last C module, whose loss counts 0.4 in training. Default false. */
  aux?: boolean
  /** Of every batch norm. Defaults 1e-3, 0.99; the public TensorFlow code has momentum 0.9997. */
  epsilon?: number
  momentum?: number
}

const OWN = ['fullyConnected', 'variant', 'padding', 'aux', 'epsilon', 'momentum']
const AUXILIARY_WEIGHT = 0.4

/** A module with the channel counts that go in and come out. */
interface Module {
  readonly layer: Layer
  readonly out: number
}

/** Builds Inception V3. @throws ERR_ARGUMENT for unknown options and values out of range. */
export function buildInceptionV3(options: InceptionV3Options = {}): Network {
  const resolved = resolveBaseline('inception_v3', options, OWN, { inputSize: 299, smallest: 75, blocks: [3, 4, 2] })
  const { inputChannels, inputSize, blocks, initializer, channels: c } = resolved
  const { variant = 'keras', padding = 'valid', aux = false, epsilon = 1e-3, momentum = 0.99 } = options
  checkChoice('inception_v3', 'variant', variant, ['keras', 'torchvision'])
  checkChoice('inception_v3', 'padding', padding, ['valid', 'same'])
  const normalise = { epsilon, momentum, scale: variant === 'torchvision' }
  const conv = (from: number, to: number, kernel: Conv2dOptions['kernel'], rest: Conv2dOptions = {}) =>
    convBatchNormRelu(from, to, { kernel, initializer, ...normalise, ...rest })
  const half = { padding, strides: 2 } as const
  const mean = () => avgPool2d({ window: 3, strides: 1, padding: 'same', countPadding: variant === 'torchvision' })
  const halve = () => maxPool2d({ window: 3, strides: 2, padding })

  /** Towers side by side: each a list of named layers; a list in a list splits into branches that are concatenated too. */
  function module(towers: readonly Tower[]): Layer {
    const children = Object.fromEntries(towers.flatMap((tower) => tower.flatMap((part) => Object.entries(part))))
    return layer('inception', { children }, (x) =>
      ops.concat(
        towers.flatMap((tower) => runTower(tower, x)),
        { axis: 3 },
      ),
    )
  }

  const moduleA = (from: number, pool: number): Module => ({
    out: c(64) + c(64) + c(96) + c(pool),
    layer: module([
      [{ branch1x1: conv(from, c(64), 1) }],
      [{ branch5x5_1: conv(from, c(48), 1) }, { branch5x5_2: conv(c(48), c(64), 5) }],
      [{ branch3x3dbl_1: conv(from, c(64), 1) }, { branch3x3dbl_2: conv(c(64), c(96), 3) }, { branch3x3dbl_3: conv(c(96), c(96), 3) }],
      [{ pool: mean() }, { branch_pool: conv(from, c(pool), 1) }],
    ]),
  })
  const moduleB = (from: number): Module => ({
    out: c(384) + c(96) + from,
    layer: module([
      [{ branch3x3: conv(from, c(384), 3, half) }],
      [
        { branch3x3dbl_1: conv(from, c(64), 1) },
        { branch3x3dbl_2: conv(c(64), c(96), 3) },
        { branch3x3dbl_3: conv(c(96), c(96), 3, half) },
      ],
      [{ pool: halve() }],
    ]),
  })
  const moduleC = (from: number, k: number): Module => ({
    out: 4 * c(192),
    layer: module([
      [{ branch1x1: conv(from, c(192), 1) }],
      [{ branch7x7_1: conv(from, c(k), 1) }, { branch7x7_2: conv(c(k), c(k), [1, 7]) }, { branch7x7_3: conv(c(k), c(192), [7, 1]) }],
      [
        { branch7x7dbl_1: conv(from, c(k), 1) },
        { branch7x7dbl_2: conv(c(k), c(k), [7, 1]) },
        { branch7x7dbl_3: conv(c(k), c(k), [1, 7]) },
        { branch7x7dbl_4: conv(c(k), c(k), [7, 1]) },
        { branch7x7dbl_5: conv(c(k), c(192), [1, 7]) },
      ],
      [{ pool: mean() }, { branch_pool: conv(from, c(192), 1) }],
    ]),
  })
  const moduleD = (from: number): Module => ({
    out: c(320) + c(192) + from,
    layer: module([
      [{ branch3x3_1: conv(from, c(192), 1) }, { branch3x3_2: conv(c(192), c(320), 3, half) }],
      [
        { branch7x7x3_1: conv(from, c(192), 1) },
        { branch7x7x3_2: conv(c(192), c(192), [1, 7]) },
        { branch7x7x3_3: conv(c(192), c(192), [7, 1]) },
        { branch7x7x3_4: conv(c(192), c(192), 3, half) },
      ],
      [{ pool: halve() }],
    ]),
  })
  const moduleE = (from: number): Module => ({
    out: c(320) + 4 * c(384) + c(192),
    layer: module([
      [{ branch1x1: conv(from, c(320), 1) }],
      [{ branch3x3_1: conv(from, c(384), 1) }, { branch3x3_2a: conv(c(384), c(384), [1, 3]), branch3x3_2b: conv(c(384), c(384), [3, 1]) }],
      [
        { branch3x3dbl_1: conv(from, c(448), 1) },
        { branch3x3dbl_2: conv(c(448), c(384), 3) },
        { branch3x3dbl_3a: conv(c(384), c(384), [1, 3]), branch3x3dbl_3b: conv(c(384), c(384), [3, 1]) },
      ],
      [{ pool: mean() }, { branch_pool: conv(from, c(192), 1) }],
    ]),
  })

  const stem = {
    Conv2d_1a_3x3: conv(inputChannels, c(32), 3, half),
    Conv2d_2a_3x3: conv(c(32), c(32), 3, { padding }),
    Conv2d_2b_3x3: conv(c(32), c(64), 3),
    maxpool1: halve(),
    Conv2d_3b_1x1: conv(c(64), c(80), 1),
    Conv2d_4a_3x3: conv(c(80), c(192), 3, { padding }),
    maxpool2: halve(),
  }
  let width = c(192)
  const stages: Record<string, Layer> = {}
  const add = (name: string, { layer: made, out }: Module) => {
    stages[name] = made
    width = out
  }
  const [countA, countC, countE] = blocks as [number, number, number]
  for (let i = 0; i < countA; i++) add(`Mixed_5${MODULE_LETTERS[i]}`, moduleA(width, i === 0 ? 32 : 64))
  add('Mixed_6a', moduleB(width))
  // 128, 160, …, 192: the first and the last module differ from those between.
  for (let i = 0; i < countC; i++) add(`Mixed_6${MODULE_LETTERS[i]}`, moduleC(width, i === countC - 1 ? 192 : i === 0 ? 128 : 160))
  const lastC = `Mixed_6${MODULE_LETTERS[countC - 1]}`
  const tower = aux ? auxiliaryTower(width, resolved, gridOf(inputSize, padding), conv) : undefined
  add('Mixed_7a', moduleD(width))
  for (let i = 0; i < countE; i++) add(`Mixed_7${MODULE_LETTERS[i]}`, moduleE(width))
  const head = pooledClassifier(width, resolved, 'fc')

  const root = layer('inception_v3', { children: { ...stem, ...stages, ...(tower && { AuxLogits: tower }), ...head } }, (x) => {
    let y = inTurn(Object.values(stem), x)
    for (const [name, stage] of Object.entries(stages)) {
      y = stage(y)
      const { training, auxiliary } = currentTrace()
      if (tower && training && name === lastC) auxiliary.push({ logits: tower(y), weight: AUXILIARY_WEIGHT })
    }
    return inTurn(Object.values(head), y)
  })
  return {
    ...{ root, inputSize, inputChannels, classes: resolved.classes, variableInputSize: true },
    forward: (x) => root(x),
    // torchvision's weights came from TensorFlow's: its transform_input undoes ImageNet's means, which leaves the range from −1 to 1.
    ...(variant === 'torchvision' && { preprocessing: { resize: Math.round((inputSize * 342) / 299), interpolation: 'bilinear' } }),
  }
}

/** Layers one after the other; the last step may be several, whose outputs are all kept. */
type Tower = readonly Readonly<Record<string, Layer>>[]

function runTower(tower: Tower, x: Value): Value[] {
  let values = [x]
  for (const step of tower) values = Object.values(step).map((part) => part(values[0]!))
  return values
}

/** Side of the feature map after the C modules. */
function gridOf(inputSize: number, padding: 'valid' | 'same'): number {
  if (padding === 'same') return Math.ceil(inputSize / 16)
  const halved = (side: number) => Math.floor((side - 3) / 2) + 1
  return halved(halved(halved(halved(inputSize) - 2) - 2))
}

/** Mean 5×5 /3, 1×1 128, 5×5 768, mean, classifier; as in torchvision unpadded, but for inputs so small that the windows would not fit. */
function auxiliaryTower(
  from: number,
  { classes, channels: c }: Resolved,
  grid: number,
  conv: (from: number, to: number, kernel: number, rest?: Conv2dOptions) => Layer,
): Layer {
  const padding = grid < 17 ? 'same' : 'valid'
  return named('auxiliary', {
    pool: avgPool2d({ window: 5, strides: 3, padding }),
    conv0: conv(from, c(128), 1),
    conv1: conv(c(128), c(768), 5, { padding }),
    avgpool: globalAveragePool(),
    fc: dense(c(768), classes),
  })
}

registerModel({
  name: 'inception_v3',
  head: 'fc',
  description: 'Inception V3 (Szegedy et al. 2016), 23,817,352 parameters at 1000 classes as in Keras',
  options: [...BASELINE_OPTIONS, ...OWN],
  layerNames: (options) => inceptionNames(options),
  sources: {
    torchvision: { options: { variant: 'torchvision' }, unused: 'AuxLogits.' },
    keras: { options: { variant: 'keras' } },
  },
  build: (options) => buildInceptionV3(options as InceptionV3Options),
})
