/** Depthwise-separable convolution for Node.js, and Xception on top of it. Layers are in `sepconv/nn`. */

export { type ErrorCode, type ErrorDetails, SepconvError } from './errors.js'
export { Graph, Value } from './graph/graph.js'
export type { Precision } from './graph/precision.js'
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
  type RankOptions,
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
export { loadProgram, type LoadProgramOptions, type ProgramArgument, type ReplayProgram } from './runtime/replay.js'
export type { Structure } from './runtime/structure.js'
export { type VerifyOptions, type VerifyRow, verifyModel } from './runtime/verify.js'
export { Tensor, tensor, type TensorOptions } from './runtime/tensor.js'
export type { AugmentOptions } from './data/augment.js'
export type { EraseOptions, RandAugmentOptions } from './data/randAugment.js'
export { type Dataset, imageFolder, type ImageFolderOptions, type Sample } from './data/folder.js'
export { dataset, type DatasetOptions } from './data/dataset.js'
export { multiLabelFolder } from './data/multiLabel.js'
export type { MixOptions } from './data/mix.js'
export { openDataset } from './data/open.js'
export { type Prepared, prepareDataset, type PrepareOptions } from './data/prepared.js'
export { type ShardOptions, webDataset } from './data/shards.js'
export { type ShapesOptions, writeShapes } from './data/shapes.js'
export {
  type ImageSource,
  type Interpolation,
  loadImage,
  type LoadImageOptions,
  preprocess,
  type PreprocessOptions,
  type RgbImage,
} from './data/image.js'
export { decodePredictions, type DecodedPrediction, IMAGENET_LABELS, IMAGENET_SYNSETS } from './data/imagenet.js'
export { Communicator, openCommunicator, type ReductionStatistics } from './distributed/communicator.js'
export { fetchWeights, type FetchOptions } from './weights/fetch.js'
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
export type { Position, RateFunction, Schedule, Span } from './train/schedule.js'
export { loadRecipe, type Recipe, recipeNames } from './train/recipe.js'
export {
  type MeanAveragePrecision,
  MeanAveragePrecisionMeter,
  type MeanAveragePrecisionOptions,
} from './meanAveragePrecision.js'
export { type Classification, ClassificationMeter, MultiLabelMeter, type MultiLabelOptions } from './metrics.js'
export { evaluate, type EvaluateOptions, type Evaluation, type Scored } from './train/evaluate.js'
export type { Best, Metric, Scores } from './train/events.js'
export { type Callback, fit, type FitEvent, type FitOptions } from './train/fit.js'
export type { LossFunction, TrainingSettings } from './train/settings.js'
