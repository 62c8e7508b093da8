// Who runs when: short turns, in one order and then in the other, so that whatever slows the machine down falls on all alike.

import { setTimeout as pause } from 'node:timers/promises'
import { median } from '../../dist/bench/sampling.js'

/** Milliseconds between turns: threads of the last one that still wait for work in a loop go to sleep. */
const SETTLE = 30
/** A run of that many milliseconds does not notice caches that another peer left behind. */
const LONG = 400

/** Repetitions of one turn, of runs that take `ms` each: one without the clock first, where they are short. */
export const turnOf = (ms, seconds) => ({
  warm: ms < LONG ? 1 : 0,
  count: Math.min(50, Math.max(1, Math.round((seconds * 1000) / ms))),
})

/** Milliseconds that a slow peer may take in all rounds of a case together; it then sits out the last ones, but has one turn at least. */
const BUDGET = 30_000

export const roundsOf = (ms, rounds) => Math.min(rounds, Math.max(1, Math.floor(BUDGET / ms)))

/** Every other round in the opposite order. */
export const orderOf = (names, round) => (round % 2 === 0 ? names : [...names].reverse())

/**
 * Runs all peers in turns.
 * @param peers name → { run({ warm, count }), resolving with milliseconds per run; ms, what one took so far }.
 * @param onTurn called after each turn; a peer that fails is left out from then on and `onFailure` is told.
 * @returns name → milliseconds, a list per round.
 */
export async function interleave(peers, { rounds, seconds, onTurn = () => {}, onFailure }) {
  const times = new Map([...peers.keys()].map((name) => [name, []]))
  for (let round = 0; round < rounds; round++)
    for (const name of orderOf([...times.keys()], round)) {
      const { run, ms } = peers.get(name)
      if (round >= roundsOf(ms, rounds)) continue
      await pause(SETTLE)
      try {
        times.get(name)?.push(await run(turnOf(ms, seconds)))
      } catch (error) {
        times.delete(name)
        onFailure(name, error)
      }
      onTurn(name)
    }
  return times
}

/** @param rounds milliseconds of the runs, a list per round. */
export const summary = (rounds) => {
  const all = rounds.flat()
  return { ms: median(all), least: Math.min(...all), samples: all.length }
}

/** How many times as long `other` takes as `own`: the median over the rounds of the medians within each. */
export const ratioOf = (own, other) => median(other.map((round, i) => median(round) / median(own[i])))
