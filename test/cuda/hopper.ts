/** The wgmma kernels for compute capability 9.0: the same cases for the emulator and for hardware. */

import { describe, expect, it } from 'vitest'
import type { Attributes } from '../../src/graph/graph.js'
import { relativeError } from '../../src/runtime/verify.js'
import { type Filled, generator, uniform } from '../helpers.js'
import { decode, runCall } from './calls.js'
import { type Bench, convert } from './precision.js'

/** Every tile of every product by wgmma against the reference, with the same bits in every mode. */
export function testWarpgroups({ modes, describe: description }: Bench): void {
  const random = generator(51)
  const tensor = (...shape: number[]) => uniform(random, shape)

  /** The reference's values, and the same bits in every mode. */
  function agree(kernel: string, inputs: readonly (Filled | null)[], attributes: Attributes, precision: 'tf32' | 'bfloat16'): void {
    const { given, expected, outputs, attributes: all } = convert(kernel, inputs, attributes, precision)
    const types = given.map((x) => x && x.type)
    if (description) expect(description(kernel, types, outputs, all)).toMatch(new RegExp(`^${precision} ${attributes.tile} wgmma`))
    let first: Uint8Array[] | undefined
    for (const [mode, executor] of modes) {
      const got = runCall(executor, kernel, given, all, outputs)
      expected.forEach(({ data }, i) => {
        const half = outputs[i]!.dtype === 'bfloat16'
        // separableConv2d rounds between its launches; statistics of bfloat16 are those of values before they are rounded.
        const separable = kernel === 'separableConv2d'
        const tolerance = half ? (separable ? 0.01 : 0.005) : separable ? 1e-3 : precision === 'bfloat16' && i ? 1e-2 : 2e-5
        expect(
          relativeError(decode(outputs[i]!, got[i]!), data),
          `${mode}: ${kernel} output ${i}, ${JSON.stringify(types.map((type) => type?.shape))} ${JSON.stringify(all)}`,
        ).toBeLessThan(tolerance)
      })
      first ??= got
      expect(
        got.every((bytes, i) => Buffer.compare(bytes, first![i]!) === 0),
        `${mode}: same bits`,
      ).toBe(true)
    }
  }

  /** Rows, depth, columns: less than a tile, not a whole number of tiles or of steps, several tiles per block. */
  const shapes = [
    [5, 8, 8],
    [200, 72, 200],
    [470, 136, 264],
  ] as const

  describe('pointwise forward', () => {
    describe.each([
      ['bfloat16', ['192x184', '192x96', '128x256', '256x128']],
      ['tf32', ['184x192', '256x128']],
    ] as const)('%s', (precision, tiles) => {
      it.each(tiles)('%s: plain, epilogue, statistics', (tile) => {
        for (const [rows, cin, cout] of shapes) {
          agree('pointwiseConv2d', [tensor(rows, cin), tensor(cin, cout)], { tile }, precision)
          const operands = [tensor(rows, cin), tensor(cin, cout), tensor(cout), tensor(cout), tensor(rows, cout)]
          agree('pointwiseConv2d', operands, { tile, activation: 'relu' }, precision)
          agree('pointwiseConv2d', [tensor(rows, cin), tensor(cin, cout)], { tile, statistics: true }, precision)
        }
      })
    })
    it.each(['192x184', '192x96', '128x256'])('bfloat16 %s: a ReLU in front, through registers', (tile) => {
      for (const [rows, cin, cout] of shapes)
        agree('pointwiseConv2d', [tensor(rows, cin), tensor(cin, cout)], { tile, inputActivation: 'relu' }, 'bfloat16')
    })
  })

  describe('data gradient', () => {
    describe.each([
      ['bfloat16', ['192x184', '192x96', '128x256', '256x128']],
      ['tf32', ['192x184', '128x256', '256x128']],
    ] as const)('%s', (precision, tiles) => {
      it.each(tiles)('%s: with and without mask', (tile) => {
        for (const [rows, cout, cin] of shapes) {
          agree('pointwiseConv2dInputGradient', [tensor(rows, cout), tensor(cin, cout), null], { tile, inputActivation: 'none' }, precision)
          const operands = [tensor(rows, cout), tensor(cin, cout), tensor(rows, cin)]
          agree('pointwiseConv2dInputGradient', operands, { tile, inputActivation: 'elu' }, precision)
        }
      })
    })
  })

  describe('filter gradient, bfloat16', () => {
    it.each(['192x184', '128x256'])('%s: whole and split, with and without ReLU', (tile) => {
      for (const inputActivation of ['none', 'relu'])
        for (const [rows, cin, cout] of [
          [9, 8, 16],
          [300, 72, 200],
          [1500, 208, 264],
        ] as const)
          agree('pointwiseConv2dFilterGradient', [tensor(rows, cin), tensor(rows, cout)], { tile, inputActivation }, 'bfloat16')
    })
  })

  describe('separable, depthwise and product by wgmma', () => {
    it.each([
      ['bfloat16', '192x184'],
      ['tf32', '184x192'],
    ] as const)('%s', (precision, tile) => {
      for (const [c, cout, stride] of [
        [16, 264, 1],
        [72, 360, 2],
      ] as const) {
        const geometry = { strides: [stride, stride], dilations: [1, 1], padding: [1, 1, 1, 1], tile }
        const inputs = [tensor(2, 13, 12, c), tensor(3, 3, c, 1), tensor(c, cout)]
        agree('separableConv2d', inputs, geometry, precision)
        const residual = tensor(2, Math.ceil(13 / stride), Math.ceil(12 / stride), cout)
        agree(
          'separableConv2d',
          [...inputs, tensor(c), tensor(c), tensor(c), tensor(cout), tensor(cout), residual],
          {
            ...geometry,
            inputActivation: 'relu',
            intermediateActivation: 'elu',
            activation: 'relu',
          },
          precision,
        )
      }
    })
  })
}
