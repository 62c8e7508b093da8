/** When one level of Strassen's algorithm makes a product faster on the CPU (native/cpu/simd/strassen.inl). */

/** Below this many rows the filter's way from memory is what a product takes, and it is read twice here. */
const LEAST_ROWS = 64
/** What seven calls of half the depth with their tiles of sums cost more than the plain ones, in steps of k; measured on AVX-512. */
const OVERHEAD = 107
/** Steps per k that the sums of the left operand cost, made once for all pairs of panels; measured on AVX-512. */
const SUMS = 0.43

/**
 * Whether y[rows, n] = x[rows, k] · w[k, n] is faster so: per pair of panels one product of k / 2 steps of eight is saved.
 *
 * @param panel columns of a panel
 */
export function strassenPays(rows: number, k: number, n: number, panel: number): boolean {
  const pairs = panel > 0 ? Math.floor(n / (2 * panel)) : 0
  return pairs > 0 && k % 2 === 0 && rows >= LEAST_ROWS && k / 2 > OVERHEAD + (SUMS * k) / pairs
}
