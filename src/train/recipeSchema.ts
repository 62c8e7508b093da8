/** What a recipe file may hold; `recipes/schema.json` is written from it (scripts/recipe-schema.mjs) for editors. */

import * as z from 'zod'
import { PRECISIONS } from '../graph/precision.js'

const share = z.number().min(0).lt(1)
const upToOne = z.number().min(0).max(1)
const positive = z.number().positive()
const whole = z.int().positive()
const decays = z.enum(['filters', 'no-depthwise', 'all'])
const decay = { weightDecay: z.number().min(0), decays }
const l2 = { ...decay, l2: z.enum(['half', 'full']) }

/** All fields of an object optional, unknown ones refused. */
const options = <T extends z.ZodRawShape>(shape: T) => z.strictObject(shape).partial()

const optimizer = z.discriminatedUnion('kind', [
  options({ momentum: share, nesterov: z.boolean(), ...l2 }).extend({ kind: z.literal('sgd') }),
  options({ form: z.enum(['tensorflow', 'keras', 'pytorch']), decay: share, momentum: share, epsilon: positive, ...l2 }).extend({
    kind: z.literal('rmsprop'),
  }),
  options({ beta1: share, beta2: share, epsilon: positive, ...decay }).extend({ kind: z.literal('adamw') }),
  options({ beta1: share, beta2: share, epsilon: positive, ...decay }).extend({ kind: z.literal('lamb') }),
])

const span = z.union([
  positive,
  z.strictObject({ epochs: positive }),
  z.strictObject({ steps: positive }),
  z.strictObject({ samples: positive }),
])

const schedule = options({
  warmup: z.number().min(0),
  floor: upToOne,
  factor: positive.max(1),
  every: span,
  staircase: z.boolean(),
}).extend({
  kind: z.enum(['constant', 'cosine', 'exponential']),
})

const pair = z.tuple([positive, positive])

const augment = options({
  scale: pair,
  ratio: pair,
  flip: upToOne,
  brightness: upToOne,
  contrast: upToOne,
  saturation: upToOne,
  interpolation: z.enum(['nearest', 'bilinear', 'bicubic']),
  randAugment: options({
    operations: z.int().min(0),
    magnitude: z.number().min(0).max(10),
    deviation: z.number().min(0),
    probability: upToOne,
  }),
  erase: options({ probability: upToOne, area: pair, ratio: pair }),
})

/** Settings of `fit` that a recipe may give. */
const settings = {
  epochs: whole,
  batch: whole,
  size: whole,
  rate: positive,
  optimizer,
  schedule,
  loss: z.enum(['softmax', 'sigmoid']),
  labelSmoothing: share,
  average: z.enum(['ema', 'polyak', 'none']),
  averageDecay: share,
  clipNorm: positive,
  accumulate: whole,
  augment: z.union([augment, z.literal(false)]),
  mix: options({ mixup: z.number().min(0), cutmix: z.number().min(0), probability: upToOne }),
  metric: z.enum(['top1', 'top5', 'loss', 'map']),
  patience: whole,
  precision: z.enum(PRECISIONS),
  /** Options of the architecture, such as dropout. */
  model: z.record(z.string(), z.unknown()),
}

export const recipeSchema = options(settings).extend({
  $schema: z.string().optional(),
  name: z.string(),
  description: z.string(),
  /** Where each number comes from, and what had to be filled in. */
  notes: z.array(z.string()).optional(),
  /** What differs for an architecture, by its name. */
  models: z.record(z.string(), options(settings)).optional(),
})

/** A training recipe; every setting is optional and means what the option of `fit` of that name means. */
export type Recipe = z.infer<typeof recipeSchema>
/** The settings of a recipe for one architecture. */
export type RecipeSettings = Omit<Recipe, '$schema' | 'name' | 'description' | 'notes' | 'models'>

/** Names of the settings that a recipe may give. */
export const settingNames: readonly string[] = Object.keys(settings)

/** The JSON schema of recipe files. */
export const recipeJsonSchema = (): object => z.toJSONSchema(recipeSchema, { target: 'draft-2020-12' })
