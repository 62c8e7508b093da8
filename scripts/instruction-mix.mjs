/**
 * What the inner loops of the fast kernels are made of, as the table in docs/cuda-kernels.md: `npm run build:cuda-mix`. Reads machine
 * code where a disassembler (cuobjdump) is found beside nvcc or on the PATH, else PTX: there the compiler has unrolled and
 * allocated nothing yet that changes these counts, but address arithmetic is not final.
 *   --write   write the table of PTX anew; without it a table that is no longer true fails
 *   --ptx     read PTX even where there is a disassembler
 */

import { execFileSync } from 'node:child_process'
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { fileURLToPath, pathToFileURL } from 'node:url'
import { FAST as ALL, withTable } from './occupancy.mjs'

/** wgmma's loops hold hardly more than the instruction itself (docs/hopper-kernels.md). */
const FAST = ALL.filter(({ title }) => !title.includes('wgmma'))

const root = dirname(dirname(fileURLToPath(import.meta.url)))

/** Columns of the table: what counts as one in PTX and in machine code. */
export const CLASSES = [
  { title: 'fma', ptx: /^fma\.rn(\.ftz)?\.f32/, sass: /^FFMA/ },
  { title: 'mma', ptx: /^(wg)?mma\.(mma_async|sync)/, sass: /^(HMMA|HGMMA)/ },
  { title: 'shared loads', ptx: /^ld\.(volatile\.)?shared/, sass: /^LDS(?!M)/ },
  { title: 'ldmatrix', ptx: /^ldmatrix/, sass: /^LDSM/ },
  { title: 'shared stores', ptx: /^st\.(volatile\.)?shared/, sass: /^STS/ },
  { title: 'async copies', ptx: /^cp\.async\.(c[ag]|bulk)/, sass: /^(LDGSTS|UBLKCP|UTMALDG)/ },
  { title: 'global loads', ptx: /^ld\.global/, sass: /^LDG(?!STS)/ },
]

/** Kernels of PTX text: name → instructions, each an opcode with the labels before it and where it may jump. */
export function parsePtx(text) {
  const kernels = new Map()
  let current
  let labels = []
  for (const raw of text.split('\n')) {
    const line = raw.replace(/\/\/.*/, '').trim()
    const entry = /\.entry\s+([\w$]+)/.exec(line)
    if (entry) kernels.set(entry[1], (current = []))
    const label = /^(\$[\w$]+):/.exec(line)
    if (label) labels.push(label[1])
    const instruction = /^(?:@!?%p\d+\s+)?([a-z][\w.:]*)\s*([^;]*);/.exec(line)
    if (!current || !instruction || label) continue
    const [, op, operands] = instruction
    current.push({ op, labels, target: op.startsWith('bra') ? operands.trim() : undefined })
    labels = []
  }
  return kernels
}

/** Kernels of `cuobjdump -sass`: labels and targets are addresses. */
export function parseSass(text) {
  const kernels = new Map()
  let current
  for (const line of text.split('\n')) {
    const entry = /Function : (\S+)/.exec(line)
    if (entry) kernels.set(entry[1], (current = []))
    const instruction = /\/\*([0-9a-f]{4,})\*\/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)\s*([^;]*);/.exec(line)
    if (!current || !instruction) continue
    const [, address, op, operands] = instruction
    const target = op === 'BRA' ? /0x([0-9a-f]+)/.exec(operands)?.[1] : undefined
    current.push({ op, labels: [String(Number.parseInt(address, 16))], target: target && String(Number.parseInt(target, 16)) })
  }
  return kernels
}

/** The exponential function, in what only an ELU reaches. */
const EXPONENTIAL = /^(ex2\.|MUFU\.EX2)/

/** Without the basic blocks (from a label or behind a jump to the next of either) that compute an ELU: a network without them never enters. */
function withoutElu(instructions) {
  const blocks = []
  for (const instruction of instructions) {
    const last = blocks.at(-1)
    if (!last || last.at(-1).target !== undefined || instruction.labels.length > 0) blocks.push([instruction])
    else last.push(instruction)
  }
  return blocks.filter((block) => !block.some(({ op }) => EXPONENTIAL.test(op))).flat()
}

/** The innermost loops: from the target of a jump back to the jump, with none inside. */
export function innerLoops(instructions) {
  const at = new Map(instructions.flatMap(({ labels }, i) => labels.map((label) => [label, i])))
  const loops = instructions.flatMap(({ target }, end) => {
    const start = target === undefined ? undefined : at.get(target)
    return start !== undefined && start < end ? [[start, end]] : []
  })
  return loops
    .filter(([start, end]) => !loops.some(([s, e]) => (s !== start || e !== end) && s >= start && e <= end))
    .map(([start, end]) => withoutElu(instructions.slice(start, end + 1)).map(({ op }) => op))
}

/** Counts per class, and of all instructions. */
export function mixOf(ops, form) {
  // Copies between registers are PTX's way of joining paths; allocation leaves none.
  ops = ops.filter((op) => !/^mov\./.test(op))
  const counts = CLASSES.map((entry) => ops.filter((op) => entry[form].test(op)).length)
  return { counts, total: ops.length }
}

/** The loop of a kernel that does its work: the one with most multiply-adds, a tensor-core instruction counting for many. */
export function workLoop(instructions, form) {
  const work = ({ counts: [fma, mma] }) => fma + 100 * mma
  return innerLoops(instructions)
    .map((ops) => mixOf(ops, form))
    .sort((a, b) => work(b) - work(a) || b.total - a.total)[0]
}

/** The table as markdown; `kernels`: demangled name → instructions. */
export function mixTable(kernels, form) {
  const rows = FAST.map(({ title, kernel }) => {
    const found = [...kernels].find(([name]) => name.startsWith(kernel))
    const mix = found && workLoop(found[1], form)
    if (!mix) return `| ${title} | not compiled |`
    const other = mix.total - mix.counts.reduce((a, b) => a + b, 0)
    return `| ${title} | ${[...mix.counts, other].map((count) => count || '').join(' | ')} |`
  })
  const titles = ['inner loop of', ...CLASSES.map(({ title }) => title), 'others']
  return [`| ${titles.join(' | ')} |`, `|${titles.map(() => '---|').join('')}`, ...rows].join('\n')
}

export const MARKS = ['<!-- mix: npm run build:cuda-mix -- --write -->', '<!-- /mix -->']

const sources = (name) => execFileSync(process.execPath, [join(root, 'scripts/sources.mjs'), name], { encoding: 'utf8' }).trim()

/** cuobjdump beside nvcc or on the PATH, or ''. */
function disassembler(nvcc) {
  const beside = join(dirname(nvcc), 'cuobjdump')
  if (existsSync(beside)) return beside
  try {
    return execFileSync('sh', ['-c', 'command -v cuobjdump'], { encoding: 'utf8' }).trim()
  } catch {
    return ''
  }
}

const demangled = (kernels) => {
  const names = execFileSync('c++filt', { input: [...kernels.keys()].join('\n'), encoding: 'utf8' }).split('\n')
  return new Map(
    [...kernels.values()].map((instructions, i) => [
      names[i]
        .replaceAll(/sepconv::cuda::|\(anonymous namespace\)::/g, '')
        .replace(/^void /, '')
        .replace(/\(.*\)$/, ''),
      instructions,
    ]),
  )
}

function main() {
  const nvcc = sources('nvcc')
  if (!nvcc) {
    console.error('build:cuda-mix: nvcc was not found, so no inner loop was read')
    process.exitCode = 77
    return
  }
  const tool = process.argv.includes('--ptx') ? '' : disassembler(nvcc)
  const form = tool ? 'sass' : 'ptx'
  const folder = mkdtempSync(join(tmpdir(), 'sepconv-mix-'))
  const kernels = new Map()
  try {
    for (const file of [...new Set(FAST.map((row) => row.file))]) {
      const out = join(folder, 'out')
      const flags = ['-std=c++17', '-O3', join(root, 'native/cuda/kernels', file), '-o', out]
      execFileSync(nvcc, tool ? ['-cubin', '-arch=sm_90a', ...flags] : ['-ptx', '-arch=compute_90a', ...flags])
      const text = tool ? execFileSync(tool, ['-sass', out], { encoding: 'utf8', maxBuffer: 1 << 28 }) : readFileSync(out, 'utf8')
      for (const entry of demangled(tool ? parseSass(text) : parsePtx(text))) kernels.set(...entry)
    }
  } finally {
    rmSync(folder, { recursive: true, force: true })
  }
  const table = mixTable(kernels, form)
  console.log(table)
  if (tool) return
  const page = join(root, 'docs/cuda-kernels.md')
  const before = readFileSync(page, 'utf8')
  const after = withTable(before, table, MARKS)
  if (process.argv.includes('--write') && after) writeFileSync(page, after)
  else if (after !== before) {
    console.error('docs/cuda-kernels.md has another table of instructions: npm run build:cuda-mix -- --write')
    process.exitCode = 1
  }
}

if (process.argv[1] && import.meta.url === pathToFileURL(process.argv[1]).href) main()
