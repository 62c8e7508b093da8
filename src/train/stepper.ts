/** What a run trains with: the compiled step, or asynchronous ranks in its place, and the variables that belong to it. */

import type { Value } from '../graph/graph.js'
import type { Variable } from '../graph/variable.js'
import type { Model } from '../models/model.js'
import { compile, type TrainStep } from '../runtime/function.js'
import { readState, releaseState, writeState } from '../runtime/state.js'
import type { Tensor } from '../runtime/tensor.js'
import { Asynchronous } from './asynchronous.js'
import { type TrackedAverage, weightAverage } from './average.js'
import { lossOf, type StepInputs } from './batch.js'
import { type FreezeOptions, Freezing } from './freeze.js'
import { createOptimizer, type TrainingOptimizer } from './optimizer.js'
import type { Settings } from './settings.js'
import type { Team } from './team.js'

type Step = TrainStep<{ images: Tensor; labels: Tensor }, { logits: Tensor }>

/** What one run of the step gave. */
export interface StepResult {
  readonly loss: number
  /** 0 where the loss or a gradient was not finite, and nothing was changed. */
  readonly finite: number
  readonly logits: Float32Array
}

export interface StepperOptions extends FreezeOptions {
  readonly model: Model
  /** Most bytes of scratch memory per step; see compile(). */
  readonly memoryLimit?: number
}

export class Stepper {
  readonly optimizer: TrainingOptimizer
  readonly #average: TrackedAverage | undefined
  readonly #freezing: Freezing
  /** Averages that have their first value. */
  readonly #started = new Set<Variable>()
  #level: number
  #step: Step | undefined
  #asynchronous: Asynchronous | undefined

  constructor(
    private readonly options: StepperOptions,
    private readonly settings: Settings,
    private readonly team: Team,
  ) {
    const { average, averageDecay } = settings
    this.optimizer = createOptimizer(settings.optimizer, settings.rate)
    this.#average = average === 'none' ? undefined : weightAverage(average, averageDecay)
    this.#freezing = new Freezing(options.model, options)
    this.#level = this.#freezing.level(1)
    this.#freezing.apply(this.#level)
    this.#compile()
  }

  #compile(): void {
    this.#step?.dispose()
    this.#asynchronous?.dispose()
    const { model, memoryLimit } = this.options
    const { accumulate, clipNorm, seed, asynchronous } = this.settings
    const { ranks } = this.team
    if (asynchronous && ranks) {
      this.#asynchronous = new Asynchronous({
        ...{ ranks, model, optimizer: this.optimizer, settings: this.settings, maxStaleness: asynchronous.maxStaleness },
        ...(this.#average && { average: this.#average }),
        ...(memoryLimit !== undefined && { memoryLimit }),
        rateOf: (variable) => this.#freezing.rateOf(variable),
      })
      return
    }
    this.#step = compile(
      ({ images, labels }: { images: Value; labels: Value }) => {
        const logits = model(images)
        return { loss: lossOf(logits, labels, this.settings), logits }
      },
      {
        device: model.device,
        precision: this.settings.precision,
        train: this.optimizer,
        memoryLimit,
        clipNorm,
        accumulate,
        seed,
        ...(this.team.size > 1 && { ranks: { size: this.team.size, batchNorm: this.settings.batchNorm } }),
        rateOf: (variable) => this.#freezing.rateOf(variable),
        ...(this.#average && { average: this.#average }),
      },
    ) as unknown as Step
  }

  /** Compiles the step, which creates velocities and averages; averages start as the weights themselves. */
  async prepare(inputs: StepInputs): Promise<void> {
    if (this.#asynchronous) this.#asynchronous.prepare({ ...inputs })
    else this.#step!.executable({ ...inputs })
    for (const [source, average] of this.tracked) {
      if (this.#started.has(average)) continue
      this.#started.add(average)
      writeState(average, await readState(source), this.options.model.executor)
    }
  }

  /** Whether an epoch trains more stages than the one before; the step is then another one, which wants to be prepared. */
  thaw(epoch: number): boolean {
    const level = this.#freezing.level(epoch)
    if (level === this.#level) return false
    this.#level = level
    this.#freezing.apply(level)
    this.#compile()
    return true
  }

  /** One update, or a part of one where gradients are accumulated. */
  async run(inputs: StepInputs, at: { rate: number; decay: number; sample: number; part: number }): Promise<StepResult> {
    if (this.#asynchronous) return this.#asynchronous.step(inputs, at)
    const { loss, logits, finite } = await this.#step!.run({ ...inputs }, at)
    const read = await Promise.all([loss.data(), finite.data(), logits.data()])
    for (const tensor of [loss, logits, finite]) tensor.dispose()
    return { loss: read[0][0]!, finite: read[1][0]!, logits: read[2] as Float32Array }
  }

  /** Set where ranks do not wait for each other. */
  get asynchronous(): Asynchronous | undefined {
    return this.#asynchronous
  }

  /** How many variables the step trains. */
  get parameters(): number {
    return this.#asynchronous?.parameters ?? this.#step!.parameters.length
  }

  /** How many variables do not train for now. */
  get frozen(): number {
    return this.#freezing.frozen
  }

  /** The stages that train by now, where they are told apart. */
  get stages(): readonly string[] {
    return this.#freezing.stages(this.#level) ?? []
  }

  /** Decay of the weight average at a step. */
  decay(step: number): number {
    return this.#average?.decay(step) ?? 0
  }

  /** The average of each variable that has one. */
  get tracked(): ReadonlyMap<Variable, Variable> {
    return new Map(this.#average?.entries() ?? [])
  }

  /** Velocities and averages: what a checkpoint holds besides the model. */
  get companions(): Variable[] {
    return [...this.optimizer.state(), ...this.tracked.values()]
  }

  /** Leaves the model with the averaged weights; the run's own are in its last checkpoint. */
  async adoptAverage(): Promise<void> {
    for (const [source, average] of this.tracked) writeState(source, await readState(average), this.options.model.executor)
  }

  dispose(): void {
    this.#step?.dispose()
    this.#asynchronous?.dispose()
    this.#freezing.restore()
    for (const variable of this.companions) releaseState(variable)
  }
}
