// The kernels as a library for ctypes: `run` launches one by name.
#include "cuda_shim.h"

#include "kernels.cu"
#include "prepare.cu"

#include "kernels.h"

// Dynamic shared memory of the block that runs, and behind it a margin to watch.
float4 shared[shim::kSharedBytes / sizeof(float4)];

namespace {

constexpr size_t kMargin = 1024;
constexpr unsigned char kUntouched = 0xff;  // as floats: NaN

}  // namespace

// Returns nullptr, or what went wrong. Barriers count from 1; 0 skips none.
extern "C" const char* run(const char* name, const unsigned* grid, const unsigned* block,
                           size_t shared_bytes, const void* argument, size_t argument_bytes,
                           int descending, int skipped_barrier) {
    static char message[200];
    const Kernel* kernel = find_kernel(name, argument_bytes, message);
    if (!kernel) return message;
    if (block[0] % 32 || block[0] > shim::fibers.size() || block[1] * block[2] != 1)
        return "a block must be up to 8 whole warps in one dimension";
    if (shared_bytes + kMargin > sizeof shared) return "too much shared memory";

    unsigned char* margin = reinterpret_cast<unsigned char*>(shared) + shared_bytes;
    shim::body = kernel->body;
    shim::argument = argument;
    shim::skipped = skipped_barrier;
    gridDim = {grid[0], grid[1], grid[2]};
    blockDim = {block[0], block[1], block[2]};
    const unsigned blocks = grid[0] * grid[1] * grid[2];
    for (unsigned i = 0; i < blocks; ++i) {
        const unsigned index = descending ? blocks - 1 - i : i;
        blockIdx = {index % grid[0], index / grid[0] % grid[1], index / grid[0] / grid[1]};
        std::memset(shared, kUntouched, shared_bytes + kMargin);
        if (!shim::run_block(block[0], descending)) {
            std::snprintf(message, sizeof message,
                          "threads of block %u wait for each other for ever", index);
            return message;
        }
        for (size_t j = 0; j < kMargin; ++j)
            if (margin[j] != kUntouched) return "written beyond the block's shared memory";
    }
    return nullptr;
}
