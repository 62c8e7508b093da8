// Matrix products for the convolution family. The right operand (the filter) lies in panels of `panel` columns,
// [ceil(n / panel)][k][panel], zero beyond n; the left operand is read where it lies, row by row, so that activations
// in NHWC need no packing. A tile of the output (rows x panel) stays in registers while k runs; what follows the sum
// (scale, shift, residual, activation) happens there too. Tiles are spread evenly over the rows, so no shape leaves a
// thin last tile behind.
#pragma once
#include <cstddef>
#include <cstdint>

#include "upcoming.h"

namespace sepconv::cpu {

// y = activation(sum * scale[column] + shift[column] + residual), then times gateActivation'(gate). Null: 1, 0, 0 and
// no gate. residual and gate are laid out as the output. Activations are the values of sepconv::Activation.
struct Epilogue {
  const float* scale;
  const float* shift;
  const float* residual;
  const float* gate;
  int activation;
  int gateActivation;
};

// c[line, row, column] = epilogue(sum over segment s and k of a[line, row, s, k] * b[s * depth + k, column]).
// A line is a run of `rows` output pixels whose left rows are `aRow` floats apart; segments are the taps of a
// convolution, at offsets (in floats) from the row's start, and a plain product has one segment at offset 0.
struct Product {
  const float* a;
  ptrdiff_t aLine, aRow;
  const ptrdiff_t* segments;
  ptrdiff_t segmentCount, depth;
  const float* b;  // first panel of the columns computed here; the next panel is segmentCount * depth * panel floats on
  float* c;
  ptrdiff_t cLine, cRow;
  ptrdiff_t lines, rows, columns;
  Epilogue epilogue;  // pointers to the values of c's first element
  const Upcoming* upcoming = nullptr;
  ptrdiff_t upcomingCount = 0;
};

// c[row, column] (+)= sum over k of a[k, row] * b[k, column], both operands read where they lie: filter gradients,
// whose sum runs over pixels. Of a last panel that is not full, b still has `panel` columns (zeros, say).
struct OuterProduct {
  const float* a;
  ptrdiff_t aRow;  // floats from one k to the next
  const float* b;
  ptrdiff_t bRow;
  ptrdiff_t depth;
  float* c;
  ptrdiff_t cRow;
  ptrdiff_t rows, columns;
  bool accumulate;
  const Upcoming* upcoming;
  ptrdiff_t upcomingCount;
};

// The same product c[rows, 2 * panel] of two neighbouring panels by one level of Strassen's algorithm: rows, k and
// columns in halves, seven products of quarters instead of eight. strassenLeft has made the sums of the left operand
// before; what the right operand needs is added up in registers.
struct StrassenProduct {
  const float* a;  // [rows][k] as strassenLeft leaves it
  ptrdiff_t aRow;
  const float* s;
  ptrdiff_t sRow;
  ptrdiff_t rows, k;  // rows: 2 * GemmTable::rows at most; k: even
  const float* b;     // the first of the two panels
  float* c;
  ptrdiff_t cRow;
  Epilogue epilogue;  // pointers to the values of c's first element
  const Upcoming* upcoming;
  ptrdiff_t upcomingCount;
};

struct GemmTable {
  int rows;   // most rows of a tile
  int panel;  // columns of a tile and of a packed filter's panels
  void (*product)(const Product& product);
  void (*outerProduct)(const OuterProduct& product);
  // packed[k][panel] = source[k * row + j] for j < columns, then zeros: a panel of a filter.
  void (*packColumns)(const float* source, ptrdiff_t row, ptrdiff_t depth, ptrdiff_t columns, float* packed);
  // packed[k][panel] = source[j * row + k]: the panel of a transposed filter.
  void (*packTransposed)(const float* source, ptrdiff_t row, ptrdiff_t depth, ptrdiff_t columns, float* packed);
  // target = activation(source); n floats.
  void (*activate)(const float* source, float* target, ptrdiff_t n, int activation);
  // Mean and sum of squared deviations from it of every column.
  void (*columnMoments)(const float* source, ptrdiff_t row, ptrdiff_t rows, ptrdiff_t columns, float* mean,
                        float* deviations);
  // target = sum of `count` vectors that lie `stride` floats apart, added in order.
  void (*sum)(const float* source, ptrdiff_t stride, ptrdiff_t count, ptrdiff_t n, float* target);
  // Of a[rows][k]: the three quarters of sums that need a place of their own, at s, [3][(rows + 1) / 2][k / 2]; two
  // others take the place of the quarters that nothing else reads.
  void (*strassenLeft)(float* a, ptrdiff_t aRow, ptrdiff_t rows, ptrdiff_t k, float* s, ptrdiff_t sRow);
  void (*strassenProduct)(const StrassenProduct& product);
};

}  // namespace sepconv::cpu
