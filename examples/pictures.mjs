// Draws a small labelled picture set for the examples, as `npm run demo` does.
import { mkdtemp } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { writeShapes } from 'sepconv'

export async function pictures() {
  const folder = await mkdtemp(join(tmpdir(), 'sepconv-pictures-'))
  await writeShapes(folder, { train: 320, validation: 80, size: 71 })
  return folder
}
