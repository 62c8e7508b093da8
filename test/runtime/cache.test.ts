import { expect, it } from 'vitest'
import { compile, relu, tensor, type Value } from '../../src/index.js'
import { ExecutableCache } from '../../src/runtime/cache.js'

it('executables without constants count too: any number of shapes stays within the bound, the latest survive', () => {
  const executable = (size: number) =>
    compile((x: Value) => relu(x), { device: 'reference' }).executable(tensor(new Float32Array(size), [size], { device: 'reference' }))
  const one = executable(1).ownBytes
  expect(one).toBeGreaterThan(4096)
  const cache = new ExecutableCache(5 * one)
  const made = Array.from({ length: 40 }, (_, i) => cache.get(String(i), () => executable(i + 1)))
  expect(cache.size).toBe(5)
  cache.get('39', () => expect.unreachable())
  cache.get('35', () => expect.unreachable())
  const input = (i: number) => [tensor(new Float32Array(i + 1), [i + 1], { device: 'reference' })]
  expect(made[35]!.runSync(input(35))[0]!.shape).toEqual([36])
  expect(() => made[34]!.runSync(input(34))).toThrow(expect.objectContaining({ code: 'ERR_DISPOSED' }))
})
