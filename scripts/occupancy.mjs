/**
 * What the fast kernels take of a multiprocessor of compute capability 9.0, as the table in docs/cuda-kernels.md: registers out of
 * ptxas (scripts/check-ptxas.mjs), threads and shared memory of a launch out of the emulator (test/cuda/occupancy.test.ts checks them).
 */

/** Kernels on Xception's shapes: part of the demangled name, source, name of the launch in the emulator, threads and dynamic shared memory of a block. */
export const FAST = [
  { title: 'depthwise 3x3, float32', kernel: 'depthwiseTiled<3, 1, 4, float>', file: 'depthwise.cu', threads: 128, shared: 23040 },
  {
    title: 'depthwise 3x3, bfloat16',
    kernel: 'depthwiseTiled<3, 1, 4, sepconv::arch::Bfloat16>',
    file: 'depthwise.cu',
    threads: 128,
    shared: 23040,
  },
  { title: 'depthwise 5x5, float32', kernel: 'depthwiseTiled<5, 1, 4, float>', file: 'depthwise.cu', threads: 128, shared: 30720 },
  {
    title: 'depthwise 5x5, bfloat16',
    kernel: 'depthwiseTiled<5, 1, 4, sepconv::arch::Bfloat16>',
    file: 'depthwise.cu',
    threads: 128,
    shared: 30720,
  },
  {
    title: 'its filter gradient 3x3, float32',
    kernel: 'filterGradientTiled<3, 1, 4, float>',
    file: 'depthwise_filter_gradient.cu',
    threads: 192,
    shared: 39424,
  },
  {
    title: 'its filter gradient 3x3, bfloat16',
    kernel: 'filterGradientTiled<3, 1, 4, sepconv::arch::Bfloat16>',
    file: 'depthwise_filter_gradient.cu',
    threads: 192,
    shared: 39424,
  },
  {
    title: 'its filter gradient 5x5, float32',
    kernel: 'filterGradientTiled<5, 1, 4, float>',
    file: 'depthwise_filter_gradient.cu',
    threads: 160,
    shared: 47104,
  },
  {
    title: 'its filter gradient 5x5, bfloat16',
    kernel: 'filterGradientTiled<5, 1, 4, sepconv::arch::Bfloat16>',
    file: 'depthwise_filter_gradient.cu',
    threads: 160,
    shared: 47104,
  },
  {
    title: 'both gradients of 3x3, float32',
    kernel: 'depthwiseGradients<float>',
    file: 'depthwise_gradients.cu',
    threads: 128,
    shared: 27136,
  },
  {
    title: 'both gradients of 3x3, bfloat16',
    kernel: 'depthwiseGradients<sepconv::arch::Bfloat16>',
    file: 'depthwise_gradients.cu',
    threads: 128,
    shared: 27136,
  },
  {
    title: 'pointwise 128x128, float32',
    kernel: 'gemmSimt<Tile<128, 128, 8, 8, 8, 2>, MatrixOperand<true>, MatrixOperand<false>, 4>',
    file: 'pointwise.cu',
    threads: 256,
    shared: 16896,
  },
  {
    title: 'pointwise 128x128, tf32',
    kernel: 'gemmMma<MmaTile<128, 128, 2, 2>, Tf32Format, MatrixOperand<true>, MatrixOperand<false>',
    file: 'pointwise_mma.cu',
    threads: 256,
    shared: 56832,
  },
  {
    title: 'pointwise 128x128, bfloat16',
    kernel: 'gemmMma<MmaTile<128, 128, 2, 2>, Bf16Format, MatrixOperand<true>, MatrixOperand<false>',
    file: 'pointwise_mma.cu',
    threads: 256,
    shared: 56832,
  },
  {
    title: 'its data gradient, bfloat16',
    kernel: 'gemmMma<MmaTile<128, 128, 2, 2>, Bf16Format, MatrixOperand<true>, MatrixOperand<true>',
    file: 'pointwise_mma.cu',
    threads: 256,
    shared: 61440,
  },
  {
    title: 'its filter gradient, bfloat16',
    kernel: 'gemmMma<MmaTile<128, 128, 2, 2>, Bf16Format, MatrixOperand<false>, MatrixOperand<false>',
    file: 'pointwise_mma.cu',
    threads: 256,
    shared: 52224,
  },
  {
    title: 'convolution 128x128, bfloat16',
    kernel: 'gemmMma<MmaTile<128, 128, 2, 2>, Bf16Format, WindowOperand<false, true>, MatrixOperand<false>',
    file: 'conv2d_mma.cu',
    threads: 256,
    shared: 56832,
  },
  {
    title: 'pointwise, 192x184 by wgmma, bfloat16',
    kernel: 'gemmWgmma<WgmmaTile<3, 1, 184>, WgmmaProduct<WgmmaBf16, (sepconv::arch::Major)0, (sepconv::arch::Major)1, false, false>',
    file: 'pointwise_wgmma.cu',
    threads: 512,
    shared: 227392,
  },
  {
    title: 'pointwise, 128x256 by wgmma, bfloat16',
    kernel: 'gemmWgmma<WgmmaTile<2, 1, 256>, WgmmaProduct<WgmmaBf16, (sepconv::arch::Major)0, (sepconv::arch::Major)1, false, false>',
    file: 'pointwise_wgmma.cu',
    threads: 384,
    shared: 217152,
  },
  {
    title: 'its data gradient, 192x184 by wgmma, bfloat16',
    kernel: 'gemmWgmma<WgmmaTile<3, 1, 184>, WgmmaProduct<WgmmaBf16, (sepconv::arch::Major)0, (sepconv::arch::Major)0, false, false>',
    file: 'pointwise_wgmma.cu',
    threads: 512,
    shared: 227392,
  },
  {
    title: 'its filter gradient, 192x184 by wgmma, bfloat16',
    kernel: 'gemmWgmma<WgmmaTile<3, 1, 184>, WgmmaProduct<WgmmaBf16, (sepconv::arch::Major)1, (sepconv::arch::Major)1, false, false>',
    file: 'pointwise_wgmma.cu',
    threads: 512,
    shared: 227392,
  },
  {
    title: 'pointwise, 184x192 by wgmma, tf32',
    kernel: 'gemmWgmma<WgmmaTile<3, 1, 184>, WgmmaProduct<WgmmaTf32, (sepconv::arch::Major)1, (sepconv::arch::Major)0, true, true>',
    file: 'pointwise_wgmma_tf32.cu',
    threads: 512,
    shared: 227392,
  },
  {
    title: 'separable 3x3 128x128, tf32',
    kernel: 'gemmMma<MmaTile<128, 128, 4, 1>, Tf32Format, SeparableOperand<3, true>',
    file: 'separable_mma.cu',
    threads: 512,
    shared: 56832,
  },
  {
    title: 'separable 3x3 128x128, bfloat16',
    kernel: 'gemmMma<MmaTile<128, 128, 4, 1>, Bf16Format, SeparableOperand<3, true>',
    file: 'separable_mma.cu',
    threads: 512,
    shared: 56832,
  },
  {
    title: 'pointwise gradient of separable 3x3, tf32',
    kernel: 'gemmMma<MmaTile<128, 128, 4, 1>, Tf32Format, SeparableOperand<3, false>',
    file: 'separable_mma.cu',
    threads: 512,
    shared: 52224,
  },
  {
    title: 'pointwise gradient of separable 3x3, bfloat16',
    kernel: 'gemmMma<MmaTile<128, 128, 4, 1>, Bf16Format, SeparableOperand<3, false>',
    file: 'separable_mma.cu',
    threads: 512,
    shared: 52224,
  },
]

/** Blocks that fit onto a multiprocessor of compute capability 9.0 (CUDA C++ Programming Guide, technical specifications), and what limits them. */
export function occupancy({ registers, threads, shared }) {
  // Registers are given out to warps, 256 at a time; shared memory in steps of 128 bytes, and 1 KiB of each block is the system's.
  const perWarp = Math.ceil((registers * 32) / 256) * 256
  const warps = Math.ceil(threads / 32)
  const limits = {
    registers: Math.floor(65536 / perWarp / warps),
    'shared memory': Math.floor(233472 / (Math.ceil(shared / 128) * 128 + 1024)),
    threads: Math.floor(64 / warps),
    blocks: 32,
  }
  const blocks = Math.min(...Object.values(limits))
  const by = Object.keys(limits).find((name) => limits[name] === blocks)
  return { blocks, by, share: (blocks * warps) / 64 }
}

/** The table as markdown. @param kernels what check-ptxas found, sm_90a among it. */
export function occupancyTable(kernels) {
  const rows = FAST.map(({ title, kernel, threads, shared }) => {
    const found = kernels.find((entry) => entry.architecture === 'sm_90a' && entry.kernel.startsWith(kernel))
    if (!found) return `| ${title} | not compiled |`
    const { blocks, by, share } = occupancy({ registers: found.registers, threads, shared })
    const kib = (shared / 1024).toFixed(1)
    return `| ${title} | ${found.registers} | ${threads} | ${kib} | ${blocks} | ${(share * 100).toFixed(0)} % | ${by} |`
  })
  return [
    '| kernel | registers | threads | shared memory, KiB | blocks | occupancy | limited by |',
    '|---|---|---|---|---|---|---|',
    ...rows,
  ].join('\n')
}

const MARKS = ['<!-- occupancy: npm run build:cuda-check -- --write -->', '<!-- /occupancy -->']

/** A document with its table replaced; `undefined` where it has none. @param marks before and after the table */
export function withTable(document, table, [start, end] = MARKS) {
  const [from, to] = [document.indexOf(start), document.indexOf(end)]
  if (from < 0 || to < from) return undefined
  return `${document.slice(0, from + start.length)}\n\n${table}\n\n${document.slice(to)}`
}
