export { createModel, loadModel, Model, type ModelConfig, type ModelOptions, type Prediction } from './model.js'
export type { Preprocessing } from './preprocessing.js'
export { buildInceptionV3, type InceptionV3Options } from './inception.js'
export type { LoadOptions, LoadReport } from './loading.js'
export type { SaveOptions, WeightsFormat } from './saving.js'
export { type Architecture, listModels, type Network, registerModel, type SourceDefaults } from './registry.js'
export type { Convention, LayerNames } from '../weights/conventions.js'
export { buildResNet, type ResNetOptions } from './resnet.js'
export { buildSeparableStack, type SeparableStackOptions } from './stack.js'
export { type LayerSummary, type ModelSummary, summarize } from './summary.js'
export { buildVgg16, type VggOptions } from './vgg.js'
export { buildXception, type XceptionOptions } from './xception.js'
export { buildXceptionAligned, type XceptionAlignedOptions, type XceptionAlignedVariant } from './xceptionAligned.js'

import { Model, type ModelOptions } from './model.js'
import type { XceptionOptions } from './xception.js'

/** Xception with random weights, without waiting for a file; see {@link XceptionOptions}. */
export function xception(options: XceptionOptions & Omit<ModelOptions, 'weights'> = {}): Model {
  const { device, seed, labels, preprocessing, ...architecture } = options
  return new Model('xception', architecture as Record<string, unknown>, { device, seed, labels, preprocessing })
}
