/**
 * Recipes: named sets of training settings as JSON files. Those that ship are in `recipes/`; `recipes/schema.json` is the schema
 * below for editors. What a recipe leaves out has the defaults of `fit`.
 */

import { readFile } from 'node:fs/promises'
import { existsSync, readdirSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import * as z from 'zod'
import { nearest, SepconvError } from '../errors.js'
import { fileError } from '../files.js'

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
  precision: z.enum(['float32', 'bfloat16']),
  /** Options of the architecture, such as dropout. */
  model: z.record(z.string(), z.unknown()),
}

const recipeSchema = options(settings).extend({
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

/** The JSON schema of recipe files. */
export const recipeJsonSchema = (): object => z.toJSONSchema(recipeSchema, { target: 'draft-2020-12' })

const FOLDER = fileURLToPath(new URL('../../recipes/', import.meta.url))

/** Names of the recipes that ship. */
export const recipeNames = (): string[] =>
  readdirSync(FOLDER)
    .filter((file) => file.endsWith('.json') && file !== 'schema.json')
    .map((file) => file.slice(0, -'.json'.length))
    .sort()

/**
 * A recipe that ships, by its name, or one of your own, by its path.
 * @throws ERR_ARGUMENT for an unknown name and for content that the schema refuses, naming every wrong field; ERR_FILE, ERR_FORMAT.
 */
export async function loadRecipe(nameOrPath: string): Promise<Recipe> {
  const shipped = /^[\w-]+$/.test(nameOrPath)
  const path = shipped ? `${FOLDER}${nameOrPath}.json` : nameOrPath
  if (shipped && !existsSync(path)) {
    const names = recipeNames()
    const near = nearest(nameOrPath, names)
    throw new SepconvError('ERR_ARGUMENT', `there is no recipe '${nameOrPath}'`, {
      subject: 'recipe',
      given: nameOrPath,
      expected: names,
      hint: near ? `Did you mean '${near}'?` : `Recipes: ${names.join(', ')}; a file of your own is named by its path`,
    })
  }
  let text: string
  try {
    text = await readFile(path, 'utf8')
  } catch (error) {
    throw fileError(error, path, 'read')
  }
  let content: unknown
  try {
    content = JSON.parse(text)
  } catch (cause) {
    throw new SepconvError('ERR_FORMAT', `${path} is not valid JSON (${(cause as Error).message})`, { subject: path, cause })
  }
  return parseRecipe(content, path)
}

/** A recipe from its parsed JSON. @throws ERR_ARGUMENT for what the schema refuses, naming every wrong field. */
export function parseRecipe(content: unknown, subject = 'recipe'): Recipe {
  const result = recipeSchema.safeParse(content)
  if (result.success) return result.data
  const problems = result.error.issues.flatMap((issue) => {
    const at = issue.path.join('.')
    if (issue.code !== 'unrecognized_keys') return [`${at || 'recipe'}: ${issue.message}`]
    return issue.keys.map((key) => {
      const near = nearest(key, Object.keys(settings))
      return `unknown key '${at ? `${at}.` : ''}${key}'${near ? ` (did you mean '${near}'?)` : ''}`
    })
  })
  throw new SepconvError('ERR_ARGUMENT', `${subject}: ${problems.join('; ')}`, { subject, given: problems })
}

/** What a recipe says for one architecture: its own settings, overridden by those under `models`. */
export function recipeFor(
  { $schema: _, name: __, description: ___, notes: ____, models, ...common }: Recipe,
  architecture: string,
): RecipeSettings {
  const own = models?.[architecture] ?? {}
  return {
    ...common,
    ...own,
    ...(own.optimizer && { optimizer: { ...(common.optimizer?.kind === own.optimizer.kind && common.optimizer), ...own.optimizer } }),
    ...((common.model || own.model) && { model: { ...common.model, ...own.model } }),
  }
}
