/**
 * A model on a device: an architecture's layers with their state, what its input must look like, and what its outputs mean.
 * It is a function of values in traces, and a predictor of pictures outside them.
 */

import { checkOptions, SepconvError } from '../errors.js'
import { softmax } from '../ops/index.js'
import type { Value } from '../graph/graph.js'
import { checkPrecision, checkStorage } from '../graph/passes/storage.js'
import type { Precision } from '../graph/precision.js'
import { formatShape, formatType } from '../graph/types.js'
import type { Variable } from '../graph/variable.js'
import type { RgbImage } from '../data/image.js'
import { nameVariables, variablesOf } from '../nn/layer.js'
import { type DeviceName, openDevice } from '../runtime/device.js'
import type { Executor, RunOptions } from '../runtime/executor.js'
import { type CompiledFunction, compile } from '../runtime/function.js'
import { releaseState } from '../runtime/state.js'
import { isTensor, type Tensor, upload } from '../runtime/tensor.js'
import { openWeightsFile, type WeightsFile } from '../weights/file.js'
import { type LoadOptions, type LoadReport, loadVariables } from './loading.js'
import { checkPreprocessing, defaultPreprocessing, normalise, type Preprocessing } from './preprocessing.js'
import { architecture, type Network } from './registry.js'
import { type SaveOptions, saveVariables } from './saving.js'
import { identify, type WeightsSource } from './source.js'
import { type ModelSummary, summarize } from './summary.js'

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
export interface ModelOptions extends LoadOptions {
  /**
   * A file to load, of any kind that {@link Model.loadWeights} takes. What is not given otherwise comes from it: the architecture's
   * options (classes, pool padding, epsilon), preprocessing, labels. Default: random weights.
   */
  weights?: string
  /** Default `'auto'`. */
  device?: DeviceName
  /** What feature maps are stored in when the model predicts; weights stay float32 (see {@link CompileOptions}). Default `'float32'`. */
  precision?: Precision
  /** Seed of the random weights. Default 0. */
  seed?: number
  /** Names of the classes. */
  labels?: readonly string[]
  /** Overrides of what the weights or the architecture say. */
  preprocessing?: Partial<Preprocessing>
}

const MODEL_OPTIONS = ['weights', 'head', 'device', 'precision', 'seed', 'labels', 'preprocessing']

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
  /** What feature maps are stored in when the model predicts. */
  readonly precision: Precision
  readonly #settings: { readonly preprocessing?: Partial<Preprocessing>; readonly seed: number }
  #network: Network
  #variables: ReadonlyMap<string, Variable>
  #config: ModelConfig
  #labels: readonly string[] | undefined
  #logits: CompiledFunction<[Tensor], unknown> | undefined
  #probabilities: CompiledFunction<[Tensor], Tensor> | undefined
  #disposed = false

  /** Users call {@link createModel} or {@link loadModel}. */
  constructor(name: string, options: Readonly<Record<string, unknown>>, settings: ModelOptions = {}) {
    super((images: Value) => this.network.forward(normalise(images, this.config.preprocessing)))
    checkPrecision(name, settings.precision)
    this.executor = openDevice(settings.device)
    this.precision = settings.precision ?? 'float32'
    checkStorage(this.precision, this.executor.target)
    const { seed = 0 } = settings
    if (!Number.isSafeInteger(seed) || seed < 0)
      throw new SepconvError('ERR_ARGUMENT', `${name}: seed must be a whole number of at least 0, got ${String(seed)}`, {
        subject: 'seed',
        given: seed,
      })
    this.#settings = { preprocessing: settings.preprocessing, seed }
    this.#network = architecture(name).build(options)
    this.#variables = this.#named()
    const preprocessing = { ...defaultPreprocessing(this.#network), ...settings.preprocessing }
    checkPreprocessing(name, preprocessing, this.#network.inputChannels)
    this.#config = { architecture: name, options, preprocessing }
    this.labels = settings.labels
  }

  /** Every variable by its name: parameters and running statistics. */
  get variables(): ReadonlyMap<string, Variable> {
    return this.#variables
  }

  get network(): Network {
    return this.#network
  }

  /** @internal A model with the weights of an open file; users call {@link loadModel}. */
  static async from(
    file: WeightsFile,
    source: WeightsSource,
    name: string,
    options: Readonly<Record<string, unknown>>,
    { head, ...settings }: Omit<ModelOptions, 'weights'>,
  ): Promise<Model> {
    const model = new Model(name, options, settings)
    try {
      await model.#load(file, source, { head })
    } catch (error) {
      model.dispose()
      throw error
    }
    return model
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
    this.#logits ??= compile((x: Value) => this(x), this.#compileOptions) as CompiledFunction<[Tensor], unknown>
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
    const scores = await this.probabilities(await this.#pixels(list), list.length)
    const results = list.map((_, i) =>
      this.topPredictions(scores.subarray(i * this.network.classes, (i + 1) * this.network.classes), options.top ?? 5),
    )
    return Array.isArray(images) ? results : results[0]!
  }

  /**
   * Feature vectors of pictures, for search and for classifiers of one's own: what the model gives with `classes: 0`.
   * @returns [pictures, features], row after row.
   * @throws ERR_ARGUMENT when the model has classes or gives a pyramid.
   */
  async embed(images: readonly RgbImage[]): Promise<Float32Array> {
    if (this.network.classes > 0 || this.config.options.featuresOnly === true)
      throw new SepconvError('ERR_ARGUMENT', 'embed: this model gives no vectors', {
        subject: 'classes',
        given: this.network.classes,
        hint: 'Create it with classes: 0',
      })
    this.#logits ??= compile((x: Value) => this(x), this.#compileOptions) as CompiledFunction<[Tensor], unknown>
    return await this.#rows(this.#logits as CompiledFunction<[Tensor], Tensor>, await this.#pixels(images), images.length)
  }

  /** Pictures as the weights want them: [n, size, size, 3]. */
  async #pixels(images: readonly RgbImage[]): Promise<Uint8Array> {
    if (images.length === 0) throw new SepconvError('ERR_SHAPE', 'expected at least one picture', { subject: 'images' })
    if (!images.every((image) => image?.data instanceof Uint8Array && image.data.length === image.width * image.height * 3))
      throw new SepconvError('ERR_ARGUMENT', 'expected pictures { data, width, height } with three bytes per pixel', {
        subject: 'images',
        hint: 'loadImage() gives them',
      })
    const { preprocess } = await import('../data/image.js')
    const { size, resize, crop, interpolation } = this.config.preprocessing
    const bytes = size * size * 3
    const pixels = new Uint8Array(images.length * bytes)
    await Promise.all(
      images.map((image, i) => preprocess(image, { size, resize, crop, interpolation }, pixels.subarray(i * bytes, (i + 1) * bytes))),
    )
    return pixels
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
    this.#probabilities ??= compile((x: Value) => softmax(this(x)), this.#compileOptions)
    return await this.#rows(this.#probabilities, pixels, count, size)
  }

  /** Runs pictures in batches of at most 32, padded to a few sizes. @returns the real rows. */
  async #rows(
    run: CompiledFunction<[Tensor], Tensor>,
    pixels: Uint8Array,
    count: number,
    size = this.config.preprocessing.size,
  ): Promise<Float32Array> {
    const { inputChannels } = this.network
    const bytes = size * size * inputChannels
    let rows: Float32Array | undefined
    for (let start = 0; start < count; ) {
      const real = Math.min(count - start, BATCH_SIZES.at(-1)!)
      const padded = BATCH_SIZES.find((candidate) => candidate >= real)!
      const chunk = new Uint8Array(padded * bytes)
      chunk.set(pixels.subarray(start * bytes, (start + real) * bytes))
      const images = upload(this.executor, { shape: [padded, size, size, inputChannels], dtype: 'uint8' }, chunk)
      this.#check(images)
      const output = await run.run(images)
      const width = output.shape[1]!
      rows ??= new Float32Array(count * width)
      rows.set(((await output.data()) as Float32Array).subarray(0, real * width), start * width)
      images.dispose()
      output.dispose()
      start += real
    }
    return rows ?? new Float32Array(0)
  }

  /**
   * Reads weights by content, whatever the file is called: safetensors (own, timm, Cadene and lucid names; one file or the index
   * of several), HDF5 of Keras 1 to 3, `.keras`, PyTorch's `.pt` and `.pth`.
   *
   * Pool padding, epsilon and preprocessing become those of the weights' origin, except where the model was created with its own.
   * Where that rebuilds the network, whatever was compiled from the model before is to be compiled again.
   * @throws ERR_WEIGHTS when tensors are missing, unexpected or of another shape (all are listed); ERR_FILE, ERR_FORMAT.
   */
  async loadWeights(path: string, options: LoadOptions = {}): Promise<LoadReport> {
    checkOptions('loadWeights', options, ['head'])
    await using file = await openWeightsFile(path)
    return await this.#load(file, identify(file, this.config.architecture, this.config.options), options)
  }

  async #load(file: WeightsFile, source: WeightsSource, options: LoadOptions): Promise<LoadReport> {
    if (options.head !== undefined && options.head !== 'load' && options.head !== 'new')
      throw new SepconvError('ERR_ARGUMENT', `head must be 'load' or 'new', got ${String(options.head)}`, {
        subject: 'head',
        given: options.head,
      })
    this.#adopt(source)
    const { architecture: name, options: given } = this.config
    const head = this.network.classes > 0 ? (architecture(name).head ?? 'predictions') : undefined
    const target = { name, options: given, variables: this.variables, head, executor: this.executor }
    const report = await loadVariables(file, source, target, options)
    const labels = report.newHead || this.#labels ? undefined : await labelsOf(source)
    if (labels?.length === this.network.classes) this.labels = labels
    return report
  }

  /** Takes over how weights of this origin are run, where the model was not told. */
  #adopt(source: WeightsSource): void {
    const { architecture: name, options, preprocessing } = this.#config
    const adopted = Object.fromEntries(
      Object.entries(source.options).filter(([key]) => ADOPTED.includes(key) && options[key] === undefined),
    )
    const rebuilt = Object.keys(adopted).length > 0 ? architecture(name).build({ ...options, ...adopted }) : undefined
    const adoptedPreprocessing = {
      ...preprocessing,
      ...rebuilt?.preprocessing,
      ...source.preprocessing,
      ...this.#settings.preprocessing,
    }
    checkPreprocessing(name, adoptedPreprocessing, this.#network.inputChannels)
    this.#config = { ...this.#config, preprocessing: adoptedPreprocessing }
    if (!rebuilt) return
    this.#release()
    this.#config = { ...this.#config, options: { ...options, ...adopted } }
    this.#network = rebuilt
    this.#variables = this.#named()
  }

  #named(): ReadonlyMap<string, Variable> {
    nameVariables(this.#network.root)
    const list = variablesOf(this.#network.root)
    for (const variable of list) variable.seed = this.#settings.seed
    return new Map(list.map((variable) => [variable.name, variable]))
  }

  /** Writes the weights, atomically: an interrupted save leaves the old file. @throws ERR_ARGUMENT, ERR_FILE. */
  async saveWeights(path: string, options: SaveOptions = {}): Promise<void> {
    await saveVariables(path, this, options)
  }

  /** Gives all device memory back. */
  dispose(): void {
    if (this.#disposed) return
    this.#disposed = true
    this.#release()
  }

  get #compileOptions() {
    return { device: this.device, precision: this.precision }
  }

  #release(): void {
    this.#logits?.dispose()
    this.#probabilities?.dispose()
    this.#logits = undefined
    this.#probabilities = undefined
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
}

/** The file's labels; published weights of a thousand classes carry none and are ImageNet's. */
async function labelsOf(source: WeightsSource): Promise<readonly string[] | undefined> {
  if (source.labels || source.convention === 'own') return source.labels
  return (await import('../data/imagenet.js')).IMAGENET_LABELS
}

/** Options that say how weights are run. A variant of a baseline also decides which biases and scales there are. */
const ADOPTED = ['poolPadding', 'epsilon', 'variant']

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
  const { weights, device, precision, seed, labels, preprocessing } = options
  const given = Object.fromEntries(Object.entries(options).filter(([key, value]) => known.includes(key) && value !== undefined))
  if (weights === undefined) return new Model(name, given, { device, precision, seed, labels, preprocessing })
  await using file = await openWeightsFile(weights)
  return await fromFile(file, name, options)
}

/**
 * Creates the model that a weights file belongs to, by its metadata or by its tensors' names.
 * @param options as those of {@link createModel}.
 * @throws ERR_WEIGHTS when neither says so; what createModel throws.
 */
export async function loadModel(
  weights: string,
  options: Omit<ModelOptions, 'weights'> & Readonly<Record<string, unknown>> = {},
): Promise<Model> {
  await using file = await openWeightsFile(weights)
  return await fromFile(file, undefined, options)
}

async function fromFile(
  file: WeightsFile,
  name: string | undefined,
  options: ModelOptions & Readonly<Record<string, unknown>>,
): Promise<Model> {
  const givenOf = (known: readonly string[]) =>
    Object.fromEntries(Object.entries(options).filter(([key, value]) => known.includes(key) && value !== undefined))
  const source = identify(file, name, name === undefined ? {} : givenOf(architecture(name).options))
  const model = name ?? source.architecture
  const { options: known } = architecture(model)
  checkOptions(model, options, [...MODEL_OPTIONS, ...known])
  const { head, device, precision, seed, labels, preprocessing } = options
  const inherited = source.architecture === model ? source.options : {}
  return await Model.from(
    file,
    source,
    model,
    { ...inherited, ...givenOf(known) },
    { head, device, precision, seed, labels, preprocessing },
  )
}
