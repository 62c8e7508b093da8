/**
 * A model on a device: an architecture's layers with their state, what its input must look like, and what its outputs mean.
 * It is a function of values in traces, and a predictor of pictures outside them.
 */

import { checkOptions, SepconvError } from '../errors.js'
import { softmax } from '../ops/index.js'
import type { Value } from '../graph/graph.js'
import { opDefinition } from '../graph/op.js'
import { emit } from '../graph/trace.js'
import { elements, formatShape, formatType, sameShape } from '../graph/types.js'
import { TRAINING_PREFIX, type Variable } from '../graph/variable.js'
import type { RgbImage } from '../data/image.js'
import { nameVariables, variablesOf } from '../nn/layer.js'
import { type DeviceName, openDevice } from '../runtime/device.js'
import type { Executor, RunOptions } from '../runtime/executor.js'
import { type CompiledFunction, compile } from '../runtime/function.js'
import { readState, releaseState, writeState } from '../runtime/state.js'
import { isTensor, type Tensor, upload } from '../runtime/tensor.js'
import { SafetensorsFile, writeSafetensors } from '../weights/safetensors.js'
import { architecture, type Network } from './registry.js'
import { type ModelSummary, summarize } from './summary.js'

/** How a picture becomes the model's input; it travels with the weights. */
export interface Preprocessing {
  /** Side of the square input in pixels. */
  readonly size: number
  /** The shorter side after resizing, before the centre is cut out. */
  readonly resize: number
  readonly crop: 'center' | 'squash'
  readonly interpolation: 'bicubic' | 'bilinear' | 'nearest'
  /** Per channel, of values from 0 to 1: the input is (value / 255 − mean) / deviation. */
  readonly mean: readonly number[]
  readonly deviation: readonly number[]
}

/** What a model is, as it stands in the metadata of its weights: enough to create it again. */
export interface ModelConfig {
  readonly architecture: string
  readonly options: Readonly<Record<string, unknown>>
  readonly preprocessing: Preprocessing
  /** Names of the classes, in the order of the outputs. */
  readonly labels?: readonly string[]
}

/** One class of a classified picture. */
export interface Prediction {
  readonly index: number
  /** The class's name, or its index as text where the weights carry no names. */
  readonly label: string
  /** Probability. */
  readonly score: number
}

/** Options of {@link createModel} besides those of the architecture (see XceptionOptions). */
export interface ModelOptions {
  /** A file to load; its metadata then also gives the architecture's options, preprocessing and labels. Default: random weights. */
  weights?: string
  /** Default `'auto'`. */
  device?: DeviceName
  /** Seed of the random weights. Default 0. */
  seed?: number
  /** Names of the classes. */
  labels?: readonly string[]
  /** Overrides of what the weights or the architecture say. */
  preprocessing?: Partial<Preprocessing>
}

const MODEL_OPTIONS = ['weights', 'device', 'seed', 'labels', 'preprocessing']

/** Batches are padded to the next of these, so that a handful of programs serves every request. */
const BATCH_SIZES = [1, 2, 4, 8, 16, 32]

/** A function object whose own behaviour is `call`, with the methods of the derived class. */
class Callable {
  constructor(call: (x: Value) => unknown) {
    // biome-ignore lint/correctness/noConstructorReturn: a model is a function with methods; private fields land on it
    return Object.setPrototypeOf(call, new.target.prototype) as Callable
  }
}

/** The call signature of {@link Model}. */
export interface Model {
  /** In a trace: [n, h, w, c], uint8 pixels or normalised float32 → logits [n, classes] (an embedding without classes). */
  (images: Value): Value
}

/** A network with its state on a device; `createModel` and `loadModel` make them. */
// biome-ignore lint/suspicious/noUnsafeDeclarationMerging: the call signature above is what Callable implements
export class Model extends Callable {
  readonly executor: Executor
  /** Every variable by its name: parameters and running statistics. */
  readonly variables: ReadonlyMap<string, Variable>
  readonly network: Network
  readonly #config: ModelConfig
  #labels: readonly string[] | undefined
  #logits: CompiledFunction<[Tensor], unknown> | undefined
  #probabilities: CompiledFunction<[Tensor], Tensor> | undefined
  #disposed = false

  /** Users call {@link createModel} or {@link loadModel}. */
  constructor(name: string, options: Readonly<Record<string, unknown>>, settings: ModelOptions = {}) {
    const network = architecture(name).build(options)
    super((images: Value) => network.forward(normalise(images, this.config.preprocessing)))
    nameVariables(network.root)
    this.network = network
    this.executor = openDevice(settings.device)
    this.variables = new Map(variablesOf(network.root).map((variable) => [variable.name, variable]))
    const { seed = 0 } = settings
    if (!Number.isSafeInteger(seed) || seed < 0)
      throw new SepconvError('ERR_ARGUMENT', `${name}: seed must be a whole number of at least 0, got ${String(seed)}`, {
        subject: 'seed',
        given: seed,
      })
    for (const variable of this.variables.values()) variable.seed = seed
    const preprocessing = { ...defaultPreprocessing(network), ...settings.preprocessing }
    checkPreprocessing(name, preprocessing, network.inputChannels)
    this.#config = { architecture: name, options, preprocessing }
    this.labels = settings.labels
  }

  get config(): ModelConfig {
    return { ...this.#config, ...(this.#labels && { labels: this.#labels }) }
  }

  get device(): string {
    return this.executor.name
  }

  get labels(): readonly string[] | undefined {
    return this.#labels
  }

  /** @throws ERR_ARGUMENT unless there is one label per class. */
  set labels(labels: readonly string[] | undefined) {
    if (labels && labels.length !== this.network.classes)
      throw new SepconvError('ERR_ARGUMENT', `labels: expected ${this.network.classes}, one per class, got ${labels.length}`, {
        subject: 'labels',
        expected: this.network.classes,
        given: labels.length,
      })
    this.#labels = labels && [...labels]
  }

  /** Variables that training changes. */
  get parameters(): Variable[] {
    return [...this.variables.values()].filter(({ trainable }) => trainable)
  }

  /** Layers, shapes, parameters and multiply-adds. */
  summary(inputSize?: number): ModelSummary {
    return summarize(this.network, inputSize)
  }

  /**
   * Logits (or embeddings, or the feature pyramid) of a batch.
   * @param images [n, h, w, c] on the model's device: uint8 pixels, or float32 normalised by the caller.
   * @param options `signal`: an abort ends the run between two kernels, and rejects with its reason.
   * @returns [n, classes]; with `featuresOnly` an object of feature maps by name (`run<Record<string, Tensor>>(…)`).
   * @throws ERR_SHAPE, ERR_DTYPE, ERR_DEVICE for images that do not fit; ERR_DISPOSED.
   */
  async run<R extends Tensor | Readonly<Record<string, Tensor>> = Tensor>(images: Tensor, options: RunOptions = {}): Promise<R> {
    checkOptions('run', options, ['signal'])
    this.#check(images)
    this.#logits ??= compile((x: Value) => this(x), { device: this.device }) as CompiledFunction<[Tensor], unknown>
    const executable = this.#logits.executable(images)
    const outputs = await executable.run([images], options)
    const features = Object.fromEntries(executable.outputs.map(({ name }, i) => [name, outputs[i]!]))
    return (features.value ?? features) as R
  }

  /**
   * The most probable classes of a picture, or of each of several, resized and cut as the weights want it.
   * @param images what `loadImage` gives.
   * @param options `top`: how many classes, default 5.
   * @returns classes by falling probability; a list of such lists for a list of pictures.
   */
  classify(images: RgbImage, options?: { top?: number }): Promise<Prediction[]>
  classify(images: readonly RgbImage[], options?: { top?: number }): Promise<Prediction[][]>
  async classify(images: RgbImage | readonly RgbImage[], options: { top?: number } = {}): Promise<Prediction[] | Prediction[][]> {
    checkOptions('classify', options, ['top'])
    const list = Array.isArray(images) ? (images as readonly RgbImage[]) : [images as RgbImage]
    if (list.length === 0) throw new SepconvError('ERR_SHAPE', 'classify: expected at least one picture', { subject: 'images' })
    if (!list.every((image) => image?.data instanceof Uint8Array && image.data.length === image.width * image.height * 3))
      throw new SepconvError('ERR_ARGUMENT', 'classify: expected pictures { data, width, height } with three bytes per pixel', {
        subject: 'images',
        hint: 'loadImage() gives them',
      })
    const { preprocess } = await import('../data/image.js')
    const { size, resize, crop, interpolation } = this.config.preprocessing
    const batch = new Uint8Array(list.length * size * size * 3)
    await Promise.all(
      list.map((image, i) =>
        preprocess(image, { size, resize, crop, interpolation } as never, batch.subarray(i * size * size * 3, (i + 1) * size * size * 3)),
      ),
    )
    const scores = await this.probabilities(batch, list.length, size)
    const results = list.map((_, i) =>
      this.topPredictions(scores.subarray(i * this.network.classes, (i + 1) * this.network.classes), options.top ?? 5),
    )
    return Array.isArray(images) ? results : results[0]!
  }

  /** The `top` classes of one row of probabilities. */
  topPredictions(scores: Float32Array, top: number): Prediction[] {
    if (!Number.isInteger(top) || top < 1)
      throw new SepconvError('ERR_ARGUMENT', `top must be a whole number of at least 1, got ${top}`, { subject: 'top', given: top })
    const order = Array.from(scores.keys()).sort((a, b) => scores[b]! - scores[a]! || a - b)
    return order.slice(0, top).map((index) => ({ index, label: this.#labels?.[index] ?? String(index), score: scores[index]! }))
  }

  /**
   * Class probabilities of `count` pictures of `size` × `size` RGB pixels, row after row.
   * Runs in batches of at most 32, padded to a few sizes.
   */
  async probabilities(pixels: Uint8Array, count: number, size = this.config.preprocessing.size): Promise<Float32Array> {
    const { classes, inputChannels } = this.network
    if (classes === 0)
      throw new SepconvError('ERR_ARGUMENT', 'this model has no classes', { hint: 'Use run() for embeddings and features' })
    if (pixels.length !== count * size * size * inputChannels)
      throw new SepconvError(
        'ERR_SHAPE',
        `expected ${count} pictures of ${size}×${size}×${inputChannels}, which is ${count * size * size * inputChannels} bytes, got ${pixels.length}`,
        { subject: 'pixels' },
      )
    this.#probabilities ??= compile((x: Value) => softmax(this(x)), { device: this.device })
    const scores = new Float32Array(count * classes)
    const bytes = size * size * inputChannels
    for (let start = 0; start < count; ) {
      const real = Math.min(count - start, BATCH_SIZES.at(-1)!)
      const padded = BATCH_SIZES.find((candidate) => candidate >= real)!
      const chunk = new Uint8Array(padded * bytes)
      chunk.set(pixels.subarray(start * bytes, (start + real) * bytes))
      const images = upload(this.executor, { shape: [padded, size, size, inputChannels], dtype: 'uint8' }, chunk)
      this.#check(images)
      const output = await this.#probabilities.run(images)
      scores.set(((await output.data()) as Float32Array).subarray(0, real * classes), start * classes)
      images.dispose()
      output.dispose()
      start += real
    }
    return scores
  }

  /**
   * Reads weights that `saveWeights` wrote, or those inside a training checkpoint (`last.safetensors`).
   * @throws ERR_WEIGHTS when tensors are missing, unexpected or of another shape (all are listed); ERR_FILE, ERR_FORMAT.
   */
  async loadWeights(path: string): Promise<void> {
    await using file = await SafetensorsFile.open(path)
    this.#compare(path, file)
    const own = readMetadata(path, file.metadata)
    for (const [name, variable] of this.variables) {
      const data = new Float32Array(elements(variable.type.shape))
      await file.readInto(name, data)
      writeState(variable, data, this.executor)
    }
    if (own?.labels?.length === this.network.classes && !this.#labels) this.labels = own.labels
  }

  /** Writes weights and configuration as safetensors, atomically: an interrupted save leaves the old file. */
  async saveWeights(path: string, options: { variable?: (of: Variable) => Variable } = {}): Promise<void> {
    const source = options.variable ?? ((variable: Variable) => variable)
    const tensors = new Map(
      [...this.variables].map(([name, variable]) => [
        name,
        { dtype: 'F32' as const, shape: variable.type.shape, data: () => readState(source(variable)) },
      ]),
    )
    const { architecture: arch, options: architectureOptions, preprocessing, labels } = this.config
    const metadata = {
      format: 'sepconv',
      architecture: arch,
      options: JSON.stringify(architectureOptions),
      preprocessing: JSON.stringify(preprocessing),
      ...(labels && { labels: JSON.stringify(labels) }),
    }
    await writeSafetensors(path, tensors, { metadata })
  }

  /** Gives all device memory back. */
  dispose(): void {
    if (this.#disposed) return
    this.#disposed = true
    this.#logits?.dispose()
    this.#probabilities?.dispose()
    for (const variable of this.variables.values()) releaseState(variable)
  }

  /** What `using` calls. */
  [Symbol.dispose](): void {
    this.dispose()
  }

  #check(images: Tensor): void {
    if (this.#disposed) throw new SepconvError('ERR_DISPOSED', `model '${this.config.architecture}' was used after dispose()`)
    if (!isTensor(images))
      throw new SepconvError('ERR_ARGUMENT', `${this.config.architecture}: expected a tensor of images, got ${typeof images}`, {
        subject: 'images',
        hint: 'Make one with tensor(), or use classify() for pictures',
      })
    const { inputChannels, inputSize, variableInputSize } = this.network
    const [, height, width, channels] = images.shape
    const wanted = `[n, ${variableInputSize ? 'h, w' : `${inputSize}, ${inputSize}`}, ${inputChannels}]`
    if (images.shape.length !== 4 || channels !== inputChannels || (!variableInputSize && (height !== inputSize || width !== inputSize)))
      throw new SepconvError(
        'ERR_SHAPE',
        `${this.config.architecture}: expected images of shape ${wanted}, got ${formatShape(images.shape)}`,
        { subject: 'images', expected: wanted, given: images.shape },
      )
    if (images.dtype !== 'uint8' && images.dtype !== 'float32')
      throw new SepconvError(
        'ERR_DTYPE',
        `${this.config.architecture}: images must be uint8 pixels or normalised float32, got ${formatType(images.type)}`,
        { subject: 'images', given: images.dtype },
      )
  }

  #compare(path: string, file: SafetensorsFile): void {
    const missing = [...this.variables.keys()].filter((name) => !file.tensors.has(name))
    const unexpected = [...file.tensors.keys()].filter((name) => !this.variables.has(name) && !name.startsWith(TRAINING_PREFIX))
    const reshaped = [...this.variables].flatMap(([name, { type }]) => {
      const found = file.tensors.get(name)
      return found && !sameShape(found.shape, type.shape)
        ? [`${name} ${formatShape(found.shape)} instead of ${formatShape(type.shape)}`]
        : []
    })
    if (missing.length + unexpected.length + reshaped.length === 0) return
    const list = (label: string, names: readonly string[]) =>
      names.length > 0 ? [`${names.length} ${label} (${names.slice(0, 4).join(', ')}${names.length > 4 ? ', …' : ''})`] : []
    const parts = [...list('missing', missing), ...list('unexpected', unexpected), ...list('of another shape', reshaped)]
    const own = readMetadata(path, file.metadata)
    const hint = own
      ? `The file holds '${own.architecture}' with options ${JSON.stringify(own.options)}`
      : 'The file does not say which architecture it belongs to'
    throw new SepconvError('ERR_WEIGHTS', `${path} does not fit this ${this.config.architecture}: ${parts.join('; ')}`, {
      subject: path,
      given: { missing, unexpected, reshaped },
      hint,
    })
  }
}

/** What a file written by `saveWeights` says of its model; `undefined` for files of other programs. @throws ERR_FORMAT. */
export function readMetadata(path: string, metadata: Readonly<Record<string, string>>): ModelConfig | undefined {
  if (metadata.format !== 'sepconv' || metadata.architecture === undefined) return undefined
  try {
    return {
      architecture: metadata.architecture,
      options: JSON.parse(metadata.options ?? '{}') as Record<string, unknown>,
      preprocessing: JSON.parse(metadata.preprocessing ?? '{}') as Preprocessing,
      ...(metadata.labels !== undefined && { labels: JSON.parse(metadata.labels) as string[] }),
    }
  } catch (cause) {
    throw new SepconvError('ERR_FORMAT', `${path}: its metadata is not valid JSON`, { subject: path, cause })
  }
}

/**
 * Creates a model by its registered name, with random weights or those of a file.
 * @param name such as `'xception'`; see `listModels()`.
 * @param options those of the architecture together with {@link ModelOptions}; what is not given comes from the weights' metadata.
 * @throws ERR_ARGUMENT for unknown names and options, ERR_WEIGHTS when the file does not fit, ERR_FILE, ERR_FORMAT, ERR_DEVICE.
 * @example const model = await createModel('xception', { weights: 'runs/photos/best.safetensors' })
 */
export async function createModel(name: string, options: ModelOptions & Readonly<Record<string, unknown>> = {}): Promise<Model> {
  const { options: known } = architecture(name)
  checkOptions(name, options, [...MODEL_OPTIONS, ...known])
  const { weights, device, seed, labels, preprocessing } = options
  const given = Object.fromEntries(Object.entries(options).filter(([key, value]) => known.includes(key) && value !== undefined))
  if (weights === undefined) return new Model(name, given, { device, seed, labels, preprocessing })
  const stored = await storedConfig(weights)
  const inherited = stored?.architecture === name ? stored : undefined
  const model = new Model(
    name,
    { ...inherited?.options, ...given },
    { device, seed, labels, preprocessing: { ...inherited?.preprocessing, ...preprocessing } },
  )
  try {
    await model.loadWeights(weights)
  } catch (error) {
    model.dispose()
    throw error
  }
  return model
}

/**
 * Creates the model that a weights file says it belongs to.
 * @throws ERR_WEIGHTS when the file does not say so.
 */
export async function loadModel(weights: string, options: Omit<ModelOptions, 'weights'> = {}): Promise<Model> {
  const stored = await storedConfig(weights)
  if (!stored)
    throw new SepconvError('ERR_WEIGHTS', `${weights} does not say which model it belongs to`, {
      subject: weights,
      hint: 'Name the architecture: createModel(name, { weights })',
    })
  return createModel(stored.architecture, { ...options, weights })
}

async function storedConfig(weights: string): Promise<ModelConfig | undefined> {
  await using file = await SafetensorsFile.open(weights)
  return readMetadata(weights, file.metadata)
}

/** What the published Xception weights want: shorter side to 333, centre 299, [−1, 1] (see docs/xception.md). */
const defaultPreprocessing = ({ inputSize, inputChannels, preprocessing }: Network): Preprocessing => ({
  size: inputSize,
  resize: Math.round((inputSize * 333) / 299),
  crop: 'center',
  interpolation: 'bicubic',
  mean: new Array<number>(inputChannels).fill(0.5),
  deviation: new Array<number>(inputChannels).fill(0.5),
  ...preprocessing,
})

/** @throws ERR_ARGUMENT for unknown keys, sizes that are not whole, and means and deviations that do not fit the channels. */
function checkPreprocessing(name: string, preprocessing: Preprocessing, channels: number): void {
  const subject = `${name}: preprocessing`
  checkOptions(subject, preprocessing, ['size', 'resize', 'crop', 'interpolation', 'mean', 'deviation'])
  const { size, resize, mean, deviation } = preprocessing
  for (const [key, value] of Object.entries({ size, resize }))
    if (!Number.isInteger(value) || value < 1)
      throw new SepconvError('ERR_ARGUMENT', `${subject}: ${key} must be a whole number of at least 1, got ${String(value)}`, {
        subject: key,
        given: value,
      })
  const perChannel = (key: string, values: readonly number[], accepts: (x: number) => boolean, expected: string) => {
    if (Array.isArray(values) && values.length === channels && values.every((x) => Number.isFinite(x) && accepts(x))) return
    throw new SepconvError('ERR_ARGUMENT', `${subject}: ${key} must be ${channels} ${expected}, got ${JSON.stringify(values)}`, {
      subject: key,
      given: values,
    })
  }
  perChannel('mean', mean, () => true, 'numbers, one per channel')
  perChannel('deviation', deviation, (x) => x > 0, 'positive numbers, one per channel')
}

/** uint8 pixels → (value / 255 − mean) / deviation, in the graph; float32 passes as it is. */
export function normalise(images: Value, { mean, deviation }: Preprocessing): Value {
  if (images.dtype !== 'uint8') return images
  const uniform = mean.every((value) => value === mean[0]) && deviation.every((value) => value === deviation[0])
  if (uniform)
    return emit(opDefinition('cast'), [images], { dtype: 'float32', scale: 1 / (255 * deviation[0]!), offset: -mean[0]! / deviation[0]! })
  const channels = mean.length
  const constant = (values: readonly number[]) => images.graph.constant({ shape: [channels], dtype: 'float32' }, Float32Array.from(values))
  const wide = emit(opDefinition('cast'), [images], { dtype: 'float32', scale: 1, offset: 0 })
  const scale = constant(deviation.map((value) => 1 / (255 * value)))
  const shift = constant(mean.map((value, i) => -value / deviation[i]!))
  return emit(opDefinition('scaleShift'), [wide, scale, shift, null], { activation: 'none' })
}
