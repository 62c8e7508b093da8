// Sums over ranks of several sizes, some in one program; rank 0 prints { digest, same, wrong, error } as JSON: of all elements, how many differ
// from the sum in the order of the ranks, and the largest difference over the largest addend. node sums.mjs '{"lengths":[3,300000]}'
import { createHash } from 'node:crypto'
import { compile, openCommunicator, tensor } from '../../../dist/index.js'
import { allReduce } from '../../../dist/ops/allReduce.js'
import { add } from '../../../dist/ops/index.js'

const { lengths, times = 1 } = JSON.parse(process.argv[2])
const ranks = await openCommunicator()
const value = (rank, i, length) => Math.fround(Math.sin(rank * 1e3 + i * 0.37 + length) * 10 ** (rank % 3))
// The sums lie in the arena: `add` makes values that nobody else reads.
const sum = compile(
  (...xs) =>
    allReduce(
      xs.map((x) => add(x, 0)),
      ranks.size,
      4096,
    ),
  { device: 'cpu' },
)
const inputs = lengths.map((length) =>
  tensor(
    Float32Array.from({ length }, (_, i) => value(ranks.rank, i, length)),
    [length],
    { device: 'cpu' },
  ),
)
const largest = 10 ** Math.min(2, ranks.size - 1)
let [wrong, error] = [0, 0]
const hash = createHash('sha256')
for (let k = 0; k < times; k++)
  for (const [n, output] of (await sum.run(...inputs)).entries()) {
    const data = await output.data()
    output.dispose()
    hash.update(data)
    for (let i = 0; i < data.length; i++) {
      let expected = value(0, i, lengths[n])
      for (let rank = 1; rank < ranks.size; rank++) expected = Math.fround(expected + value(rank, i, lengths[n]))
      if (data[i] !== expected) wrong++
      error = Math.max(error, Math.abs(data[i] - expected) / largest)
    }
  }
const all = await ranks.share({ digest: hash.digest('hex'), wrong, error })
if (ranks.rank === 0)
  console.log(
    JSON.stringify({
      digest: all[0].digest,
      same: all.every(({ digest }) => digest === all[0].digest),
      wrong: Math.max(...all.map((own) => own.wrong)),
      error: Math.max(...all.map((own) => own.error)),
    }),
  )
await ranks.close()
