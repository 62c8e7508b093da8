// A peer in a process of its own, seen from the outside: start, requests, end. The protocol is in serve.mjs.

import { spawn } from 'node:child_process'
import { createInterface } from 'node:readline'

/** Lines of a peer's stderr that are kept for the message when it fails. */
const KEPT = 20

export class PeerError extends Error {
  /** @param unsupported the task is beyond the peer, which is a result and not a failure. */
  constructor(message, { unsupported = false } = {}) {
    super(message)
    this.unsupported = unsupported
  }
}

export class PeerProcess {
  #child
  #pending = new Map()
  #log = []
  #next = 1
  #ended

  /**
   * Starts a peer and waits until it is ready.
   * @param command program and arguments. @param options `env`, and `seconds` that any answer may take.
   * @returns the process; its `versions` say what is compared. @throws PeerError when it ends or stays silent.
   */
  static async start(command, options = {}) {
    const peer = new PeerProcess(command, options)
    try {
      const { versions } = await peer.#answer('ready')
      peer.versions = versions
      return peer
    } catch (error) {
      await peer.close()
      throw error
    }
  }

  constructor([program, ...args], { env = process.env, seconds = 300 }) {
    this.seconds = seconds
    this.#child = spawn(program, args, { env, stdio: ['pipe', 'pipe', 'pipe'] })
    this.#child.stdin.on('error', () => {})
    createInterface({ input: this.#child.stdout }).on('line', (line) => this.#receive(line))
    createInterface({ input: this.#child.stderr }).on('line', (line) => this.#keep(line))
    this.#ended = new Promise((resolve) => {
      const end = (reason) => {
        resolve()
        const said = this.#log.length > 0 ? `: ${lastWords(this.#log)}` : ''
        for (const { reject } of this.#pending.values()) reject(new PeerError(`${reason}${said}`))
        this.#pending.clear()
        this.reason = `${reason}${said}`
      }
      this.#child.on('error', (error) => end(`could not be started (${error.code ?? error.message})`))
      this.#child.on('close', (code, signal) => end(signal ? `was ended by ${signal}` : `ended with status ${code}`))
    })
  }

  /** Sends a request and resolves with its reply. @throws PeerError. */
  request(command, args = {}) {
    const id = this.#next++
    const answer = this.#answer(id)
    this.#child.stdin.write(`${JSON.stringify({ ...args, id, command })}\n`)
    return answer
  }

  /** Ends the process, gently first. May be called twice. */
  async close() {
    this.#child.stdin.end()
    const timer = setTimeout(() => this.#child.kill('SIGKILL'), 2000)
    await this.#ended
    clearTimeout(timer)
  }

  kill() {
    this.#child.kill('SIGKILL')
  }

  async #answer(id) {
    if (this.reason !== undefined) throw new PeerError(this.reason)
    let timer
    try {
      return await new Promise((resolve, reject) => {
        this.#pending.set(id, { resolve, reject })
        timer = setTimeout(() => {
          reject(new PeerError(`gave no answer within ${this.seconds} s`))
          this.kill()
        }, this.seconds * 1000)
      })
    } finally {
      clearTimeout(timer)
      this.#pending.delete(id)
    }
  }

  #receive(line) {
    const reply = parseReply(line)
    if (!reply) return this.#keep(line)
    const waiting = this.#pending.get(reply.ready ? 'ready' : reply.id)
    if (reply.error === undefined) waiting?.resolve(reply)
    else waiting?.reject(new PeerError(reply.error, reply))
  }

  #keep(line) {
    if (line.trim() !== '') this.#log.push(line)
    if (this.#log.length > KEPT) this.#log.shift()
  }
}

/** A line of the protocol, or `undefined` for whatever else a library writes to stdout. */
export function parseReply(line) {
  if (!line.startsWith('{')) return undefined
  try {
    const reply = JSON.parse(line)
    return reply.ready === true || Number.isInteger(reply.id) ? reply : undefined
  } catch {
    return undefined
  }
}

/** The line that says what went wrong, of a stack trace or of a log. */
export const lastWords = (log) => (log.find((line) => /^(\w*Error|Error \[.*\])\b/.test(line.trim())) ?? log.at(-1)).trim()
