/**
 * Xception's 81 layers with weights under every name that the world has for them. Generated from the architecture; the test
 * holds the table as published, row by row.
 *
 * Three orders meet here. Keras 1 numbers layers as they were created, a block's shortcut before its main path (so batch norm 36 is
 * block 13's shortcut and 38 its last, both of 1024 channels). Keras 3's `.weights.h5` numbers them by depth, the shortcut after the
 * main path. PyTorch's ports have names.
 */

import { checkCount } from '../nn/layer.js'
import type { LayerNames } from '../weights/conventions.js'
import { MAX_REPEATS } from './common.js'

/** One layer before numbering. */
interface Row extends Omit<LayerNames, 'keras1' | 'keras3'> {
  /** Where the layer stands in the order of creation: shortcuts come first in their block. */
  readonly shortcut?: boolean
}

/** @param options the architecture's; what changes no name may be left out. @throws ERR_ARGUMENT for more repeats than a model has. */
export function xceptionNames(
  options: { middleRepeats?: number; residual?: boolean; classes?: number; featuresOnly?: boolean } = {},
): LayerNames[] {
  const { middleRepeats = 8, residual = true, classes = 1000, featuresOnly = false } = options
  // Options of a file come here before a model is built of them.
  checkCount('xception', 'middleRepeats', middleRepeats, 0, MAX_REPEATS)
  const last = 5 + middleRepeats
  const blocks: Row[][] = [
    [1, 2].flatMap((i): Row[] => [
      { kind: 'conv', own: `block1.conv${i}`, keras: `block1_conv${i}`, timm: `conv${i}`, lucid: `conv${i}.conv` },
      { kind: 'batchNorm', own: `block1.conv${i}_bn`, keras: `block1_conv${i}_bn`, timm: `bn${i}`, lucid: `conv${i}.bn` },
    ]),
    ...[2, 3, 4].map((n) => block(n, { reps: 2, lucid: `block${n - 1}`, shortcut: residual ? n - 2 : undefined, first: n === 2 })),
    ...Array.from({ length: middleRepeats }, (_, i) => block(5 + i, { reps: 3, lucid: `mid_blocks.${i}` })),
    block(last, { reps: 2, lucid: 'end_block', shortcut: residual ? 3 : undefined }),
    [1, 2].flatMap((i): Row[] => {
      const [keras, own] = [`block${last + 1}_sepconv${i}`, `block${last + 1}.sepconv${i}`]
      return [
        { kind: 'separable', own, keras, timm: `conv${i + 2}`, lucid: `conv${i + 2}` },
        { kind: 'batchNorm', own: `${own}_bn`, keras: `${keras}_bn`, timm: `bn${i + 2}`, lucid: `bn${i + 2}` },
      ]
    }),
  ]
  const head: Row[] =
    classes > 0 && !featuresOnly ? [{ kind: 'dense', own: 'predictions', keras: 'predictions', timm: 'fc', lucid: 'fc' }] : []
  const created = new Map(blocks.flat().map((row) => [row.own, '']))
  number(blocks, { conv: 'convolution2d_', separable: 'separableconvolution2d_', batchNorm: 'batchnormalization_' }, 1, created)
  const deep = new Map<string, string>()
  const byDepth = blocks.map((rows) => [...rows.filter(({ shortcut }) => !shortcut), ...rows.filter(({ shortcut }) => shortcut)])
  number(byDepth, { conv: 'conv2d#', separable: 'separable_conv2d#', batchNorm: 'batch_normalization#' }, 0, deep)
  return [
    ...blocks.flat().map(({ shortcut: _, ...row }) => ({ ...row, keras1: created.get(row.own)!, keras3: deep.get(row.own)! })),
    // The published file calls it dense_2, which is its only dense layer.
    ...head.map((row) => ({ ...row, keras1: 'dense#0', keras3: 'dense#0' })),
  ]
}

interface BlockNames {
  reps: number
  lucid: string
  /** Number of the shortcut's projection, if the block has one. */
  shortcut?: number
  /** Without a ReLU in front, which moves the places in PyTorch's sequence. */
  first?: boolean
}

function block(n: number, { reps, lucid, shortcut, first = false }: BlockNames): Row[] {
  const timm = `block${n - 1}`
  const projection: Row[] =
    shortcut === undefined
      ? []
      : [
          {
            ...{ kind: 'conv', own: `block${n}.shortcut`, keras: `conv2d#${shortcut}` },
            ...{ timm: `${timm}.skip`, lucid: `${lucid}.skip`, shortcut: true },
          },
          {
            ...{ kind: 'batchNorm', own: `block${n}.shortcut_bn`, keras: `batch_normalization#${shortcut}` },
            ...{ timm: `${timm}.skipbn`, lucid: `${lucid}.skipbn`, shortcut: true },
          },
        ]
  const main = Array.from({ length: reps }, (_, i): Row[] => {
    const [own, keras, place] = [`block${n}.sepconv${i + 1}`, `block${n}_sepconv${i + 1}`, 3 * i + (first ? 0 : 1)]
    return [
      { kind: 'separable', own, keras, timm: `${timm}.rep.${place}`, lucid: `${lucid}.rep.${place}` },
      { kind: 'batchNorm', own: `${own}_bn`, keras: `${keras}_bn`, timm: `${timm}.rep.${place + 1}`, lucid: `${lucid}.rep.${place + 1}` },
    ]
  })
  return [...projection, ...main.flat()]
}

/** Counts layers of each kind in the order given, from `from` on. */
function number(
  blocks: readonly (readonly Row[])[],
  stems: Readonly<Record<string, string>>,
  from: number,
  names: Map<string, string>,
): void {
  const counts = new Map<string, number>()
  for (const { own, kind } of blocks.flat()) {
    const count = counts.get(kind) ?? from
    counts.set(kind, count + 1)
    names.set(own, `${stems[kind]}${count}`)
  }
}
