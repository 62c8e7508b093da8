// The pictures of a folder that look most like one: node search.mjs photos/ query.jpg [weights]
import { readdir } from 'node:fs/promises'
import { join } from 'node:path'
import { loadImage, loadModel } from 'sepconv'

const [directory, query, weights = 'timm/legacy_xception.tf_in1k'] = process.argv.slice(2)
const model = await loadModel(weights, { classes: 0 })
const names = (await readdir(directory)).filter((name) => /\.(jpe?g|png|webp)$/i.test(name)).sort()
const vectors = []
for (const name of names) vectors.push(unit(await model.embed([await loadImage(join(directory, name))])))
const wanted = unit(await model.embed([await loadImage(query)]))
const found = names.map((name, i) => ({ name, similarity: vectors[i].reduce((sum, x, k) => sum + x * wanted[k], 0) }))
for (const { name, similarity } of found.sort((a, b) => b.similarity - a.similarity).slice(0, 5)) console.log(similarity.toFixed(4), name)
model.dispose()

function unit(vector) {
  const norm = Math.hypot(...vector)
  return vector.map((x) => x / norm)
}
