// Grouped convolutions whose groups are too narrow for matrix products, as depthwise convolutions. With q input and p
// output channels per group, taking channel i of every group gives x_i[n, h, w, groups] and filter_i[kh, kw, groups,
// p], and the grouped convolution is the sum over i < q of depthwise convolutions of multiplier p. q = 1 is a depthwise
// convolution as it stands.
#pragma once
#include "../kernel.h"

namespace sepconv::cpu {

// `lanes` channels of a group lie side by side in the result.
bool prefersDepthwise(int64_t channelsPerGroup, int64_t lanes, int64_t groups);
std::unique_ptr<Kernel> makeGroupedConv2d(const CallDescription& call, const Geometry& geometry, int64_t groups);
std::unique_ptr<Kernel> makeGroupedInputGradient(const CallDescription& call, const Geometry& geometry, int64_t groups);
std::unique_ptr<Kernel> makeGroupedFilterGradient(const CallDescription& call, const Geometry& geometry,
                                                  int64_t groups);

}  // namespace sepconv::cpu
