/** The exit status of a command that failed without an error to print. */
export class ExitStatus extends Error {
  constructor(readonly status: number) {
    super(`exit status ${status}`)
  }
}
