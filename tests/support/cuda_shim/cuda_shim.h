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
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <memory>
#include <ucontext.h>
#include <vector>

#define __device__
#define __global__
#define __shared__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(bytes) alignas(bytes)

struct uint3 {
    unsigned x, y, z;
};
struct float2 {
    float x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};

inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

template <typename To, typename From>
inline To shim_bits(From value) {
    static_assert(sizeof(To) == sizeof(From));
    To result;
    std::memcpy(&result, &value, sizeof result);
    return result;
}
inline float __uint_as_float(unsigned bits) { return shim_bits<float>(bits); }
inline int __float_as_int(float value) { return shim_bits<int>(value); }

inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a > b ? a : b; }

template <typename T>
inline T __ldg(const T* address) { return *address; }
template <typename T>
inline T __ldcs(const T* address) { return *address; }

inline unsigned __byte_perm(unsigned low, unsigned high, unsigned selector) {
    const uint64_t bytes = static_cast<uint64_t>(high) << 32 | low;
    unsigned result = 0;
    for (int i = 0; i < 4; ++i)
        result |= static_cast<unsigned>(bytes >> (selector >> 4 * i & 7) * 8 & 0xff) << 8 * i;
    return result;
}

inline float shim_half(unsigned bits) {
    const unsigned exponent = bits >> 10 & 31, fraction = bits & 1023;
    const float sign = bits & 0x8000 ? -1.0f : 1.0f;
    if (exponent == 31) return sign * (fraction ? NAN : INFINITY);
    if (exponent == 0) return sign * std::ldexp(static_cast<float>(fraction), -24);
    return sign * std::ldexp(static_cast<float>(1024 + fraction), static_cast<int>(exponent) - 25);
}
inline float2 shim_halves(unsigned word) {
    return {shim_half(word & 0xffff), shim_half(word >> 16)};
}

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
