import { describe, expect, it } from 'vitest'
import type { Value } from '../../src/graph/graph.js'
import { add, compile, devices, loadProgram, type Program, relu, tensor, xception } from '../../src/index.js'
import { readState } from '../../src/runtime/state.js'

const names = devices()
  .filter(({ available }) => available)
  .map(({ name }) => name)

describe.each(names)('saved programs on %s', (device) => {
  const x = tensor(Float32Array.of(-1, 2, -3, 4), [2, 2], { device })

  it('run again from JSON', async () => {
    const f = compile((a: Value, b: Value) => ({ sum: add(a, b), positive: relu(a) }), { device })
    const again = loadProgram(JSON.stringify(f.program(x, x)), { device })
    expect(again.inputs.length).toBe(2)
    expect(again.outputs.map(({ name }) => name).sort()).toEqual(['positive', 'sum'])
    const outputs = await again.run([x, x])
    const data = Object.fromEntries(await Promise.all(again.outputs.map(async ({ name }, i) => [name, [...(await outputs[i]!.data())]])))
    expect(data).toEqual({ sum: [-2, 4, -6, 8], positive: [0, 2, 0, 4] })
    again.dispose()
  })

  it('a whole model: its prepare program first, then the model, with the same bits', async () => {
    const model = xception({ classes: 3, width: 0.05, middleRepeats: 0, inputSize: 71, device })
    const forward = compile((image: Value) => model(image), { device })
    const image = tensor(
      Float32Array.from({ length: 71 * 71 * 3 }, (_, i) => Math.sin(i)),
      [1, 71, 71, 3],
      { device },
    )
    const expected = await (await forward(image)).data()
    const { program, prepareProgram } = forward.executable(image)
    const state = Object.fromEntries(
      await Promise.all(
        [...model.variables.values()].map(
          async (variable) => [variable.name, tensor(await readState(variable), variable.type.shape, { device })] as const,
        ),
      ),
    )
    if (prepareProgram) {
      const prepare = loadProgram(JSON.parse(JSON.stringify(prepareProgram)) as Program, { device, state })
      const prepared = await prepare.run([])
      prepare.outputs.forEach(({ name }, i) => {
        state[name] = prepared[i]!
      })
    }
    const again = loadProgram(JSON.stringify(program), { device, state })
    const [y] = await again.run([image])
    expect(await y!.data()).toEqual(expected)
    expect(() => loadProgram(JSON.stringify(program), { device })).toThrow(expect.objectContaining({ code: 'ERR_ARGUMENT' }))
    model.dispose()
  })

  it('refuses what is no program and what does not fit', async () => {
    const json = JSON.stringify(compile((a: Value) => relu(a), { device }).program(x))
    const refused = (code: string) => expect.objectContaining({ code })
    expect(() => loadProgram('{')).toThrow(refused('ERR_FORMAT'))
    expect(() => loadProgram('null')).toThrow(refused('ERR_FORMAT'))
    expect(() => loadProgram('{"format":"sepconv-program","version":2}')).toThrow(refused('ERR_FORMAT'))
    expect(() => loadProgram(JSON.stringify({ ...JSON.parse(json), inputs: [99] }), { device })).toThrow(refused('ERR_FORMAT'))
    const again = loadProgram(json, { device })
    await expect(again.run([])).rejects.toThrow(refused('ERR_ARGUMENT'))
    await expect(again.run([tensor([1, 2], [2], { device })])).rejects.toThrow(refused('ERR_SHAPE'))
    await expect(again.run([tensor(Int32Array.of(1, 2, 3, 4), [2, 2], { device })])).rejects.toThrow(refused('ERR_DTYPE'))
  })
})
