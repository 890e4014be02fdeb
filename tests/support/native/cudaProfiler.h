// What pycuda's source includes of this header, which NVIDIA's wheels of headers lack.
#pragma once
#include <cuda.h>
typedef enum { CU_OUT_KEY_VALUE_PAIR = 0, CU_OUT_CSV = 1 } CUoutput_mode;
extern "C" CUresult cuProfilerInitialize(const char*, const char*, CUoutput_mode);
extern "C" CUresult cuProfilerStart();
extern "C" CUresult cuProfilerStop();
