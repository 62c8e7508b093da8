// The limits of this machine's processor and memory, measured; see probe.cc.
#pragma once
#include <cstddef>
#include <string>

namespace sepconv::cpu {

// Multiply-adds from registers, two operations each, by the vectors of an instruction set (scalar: the baseline's 128
// bits): of float32, or of bfloat16 factors into float32 where the set has an instruction for that.
double peakGflops(const std::string& isa, int threads, bool bfloat16);
// Bytes read plus bytes written per second by copies whose source and target together are `footprint` bytes over all
// threads.
double copyGigabytesPerSecond(size_t footprint, int threads);

}  // namespace sepconv::cpu
