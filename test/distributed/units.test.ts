import { describe, expect, it } from 'vitest'
import { ImageLoader } from '../../src/data/loader.js'
import type { Sample } from '../../src/data/folder.js'
import { mixImages, type Mixing } from '../../src/data/mix.js'
import { differences } from '../../src/differences.js'
import { checkVersions } from '../../src/distributed/communicator.js'
import { launched } from '../../src/distributed/launched.js'
import { mpiShim } from '../../src/distributed/shim.js'
import { packageVersion } from '../../src/runtime/native.js'
import { straggler } from '../../src/train/team.js'

describe('launched', () => {
  it.each([
    [
      { OMPI_COMM_WORLD_RANK: '3', OMPI_COMM_WORLD_SIZE: '8', OMPI_COMM_WORLD_LOCAL_RANK: '1' },
      { rank: 3, size: 8, localRank: 1, by: 'Open MPI' },
    ],
    [
      { PMI_RANK: '0', PMI_SIZE: '2' },
      { rank: 0, size: 2, by: 'MPICH' },
    ],
    [
      { SLURM_PROCID: '5', SLURM_STEP_NUM_TASKS: '6', SLURM_LOCALID: '2' },
      { rank: 5, size: 6, localRank: 2, by: 'Slurm' },
    ],
  ])('%j', (environment, expected) => expect(launched(environment)).toEqual(expected))

  it.each([
    ['nobody', {}],
    ['one rank', { OMPI_COMM_WORLD_RANK: '0', OMPI_COMM_WORLD_SIZE: '1' }],
    ['a batch script of Slurm', { SLURM_PROCID: '0', SLURM_NTASKS: '4', SLURM_STEP_NUM_TASKS: '1' }],
    ['switched off', { OMPI_COMM_WORLD_RANK: '0', OMPI_COMM_WORLD_SIZE: '4', SEPCONV_MPI: 'none' }],
  ])('alone: %s', (_, environment) => expect(launched(environment)).toBeUndefined())
})

describe('differences', () => {
  it('names every difference by its path', () => {
    expect(differences({ a: 1, b: { c: [1, 3], d: 'x' }, e: true }, { a: 1, b: { c: [1, 2], d: 'x' } })).toEqual([
      { path: 'b.c', was: [1, 3], is: [1, 2] },
      { path: 'e', was: true, is: undefined },
    ])
    // One side nested, the other not: the whole of both.
    expect(differences({ a: { b: 1 } }, { a: 2 })).toEqual([{ path: 'a', was: { b: 1 }, is: 2 }])
    expect(differences({ a: null }, { a: null })).toEqual([])
  })
})

describe('straggler', () => {
  it('is the rank that takes 1.5 times as long as the median of the others', () => {
    expect(straggler([10, 10, 17, 11])).toEqual({ rank: 2, times: 1.7 })
    expect(straggler([10, 10, 14, 11])).toBeUndefined()
    // Two slow ones among many hide nothing.
    expect(straggler([10, 30, 10, 31, 10, 10])).toEqual({ rank: 3, times: 3.1 })
  })
})

describe('the MPI shim', () => {
  it('says how to get MPI where there is no mpicc', async () => {
    const before = process.env.SEPCONV_MPICC
    process.env.SEPCONV_MPICC = '/nowhere/mpicc'
    try {
      await expect(mpiShim()).rejects.toMatchObject({
        code: 'ERR_MPI',
        message: expect.stringMatching(/'\/nowhere\/mpicc' was not found.*apt-get install openmpi-bin libopenmpi-dev/),
      })
    } finally {
      if (before === undefined) delete process.env.SEPCONV_MPICC
      else process.env.SEPCONV_MPICC = before
    }
  })
})

describe('versions', () => {
  /** Ranks of which number 2 answers with another one. */
  const ranks = (other: string) => ({
    size: 3,
    allGather: (own: Uint8Array) => {
      const theirs = new Uint8Array(own.length)
      theirs.set(Buffer.from(other))
      return Promise.resolve(new Uint8Array(Buffer.concat([own, own, theirs])))
    },
  })
  it('that differ are refused by rank', async () => {
    await expect(checkVersions(ranks(packageVersion))).resolves.toBeUndefined()
    await expect(checkVersions(ranks('0.0.1'))).rejects.toMatchObject({
      code: 'ERR_RANK',
      message: expect.stringContaining(`rank 2 runs sepconv 0.0.1, rank 0 runs ${packageVersion}`),
    })
  })
})

const SIZE = 4
/** Picture i is filled with i + 1. */
const samples = (count: number): Sample[] =>
  Array.from({ length: count }, (_, i) => ({
    name: `${i}`,
    path: `${i}`,
    label: i % 3,
    load: () => Promise.resolve({ width: SIZE, height: SIZE, data: new Uint8Array(SIZE * SIZE * 3).fill(i + 1) }),
  })) as unknown as Sample[]

const collect = async (options: ConstructorParameters<typeof ImageLoader>[1], count = 24) => {
  const batches = []
  for await (const batch of new ImageLoader(samples(count), { size: SIZE, batch: 12, ...options })) batches.push(batch)
  return batches
}

describe('a loader that shares its batches', () => {
  it.each([1, 2, 3, 4, 6, 12])('%i shares make each batch once, and nothing twice', async (count) => {
    for (const options of [{ shuffle: true, seed: 3, augment: {}, epochs: 2 }, {}]) {
      const whole = await collect(options)
      const shares = await Promise.all(Array.from({ length: count }, (_, index) => collect({ ...options, share: { index, count } })))
      for (const [i, batch] of whole.entries()) {
        const parts = shares.map((share) => share[i]!)
        expect(parts.flatMap(({ indices }) => [...indices])).toEqual([...batch.indices])
        expect(parts.flatMap(({ labels }) => [...labels])).toEqual([...batch.labels])
        expect(Buffer.concat(parts.map(({ images }) => images)).equals(batch.images)).toBe(true)
        expect(parts.every(({ start, next, epoch }) => start === batch.start && next === batch.next && epoch === batch.epoch)).toBe(true)
      }
    }
  })

  it('leaves rows behind the last sample empty, whole shares too', async () => {
    const shares = await Promise.all([0, 1, 2].map((index) => collect({ share: { index, count: 3 } }, 5)))
    expect(shares.map(([batch]) => [...batch!.indices])).toEqual([
      [0, 1, 2, 3],
      [4, -1, -1, -1],
      [-1, -1, -1, -1],
    ])
  })

  it.each([2, 3, 4])('brings the rows that its own are mixed with: %i shares mix as one does', async (count) => {
    const mixing: Mixing = { share: 0.3 }
    const mixed = (images: Uint8Array, rows: number) => {
      mixImages(images, rows, SIZE, mixing)
      return images
    }
    const [whole] = await collect({ shuffle: true })
    const expected = mixed(whole!.images, 12)
    const own = (12 / count) * SIZE * SIZE * 3
    const parts = await Promise.all(
      Array.from({ length: count }, async (_, index) => {
        const [batch] = await collect({ shuffle: true, share: { index, count, mirror: true } })
        return mixed(batch!.images, batch!.labels.length).subarray(0, own)
      }),
    )
    expect(Buffer.concat(parts).equals(expected)).toBe(true)
  })

  it('refuses shares that do not divide the batch', async () => {
    await expect(collect({ share: { index: 0, count: 5 } })).rejects.toMatchObject({ code: 'ERR_ARGUMENT', subject: 'share' })
    await expect(collect({ share: { index: 2, count: 2 } })).rejects.toMatchObject({ code: 'ERR_ARGUMENT', subject: 'share' })
  })
})
