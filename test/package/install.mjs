// Installs the two packed tarballs into an empty project on a machine without a compiler (as far as its PATH says) and uses them as
// an ES module, through require, from TypeScript and from the command line; then without the platform package.
//   npm run build && npm run test:package        prints every check to stdout; exit status 1 with the first that fails

import { execFileSync, spawnSync } from 'node:child_process'
import { existsSync, mkdirSync, mkdtempSync, readFileSync, realpathSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { fileURLToPath } from 'node:url'

const root = path.resolve(path.dirname(fileURLToPath(import.meta.url)), '../..')
const { version } = JSON.parse(readFileSync(path.join(root, 'package.json'), 'utf8'))
const work = realpathSync(mkdtempSync(path.join(tmpdir(), 'sepconv-install-')))
const project = path.join(work, 'project')
process.on('exit', () => rmSync(work, { recursive: true, force: true }))

// A PATH with node, npm and a shell, and nothing that compiles.
const bin = path.join(work, 'bin')
mkdirSync(bin)
mkdirSync(project)
for (const command of ['node', 'npm', 'sh', 'env'])
  symlinkSync(execFileSync('sh', ['-c', `command -v ${command}`], { encoding: 'utf8' }).trim(), path.join(bin, command))
const clean = Object.fromEntries(Object.entries(process.env).filter(([name]) => !/^(npm_|SEPCONV_|CXX$|CC$|NODE_OPTIONS$)/.test(name)))
const env = { ...clean, PATH: bin }

function check(what, passed, details = '') {
  console.log(`${passed ? 'ok  ' : 'FAIL'} ${what}`)
  if (passed) return
  if (details) console.error(details)
  process.exit(1)
}

function run(command, args, options = {}) {
  const { status, stdout, stderr, error } = spawnSync(command, args, { cwd: project, env, encoding: 'utf8', ...options })
  return { status, stdout, stderr: `${stderr}${error ? error.message : ''}` }
}

/** Runs a file in the project; its last line on stdout is JSON. */
function runFile(name, source, extra = {}) {
  writeFileSync(path.join(project, name), source)
  const { status, stdout, stderr } = run('node', [name], { env: { ...env, ...extra } })
  if (status !== 0) check(`${name} runs`, false, stderr)
  return { answer: JSON.parse(stdout.trim().split('\n').at(-1)), stderr }
}

const tarballs = execFileSync(process.execPath, [path.join(root, 'scripts/pack.mjs'), '--out', path.join(work, 'packages')], {
  encoding: 'utf8',
  stdio: ['ignore', 'pipe', 'inherit'],
})
  .trim()
  .split('\n')
check(
  `two tarballs: ${tarballs.map((file) => path.basename(file)).join(', ')}`,
  tarballs.length === 2 && tarballs.every((file) => existsSync(file)),
)

writeFileSync(path.join(project, 'package.json'), JSON.stringify({ name: 'user', private: true, version: '1.0.0' }))
for (const compiler of ['cc', 'g++', 'clang++', 'cmake', 'make', 'python3'])
  check(`no ${compiler} on the PATH`, run('sh', ['-c', `command -v ${compiler}`]).status !== 0)
const installed = run('npm', ['install', '--prefer-offline', '--no-audit', '--no-fund', ...tarballs])
check('npm install of both', installed.status === 0, installed.stderr)

const home = path.join(project, 'node_modules/sepconv')
check('no binding.gyp at the root of the package', !existsSync(path.join(home, 'binding.gyp')))
for (const file of [
  'CMakeLists.txt',
  'native/sources.json',
  'native/binding.gyp',
  'native/addon/addon.cc',
  'scripts/sources.mjs',
  'dist/cli/main.js',
])
  check(`the package carries ${file}`, existsSync(path.join(home, file)))
check(
  'the package carries neither build folder nor emulator',
  !existsSync(path.join(home, 'build')) && !existsSync(path.join(home, 'native/emulator')),
)

const use = `
const x = tensor(new Float32Array(5 * 5 * 2).fill(1), [1, 5, 5, 2], { device })
const y = await depthwiseConv2d(x, tensor(new Float32Array(9 * 2).fill(1), [3, 3, 2, 1], { device }), { padding: 'valid' })
console.log(JSON.stringify({ devices: devices(), shape: y.shape, first: (await y.data())[0], on: y.device }))`
const cpu = (answer) => answer.devices.find(({ name }) => name === 'cpu')
const right = (answer, device) => answer.on === device && answer.first === 9 && String(answer.shape) === '1,3,3,2'

const esm = runFile('use.mjs', `import { depthwiseConv2d, devices, tensor } from 'sepconv'\nconst device = 'cpu'\n${use}`).answer
check(`import: cpu is available (${cpu(esm).isa}, from ${path.relative(project, cpu(esm).source ?? '')})`, cpu(esm).available)
check('import: a depthwise convolution on cpu', right(esm, 'cpu'), JSON.stringify(esm))
const cjs = runFile(
  'use.cjs',
  `const { depthwiseConv2d, devices, tensor } = require('sepconv')\nconst device = 'cpu'\n;(async () => {${use}\n})()`,
).answer
check('require: the same', right(cjs, 'cpu') && cpu(cjs).available, JSON.stringify(cjs))
const nn = runFile('nn.mjs', "import * as nn from 'sepconv/nn'\nconsole.log(JSON.stringify(Object.keys(nn)))").answer
check(`import 'sepconv/nn': ${nn.length} names`, nn.length > 3)
check(
  'package.json is exported',
  runFile('version.cjs', "console.log(JSON.stringify(require('sepconv/package.json').version))").answer === version,
)

const tsc = createRequire(import.meta.url).resolve('typescript/bin/tsc')
writeFileSync(
  path.join(project, 'use.ts'),
  `import { SepconvError, compile, depthwiseConv2d, devices, tensor, type Shape, type Tensor } from 'sepconv'
import { xceptionBlock } from 'sepconv/nn'
const x: Tensor = tensor(new Float32Array(50), [1, 5, 5, 2])
const shape: Shape = x.shape
const names: string[] = devices().map((device) => device.name)
export async function use(): Promise<Tensor> {
  try {
    return await depthwiseConv2d(x, tensor(new Float32Array(18), [3, 3, 2, 1]), { padding: 'valid' })
  } catch (error) {
    if (error instanceof SepconvError && error.code === 'ERR_SHAPE') console.log(shape, names, compile, xceptionBlock)
    throw error
  }
}
// @ts-expect-error a padding that does not exist
void depthwiseConv2d(x, x, { padding: 'sam' })
`,
)
// The README's examples as they stand; what they take for granted is declared.
const examples = [...readFileSync(path.join(root, 'README.md'), 'utf8').matchAll(/^```ts\n(.*?)^```/gms)].map(([, code], i) => {
  const given = /\bimages\b/.test(code) ? "declare const images: import('sepconv').Tensor, labels: import('sepconv').Tensor\n" : ''
  writeFileSync(path.join(project, `readme${i + 1}.mts`), given + code)
  return `readme${i + 1}.mts`
})
check(`the README has examples: ${examples.length}`, examples.length > 2)
for (const [module, moduleResolution] of [
  ['NodeNext', 'NodeNext'],
  ['ESNext', 'Bundler'],
]) {
  const options = {
    strict: true,
    noEmit: true,
    target: 'ES2022',
    lib: ['ES2023', 'ESNext.Disposable'],
    module,
    moduleResolution,
    skipLibCheck: false,
    types: ['node'],
    typeRoots: [path.join(root, 'node_modules/@types')],
  }
  writeFileSync(path.join(project, 'tsconfig.json'), JSON.stringify({ compilerOptions: options, files: ['use.ts', ...examples] }))
  const { status, stdout } = run(process.execPath, [tsc, '-p', '.'])
  check(`TypeScript with moduleResolution ${moduleResolution}, the README's examples too`, status === 0, stdout)
}

const cli = run(path.join(project, 'node_modules/.bin/sepconv'), ['devices', '--json'])
check(
  'sepconv devices --json',
  cli.status === 0 && JSON.parse(cli.stdout).some(({ name, available }) => name === 'cpu' && available),
  cli.stderr + cli.stdout,
)
const build = run(path.join(project, 'node_modules/.bin/sepconv'), ['build'])
check(
  'sepconv build says that there is no compiler',
  build.status !== 0 && /compiler/.test(build.stderr) && /cmake/.test(build.stderr),
  build.stderr + build.stdout,
)

rmSync(path.join(project, 'node_modules/@sepconv'), { recursive: true })
const { answer: bare, stderr } = runFile(
  'bare.mjs',
  `import { depthwiseConv2d, devices, tensor } from 'sepconv'\nconst device = undefined\n${use}`,
)
check('without the platform package the reference executor serves', right(bare, 'reference') && !cpu(bare).available, JSON.stringify(bare))
check('... and says so once, with what is missing', stderr.split('SEPCONV_REFERENCE').length === 2 && /@sepconv\//.test(stderr), stderr)
console.log('installed and used: all checks passed')
