/**
 * The aligned Xceptions (Chen et al. 2018, DeepLabv3+, arXiv 1802.02611, Figure 4) as timm has them: deeper than Chollet's, strided
 * separable convolutions in place of max pools, batch norm after the depthwise half too.
 *
 *     stem    conv 3×3 32 /2 · conv 3×3 64                                            299² → 150² × 64
 *     entry   modules of three separable convolutions, the third of stride 2: 128, 256, 728   →  19² × 728
 *             (xception71 has a module of stride 1 more after the first and after the second)
 *     middle  8 or 16 modules of 728 + identity                                       →  19² × 728
 *     exit    728 · 1024 · 1024 /2 + projection; 1536 · 1536 · 2048, no shortcut      →  10² × 2048
 *             global average pool · logistic regression
 *
 * 41, 65 and 71: ReLU before each separable convolution, in the last module after each half in its place. 41p and 65p are pre-activated:
 * batch norm and ReLU before each separable convolution and nowhere else, the shortcut reads what the first of them gives.
 */

import { checkChoice, checkOptions, SepconvError } from '../errors.js'
import type { Value } from '../graph/graph.js'
import { scoped } from '../graph/trace.js'
import type { InitializerName } from '../nn/initializers.js'
import { checkCount, type Layer, layer } from '../nn/layer.js'
import { batchNorm, conv2d, dense, dropout, globalAveragePool, relu, separable } from '../nn/layers.js'
import * as ops from '../ops/index.js'
import type { LayerNames } from '../weights/conventions.js'
import { inTurn, MAX_REPEATS, named } from './common.js'
import { type Network, registerModel } from './registry.js'

/** Options of the aligned Xceptions; the defaults are timm's models. */
export interface XceptionAlignedOptions {
  /** Outputs of the logistic regression; 0 gives the pooled embedding instead. Default 1000. */
  classes?: number
  /** Default 3. */
  inputChannels?: number
  /** Height and width of the input in pixels, at least 33. Default 299. */
  inputSize?: number
  /** Multiplies every channel count, rounded to multiples of 8 (at least 8). Default 1. */
  width?: number
  /** Repeats of the middle-flow module. Default 8 (41, 41p) or 16 (65, 65p, 71). */
  middleRepeats?: number
  /** Share of the pooled features zeroed in training. Default 0. */
  dropout?: number
  /**
   * Returns the feature pyramid (strides 2, 4, 8, 16, 32: the last sum at each, before any ReLU but at strides 2 and 32) instead of
   * classes. Default false.
   */
  featuresOnly?: boolean
  /** Of every batch norm. Default 1e-3; 1e-5 for `xception41p`. */
  epsilon?: number
  /** Share of the running statistics that is kept. Default 0.9 (PyTorch would call this 0.1). */
  momentum?: number
  /** Default `'glorotUniform'`. */
  initializer?: InitializerName
}

/** Names of the aligned Xceptions. */
export type XceptionAlignedVariant = 'xception41' | 'xception65' | 'xception71' | 'xception41p' | 'xception65p'

const OPTIONS = [
  ...['classes', 'inputChannels', 'inputSize', 'width', 'middleRepeats'],
  ...['dropout', 'featuresOnly', 'epsilon', 'momentum', 'initializer'],
]

interface Variant {
  readonly middleRepeats: number
  /** Further modules of stride 1 in the entry flow. */
  readonly wideEntry?: boolean
  readonly preActivation?: boolean
  readonly epsilon: number
  /** Side of the centre crop over the shorter side that it is cut from, of the weights that timm publishes under the plain name. */
  readonly crop: number
  readonly parameters: string
}

const VARIANTS: Readonly<Record<XceptionAlignedVariant, Variant>> = {
  xception41: { middleRepeats: 8, epsilon: 1e-3, crop: 0.903, parameters: '26,969,560' },
  xception65: { middleRepeats: 16, epsilon: 1e-3, crop: 0.903, parameters: '39,916,312' },
  xception71: { middleRepeats: 16, wideEntry: true, epsilon: 1e-3, crop: 0.903, parameters: '42,338,736' },
  xception41p: { middleRepeats: 8, preActivation: true, epsilon: 1e-5, crop: 0.94, parameters: '26,907,752' },
  xception65p: { middleRepeats: 16, preActivation: true, epsilon: 1e-3, crop: 0.94, parameters: '39,819,560' },
}

interface Module {
  readonly in: number
  /** Channels after each of the three separable convolutions. */
  readonly out: readonly [number, number, number]
  /** Of the third. */
  readonly stride: 1 | 2
  readonly stage: 'entry' | 'middle' | 'exit'
  readonly shortcut: 'projection' | 'identity' | 'none'
}

/** The modules of a variant, from input to output. */
function modulesOf({ wideEntry = false }: Variant, middleRepeats: number): Module[] {
  const plan: Omit<Module, 'in' | 'shortcut'>[] = []
  const add = (stage: Module['stage'], stride: 1 | 2, ...out: [number, number, number]) => plan.push({ out, stride, stage })
  add('entry', 2, 128, 128, 128)
  if (wideEntry) add('entry', 1, 256, 256, 256)
  add('entry', 2, 256, 256, 256)
  if (wideEntry) add('entry', 1, 728, 728, 728)
  add('entry', 2, 728, 728, 728)
  for (let i = 0; i < middleRepeats; i++) add('middle', 1, 728, 728, 728)
  add('exit', 2, 728, 1024, 1024)
  add('exit', 1, 1536, 1536, 2048)
  return plan.map((module, i) => {
    const from = plan[i - 1]?.out[2] ?? 64
    const projects = module.stride > 1 || module.out[2] !== from
    return { ...module, in: from, shortcut: i === plan.length - 1 ? 'none' : projects ? 'projection' : 'identity' }
  })
}

/** One row and column on each side, whatever the stride. */
const PADDING = { top: 1, bottom: 1, left: 1, right: 1 }

/**
 * Builds an aligned Xception.
 * @throws ERR_ARGUMENT for other names, unknown options and values out of range.
 */
export function buildXceptionAligned(name: XceptionAlignedVariant, options: XceptionAlignedOptions = {}): Network {
  checkChoice('buildXceptionAligned', 'name', name, Object.keys(VARIANTS) as XceptionAlignedVariant[])
  const variant = VARIANTS[name]
  checkOptions(name, options, OPTIONS)
  const { classes = 1000, inputChannels = 3, inputSize = 299, width = 1, featuresOnly = false, initializer = 'glorotUniform' } = options
  const { middleRepeats = variant.middleRepeats, dropout: rate = 0, momentum = 0.9, epsilon = variant.epsilon } = options
  checkCount(name, 'classes', classes, 0)
  checkCount(name, 'inputChannels', inputChannels)
  checkCount(name, 'middleRepeats', middleRepeats, 0, MAX_REPEATS)
  checkCount(name, 'inputSize', inputSize, 33)
  checkChoice(name, 'featuresOnly', featuresOnly, [true, false])
  if (!(width > 0 && width <= 16))
    throw new SepconvError('ERR_ARGUMENT', `${name}: width must be in (0, 16], got ${width}`, { subject: 'width', given: width })

  const channels = (count: number) => (width === 1 ? count : Math.max(8, Math.round((count * width) / 8) * 8))
  const bn = (count: number) => batchNorm(channels(count), { epsilon, momentum })
  const stemConv = (from: number, to: number, strides: number) => conv2d(from, to, { strides, padding: PADDING, initializer })
  const projection = ({ in: from, out, stride }: Module) =>
    conv2d(channels(from), channels(out[2]), { kernel: 1, strides: stride, padding: 'valid', initializer })
  const separables = (module: Module) =>
    module.out.map((to, i) =>
      separable(channels(i === 0 ? module.in : module.out[i - 1]!), channels(to), {
        strides: i === 2 ? module.stride : 1,
        padding: PADDING,
        initializer,
        intermediateBatchNorm: !variant.preActivation,
        intermediateActivation: !variant.preActivation && module.shortcut === 'none' ? 'relu' : 'none',
        batchNorm: { epsilon, momentum },
      }),
    )

  const plain = (module: Module): Layer => {
    const children: Record<string, Layer> = {}
    const last = module.shortcut === 'none'
    for (const [i, conv] of separables(module).entries()) {
      if (!last) children[`sepconv${i + 1}_act`] = relu()
      children[`sepconv${i + 1}`] = conv
      children[`sepconv${i + 1}_bn`] = bn(module.out[i]!)
      if (last) children[`sepconv${i + 1}_act`] = relu()
    }
    const branch = Object.values(children)
    if (module.shortcut === 'projection') Object.assign(children, { shortcut: projection(module), shortcut_bn: bn(module.out[2]) })
    return layer('xceptionModule', { children }, (x) => {
      const y = inTurn(branch, x)
      if (last) return y
      return ops.add(y, module.shortcut === 'projection' ? children.shortcut_bn!(children.shortcut!(x)) : x)
    })
  }
  const preActivated = (module: Module): Layer => {
    const children: Record<string, Layer> = {}
    for (const [i, conv] of separables(module).entries()) {
      children[`sepconv${i + 1}_bn`] = bn(i === 0 ? module.in : module.out[i - 1]!)
      children[`sepconv${i + 1}_act`] = relu()
      children[`sepconv${i + 1}`] = conv
    }
    const [norm, act, ...branch] = Object.values(children) as [Layer, Layer, ...Layer[]]
    if (module.shortcut === 'projection') children.shortcut = projection(module)
    return layer('xceptionModule', { children }, (x) => {
      const activated = act(norm(x))
      const y = inTurn(branch, activated)
      if (module.shortcut === 'none') return y
      return ops.add(y, module.shortcut === 'projection' ? children.shortcut!(activated) : activated)
    })
  }

  const stem = named('stem', {
    conv1: stemConv(inputChannels, channels(32), 2),
    conv1_bn: bn(32),
    conv1_act: relu(),
    conv2: stemConv(channels(32), channels(64), 1),
    ...(!variant.preActivation && { conv2_bn: bn(64), conv2_act: relu() }),
  })
  const modules = modulesOf(variant, middleRepeats)
  const blocks = modules.map((module) => (variant.preActivation ? preActivated(module) : plain(module)))
  const final = variant.preActivation ? { final_act: relu() } : undefined
  const head: Record<string, Layer> = featuresOnly
    ? {}
    : {
        avg_pool: globalAveragePool(),
        ...(rate > 0 && { dropout: dropout(rate, { stream: 0 }) }),
        ...(classes > 0 && { predictions: dense(channels(2048), classes) }),
      }

  const features = (x: Value): Record<string, Value> => {
    let [y, stride] = [stem(x), 2]
    const pyramid: Record<string, Value> = { stride2: y }
    for (const [i, block] of blocks.entries()) {
      y = block(y)
      stride *= modules[i]!.stride
      pyramid[`stride${stride}`] = y
    }
    return { ...pyramid, stride32: final ? final.final_act(y) : y }
  }
  const children = { stem, ...Object.fromEntries(blocks.map((block, i) => [`block${i + 1}`, block])), ...final, ...head }
  const root = layer(name, { children }, (x) => inTurn(Object.values(head), features(x).stride32!))
  return {
    root,
    forward: (x) => (featuresOnly ? scoped(root.label, () => features(x)) : root(x)),
    inputSize,
    inputChannels,
    classes: featuresOnly ? 0 : classes,
    variableInputSize: true,
    preprocessing: { resize: Math.floor(inputSize / variant.crop) },
  }
}

/** Every layer with weights under our names and timm's. */
export function xceptionAlignedNames(
  name: XceptionAlignedVariant,
  options: { middleRepeats?: number; classes?: number; featuresOnly?: boolean } = {},
): LayerNames[] {
  const variant = VARIANTS[name]
  const { middleRepeats = variant.middleRepeats, classes = 1000, featuresOnly = false } = options
  // Options of a file come here before a model is built of them.
  checkCount(name, 'middleRepeats', middleRepeats, 0, MAX_REPEATS)
  const pre = variant.preActivation === true
  const rows: LayerNames[] = [
    { kind: 'conv', own: 'stem.conv1', timm: 'stem.0.conv' },
    { kind: 'batchNorm', own: 'stem.conv1_bn', timm: 'stem.0.bn' },
    { kind: 'conv', own: 'stem.conv2', timm: pre ? 'stem.1' : 'stem.1.conv' },
    ...(pre ? [] : [{ kind: 'batchNorm', own: 'stem.conv2_bn', timm: 'stem.1.bn' } as const]),
  ]
  for (const [i, { shortcut }] of modulesOf(variant, middleRepeats).entries()) {
    const [block, timm] = [`block${i + 1}`, `blocks.${i}`]
    for (const k of [1, 2, 3]) {
      const [own, conv] = [`${block}.sepconv${k}`, `${timm}.stack.conv${k}`]
      rows.push({ kind: 'depthwise', own, timm: `${conv}.conv_dw` }, { kind: 'pointwise', own, timm: `${conv}.conv_pw` })
      if (pre) rows.push({ kind: 'batchNorm', own: `${own}_bn`, timm: k === 1 ? `${timm}.norm` : `${conv}.norm` })
      else
        rows.push(
          { kind: 'batchNorm', own: `${own}.intermediateBatchNorm`, timm: `${conv}.bn_dw` },
          { kind: 'batchNorm', own: `${own}_bn`, timm: `${conv}.bn_pw` },
        )
    }
    if (shortcut !== 'projection') continue
    rows.push({ kind: 'conv', own: `${block}.shortcut`, timm: pre ? `${timm}.shortcut` : `${timm}.shortcut.conv` })
    if (!pre) rows.push({ kind: 'batchNorm', own: `${block}.shortcut_bn`, timm: `${timm}.shortcut.bn` })
  }
  if (classes > 0 && !featuresOnly) rows.push({ kind: 'dense', own: 'predictions', timm: 'head.fc' })
  return rows
}

for (const [name, variant] of Object.entries(VARIANTS) as [XceptionAlignedVariant, Variant][])
  registerModel({
    name,
    description:
      `Aligned Xception${variant.preActivation ? ', pre-activated' : ''} (Chen et al. 2018; timm), ` +
      `${variant.parameters} parameters at 1000 classes`,
    options: OPTIONS,
    layerNames: (options) => xceptionAlignedNames(name, options),
    stages({ middleRepeats }) {
      const modules = modulesOf(variant, (middleRepeats as number | undefined) ?? variant.middleRepeats)
      const of = (stage: Module['stage']) => modules.flatMap((module, i) => (module.stage === stage ? [`block${i + 1}`] : []))
      return { entry: ['stem', ...of('entry')], middle: of('middle'), exit: of('exit'), head: ['predictions'] }
    },
    sources: { timm: {} },
    build: (options) => buildXceptionAligned(name, options as XceptionAlignedOptions),
  })
