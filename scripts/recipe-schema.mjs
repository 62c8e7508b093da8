// Writes recipes/schema.json from the schema in src/train/recipeSchema.ts; a test fails when the two differ.
//   node scripts/recipe-schema.mjs

import { writeFileSync } from 'node:fs'
import { recipeJsonSchema } from '../dist/train/recipeSchema.js'

writeFileSync(new URL('../recipes/schema.json', import.meta.url), `${JSON.stringify(recipeJsonSchema(), null, 2)}\n`)
