/** Weights that inference reads in packed form only are kept in that form alone, and come back bit for bit when somebody asks. */

import { describe, expect, it } from 'vitest'
import { compile, mean, sgd, square, tensor, type Tensor, type Value } from '../../src/index.js'
import { conv2d, dense, globalAveragePool, relu, sequential } from '../../src/nn/index.js'
import { nameVariables, variablesOf } from '../../src/nn/layer.js'
import { openDevice } from '../../src/runtime/device.js'
import { loadNative } from '../../src/runtime/native.js'
import { initialContent, readState, releaseState, restoreState, writeState } from '../../src/runtime/state.js'
import { readFileSync } from 'node:fs'

const resident = () => Number(/VmRSS:\s+(\d+)/.exec(readFileSync('/proc/self/status', 'utf8'))?.[1]) * 1024

describe.skipIf(!loadNative().addon)('packed weights', () => {
  const build = (width = 200) => {
    const net = sequential(conv2d(3, width), relu(), conv2d(width, width + 1), relu(), globalAveragePool(), dense(width + 1, 130))
    nameVariables(net)
    return { net, variables: variablesOf(net) }
  }
  const image = () =>
    tensor(
      Float32Array.from({ length: 4 * 4 * 3 }, (_, i) => Math.sin(i)),
      [1, 4, 4, 3],
      { device: 'cpu' },
    )
  const numbers = async (y: Tensor) => Array.from(await y.data())

  it('a failure while weights are packed rejects the run, and the next one packs again', async () => {
    const { net } = build(40)
    const executor = openDevice('cpu')
    const load = executor.load.bind(executor)
    let failures = 1
    executor.load = (program) => {
      const loaded = load(program)
      if (program.inputs.length > 0) return loaded
      const run = loaded.run.bind(loaded)
      loaded.run = (...given) => (failures-- > 0 ? Promise.reject(new Error('device lost')) : run(...given))
      return loaded
    }
    try {
      const infer = compile((x: Value) => net(x), { device: 'cpu' })
      await expect(infer(image() as never) as never as Promise<Tensor>).rejects.toThrow('device lost')
      const again = await numbers((await infer(image() as never)) as never)
      const other = compile((x: Value) => net(x), { device: 'cpu' })
      expect(again).toEqual(await numbers((await other(image() as never)) as never))
      infer.dispose()
      other.dispose()
    } finally {
      executor.load = load
    }
  })

  it('reading, training, a second program and another write meet the right content', async () => {
    const { net, variables } = build()
    const before = variables.map(initialContent)
    const infer = compile((x: Value) => net(x), { device: 'cpu' })
    const first = await numbers((await infer(image() as never)) as never)
    for (const [i, variable] of variables.entries()) expect(await readState(variable)).toEqual(before[i])

    // Another program packs the same weights anew, out of the packed form.
    const other = compile((x: Value) => net(x), { device: 'cpu', optimise: false })
    expect((await numbers((await other(image() as never)) as never)).map(Math.fround)).toEqual(
      first.map((y) => expect.closeTo(y, 4) as unknown),
    )

    // A program that reads the weights themselves gets them back; then inference packs the new ones.
    const step = compile((x: Value) => mean(square(net(x))), { device: 'cpu', train: sgd({ rate: 0.1 }) })
    await infer(image() as never)
    const { loss } = await step.run(image() as never)
    expect(Number.isFinite((await loss.data())[0])).toBe(true)
    expect(await numbers((await infer(image() as never)) as never)).not.toEqual(first)
    step.dispose()

    for (const [i, variable] of variables.entries()) writeState(variable, before[i]!, openDevice('cpu'))
    expect(await numbers((await infer(image() as never)) as never)).toEqual(first)

    // What is left when the programs are gone: the content, and nothing of another variable.
    infer.dispose()
    other.dispose()
    for (const [i, variable] of variables.entries()) expect(await readState(variable)).toEqual(before[i])
    restoreState(variables)
    for (const [i, variable] of variables.entries()) expect(await readState(variable)).toEqual(before[i])
    const { allocated } = openDevice('cpu').memory()
    for (const variable of variables) releaseState(variable)
    expect(openDevice('cpu').memory().allocated).toBeLessThan(allocated)
  })

  it.skipIf(process.platform !== 'linux')('the pages of the weights go back to the system', async () => {
    const { net, variables } = build(2400) // 23 MB in the second layer
    const bytes = variables.reduce((sum, variable) => sum + 4 * initialContent(variable).length, 0)
    using infer = { f: compile((x: Value) => net(x), { device: 'cpu' }), [Symbol.dispose]() {} }
    for (const variable of variables) writeState(variable, initialContent(variable), openDevice('cpu'))
    const loaded = resident()
    ;(await infer.f(image() as never)) as never
    // Packed weights came, the weights themselves went.
    expect(resident() - loaded).toBeLessThan(0.5 * bytes)
    infer.f.dispose()
    for (const variable of variables) releaseState(variable)
  })
})
