// The kernels by name, in a file that has included their sources.
#pragma once

#include <cstdio>
#include <cstring>

namespace {

struct Kernel {
    const char* name;
    size_t argument_bytes;
    void (*body)(const void*);
};

#define KERNEL(name, Argument) \
    {#name, sizeof(Argument), [](const void* p) { name(*static_cast<const Argument*>(p)); }}

const Kernel kKernels[] = {
    KERNEL(mahalanobis_float32_1, Mahalanobis), KERNEL(mahalanobis_float32_2, Mahalanobis),
    KERNEL(mahalanobis_float32_4, Mahalanobis), KERNEL(mahalanobis_float32_8, Mahalanobis),
    KERNEL(mahalanobis_float16_1, Mahalanobis), KERNEL(mahalanobis_float16_2, Mahalanobis),
    KERNEL(mahalanobis_float16_4, Mahalanobis), KERNEL(mahalanobis_float16_8, Mahalanobis),
    KERNEL(mahalanobis_int8_1, Mahalanobis),    KERNEL(mahalanobis_int8_2, Mahalanobis),
    KERNEL(mahalanobis_int8_4, Mahalanobis),    KERNEL(mahalanobis_int8_8, Mahalanobis),
    KERNEL(smooth, Smooth),
    KERNEL(prepare_8, prepare::Frame),         KERNEL(prepare_16, prepare::Frame),
};

// A kernel; without one, `message` says why.
const Kernel* find_kernel(const char* name, size_t argument_bytes, char (&message)[200]) {
    for (const Kernel& each : kKernels) {
        if (std::strcmp(each.name, name)) continue;
        if (argument_bytes == each.argument_bytes) return &each;
        std::snprintf(message, sizeof message, "the parameters have %zu bytes, not %zu",
                      each.argument_bytes, argument_bytes);
        return nullptr;
    }
    std::snprintf(message, sizeof message, "there is no such kernel");
    return nullptr;
}

}  // namespace
