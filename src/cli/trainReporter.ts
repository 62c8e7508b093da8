/** Shows the events of a training run to people. */

import type { FitEvent, Scores } from '../train/events.js'
import { percent } from './table.js'
import { Progress, say, significant } from './ui.js'

/** Share of the time spent waiting for pictures above which it is said what helps. */
const STARVED = 0.05

export function trainReporter(batch: number): (event: FitEvent) => void {
  let epochs = 0
  let stepsPerEpoch = 1
  let progress: Progress | undefined
  let current = 0
  let warned = false
  return (event) => {
    if (event.type === 'start') {
      epochs = event.epochs
      stepsPerEpoch = event.stepsPerEpoch
      if (event.frozen > 0) say(`${event.frozen} parameters are frozen; batch norms among them run on their stored statistics`)
      if (event.step > 0) say(`going on after step ${event.step} of ${event.steps}`)
    } else if (event.type === 'unfrozen') {
      say(`epoch ${event.epoch}: ${event.stages.join(', ')} are trained now, ${event.frozen} parameters stay frozen`)
    } else if (event.type === 'step') {
      const within = event.step - (event.epoch - 1) * stepsPerEpoch
      if (current !== event.epoch) {
        current = event.epoch
        const label = `epoch ${event.epoch}/${epochs}`
        progress = new Progress({ label, total: stepsPerEpoch * batch, unit: 'img', done: (within - 1) * batch })
      }
      const { loss, top1, decodeMs, waitMs, computeMs } = event
      progress?.update(
        within * batch,
        `loss ${significant(loss)}   top-1 ${percent(top1)}   decode ${ms(decodeMs)} wait ${ms(waitMs)} compute ${ms(computeMs)}`,
        event.imagesPerSecond,
      )
    } else if (event.type === 'straggler') {
      say(
        `step ${event.step}: rank ${event.rank} (${event.host}) takes ${event.times.toFixed(1)} times as long as the others, which wait for it`,
      )
    } else if (event.type === 'epoch') {
      progress?.finish()
      const { loss, top1, validation, best, waitShare, seconds, skipped } = event
      const old = event.staleness ? `   staleness ${event.staleness.mean.toFixed(1)}, at most ${event.staleness.max}` : ''
      const held = validation ? `   held out: ${scores(validation)}` : ''
      say(
        `epoch ${event.epoch}/${epochs}   loss ${significant(loss)}   top-1 ${percent(top1)}${held}${best ? '   best so far' : ''}${old}   waited ${percent(waitShare)}   ${seconds.toFixed(1)} s`,
      )
      if (skipped.length > 0) say(`skipped ${skipped.length} unreadable pictures: ${skipped.slice(0, 5).join(', ')}`)
      if (waitShare > STARVED && event.epoch > 1 && !warned) {
        warned = true
        say('the device waits for pictures: `sepconv prepare` decodes them once and for all')
      }
    } else if (event.type === 'done') {
      if (event.early) say(`ended early after epoch ${event.epoch}: no better score since epoch ${event.best?.epoch}`)
      if (event.best) say(`best: ${describeScore(event.best.metric, event.best.value)} held out, epoch ${event.best.epoch}`)
    }
  }
}

const ms = (value: number): string => `${significant(value)} ms`
const scores = ({ loss, top1, map }: Scores): string =>
  `loss ${significant(loss)}   top-1 ${percent(top1)}${map === undefined ? '' : `   MAP@100 ${percent(map)}`}`

function describeScore(metric: string, value: number): string {
  if (metric === 'loss') return `loss ${significant(value)}`
  return `${{ top1: 'top-1', top5: 'top-5', map: 'MAP@100' }[metric] ?? metric} ${percent(value)}`
}
