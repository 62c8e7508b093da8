/** Executables by signature, the least recently used dropped first once their own memory passes a bound. */

import type { Executable } from './executable.js'

export class ExecutableCache {
  readonly #entries = new Map<string, Executable>()

  /** @param limit bytes that the cached executables may hold beyond shared arena and state (see Executable.ownBytes). */
  constructor(private readonly limit = 256 * 2 ** 20) {}

  get size(): number {
    return this.#entries.size
  }

  /** The executable of a signature, made by `make` when there is none. */
  get(signature: string, make: () => Executable): Executable {
    const found = this.#entries.get(signature)
    if (found) {
      this.#entries.delete(signature)
      this.#entries.set(signature, found)
      return found
    }
    const made = make()
    this.#entries.set(signature, made)
    let bytes = 0
    for (const executable of this.#entries.values()) bytes += executable.ownBytes
    for (const [key, executable] of this.#entries) {
      if (bytes <= this.limit || executable === made) break
      bytes -= executable.ownBytes
      executable.dispose()
      this.#entries.delete(key)
    }
    return made
  }

  clear(): void {
    for (const executable of this.#entries.values()) executable.dispose()
    this.#entries.clear()
  }
}
