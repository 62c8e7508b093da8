// The two launches of batchNormStatistics, for products that emit the statistics of what they store; statistics.cu.
#pragma once
#include "../driver.h"
#include "tensor.cuh"

namespace sepconv::cuda {

// Mean and biased variance per channel of y[rows, channels].
size_t statisticsWorkspaceBytes(int64_t rows, int channels);
void launchStatistics(DeviceInterface& device, const AnyInput& y, int64_t rows, int channels, void* workspace,
                      float* mean, float* variance);
// The second of them: partial[chunk][mean, squares][channels] of chunks of chunkRows rows.
void launchMergeMoments(DeviceInterface& device, const float* partial, int64_t rows, int channels, int chunkRows,
                        float* mean, float* variance);
// Rows per block of reductions over the rows of a matrix: by shape alone.
int64_t statisticsChunkRows(int64_t rows);

}  // namespace sepconv::cuda
