/** `sepconv devices`: what can run programs here, and for what cannot, why. */

import { Command } from 'commander'
import { jsonOption } from '../options.js'
import { formatTable } from '../table.js'
import { writeJson, writeText } from '../ui.js'

export const devicesCommand = (): Command =>
  new Command('devices')
    .summary('list the devices, and for what is not available, why')
    .description('Lists the devices that programs can run on; `auto` is the first one that is available.')
    .addOption(jsonOption())
    .addHelpText('after', '\nExample:\n  $ sepconv devices')
    .action(async ({ json }: { json?: boolean }) => {
      const { devices } = await import('../../runtime/device.js')
      const found = devices()
      if (json) return writeJson(found)
      const detail = ({ name: _, available: __, reason, ...rest }: (typeof found)[number]) =>
        reason ??
        Object.entries(rest)
          .map(([key, value]) =>
            key === 'description' ? String(value) : `${key} ${Array.isArray(value) ? value.join(' ') : String(value)}`,
          )
          .join(', ')
      const rows = found.map((device) => [device.name, device.available ? 'available' : 'not available', detail(device)])
      writeText(formatTable([{ title: 'device' }, { title: 'state' }, { title: 'details' }], rows))
    })
