// Packs what is published: sepconv-<version>.tgz (TypeScript compiled, native sources, no binding.gyp at its root, because npm would run
// node-gyp for it) and sepconv-<platform>-<arch>-<version>.tgz with the addon that was built here. The repository's package.json does
// not name the platform packages (`npm ci` fails on an optional dependency that is not published yet): only the staged copy does.
//   node scripts/pack.mjs [--out FOLDER]      default: build/packages; prints the tarballs' paths to stdout

import { execFileSync } from 'node:child_process'
import { copyFileSync, cpSync, existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import path from 'node:path'
import { fileURLToPath } from 'node:url'

const root = path.dirname(path.dirname(fileURLToPath(import.meta.url)))
const at = process.argv.indexOf('--out')
const out = path.resolve(at > 0 ? process.argv[at + 1] : path.join(root, 'build/packages'))
const manifest = JSON.parse(readFileSync(path.join(root, 'package.json'), 'utf8'))
const addon = path.join(root, 'build/Release/sepconv.node')
const PLATFORMS = ['linux-x64', 'linux-arm64', 'darwin-arm64', 'darwin-x64']

const npm = (args, cwd) =>
  JSON.parse(
    execFileSync('npm', [...args, '--json', '--ignore-scripts'], {
      cwd,
      encoding: 'utf8',
      stdio: ['ignore', 'pipe', 'ignore'],
      maxBuffer: 1 << 26,
    }),
  )
const stop = (message) => {
  console.error(`pack: ${message}`)
  process.exit(1)
}

if (!existsSync(path.join(root, 'dist/index.js')) || !existsSync(addon))
  stop('dist or build/Release/sepconv.node is missing: run npm run build first')
const { version } = createRequire(import.meta.url)(addon)
if (version !== manifest.version) stop(`the addon is of version ${version}, package.json says ${manifest.version}: run npm run build again`)
rmSync(out, { recursive: true, force: true })
console.log(packMain())
console.log(packPlatform(`${process.platform}-${process.arch}`))

function packMain() {
  const stage = path.join(out, 'sepconv')
  for (const { path: file } of npm(['pack', '--dry-run'], root)[0].files) {
    mkdirSync(path.dirname(path.join(stage, file)), { recursive: true })
    cpSync(path.join(root, file), path.join(stage, file))
  }
  copyFileSync(path.join(root, 'binding.gyp'), path.join(stage, 'native/binding.gyp'))
  const { devDependencies, scripts, ...published } = manifest
  published.optionalDependencies = Object.fromEntries(PLATFORMS.map((name) => [`@sepconv/${name}`, manifest.version]))
  return packStage(stage, published)
}

function packPlatform(name) {
  const stage = path.join(out, name)
  mkdirSync(stage, { recursive: true })
  copyFileSync(addon, path.join(stage, 'sepconv.node'))
  if (existsSync(path.join(root, 'LICENSE'))) copyFileSync(path.join(root, 'LICENSE'), path.join(stage, 'LICENSE'))
  writeFileSync(
    path.join(stage, 'README.md'),
    `# @sepconv/${name}\n\nThe native addon of [sepconv](https://www.npmjs.com/package/sepconv) for ${name}. Installed by sepconv on its own.\n`,
  )
  const glibc = process.report.getReport().header.glibcVersionRuntime
  return packStage(stage, {
    name: `@sepconv/${name}`,
    version: manifest.version,
    description: `Native addon of sepconv for ${name}`,
    license: manifest.license,
    main: 'sepconv.node',
    files: ['sepconv.node'],
    os: [process.platform],
    cpu: [process.arch],
    ...(process.platform === 'linux' && { libc: [glibc ? 'glibc' : 'musl'] }),
    engines: manifest.engines,
  })
}

function packStage(stage, contents) {
  writeFileSync(path.join(stage, 'package.json'), `${JSON.stringify(contents, null, 2)}\n`)
  const [{ filename, size, unpackedSize, entryCount }] = npm(['pack', '--pack-destination', out], stage)
  // npm before 9 names scoped tarballs by their raw name.
  const file = path.join(out, filename.replace('@', '').replace('/', '-'))
  console.error(
    `pack: ${path.basename(file)}: ${entryCount} files, ${(size / 1024).toFixed(0)} KiB, unpacked ${(unpackedSize / 1024).toFixed(0)} KiB`,
  )
  return file
}
