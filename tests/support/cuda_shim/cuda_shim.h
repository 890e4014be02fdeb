// Enough of CUDA to run a kernel on a CPU, deterministically, one block after another.
//
// Each thread of a block is a fiber on a stack of its own. A fiber runs until it must wait for
// others (barrier, shuffle) and then gives way to the next; `order` sets who is next, so running
// ascending and descending shows a missing barrier as a difference. Dynamic shared memory is NaN
// when a block starts, and has a margin behind it that must stay untouched.
//
// What it finds: wrong indices, reductions and barriers, threads that wait for each other for
// ever, values never written, misaligned loads (with -fsanitize=alignment). What it does not: the
// races of threads that run at once, coalescing, and rounding by fused multiply-adds.
#pragma once

#include <csetjmp>
#include <cstdio>
#include <memory>
#include <ucontext.h>
#include <vector>

#include "language.h"

inline int atomicMax(int* address, int value) {
    const int before = *address;
    if (value > before) *address = value;
    return before;
}

inline uint3 threadIdx, blockIdx, blockDim, gridDim;

namespace shim {

constexpr size_t kStack = 64 * 1024;
constexpr size_t kSharedBytes = 228 * 1024;

enum class Wait { none, barrier, shuffle, done };

struct Fiber {
    ucontext_t start;
    jmp_buf state;
    bool started = false;
    Wait wait = Wait::none;
    int barriers;
    float given, received;  // of a shuffle
    int partner;
    std::unique_ptr<char[]> stack{new char[kStack]};
};

inline std::vector<Fiber> fibers(256);
inline jmp_buf scheduler;
inline Fiber* running;
inline void (*body)(const void*);
inline const void* argument;
inline int skipped;  // number of the barrier that is left out, to see that it is needed

inline void pause(Wait reason) {
    running->wait = reason;
    if (!_setjmp(running->state)) _longjmp(scheduler, 1);
}

inline void enter() {
    body(argument);
    running->wait = Wait::done;
    _longjmp(scheduler, 1);
}

inline void resume(Fiber& fiber, unsigned index) {
    running = &fiber;
    threadIdx.x = index;
    fiber.wait = Wait::none;
    if (_setjmp(scheduler)) return;
    if (fiber.started) _longjmp(fiber.state, 1);
    fiber.started = true;
    // makecontext alone can give a function a stack; longjmp, which needs no system call, does
    // all later switches.
    getcontext(&fiber.start);
    fiber.start.uc_stack = {fiber.stack.get(), 0, kStack};
    fiber.start.uc_link = nullptr;
    makecontext(&fiber.start, enter, 0);
    setcontext(&fiber.start);
}

// Exchanges values once a whole warp waits at a shuffle. False if there is no such warp.
inline bool shuffle(unsigned threads) {
    bool any = false;
    for (unsigned warp = 0; warp < threads; warp += 32) {
        bool all = true;
        for (unsigned i = warp; i < warp + 32; ++i) all &= fibers[i].wait == Wait::shuffle;
        if (!all) continue;
        for (unsigned i = warp; i < warp + 32; ++i)
            fibers[i].received = fibers[warp + static_cast<unsigned>(fibers[i].partner)].given;
        for (unsigned i = warp; i < warp + 32; ++i) fibers[i].wait = Wait::none;
        any = true;
    }
    return any;
}

// Runs one block to its end; false if its threads wait for each other for ever.
inline bool run_block(unsigned threads, bool descending) {
    for (unsigned i = 0; i < threads; ++i) {
        fibers[i].started = false;
        fibers[i].wait = Wait::none;
        fibers[i].barriers = 0;
    }
    for (;;) {
        unsigned done = 0, waiting = 0;
        for (unsigned i = 0; i < threads; ++i) {
            const unsigned index = descending ? threads - 1 - i : i;
            if (fibers[index].wait == Wait::none) resume(fibers[index], index);
        }
        for (unsigned i = 0; i < threads; ++i) {
            done += fibers[i].wait == Wait::done;
            waiting += fibers[i].wait == Wait::barrier;
        }
        if (done == threads) return true;
        if (waiting == threads) {
            for (unsigned i = 0; i < threads; ++i) fibers[i].wait = Wait::none;
        } else if (!shuffle(threads)) {
            return false;
        }
    }
}

}  // namespace shim

inline void __syncthreads() {
    if (++shim::running->barriers != shim::skipped) shim::pause(shim::Wait::barrier);
}

template <typename T>
inline T __shfl_xor_sync(unsigned, T value, int mask) {
    static_assert(sizeof(T) == sizeof(float));
    shim::running->given = shim_bits<float>(value);
    shim::running->partner = static_cast<int>(threadIdx.x % 32) ^ mask;
    shim::pause(shim::Wait::shuffle);
    return shim_bits<T>(shim::running->received);
}
