/**
 * Ranks on hosts with names, addresses and a network of their own (namespaces of this machine, joined by a virtual cable), as on a cluster.
 * Needs root, iproute2 and Open MPI.
 */

import { spawnSync } from 'node:child_process'
import { chmodSync, readFileSync, writeFileSync } from 'node:fs'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { writeShapes } from '../../src/data/shapes.js'
import type { FitEvent } from '../../src/train/events.js'
import { builtCli } from '../cli/built.js'
import { TINY } from '../cli/run.js'
import { environment, hasMpi, program, ranks } from '../distributed/mpirun.js'

const root = process.platform === 'linux' && process.getuid?.() === 0
const run = (command: string) => spawnSync('sh', ['-ec', command], { encoding: 'utf8' })
const able = hasMpi && root && run('ip netns list && unshare --uts true').status === 0

const HOSTS = ['sepconv-a', 'sepconv-b'].map((name, i) => ({ name, namespace: `${name}-${process.pid}`, address: `10.213.77.${i + 1}` }))

describe.skipIf(!able)('two hosts', { timeout: 240_000 }, () => {
  let folder: string
  let agent: string
  beforeAll(async () => {
    builtCli()
    folder = await mkdtemp(join(tmpdir(), 'sepconv-hosts-'))
    await writeShapes(join(folder, 'shapes'), { train: 32, validation: 8, size: 71 })
    const [a, b] = HOSTS
    const made = run(
      [
        ...HOSTS.map(({ namespace }) => `ip netns add ${namespace}`),
        `ip link add veth0 netns ${a!.namespace} type veth peer name veth0 netns ${b!.namespace}`,
        ...HOSTS.flatMap(({ namespace, address }) => [
          `ip -n ${namespace} addr add ${address}/24 dev veth0`,
          `ip -n ${namespace} link set veth0 up`,
          `ip -n ${namespace} link set lo up`,
        ]),
      ].join('\n'),
    )
    expect(made.status, made.stderr).toBe(0)
    // What mpirun calls in the place of ssh: host, then the command.
    agent = join(folder, 'agent.sh')
    const cases = HOSTS.map(({ address, namespace, name }) => `  ${address}) namespace=${namespace} name=${name} ;;`)
    writeFileSync(
      agent,
      [
        '#!/bin/sh',
        'host=$1; shift',
        'case $host in',
        ...cases,
        'esac',
        'exec ip netns exec "$namespace" unshare --uts sh -c "hostname $name; $*"',
        '',
      ].join('\n'),
    )
    chmodSync(agent, 0o755)
  }, 120_000)
  afterAll(async () => {
    for (const { namespace } of HOSTS) run(`ip netns pids ${namespace} | xargs -r kill -9; ip netns del ${namespace}`)
    await rm(folder, { recursive: true, force: true })
  })

  /** `node …args` as a rank on each host, started on the first of them. */
  const onHosts = (args: readonly string[]) => {
    const [first] = HOSTS
    const hosts = HOSTS.map(({ address }) => `${address}:1`).join(',')
    const options = ['--bind-to', 'none', '-H', hosts, '--mca', 'plm_rsh_agent', agent]
    const interfaces = ['btl_tcp_if_include', 'oob_tcp_if_include'].flatMap((name) => ['--mca', name, 'veth0'])
    const exported = ['SEPCONV_THREADS', 'NO_COLOR', 'OMPI_ALLOW_RUN_AS_ROOT', 'OMPI_ALLOW_RUN_AS_ROOT_CONFIRM'].flatMap((name) => [
      '-x',
      name,
    ])
    const mpirun = ['mpirun', '-n', '2', ...options, ...interfaces, ...exported, process.execPath, ...args]
    const command = [
      'netns',
      'exec',
      first!.namespace,
      'unshare',
      '--uts',
      'sh',
      '-c',
      `hostname ${first!.name}; exec "$@"`,
      'sh',
      ...mpirun,
    ]
    return spawnSync('ip', command, { cwd: folder, env: environment, encoding: 'utf8', timeout: 120_000 })
  }

  it('steps have the bits of two ranks of one machine', async () => {
    const settings = JSON.stringify({ batch: 8, steps: 2, batchNorm: 'synchronised', brief: true })
    const far = onHosts([program('steps.mjs'), settings])
    expect(far.status, far.stderr).toBe(0)
    const near = await ranks(2, [program('steps.mjs'), settings])
    const [a, b] = [far.stdout, near.stdout].map((text) => JSON.parse(text) as { digest: string; same: boolean })
    expect(a).toMatchObject({ same: true, digest: b!.digest })
  })

  it('sepconv train says on how many machines it runs, and leaves one log and one checkpoint on the first', () => {
    const args = ['train', 'shapes', '--out', 'run', ...TINY, '--epochs', '1', '--batch', '8', '--seed', '2']
    const { status, stderr } = onHosts([builtCli(), ...args])
    expect(status, stderr).toBe(0)
    expect(stderr).toContain('2 processes on 2 machines')
    const events = readFileSync(join(folder, 'run/log.jsonl'), 'utf8').trim().split('\n')
    expect(events.map((line) => JSON.parse(line) as FitEvent).at(-1)).toMatchObject({ type: 'done', step: 4 })
  })

  it('a rank that fails is named with its host', () => {
    const { status, stderr } = onHosts([program('failing.mjs'), JSON.stringify({ data: join(folder, 'shapes'), rank: 1, step: 2 })])
    expect(status).not.toBe(0)
    expect(stderr).toMatch(/rank 0 ended with ERR_RANK: .*rank 1 \(sepconv-b\): the cable came loose/)
  })
})
