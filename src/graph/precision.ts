/** The precisions that a program can be compiled in. */

/**
 * What feature maps are stored in, and how exactly they are multiplied. `'bfloat16'`: stored in half the bytes. `'tf32'` (GPUs): stored as
 * float32, rounded to 10 bits of mantissa where they enter a product on tensor cores. Sums are float32 in all of them.
 */
export type Precision = 'float32' | 'tf32' | 'bfloat16'

/** Every {@link Precision}, the default first. */
export const PRECISIONS: readonly Precision[] = ['float32', 'tf32', 'bfloat16']
