// CUDA threads as threads of the CPU, for ThreadSanitizer to watch.
//
// What orders two accesses here is what orders them on a GPU, and nothing else:
//
// * `__syncthreads` is a real barrier, of the threads of its block.
// * Shuffles exchange values and order nothing, as CUDA has it. They go through relaxed atomics,
//   which the sanitizer takes for no order.
// * Blocks run one after another and yet nothing orders them: how one waits for the one before is
//   hidden from the sanitizer. Each has its own shared memory. So races among blocks show, too.
//
// Threads of a launch are joined at its end: launches in a stream do follow one another.
#pragma once

#include <atomic>
#include <cstdlib>
#include <memory>
#include <pthread.h>
#include <sched.h>
#include <thread>
#include <vector>

#include "language.h"

namespace shim {

constexpr size_t kSharedBytes = 228 * 1024;

// What the lanes of a warp show one another. A place has the number of the shuffle and the value,
// so that whoever sees the number has the value; of two turns one is written while the other may
// still be read.
struct Warp {
    std::atomic<uint64_t> places[2][32] = {};
    std::atomic<uint32_t> done{0};
};

struct Block {
    pthread_barrier_t barrier;
    std::unique_ptr<float4[]> memory{new float4[kSharedBytes / sizeof(float4)]};
    std::unique_ptr<Warp[]> warps;
    std::atomic<unsigned> left;  // threads that are not at their end yet

    explicit Block(unsigned threads) : warps(new Warp[threads / 32]), left(threads) {
        std::memset(memory.get(), 0xff, kSharedBytes);  // as floats: NaN
        pthread_barrier_init(&barrier, nullptr, threads);
    }
    ~Block() { pthread_barrier_destroy(&barrier); }
};

inline thread_local Block* block;
inline thread_local uint32_t shuffles;
inline int planted;  // number of the barrier that is left out; -1: atomic operations are not

inline void barrier(int number) {
    if (number != planted) pthread_barrier_wait(&block->barrier);
}

template <typename Condition>
void wait_until(Condition condition) {
    while (!condition()) sched_yield();
}

}  // namespace shim

inline thread_local uint3 threadIdx, blockIdx;
inline uint3 blockDim, gridDim;

// Numbered as they stand in the sources, from 1 on.
#define __syncthreads() shim::barrier(__COUNTER__ - shim::kFirst)
#define shared (shim::block->memory.get())

inline int atomicMax(int* address, int value) {
    if (shim::planted < 0) {
        const int before = *address;
        if (value > before) *address = value;
        return before;
    }
    int before = __atomic_load_n(address, __ATOMIC_RELAXED);
    while (value > before &&
           !__atomic_compare_exchange_n(address, &before, value, true, __ATOMIC_RELAXED,
                                        __ATOMIC_RELAXED)) {
    }
    return before;
}

template <typename T>
inline T __shfl_xor_sync(unsigned, T value, int mask) {
    static_assert(sizeof(T) == sizeof(uint32_t));
    const unsigned lane = threadIdx.x % 32;
    shim::Warp& warp = shim::block->warps[threadIdx.x / 32];
    const uint32_t turn = ++shim::shuffles;
    auto& places = warp.places[turn & 1];
    // Nobody reads this turn's places any more once all have done the one before.
    shim::wait_until([&] { return warp.done.load(std::memory_order_relaxed) >= 32 * (turn - 1); });
    places[lane].store(static_cast<uint64_t>(turn) << 32 | shim_bits<uint32_t>(value),
                       std::memory_order_relaxed);
    uint64_t seen = 0;
    shim::wait_until([&] {
        seen = places[lane ^ static_cast<unsigned>(mask)].load(std::memory_order_relaxed);
        return seen >> 32 == turn;
    });
    warp.done.fetch_add(1, std::memory_order_relaxed);
    return shim_bits<T>(static_cast<uint32_t>(seen));
}

namespace shim {
constexpr int kFirst = __COUNTER__;
}
