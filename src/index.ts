/** Depthwise-separable convolution for Node.js, and Xception on top of it. Layers are in `sepconv/nn`. */

export { type ErrorCode, type ErrorDetails, SepconvError } from './errors.js'
export { Graph, Value } from './graph/graph.js'
export type { Lifted, Operation } from './graph/trace.js'
export type { DType, Shape, TensorType, TypedArray } from './graph/types.js'
export { type Initializer, Variable } from './graph/variable.js'
export * from './ops/index.js'
export * from './models/index.js'
export { type DeviceInfo, type DeviceName, devices } from './runtime/device.js'
export { Executable } from './runtime/executable.js'
export type { Binding, DeviceMemory, Executor, LoadedProgram, RunOptions } from './runtime/executor.js'
export {
  type CompiledFunction,
  type CompileOptions,
  compile,
  type Optimizer,
  type ParameterGradient,
  type ParameterValue,
  type StepOptions,
  type TrainOptions,
  type TrainStep,
  type ValueAndGradOptions,
  valueAndGrad,
  type WeightAverage,
} from './runtime/function.js'
export type { Call, Place, Program, ProgramBuffer } from './runtime/program.js'
export type { Structure } from './runtime/structure.js'
export { type VerifyOptions, type VerifyRow, verifyModel } from './runtime/verify.js'
export { Tensor, tensor, type TensorOptions } from './runtime/tensor.js'
export type { Classification } from './metrics.js'
export type { AugmentOptions } from './data/augment.js'
export { type Dataset, imageFolder, type ImageFolderOptions, type Sample } from './data/folder.js'
export {
  type ImageSource,
  type Interpolation,
  loadImage,
  type LoadImageOptions,
  preprocess,
  type PreprocessOptions,
  type RgbImage,
} from './data/image.js'
export { type AverageKind, type TrackedAverage, weightAverage } from './train/average.js'
export {
  adamW,
  type AdamWOptions,
  lamb,
  type LambOptions,
  type OptimizerSettings,
  rmsprop,
  type RmspropOptions,
  sgd,
  type SgdOptions,
  type TrainingOptimizer,
} from './train/optimizer.js'
export type { Schedule } from './train/schedule.js'
export { evaluate, type EvaluateOptions, type Evaluation } from './train/evaluate.js'
export { fit, type FitEvent, type FitOptions } from './train/fit.js'
