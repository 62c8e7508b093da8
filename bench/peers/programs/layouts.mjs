// sepconv's filters in the layouts of libraries that put channels first.

/** [kh, kw, in, out] → [out, in, kh, kw]. */
export function filterFirst({ shape: [kh, kw, cin, cout], data }) {
  const out = new Float32Array(data.length)
  for (let at = 0; at < kh * kw; at++)
    for (let i = 0; i < cin; i++) for (let o = 0; o < cout; o++) out[(o * cin + i) * kh * kw + at] = data[(at * cin + i) * cout + o]
  return { shape: [cout, cin, kh, kw], data: out }
}
/** [kh, kw, c, 1] → [c, 1, kh, kw]. */
export const depthwiseFirst = ({ shape: [kh, kw, c], data }) => filterFirst({ shape: [kh, kw, 1, c], data })
/** [in, out] → [out, in, 1, 1]. */
export const pointwiseFirst = ({ shape: [cin, cout], data }) => filterFirst({ shape: [1, 1, cin, cout], data })
