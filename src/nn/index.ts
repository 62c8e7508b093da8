/** Layers and blocks for models of one's own: `import { sequential, separable, batchNorm } from 'sepconv/nn'`. */

export { constant, type Fans, glorotUniform, heNormal, type InitializerName, ones, zeros } from './initializers.js'
export { convBatchNormRelu, depthwiseSeparableConv2d, type XceptionBlockOptions, xceptionBlock } from './blocks.js'
export { equivalentInception, extremeInception, type InceptionModuleOptions, simplifiedInception } from './inception.js'
export { type Layer, type LayerParts, layer, nameVariables, variablesOf } from './layer.js'
export {
  activationLayer,
  avgPool2d,
  type BatchNormOptions,
  batchNorm,
  type Conv2dOptions,
  type ConvolutionOptions,
  conv2d,
  dense,
  dropout,
  elu,
  globalAveragePool,
  globalMaxPool,
  maxPool2d,
  type PoolOptions,
  relu,
  type SeparableOptions,
  segmentSizes,
  separable,
  sequential,
} from './layers.js'
