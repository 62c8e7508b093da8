/**
 * The baselines' layers with weights under torchvision's and Keras' names. Ours are torchvision's.
 *
 * Keras names the layers of ResNet and VGG; those of Inception V3 it numbers as they are made (`conv2d` to `conv2d_93`), which is the
 * order of the modules' towers here. Its VGG and ResNet were trained on pictures in the order blue, green, red: their first filter is
 * read with its channels the other way round, so that the model takes red, green, blue like every other.
 */

import type { LayerNames } from '../weights/conventions.js'
import { checkBlocks } from './common.js'

interface Options {
  readonly classes?: number
  readonly blocks?: readonly number[]
  readonly aux?: boolean
  readonly batchNorm?: boolean
  readonly inputSize?: number
}

const head = (own: string, keras: string): LayerNames => ({ kind: 'dense', own, torchvision: own, keras })

/** Convolutions of a module of each kind, tower by tower. */
const MODULES = {
  A: ['branch1x1', 'branch5x5_1', 'branch5x5_2', 'branch3x3dbl_1', 'branch3x3dbl_2', 'branch3x3dbl_3', 'branch_pool'],
  B: ['branch3x3', 'branch3x3dbl_1', 'branch3x3dbl_2', 'branch3x3dbl_3'],
  C: [
    ...['branch1x1', 'branch7x7_1', 'branch7x7_2', 'branch7x7_3'],
    ...['branch7x7dbl_1', 'branch7x7dbl_2', 'branch7x7dbl_3', 'branch7x7dbl_4', 'branch7x7dbl_5', 'branch_pool'],
  ],
  D: ['branch3x3_1', 'branch3x3_2', 'branch7x7x3_1', 'branch7x7x3_2', 'branch7x7x3_3', 'branch7x7x3_4'],
  E: [
    ...['branch1x1', 'branch3x3_1', 'branch3x3_2a', 'branch3x3_2b'],
    ...['branch3x3dbl_1', 'branch3x3dbl_2', 'branch3x3dbl_3a', 'branch3x3dbl_3b', 'branch_pool'],
  ],
} as const
const STEM = ['Conv2d_1a_3x3', 'Conv2d_2a_3x3', 'Conv2d_2b_3x3', 'Conv2d_3b_1x1', 'Conv2d_4a_3x3']
/** What follows `Mixed_5`, `Mixed_6` and `Mixed_7`; b comes first where a is the module that halves the map. */
export const MODULE_LETTERS = 'bcdefghijklmnopqrstuvwxyz'

/** Inception V3: 94 convolutions, 96 with the auxiliary tower, which Keras does not have. */
export function inceptionNames({ blocks = [3, 4, 2], aux = false, classes = 1000 }: Options = {}): LayerNames[] {
  // Options of a file come here before a model is built of them.
  checkBlocks('inception_v3', blocks, [3, 4, 2])
  const [countA, countC, countE] = blocks as [number, number, number]
  const modules = (stage: number, kind: keyof typeof MODULES, count: number) =>
    Array.from({ length: count }, (_, i) => MODULES[kind].map((part) => `Mixed_${stage}${MODULE_LETTERS[i]}.${part}`)).flat()
  const halving = (stage: number, kind: keyof typeof MODULES) => MODULES[kind].map((part) => `Mixed_${stage}a.${part}`)
  const main = [
    ...STEM,
    ...modules(5, 'A', countA),
    ...halving(6, 'B'),
    ...modules(6, 'C', countC),
    ...halving(7, 'D'),
    ...modules(7, 'E', countE),
  ]
  const pair = (own: string, keras?: number): LayerNames[] => [
    { kind: 'conv', own: `${own}.conv`, torchvision: `${own}.conv`, ...(keras !== undefined && { keras: `conv2d#${keras}` }) },
    {
      kind: 'batchNorm',
      own: `${own}.bn`,
      torchvision: `${own}.bn`,
      ...(keras !== undefined && { keras: `batch_normalization#${keras}` }),
    },
  ]
  const classifier: LayerNames[] = classes > 0 ? [head('fc', 'predictions')] : []
  const tower: LayerNames[] = aux
    ? [...pair('AuxLogits.conv0'), ...pair('AuxLogits.conv1'), { kind: 'dense', own: 'AuxLogits.fc', torchvision: 'AuxLogits.fc' }]
    : []
  return [...main.flatMap((own, i) => pair(own, i)), ...classifier, ...tower]
}

/** A ResNet of bottlenecks, by blocks per stage: `layer1.0.conv1` is Keras' `conv2_block1_1_conv`, a projection its number 0. */
export function resnetNames(published: readonly number[], { blocks = published, classes = 1000 }: Options = {}): LayerNames[] {
  checkBlocks('resnet', blocks, published)
  const pair = (convolution: string, norm: string, keras: string): LayerNames[] => [
    { kind: 'conv', own: convolution, torchvision: convolution, keras: `${keras}_conv` },
    { kind: 'batchNorm', own: norm, torchvision: norm, keras: `${keras}_bn` },
  ]
  const [stem, stemNorm] = pair('conv1', 'bn1', 'conv1')
  const stages = blocks.flatMap((count, stage) =>
    Array.from({ length: count }, (_, i) => {
      const [own, keras] = [`layer${stage + 1}.${i}`, `conv${stage + 2}_block${i + 1}`]
      return [
        ...(i === 0 ? pair(`${own}.downsample.0`, `${own}.downsample.1`, `${keras}_0`) : []),
        ...[1, 2, 3].flatMap((n) => pair(`${own}.conv${n}`, `${own}.bn${n}`, `${keras}_${n}`)),
      ]
    }).flat(),
  )
  return [{ ...stem!, bgr: true }, stemNorm!, ...stages, ...(classes > 0 ? [head('fc', 'predictions')] : [])]
}

/** VGG-16, by convolutions per stage: torchvision counts places in the sequence, ReLUs, norms and pools included. */
export function vggNames({ blocks = [2, 2, 3, 3, 3], classes = 1000, batchNorm = false, inputSize = 224 }: Options = {}): LayerNames[] {
  checkBlocks('vgg16', blocks, [2, 2, 3, 3, 3])
  const rows: LayerNames[] = []
  let place = 0
  for (const [stage, count] of blocks.entries()) {
    for (let i = 0; i < count; i++) {
      const own = `features.${place}`
      rows.push({
        ...{ kind: 'conv', own, torchvision: own, needsBias: true, bgr: rows.length === 0 },
        ...(!batchNorm && { keras: `block${stage + 1}_conv${i + 1}` }),
      })
      const norm = `features.${place + 1}`
      if (batchNorm) rows.push({ kind: 'batchNorm', own: norm, torchvision: norm })
      place += batchNorm ? 3 : 2
    }
    place++
  }
  // Keras and we flatten row by row, channels last; torchvision channel by channel.
  const side = Math.floor(inputSize / 2 ** blocks.length)
  return [
    ...rows,
    { ...head('classifier.0', 'fc1'), head: false, flattened: [side, side] },
    { ...head('classifier.3', 'fc2'), head: false },
    ...(classes > 0 ? [head('classifier.6', 'predictions')] : []),
  ]
}

/** Red, green and blue of the mean that Keras' VGG and ResNet subtract from pixels of 0 to 255, which they do not divide. */
export const CAFFE_PREPROCESSING = {
  mean: [123.68 / 255, 116.779 / 255, 103.939 / 255],
  deviation: [1 / 255, 1 / 255, 1 / 255],
} as const
