import { defineConfig } from 'vitest/config'

/**
 * `npm test` runs everything but test/full and test/gpu; `npm run test:full` (mode `full`) runs test/full too, without a hurry;
 * `npm run gpu:check` (mode `gpu`) runs test/gpu alone.
 */
export default defineConfig(({ mode }) => ({
  test: {
    include: mode === 'gpu' ? ['test/gpu/**/*.test.ts'] : ['test/**/*.test.ts'],
    exclude: ['**/node_modules/**', ...(mode === 'full' ? [] : ['test/full/**']), ...(mode === 'gpu' ? [] : ['test/gpu/**'])],
    // Native code, signals and environment variables want a process of their own for each file.
    pool: 'forks',
    testTimeout: mode === 'full' ? 600_000 : 30_000,
    hookTimeout: mode === 'full' ? 600_000 : 120_000,
    teardownTimeout: 10_000,
  },
}))
