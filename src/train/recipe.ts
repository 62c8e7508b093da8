/**
 * Recipes: named sets of training settings as JSON files. Those that ship are in `recipes/`; their schema is recipeSchema.ts, which is
 * loaded when the first one is. What a recipe leaves out has the defaults of `fit`.
 */

import { existsSync, readdirSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { nearest, SepconvError } from '../errors.js'
import { readText } from '../files.js'
import type { Recipe, RecipeSettings } from './recipeSchema.js'

export type { Recipe, RecipeSettings } from './recipeSchema.js'

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
  const text = await readText(path)
  let content: unknown
  try {
    content = JSON.parse(text)
  } catch (cause) {
    throw new SepconvError('ERR_FORMAT', `${path} is not valid JSON (${(cause as Error).message})`, { subject: path, cause })
  }
  return parseRecipe(content, path)
}

/** A recipe from its parsed JSON. @throws ERR_ARGUMENT for what the schema refuses, naming every wrong field. */
export async function parseRecipe(content: unknown, subject = 'recipe'): Promise<Recipe> {
  const { recipeSchema, settingNames } = await import('./recipeSchema.js')
  const result = recipeSchema.safeParse(content)
  if (result.success) return result.data
  const problems = result.error.issues.flatMap((issue) => {
    const at = issue.path.join('.')
    if (issue.code !== 'unrecognized_keys') return [`${at || 'recipe'}: ${issue.message}`]
    return issue.keys.map((key) => {
      const near = nearest(key, settingNames)
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
