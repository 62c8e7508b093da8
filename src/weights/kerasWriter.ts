/**
 * Weights as Keras 2 writes them with `model.save_weights('x.h5')`: attribute `layer_names` at the root, a group per layer with attribute
 * `weight_names`, datasets `<layer>/<layer>/<weight>:0`. Keras 2 and 3 read it by name; the shortcuts' layers, which Keras names by
 * itself, are numbered as in a fresh process.
 */

import { mkdtemp, readFile, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { writeAtomic } from '../files.js'

/** Attribute of the root in which our own files say which model they hold. */
export const METADATA_ATTRIBUTE = 'sepconv'

export interface KerasWeight {
  /** Such as `depthwise_kernel`. */
  readonly weight: string
  readonly shape: readonly number[]
  readonly data: () => Promise<Float32Array>
}

/** HDF5 keeps attributes of up to 64 KB in an object's header. */
const MAX_METADATA_BYTES = 60_000

/**
 * @param layers by Keras' name, in the order of the model; `conv2d#2` becomes `conv2d_2`.
 * @param metadata texts for {@link METADATA_ATTRIBUTE}, which Keras passes over; the last of them are left out where they do not fit.
 * @throws ERR_FILE.
 */
export async function writeKeras(
  path: string,
  layers: ReadonlyMap<string, readonly KerasWeight[]>,
  metadata: Readonly<Record<string, string>> = {},
): Promise<void> {
  const h5wasm = await import('h5wasm/node')
  await h5wasm.ready
  // The library writes files by name only: into a folder of its own first, then in one step to where it shall be.
  const folder = await mkdtemp(join(tmpdir(), 'sepconv-'))
  try {
    const temporary = join(folder, 'weights.h5')
    const file = new h5wasm.File(temporary, 'w')
    try {
      const names = [...layers.keys()].map(automaticName)
      strings(file, 'layer_names', names)
      file.create_attribute('backend', 'tensorflow')
      file.create_attribute('keras_version', '2.15.0')
      const texts = Object.entries(metadata)
      while (Buffer.byteLength(JSON.stringify(Object.fromEntries(texts))) > MAX_METADATA_BYTES) texts.pop()
      if (texts.length > 0) file.create_attribute(METADATA_ATTRIBUTE, JSON.stringify(Object.fromEntries(texts)))
      for (const [i, weights] of [...layers.values()].entries()) {
        const group = file.create_group(names[i]!)
        const inner = group.create_group(names[i]!)
        strings(
          group,
          'weight_names',
          weights.map(({ weight }) => `${names[i]}/${weight}:0`),
        )
        for (const { weight, shape, data } of weights)
          inner.create_dataset({ name: `${weight}:0`, data: await data(), shape: [...shape], dtype: '<f' })
      }
    } finally {
      file.close()
    }
    await writeAtomic(path, await readFile(temporary))
  } finally {
    await rm(folder, { recursive: true, force: true })
  }
}

/** `conv2d#0` → `conv2d`, `conv2d#2` → `conv2d_2`. */
const automaticName = (layer: string): string => layer.replace(/#(\d+)$/, (_, index: string) => (index === '0' ? '' : `_${index}`))

/** A list of fixed-length byte strings, as h5py stores NumPy's. */
function strings(
  target: { create_attribute(name: string, data: string[], shape: number[], dtype: string): void },
  name: string,
  list: readonly string[],
): void {
  const length = Math.max(1, ...list.map((text) => Buffer.byteLength(text)))
  target.create_attribute(name, [...list], [list.length], `S${length}`)
}
