// Memory that later loops will read or write, fetched into L2 while others compute: the processor's own prefetchers do
// not know of it, and beside the 28 multiply-adds of a step of a product a line of 64 bytes costs nothing.
#pragma once
#include <cstddef>

namespace sepconv::cpu {

struct Upcoming {
  const float* data;
  ptrdiff_t floats;
};

enum { kFetchedLine = 64 };

// Lines of some pieces of upcoming memory, taken bit by bit.
struct Fetch {
  const Upcoming* piece;
  ptrdiff_t pieces;
  ptrdiff_t line = 0;  // of the piece
  static ptrdiff_t lines(const Upcoming& piece) {
    return piece.floats * static_cast<ptrdiff_t>(sizeof(float)) / kFetchedLine;
  }
  // Up to `most` lines: where they begin, and how many.
  ptrdiff_t take(ptrdiff_t most, const char** lines) {
    ptrdiff_t left = 0;
    for (; pieces > 0; ++piece, --pieces, line = 0) {
      left = Fetch::lines(*piece) - line;
      if (left > 0) break;
    }
    if (left <= 0 || pieces <= 0) return 0;
    *lines = reinterpret_cast<const char*>(piece->data) + line * kFetchedLine;
    const ptrdiff_t taken = left < most ? left : most;
    line += taken;
    return taken;
  }
  // Fetches up to `most` lines at once.
  void run(ptrdiff_t most) {
    const char* next = nullptr;
    for (ptrdiff_t n = take(most, &next); n > 0; --n, next += kFetchedLine) __builtin_prefetch(next, 0, 2);
  }
};

}  // namespace sepconv::cpu
