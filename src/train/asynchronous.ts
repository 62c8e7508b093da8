/**
 * Training without waiting for each other, as the paper's JFT models were (Dean et al. 2012, Downpour SGD). Every rank owns some of the
 * variables. A rank computes gradients on the weights that it has, sends each owner its part and goes on; the owner applies what
 * comes as it comes and sends the new weights back. How old weights may be is bounded: a rank begins its step k only with weights
 * that contain every rank's updates up to its step k - 1 - maxStaleness (stale synchronous parallel, Ho et al. 2013).
 */

import type { Communicator } from '../distributed/communicator.js'
import { differentiate } from '../graph/differentiate.js'
import type { Value } from '../graph/graph.js'
import { opDefinition } from '../graph/op.js'
import { currentTrace, emit, trace } from '../graph/trace.js'
import { byteLength, elements } from '../graph/types.js'
import { TRAINING_PREFIX, type Variable } from '../graph/variable.js'
import type { Model } from '../models/model.js'
import { byFactor, type CompiledFunction, compile, keyOf, multiplied } from '../runtime/function.js'
import { readState, writeState } from '../runtime/state.js'
import { type Tensor, upload } from '../runtime/tensor.js'
import { gradientScale, meanOf, updateAverages, updateWeightAverage } from '../runtime/update.js'
import type { TrackedAverage } from './average.js'
import { lossOf, type StepInputs } from './batch.js'
import type { TrainingOptimizer } from './optimizer.js'
import type { Settings } from './settings.js'

/** Tags of messages. */
const PUSH = 0
const WEIGHTS = 1
const PULL = 2

/** Before the values of a push: step, version of the weights, whether all is finite, scale of the gradients, rate, decay. */
const PUSH_HEAD = 6
/** Before the values of weights: version, and the fewest steps that the owner has from any rank. */
const WEIGHTS_HEAD = 2

/** How old the weights were that updates were computed on, in updates of any rank that came in between. */
export interface Staleness {
  readonly mean: number
  readonly max: number
}

export interface AsynchronousOptions {
  readonly ranks: Communicator
  readonly model: Model
  readonly optimizer: TrainingOptimizer
  readonly average?: TrackedAverage
  readonly settings: Settings
  readonly maxStaleness: number
  readonly memoryLimit?: number
  readonly rateOf: (variable: Variable) => number
}

/** What a variable gets of a step: its gradient, or for running statistics of batch norm those of the batch. */
interface Part {
  readonly variable: Variable
  readonly kind: 'parameter' | 'statistic'
  readonly length: number
}

type Gradients = CompiledFunction<[StepInputs & { sample: Tensor }], { loss: Tensor; logits: Tensor; head: Tensor; parts: Tensor[] }>

/** One rank's part in an asynchronous run. */
export class Asynchronous {
  readonly #gradients: Gradients
  #parts: readonly Part[] = []
  /** The parts of each owner. */
  #owned: readonly (readonly Part[])[] = []
  #update: CompiledFunction<[Record<string, Tensor>], Tensor> | undefined
  readonly #inputs = new Map<string, Tensor>()
  readonly #sample: Tensor
  /** As owner: updates applied, and steps received of each rank. */
  #version = 0
  readonly #received: number[]
  #waiting: { readonly from: number; readonly needed: number }[] = []
  #ages: number[] = []
  #applied: Promise<unknown> = Promise.resolve()
  /** As worker: steps sent, and of each owner the version and the clock of the weights here, and what has come since. */
  #steps = 0
  readonly #versions: number[]
  readonly #clocks: number[]
  readonly #arrived = new Map<number, Float32Array>()
  #unanswered = 0
  #wake: (() => void) | undefined
  #error: unknown
  #vote: Promise<Float64Array[]> | undefined

  constructor(private readonly options: AsynchronousOptions) {
    const { ranks, model, settings } = options
    this.#received = new Array<number>(ranks.size).fill(0)
    this.#versions = new Array<number>(ranks.size).fill(0)
    this.#clocks = new Array<number>(ranks.size).fill(0)
    this.#sample = upload(model.executor, { shape: [2], dtype: 'int32' }, new Int32Array(2))
    this.#gradients = compile((batch: Record<'images' | 'labels' | 'sample', Value>) => this.#trace(batch), {
      device: model.device,
      precision: settings.precision,
      training: true,
      ...(options.memoryLimit !== undefined && { memoryLimit: options.memoryLimit }),
    }) as unknown as Gradients
  }

  /** Compiles both programs, which creates slots and averages. */
  prepare(inputs: StepInputs): void {
    this.#gradients.executable({ ...inputs, sample: this.#sample })
    this.#owned = dealOut(this.#parts, this.options.ranks.size)
    // Every rank has slots and averages of all variables, since a checkpoint holds them: tracing the whole update makes them.
    trace((graph) => {
      const scalars = ['rate', 'decay', 'flag', 'scale'].map((name) => [name, graph.input(name, { shape: [], dtype: 'float32' })])
      const parts = this.#parts.map(({ variable }, i) => [`part${i}`, graph.input(`part${i}`, variable.type)])
      this.#emitUpdate(Object.fromEntries([...scalars, ...parts]) as Record<string, Value>, this.#parts)
    })
    this.options.ranks.receive((from, tag, bytes) => this.#receive(from, tag, bytes))
    this.#compileUpdate()
  }

  /** Variables that the loss depends on. */
  get parameters(): number {
    return this.#parts.filter(({ kind }) => kind === 'parameter').length
  }

  /**
   * One step on this rank's pictures: adopts the weights that have come, waits where they would be too old, computes and sends. `rate` is
   * that of a step of all ranks, `decay` likewise: each rank's update gets its share.
   */
  async step(inputs: StepInputs, { rate, decay, sample }: { rate: number; decay: number; sample: number }) {
    const { ranks, maxStaleness } = this.options
    await this.#atLeast(this.#steps - maxStaleness)
    this.#adopt()
    write(this.#sample, Int32Array.of(sample | 0, Math.floor(sample / 2 ** 32)))
    const versions = [...this.#versions]
    versions[ranks.rank] = this.#version
    const { loss, logits, head, parts } = await this.#gradients.run({ ...inputs, sample: this.#sample })
    const [values, scores, [finite, scale], contents] = await Promise.all([
      loss.data(),
      logits.data(),
      head.data() as Promise<ArrayLike<number> & Iterable<number>>,
      Promise.all(parts.map((part) => part.data() as Promise<Float32Array>)),
    ])
    for (const tensor of [loss, logits, head, ...parts]) tensor.dispose()
    const share = 1 / ranks.size
    this.#steps++
    for (const [owner, owned] of this.#owned.entries()) {
      const message = new Float32Array(2 * PUSH_HEAD + owned.reduce((sum, { length }) => sum + length, 0))
      new Float64Array(message.buffer, 0, PUSH_HEAD).set([this.#steps, versions[owner]!, finite!, scale!, rate * share, decay ** share])
      let at = 2 * PUSH_HEAD
      for (const part of owned) {
        message.set(contents[this.#parts.indexOf(part)]!, at)
        at += part.length
      }
      if (owner === ranks.rank) this.#apply(owner, message)
      else {
        this.#unanswered++
        this.#send(owner, PUSH, message)
      }
    }
    return { loss: values[0]!, finite: finite!, logits: scores as Float32Array }
  }

  /**
   * Whether the ranks stop before their next step, all at the same one: each tells its wish every few steps and learns the outcome of the
   * time before, which costs no wait.
   */
  async agreed(wish: boolean): Promise<boolean> {
    const { ranks, maxStaleness } = this.options
    if (this.#steps % Math.max(8, maxStaleness + 1) !== 0) return false
    const before = this.#vote && (await this.#vote)
    this.#vote = ranks.numbers([wish ? 1 : 0])
    this.#vote.catch(() => {})
    return before?.some(([stop]) => stop === 1) ?? false
  }

  /**
   * Waits until every rank's updates are applied everywhere, and gives all ranks the same weights, slots and averages: the end of an epoch.
   * @returns the staleness of all updates since the last time, and whether a rank wishes to stop.
   */
  async settle(companions: readonly Variable[], wish: boolean): Promise<{ staleness: Staleness; stop: boolean }> {
    const { ranks } = this.options
    await this.#atLeast(this.#steps)
    while (this.#unanswered > 0) await this.#event()
    await this.#applied
    this.#adopt()
    await this.#vote
    this.#vote = undefined
    const ages = await ranks.numbers([
      this.#ages.length,
      this.#ages.reduce((sum, age) => sum + age, 0),
      Math.max(0, ...this.#ages),
      wish ? 1 : 0,
    ])
    await this.#exchange(companions)
    this.#steps = this.#version = 0
    this.#ages = []
    for (const list of [this.#received, this.#versions, this.#clocks]) list.fill(0)
    await ranks.barrier()
    const sum = (column: number) => ages.reduce((total, row) => total + row[column]!, 0)
    const staleness = { mean: sum(0) > 0 ? sum(1) / sum(0) : 0, max: Math.max(...ages.map((row) => row[2]!)) }
    return { staleness, stop: sum(3) > 0 }
  }

  dispose(): void {
    if (!this.options.ranks.failed) this.options.ranks.receive(undefined)
    this.#gradients.dispose()
    this.#update?.dispose()
    for (const tensor of [this.#sample, ...this.#inputs.values()]) tensor.dispose()
  }

  /** Loss, logits, [finite, scale], and what each variable gets. */
  #trace({ images, labels, sample }: { images: Value; labels: Value; sample: Value }) {
    const { model, settings } = this.options
    const context = currentTrace()
    Object.assign(context, { random: { counter: sample, seed: keyOf(settings.seed), streams: 0 } })
    const { graph } = context
    const logits = model(images)
    const loss = meanOf(lossOf(logits, labels, settings))
    const trained = graph.nodes.flatMap(({ variable, outputs: [value] }) => (variable?.trainable ? [{ variable, value: value! }] : []))
    const gradients = differentiate(
      graph,
      loss,
      trained.map(({ value }) => value),
    )
    const pairs = trained.flatMap(({ variable }, i) => (gradients[i] ? [{ variable, gradient: gradients[i] }] : []))
    const part = (variable: Variable, kind: Part['kind']): Part => ({ variable, kind, length: elements(variable.type.shape) })
    this.#parts = [
      ...pairs.map(({ variable }) => part(variable, 'parameter')),
      ...context.averages.map(({ variable }) => part(variable, 'statistic')),
    ]
    this.#statistics = new Map(context.averages.map(({ variable, momentum, factor }) => [variable, { momentum, factor }]))
    const finite = emit(opDefinition('allFinite'), [loss, ...pairs.map(({ gradient }) => gradient)])
    const one = (value: Value) => emit(opDefinition('reshape'), [value], { shape: [1] })
    const head = emit(opDefinition('concat'), [one(finite), one(gradientScale(graph, pairs, settings.clipNorm))], { axis: 0 })
    return { loss, logits, head, parts: [...pairs.map(({ gradient }) => gradient), ...context.averages.map(({ value }) => value)] }
  }
  #statistics = new Map<Variable, { readonly momentum: number; readonly factor: number }>()

  /** The update of the variables that this rank owns; there may be none. */
  #compileUpdate(): void {
    const { ranks, model } = this.options
    const owned = this.#owned[ranks.rank]!
    if (owned.length === 0) return
    for (const name of ['rate', 'decay', 'flag', 'scale'])
      this.#inputs.set(name, upload(model.executor, { shape: [], dtype: 'float32' }, new Float32Array(1)))
    for (const [i, { variable }] of owned.entries())
      this.#inputs.set(`part${i}`, upload(model.executor, variable.type, new Float32Array(elements(variable.type.shape))))
    this.#update = compile((values: Record<string, Value>) => this.#emitUpdate(values, owned), {
      device: model.device,
      training: true,
    }) as unknown as CompiledFunction<[Record<string, Tensor>], Tensor>
    this.#update.executable(Object.fromEntries(this.#inputs))
  }

  /** The update of some variables; its result says nothing that is not known. */
  #emitUpdate(values: Readonly<Record<string, Value>>, parts: readonly Part[]): Value {
    const { optimizer, average, rateOf } = this.options
    const { rate, decay, flag, scale } = values as Record<'rate' | 'decay' | 'flag' | 'scale', Value>
    const { graph } = flag
    const given = parts.map(({ variable, kind }, i) => ({ variable, kind, gradient: values[`part${i}`]! }))
    const parameters = given.filter(({ kind }) => kind === 'parameter')
    const statistics = given.filter(({ kind }) => kind === 'statistic')
    updateAverages(
      graph,
      flag,
      statistics.map(({ variable, gradient }) => ({ variable, value: gradient, ...this.#statistics.get(variable)! })),
    )
    const updated = byFactor(parameters, rateOf).flatMap(([factor, group]) =>
      optimizer.update({ graph, rate: factor === 1 ? rate : multiplied(rate, factor), flag, scale, parameters: group }),
    )
    const running = statistics.map(({ variable }) => ({
      variable,
      value: graph.updates.find((update) => update.variable === variable)!.value,
    }))
    if (average) updateWeightAverage(graph, flag, decay, average, [...updated, ...running])
    return emit(opDefinition('binary'), [flag, scale], { function: 'multiply' })
  }

  #receive(from: number, tag: number, bytes: Uint8Array): void {
    const aligned = bytes.slice()
    const message = new Float32Array(aligned.buffer, 0, aligned.byteLength / 4)
    if (tag === PUSH) this.#apply(from, message)
    else if (tag === WEIGHTS) {
      const [version, clock] = new Float64Array(message.buffer, 0, WEIGHTS_HEAD)
      // Answers to a push and to a question may overtake each other: the later weights stay.
      if (version! >= this.#versions[from]! && clock! >= this.#clocks[from]!) {
        this.#arrived.set(from, message)
        this.#versions[from] = version!
        this.#clocks[from] = clock!
      }
      this.#unanswered--
      this.#wake?.()
    } else if (from !== this.options.ranks.rank) {
      const [needed] = new Float64Array(message.buffer, 0, 1)
      this.#waiting.push({ from, needed: needed! })
      this.#answer()
    }
  }

  /** Queues the update of a push; in the order of arrival, hence after every run that has been started. */
  #apply(from: number, message: Float32Array): void {
    const { ranks } = this.options
    const [step, version, flag, scale, rate, decay] = new Float64Array(message.buffer, 0, PUSH_HEAD)
    const owned = this.#owned[ranks.rank]!
    if (this.#update) {
      for (const [name, value] of Object.entries({ flag, scale, rate, decay })) write(this.#inputs.get(name)!, Float32Array.of(value!))
      let at = 2 * PUSH_HEAD
      for (const [i, { length }] of owned.entries()) {
        write(this.#inputs.get(`part${i}`)!, message.subarray(at, at + length))
        at += length
      }
      const done = this.#update.run(Object.fromEntries(this.#inputs)).then((result) => result.dispose())
      this.#applied = Promise.all([this.#applied, done])
      done.catch((error: unknown) => this.#fail(error))
    }
    this.#ages.push(this.#version - version!)
    this.#version++
    this.#received[from] = step!
    this.#clocks[ranks.rank] = Math.min(...this.#received)
    if (from !== ranks.rank) void this.#sendWeights(from)
    this.#answer()
    this.#wake?.()
  }

  /** Sends weights to the ranks that have waited for others' updates, as soon as those are in. */
  #answer(): void {
    const clock = Math.min(...this.#received)
    const ready = this.#waiting.filter(({ needed }) => needed <= clock)
    if (ready.length === 0) return
    this.#waiting = this.#waiting.filter(({ needed }) => needed > clock)
    for (const { from } of ready) void this.#sendWeights(from)
  }

  async #sendWeights(to: number): Promise<void> {
    const owned = this.#owned[this.options.ranks.rank]!
    const head = [this.#version, Math.min(...this.#received)]
    try {
      // Reads are queued at once: they see exactly the updates that were queued before.
      const contents = await Promise.all(owned.map(({ variable }) => readState(variable) as Promise<Float32Array>))
      const message = new Float32Array(2 * WEIGHTS_HEAD + owned.reduce((sum, { length }) => sum + length, 0))
      new Float64Array(message.buffer, 0, WEIGHTS_HEAD).set(head)
      let at = 2 * WEIGHTS_HEAD
      for (const content of contents) {
        message.set(content, at)
        at += content.length
      }
      await this.options.ranks.send(to, WEIGHTS, new Uint8Array(message.buffer))
    } catch (error) {
      this.#fail(error)
    }
  }

  #send(to: number, tag: number, message: Float32Array | Float64Array): void {
    this.options.ranks
      .send(to, tag, new Uint8Array(message.buffer, message.byteOffset, message.byteLength))
      .catch((error: unknown) => this.#fail(error))
  }

  #fail(error: unknown): void {
    this.#error ??= error
    this.#wake?.()
  }

  /** Waits until the weights here contain every rank's first `needed` steps. */
  async #atLeast(needed: number): Promise<void> {
    const { ranks } = this.options
    const behind = () => this.#clocks.flatMap((clock, owner) => (clock < needed ? [owner] : []))
    const asked = new Set<number>()
    for (let owners = behind(); owners.length > 0; owners = behind()) {
      for (const owner of owners) {
        if (owner === ranks.rank || asked.has(owner)) continue
        asked.add(owner)
        this.#unanswered++
        this.#send(owner, PULL, Float64Array.of(needed))
      }
      await this.#event()
    }
    if (this.#error) throw this.#error
  }

  /** Until something has come. A rank that has left sends nothing: that ends what it can be asked with an error. */
  async #event(): Promise<void> {
    if (this.#error) throw this.#error
    let timer: NodeJS.Timeout | undefined
    const heard = new Promise<void>((resolve) => {
      this.#wake = resolve
      // Sending to oneself needs no other rank, and fails where one has left.
      timer = setInterval(
        () => void this.options.ranks.send(this.options.ranks.rank, PULL, new Uint8Array(0)).catch((error: unknown) => this.#fail(error)),
        500,
      )
    })
    await heard
    clearInterval(timer)
    this.#wake = undefined
    if (this.#error) throw this.#error
  }

  #adopt(): void {
    const { ranks, model } = this.options
    for (const [owner, message] of this.#arrived) {
      if (owner === ranks.rank) continue
      let at = 2 * WEIGHTS_HEAD
      for (const { variable, length } of this.#owned[owner]!) {
        writeState(variable, message.subarray(at, at + length), model.executor)
        at += length
      }
    }
    this.#arrived.clear()
  }

  /** Slots and averages from their owners to all. */
  async #exchange(companions: readonly Variable[]): Promise<void> {
    const { ranks, model } = this.options
    const ownerOf = new Map(this.#owned.flatMap((owned, owner) => owned.map(({ variable }) => [variable.name, owner] as const)))
    // train.<kind>.<variable>; what belongs to no variable counts updates, of which every owner has as many.
    const owner = ({ name }: Variable) => ownerOf.get(name.slice(name.indexOf('.', TRAINING_PREFIX.length) + 1)) ?? 0
    const groups = Array.from({ length: ranks.size }, (_, rank) => companions.filter((variable) => owner(variable) === rank))
    const bytes = groups.map((group) => group.reduce((sum, { type }) => sum + byteLength(type), 0))
    const own = new Uint8Array(Math.max(...bytes))
    let at = 0
    for (const variable of groups[ranks.rank]!) {
      const content = await readState(variable)
      own.set(new Uint8Array(content.buffer, content.byteOffset, content.byteLength), at)
      at += content.byteLength
    }
    const all = await ranks.allGather(own)
    for (const [rank, group] of groups.entries()) {
      let from = rank * own.length
      for (const variable of group) {
        const length = byteLength(variable.type)
        if (rank !== ranks.rank) writeState(variable, new Float32Array(all.slice(from, from + length).buffer), model.executor)
        from += length
      }
    }
  }
}

/** Gives each part to the owner that has least so far, the largest parts first. */
export function dealOut<T extends { readonly length: number }>(parts: readonly T[], owners: number): T[][] {
  const dealt = Array.from({ length: owners }, () => [] as T[])
  const sums = new Array<number>(owners).fill(0)
  for (const part of [...parts].sort((a, b) => b.length - a.length)) {
    const least = sums.indexOf(Math.min(...sums))
    dealt[least]!.push(part)
    sums[least]! += part.length
  }
  return dealt
}

function write(tensor: Tensor, data: Float32Array | Int32Array): void {
  const { memory, offset } = tensor.binding
  memory.executor.write(memory, offset, new Uint8Array(data.buffer, data.byteOffset, data.byteLength))
}
