// The kernels with a thread each for CUDA's threads, as a library for ctypes.
//
// The sources come from a copy in which nothing but the declaration of `shared` is left out.
#include "threads.h"

#include <unistd.h>

#include "kernels.cu"
#include "prepare.cu"

#include "kernels.h"

// Barriers that stand in the sources.
extern "C" int barriers() { return __COUNTER__ - shim::kFirst - 1; }

// Returns nullptr, or what went wrong. `planted`: see there; 0 for the kernels as they are.
extern "C" const char* run(const char* name, const unsigned* grid, const unsigned* block,
                           size_t shared_bytes, const void* argument, size_t argument_bytes,
                           int planted) {
    static char message[200];
    const Kernel* kernel = find_kernel(name, argument_bytes, message);
    if (!kernel) return message;
    if (block[0] % 32 || block[1] * block[2] != 1) return "a block must be whole warps";
    if (shared_bytes > shim::kSharedBytes) return "too much shared memory";

    shim::planted = planted;
    gridDim = {grid[0], grid[1], grid[2]};
    blockDim = {block[0], block[1], block[2]};
    std::vector<std::unique_ptr<shim::Block>> blocks;
    std::vector<std::thread> threads;
    for (unsigned i = 0; i < grid[0] * grid[1] * grid[2]; ++i) {
        blocks.push_back(std::make_unique<shim::Block>(block[0]));
        shim::Block* const one = blocks.back().get();
        for (unsigned thread = 0; thread < block[0]; ++thread) {
            threads.emplace_back([=] {
                shim::block = one;
                threadIdx = {thread, 0, 0};
                blockIdx = {i % gridDim.x, i / gridDim.x % gridDim.y, i / gridDim.x / gridDim.y};
                kernel->body(argument);
                one->left.fetch_sub(1, std::memory_order_relaxed);
            });
        }
        while (one->left.load(std::memory_order_relaxed)) usleep(50);
    }
    for (auto& thread : threads) thread.join();
    return nullptr;
}
