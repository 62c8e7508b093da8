/**
 * `npm run gpu:pack` (after `npm run build`): packs into .gpu/ what a GPU machine without Node and network needs beside the checkout's
 * tracked files: Node itself, dist, the addon, and the packages that gpu:check and gpu:measure load. There,
 *   . .gpu/setup.sh && node scripts/gpu-measure.mjs
 * unpacks them with Python alone and shows the libraries of an installed PyTorch to the benchmark.
 */

import { execFileSync } from 'node:child_process'
import { existsSync, mkdirSync, readdirSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'

const root = dirname(dirname(fileURLToPath(import.meta.url)))
const out = join(root, '.gpu')
const run = (command, ...args) => execFileSync(command, args, { cwd: root, stdio: ['ignore', 'inherit', 'inherit'] })

/** Packages of tools that only develop or build. */
const LEFT_OUT = [
  ...['onnxruntime-web', 'onnxruntime-common', '@biomejs', 'typescript', 'playwright-core', '@shikijs', 'shiki', 'clang-format', 'typedoc'],
  ...['cmake-js', 'node-gyp', 'lightningcss-linux-x64-gnu', 'protobufjs', 'markdown-it', 'lunr', '@types'],
]

if (!existsSync(join(root, 'build/Release/sepconv.node'))) {
  console.error('gpu:pack: there is no addon; run npm run build first')
  process.exit(1)
}
mkdirSync(out, { recursive: true })
const node = join(out, `node-${process.version}.xz`)
if (!existsSync(node)) {
  // Takes most of a minute, and stays right while the version does.
  for (const file of readdirSync(out)) if (file.startsWith('node-')) rmSync(join(out, file))
  run('sh', '-c', `strip -o '${node}.tmp' '${process.execPath}' && xz -T0 -6 -c '${node}.tmp' > '${node}' && rm '${node}.tmp'`)
}
const parts = ['dist', 'build/Release/sepconv.node', 'node_modules']
run('tar', '-cJf', join(out, 'app.tar.xz'), ...LEFT_OUT.map((name) => `--exclude=node_modules/${name}`), '--exclude=*.map', ...parts)
writeFileSync(
  join(out, 'setup.sh'),
  `# source this in the repository's root:  . .gpu/setup.sh
export SEPCONV_GPU_BIN=\${SEPCONV_GPU_BIN:-$(mktemp -d)}
python3 - <<'PYTHON'
import glob, lzma, os, shutil, tarfile
target = os.path.join(os.environ['SEPCONV_GPU_BIN'], 'node')
with lzma.open(glob.glob('.gpu/node-*.xz')[0]) as packed, open(target, 'wb') as file:
    shutil.copyfileobj(packed, file, 1 << 20)
os.chmod(target, 0o755)
tarfile.open('.gpu/app.tar.xz').extractall('.')
PYTHON
export PATH=$SEPCONV_GPU_BIN:$PATH
export SEPCONV_CUDA_LIBRARIES=$(python3 -c "import glob, sysconfig; print(':'.join(sorted({f.rsplit('/', 1)[0] for f in glob.glob(sysconfig.get_paths()['purelib'] + '/nvidia/**/lib/*.so*', recursive=True)})))")
node -p '"node " + process.version + " " + process.platform + "/" + process.arch'
`,
)
const bytes = readdirSync(out).reduce((sum, file) => sum + statSync(join(out, file)).size, 0)
console.error(`gpu:pack: .gpu, ${(bytes / 2 ** 20).toFixed(0)} MiB`)
