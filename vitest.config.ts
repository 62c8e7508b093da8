import { defineConfig } from 'vitest/config'

/** `npm test` runs everything but test/full; `npm run test:full` (mode `full`) runs test/full too, without a hurry. */
export default defineConfig(({ mode }) => ({
  test: {
    include: ['test/**/*.test.ts'],
    exclude: mode === 'full' ? ['**/node_modules/**'] : ['test/full/**', '**/node_modules/**'],
    // Native code, signals and environment variables want a process of their own for each file.
    pool: 'forks',
    testTimeout: mode === 'full' ? 600_000 : 30_000,
    hookTimeout: mode === 'full' ? 600_000 : 120_000,
    teardownTimeout: 10_000,
  },
}))
