import { readFile, mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { describe, expect, it } from 'vitest'
import { loadRecipe, parseRecipe, recipeFor, recipeNames } from '../../src/train/recipe.js'
import { recipeJsonSchema } from '../../src/train/recipeSchema.js'

describe('recipes that ship', () => {
  it('are the four, valid by the schema, documented', async () => {
    expect(recipeNames()).toEqual(['modern', 'paper-imagenet', 'paper-jft', 'slim-inception'])
    for (const name of recipeNames()) {
      const recipe = await loadRecipe(name)
      expect(recipe.name).toBe(name)
      expect(recipe.description.length).toBeGreaterThan(60)
      expect(recipe.notes!.length).toBeGreaterThan(0)
    }
  })

  it('have a schema file that editors can use', async () => {
    const file = JSON.parse(await readFile(new URL('../../recipes/schema.json', import.meta.url), 'utf8'))
    expect(file, 'run node scripts/recipe-schema.mjs').toEqual(JSON.parse(JSON.stringify(recipeJsonSchema())))
  })

  it('paper-imagenet decays Xception by 1e-5 and Inception V3 by 4e-5', async () => {
    const recipe = await loadRecipe('paper-imagenet')
    expect(recipeFor(recipe, 'xception')).toMatchObject({
      rate: 0.045,
      optimizer: { kind: 'sgd', momentum: 0.9, weightDecay: 1e-5 },
      schedule: { kind: 'exponential', factor: 0.94, every: { epochs: 2 } },
      model: { dropout: 0.5 },
    })
    expect(recipeFor(recipe, 'inception_v3').optimizer).toEqual({ kind: 'sgd', momentum: 0.9, weightDecay: 4e-5, l2: 'half' })
  })
})

describe('bad recipes', () => {
  const parse = (content: object) => expect(parseRecipe({ name: 'mine', description: 'of a test', ...content })).rejects
  it('unknown keys, each with the nearest known one', async () => {
    await parse({ epoch: 3, lr: 1 }).toThrowError(/unknown key 'epoch' \(did you mean 'epochs'\?\); unknown key 'lr'/)
    await parse({ optimizer: { kind: 'sgd', beta1: 0.9 } }).toThrowError(/unknown key 'optimizer.beta1'/)
    await parse({ models: { vgg16: { rates: 1 } } }).toThrowError(/unknown key 'models.vgg16.rates' \(did you mean 'rate'\?\)/)
  })
  it('values out of range, by their place', async () => {
    await parse({ schedule: { kind: 'exponential', factor: -0.94 } }).toThrowError(/schedule\.factor/)
    await parse({ augment: { randAugment: { magnitude: 11 } } }).toThrowError(/augment/)
    await parse({ rate: 0 }).toThrowError(/rate/)
  })
  it('names and files that do not exist, and files that are no JSON', async () => {
    await expect(loadRecipe('paper-imagnet')).rejects.toMatchObject({
      code: 'ERR_ARGUMENT',
      message: expect.stringContaining("'paper-imagenet'"),
    })
    await expect(loadRecipe('./none.json')).rejects.toMatchObject({ code: 'ERR_FILE' })
    const folder = await mkdtemp(join(tmpdir(), 'sepconv-recipe-'))
    await writeFile(join(folder, 'broken.json'), '{')
    await expect(loadRecipe(join(folder, 'broken.json'))).rejects.toMatchObject({ code: 'ERR_FORMAT' })
    await rm(folder, { recursive: true })
  })
})
