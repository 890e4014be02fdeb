// libcuda.so.1 for a machine without a GPU: enough of the driver to run this project's host code
// under the real pycuda and the real cuda-bindings, strict where a GPU is forgiving.
//
// * Device memory is host memory, counted, NaN when it is new, and NaN again when it is freed.
// * Work in a stream is put off until somebody waits for it, so a forgotten wait shows in results.
// * Calls without a current context, copies beyond an allocation, handles that are not alive and
//   launches with more shared memory than was asked for fail as they do on a GPU.
// * Kernels are those of tests/cuda_shim, given by fake_set_runner.
//
// Written against no header of CUDA: codes and signatures are those of its driver API.
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <dlfcn.h>
#include <functional>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <vector>

namespace {

enum Result { kSuccess = 0, kInvalidValue = 1, kOutOfMemory = 2, kInvalidContext = 201,
              kNoDevice = 100, kInvalidHandle = 400, kNotFound = 500, kNotReady = 600,
              kLaunchFailed = 719, kNotSupported = 801, kCaptureUnsupported = 900,
              kCaptureInvalidated = 901 };

constexpr int kProcessors = 16;
constexpr int kMaxSharedOptin = 97, kIntegrated = 18, kCapabilityMajor = 75, kCapabilityMinor = 76;
constexpr int kMaxDynamicShared = 8;
constexpr unsigned kDefaultShared = 48 * 1024;

using Runner = const char* (*)(const char*, const unsigned*, const unsigned*, size_t, const void*,
                               size_t, int, int);
using Clock = std::chrono::steady_clock;

struct Function {
    std::string name;
    int shared_limit = kDefaultShared;
};
struct Module {
    std::deque<Function> functions;
};
struct Graph {
    std::vector<std::function<Result()>> work;
};
struct Event {
    bool recorded = false, passed = false;
    Clock::time_point time;
};

std::recursive_mutex mutex;
std::map<std::string, long long> settings = {
    {"devices", 1}, {"integrated", 0}, {"shared", 100 * 1024}, {"memory", 1ll << 30},
    {"cuda", 13000}};
std::map<uintptr_t, size_t> device, host;
std::set<void*> streams;
std::set<Module*> modules;
std::set<Event*> events;
std::set<Graph*> graphs, executables;
Graph* recording = nullptr;  // of...
void* recorded = nullptr;    // ...this stream
bool spoilt = false;         // by a call that must not be made meanwhile
std::deque<std::function<Result()>> queue;
std::vector<std::string> calls;
std::string failing;      // a call that fails next time, with...
int failure = 0;          // ...this code
int primary;              // its address is the primary context
int retained = 0;
Runner runner = nullptr;
std::string trouble;      // of a kernel
thread_local std::vector<void*> stack;

size_t taken() {
    size_t sum = 0;
    for (const auto& [_, size] : device) sum += size;
    return sum;
}

bool within(const std::map<uintptr_t, size_t>& memory, uintptr_t at, size_t size) {
    auto after = memory.upper_bound(at);
    if (after == memory.begin()) return false;
    const auto& [start, length] = *--after;
    return at + size <= start + length;
}

bool on_device(uintptr_t at, size_t size) {
    return within(device, at, size) || (settings["integrated"] && within(host, at, size));
}

Result drain() {
    Result result = kSuccess;
    while (!queue.empty()) {
        const Result one = queue.front()();
        queue.pop_front();
        if (one != kSuccess && result == kSuccess) result = one;
    }
    return result;
}

// What waits for the stream, or may do so, and is refused while it is recorded.
const std::set<std::string> unsafe = {
    "cuMemAlloc", "cuMemFree", "cuMemHostAlloc", "cuMemFreeHost", "cuModuleLoadData",
    "cuModuleUnload", "cuStreamSynchronize", "cuEventSynchronize", "cuCtxSynchronize",
    "cuMemcpyHtoD", "cuMemcpyDtoH", "cuMemsetD8"};

// Every entry: takes the lock, notes the call, fails it if a test wants it to.
struct Entry {
    std::lock_guard<std::recursive_mutex> lock{mutex};
    Result result = kSuccess;
    explicit Entry(const char* name, bool context = true) {
        calls.push_back(name);
        if (failing == name) {
            result = static_cast<Result>(failure);
            failing.clear();
        } else if (context && stack.empty()) {
            result = kInvalidContext;
        } else if (recording && unsafe.count(name)) {
            spoilt = true;
            result = kCaptureUnsupported;
        }
    }
};

}  // namespace

#define ENTER(...)              \
    Entry entry(__VA_ARGS__);   \
    if (entry.result) return entry.result
#define EXPORT extern "C" __attribute__((visibility("default")))

// --- for the tests ------------------------------------------------------------------------------

EXPORT void fake_set_runner(Runner given) { runner = given; }
EXPORT void fake_set(const char* name, long long value) { settings[name] = value; }
EXPORT void fake_fail(const char* name, int code) { failing = name, failure = code; }
EXPORT void fake_drain() {
    std::lock_guard<std::recursive_mutex> lock(mutex);
    drain();
}
EXPORT void fake_forget() { calls.clear(); }
EXPORT const char* fake_trouble() { return trouble.c_str(); }
EXPORT long long fake_count(const char* what) {
    std::lock_guard<std::recursive_mutex> lock(mutex);
    const std::string name = what;
    if (name == "device") return static_cast<long long>(device.size());
    if (name == "host") return static_cast<long long>(host.size());
    if (name == "streams") return static_cast<long long>(streams.size());
    if (name == "modules") return static_cast<long long>(modules.size());
    if (name == "events") return static_cast<long long>(events.size());
    if (name == "graphs") return static_cast<long long>(graphs.size() + executables.size());
    if (name == "queued") return static_cast<long long>(queue.size());
    if (name == "recording") return recording != nullptr;
    if (name == "retained") return retained;
    if (name == "contexts") return static_cast<long long>(stack.size());  // of this thread
    long long count = 0;
    for (const auto& call : calls) count += call == name;
    return count;
}

// --- start, devices, contexts ---------------------------------------------------------------------

EXPORT int cuInit(unsigned) {
    ENTER("cuInit", false);
    return settings["devices"] ? kSuccess : kNoDevice;
}
EXPORT int cuDriverGetVersion(int* version) {
    return *version = static_cast<int>(settings["cuda"]), kSuccess;
}
// How cuda-bindings finds all others: names without the number of their version, the newest of which
// is what this file has.
EXPORT int cuGetProcAddress_v2(const char* name, void** out, int, unsigned long long, int* found) {
    void* const driver = dlopen("libcuda.so.1", RTLD_LAZY | RTLD_NOLOAD);
    *out = nullptr;
    for (const char* version : {"_v2", ""})
        if (!*out) *out = dlsym(driver, (std::string(name) + version).c_str());
    if (found) *found = *out ? 0 : 1;
    return *out ? kSuccess : kNotFound;
}
EXPORT int cuGetErrorString(int code, const char** text) {
    static const std::map<int, const char*> words = {
        {kInvalidValue, "invalid argument"}, {kOutOfMemory, "out of memory"},
        {kNoDevice, "no CUDA-capable device is detected"},
        {kInvalidContext, "invalid device context"}, {kInvalidHandle, "invalid resource handle"},
        {kNotFound, "named symbol not found"}, {kNotReady, "device not ready"},
        {kLaunchFailed, "unspecified launch failure"}, {kNotSupported, "not supported"},
        {kCaptureUnsupported, "operation not permitted when stream is capturing"},
        {kCaptureInvalidated, "operation failed due to a previous error during capture"}};
    const auto found = words.find(code);
    *text = found == words.end() ? "unknown error" : found->second;
    return kSuccess;
}
EXPORT int cuDeviceGetCount(int* count) {
    return *count = static_cast<int>(settings["devices"]), kSuccess;
}
EXPORT int cuDeviceGet(int* out, int ordinal) {
    return *out = ordinal, ordinal < settings["devices"] ? kSuccess : 101;
}
EXPORT int cuDeviceGetName(char* name, int size, int) {
    return std::strncpy(name, "Fake GPU", static_cast<size_t>(size)), kSuccess;
}
EXPORT int cuDeviceComputeCapability(int* major, int* minor, int) {
    return *major = 8, *minor = 7, kSuccess;
}
EXPORT int cuDeviceTotalMem_v2(size_t* bytes, int) {
    return *bytes = static_cast<size_t>(settings["memory"]), kSuccess;
}
EXPORT int cuDeviceGetAttribute(int* value, int attribute, int) {
    switch (attribute) {
        case kMaxSharedOptin: *value = static_cast<int>(settings["shared"]); break;
        case kIntegrated: *value = static_cast<int>(settings["integrated"]); break;
        case kProcessors: *value = 16; break;
        case kCapabilityMajor: *value = 8; break;
        case kCapabilityMinor: *value = 7; break;
        default: return kInvalidValue;
    }
    return kSuccess;
}
EXPORT int cuDevicePrimaryCtxRetain(void** context, int) {
    ENTER("cuDevicePrimaryCtxRetain", false);
    ++retained;
    return *context = &primary, kSuccess;
}
EXPORT int cuDevicePrimaryCtxRelease_v2(int) {
    ENTER("cuDevicePrimaryCtxRelease", false);
    --retained;
    return kSuccess;
}
EXPORT int cuCtxPushCurrent_v2(void* context) {
    ENTER("cuCtxPushCurrent", false);
    if (context != &primary || !retained) return kInvalidContext;
    stack.push_back(context);
    return kSuccess;
}
EXPORT int cuCtxPopCurrent_v2(void** context) {
    ENTER("cuCtxPopCurrent");
    *context = stack.back();
    stack.pop_back();
    return kSuccess;
}
EXPORT int cuCtxGetCurrent(void** context) {
    ENTER("cuCtxGetCurrent", false);
    return *context = stack.empty() ? nullptr : stack.back(), kSuccess;
}
EXPORT int cuCtxGetDevice(int* out) {
    ENTER("cuCtxGetDevice");
    return *out = 0, kSuccess;
}
EXPORT int cuCtxSynchronize() {
    ENTER("cuCtxSynchronize");
    return drain();
}

// --- memory ---------------------------------------------------------------------------------------

EXPORT int cuMemGetInfo_v2(size_t* free, size_t* total) {
    ENTER("cuMemGetInfo");
    *total = static_cast<size_t>(settings["memory"]);
    return *free = *total - taken(), kSuccess;
}
EXPORT int cuMemAlloc_v2(unsigned long long* out, size_t size) {
    ENTER("cuMemAlloc");
    if (!size) return kInvalidValue;
    if (taken() + size > static_cast<size_t>(settings["memory"])) return kOutOfMemory;
    void* memory = std::aligned_alloc(256, (size + 255) / 256 * 256);
    std::memset(memory, 0xff, size);
    device[reinterpret_cast<uintptr_t>(memory)] = size;
    return *out = reinterpret_cast<uintptr_t>(memory), kSuccess;
}
EXPORT int cuMemFree_v2(unsigned long long at) {
    ENTER("cuMemFree");
    drain();
    const auto found = device.find(static_cast<uintptr_t>(at));
    if (found == device.end()) return kInvalidValue;
    std::memset(reinterpret_cast<void*>(found->first), 0xff, found->second);
    std::free(reinterpret_cast<void*>(found->first));
    device.erase(found);
    return kSuccess;
}
EXPORT int cuMemHostAlloc(void** out, size_t size, unsigned flags) {
    ENTER("cuMemHostAlloc");
    *out = std::aligned_alloc(4096, (size + 4095) / 4096 * 4096);
    std::memset(*out, 0xff, size);
    if (settings["integrated"] && !(flags & 2)) calls.push_back("unmapped");
    host[reinterpret_cast<uintptr_t>(*out)] = size;
    return kSuccess;
}
EXPORT int cuMemHostGetDevicePointer_v2(unsigned long long* out, void* at, unsigned) {
    ENTER("cuMemHostGetDevicePointer");
    if (!host.count(reinterpret_cast<uintptr_t>(at))) return kInvalidValue;
    return *out = reinterpret_cast<uintptr_t>(at), kSuccess;
}
EXPORT int cuMemFreeHost(void* at) {
    ENTER("cuMemFreeHost");
    drain();
    if (!host.erase(reinterpret_cast<uintptr_t>(at))) return kInvalidValue;
    std::free(at);
    return kSuccess;
}

namespace {

Result copy(uintptr_t to, uintptr_t from, size_t size, bool to_device, bool from_device) {
    if (to_device && !on_device(to, size)) return kInvalidValue;
    if (from_device && !on_device(from, size)) return kInvalidValue;
    std::memmove(reinterpret_cast<void*>(to), reinterpret_cast<void*>(from), size);
    return kSuccess;
}

Result enqueue(void* stream, std::function<Result()> work) {
    if (!stream) calls.push_back("default stream");
    if (stream && !streams.count(stream)) return kInvalidHandle;
    if (recording && stream == recorded) return recording->work.push_back(std::move(work)), kSuccess;
    queue.push_back(std::move(work));
    return kSuccess;
}

}  // namespace

EXPORT int cuMemcpyHtoD_v2(unsigned long long to, const void* from, size_t size) {
    ENTER("cuMemcpyHtoD");
    drain();
    return copy(to, reinterpret_cast<uintptr_t>(from), size, true, false);
}
EXPORT int cuMemcpyDtoH_v2(void* to, unsigned long long from, size_t size) {
    ENTER("cuMemcpyDtoH");
    drain();
    return copy(reinterpret_cast<uintptr_t>(to), from, size, false, true);
}
EXPORT int cuMemcpyHtoDAsync_v2(unsigned long long to, const void* from, size_t size, void* stream) {
    ENTER("cuMemcpyHtoDAsync");
    const auto at = reinterpret_cast<uintptr_t>(from);
    if (!on_device(to, size)) return kInvalidValue;
    if (within(host, at, size))
        return enqueue(stream, [=] { return copy(to, at, size, true, false); });
    if (recording) return spoilt = true, kCaptureUnsupported;
    // Pageable memory may be the caller's again when the call returns.
    calls.push_back("pageable");
    std::vector<char> kept(static_cast<const char*>(from), static_cast<const char*>(from) + size);
    return enqueue(stream, [=] {
        return copy(to, reinterpret_cast<uintptr_t>(kept.data()), size, true, false);
    });
}
EXPORT int cuMemcpyDtoHAsync_v2(void* to, unsigned long long from, size_t size, void* stream) {
    ENTER("cuMemcpyDtoHAsync");
    const auto at = reinterpret_cast<uintptr_t>(to);
    if (!on_device(from, size)) return kInvalidValue;
    if (!within(host, at, size)) calls.push_back("pageable");
    return enqueue(stream, [=] { return copy(at, from, size, false, true); });
}
EXPORT int cuMemcpyDtoDAsync_v2(unsigned long long to, unsigned long long from, size_t size,
                                void* stream) {
    ENTER("cuMemcpyDtoDAsync");
    return enqueue(stream, [=] { return copy(to, from, size, true, true); });
}
EXPORT int cuMemsetD8_v2(unsigned long long to, unsigned char value, size_t size) {
    ENTER("cuMemsetD8");
    if (!on_device(to, size)) return kInvalidValue;
    std::memset(reinterpret_cast<void*>(to), value, size);
    return kSuccess;
}

// --- streams, events, kernels ---------------------------------------------------------------------

EXPORT int cuStreamCreate(void** out, unsigned flags) {
    ENTER("cuStreamCreate");
    if (flags & ~1u) return kInvalidValue;
    streams.insert(*out = std::malloc(1));
    return kSuccess;
}
EXPORT int cuStreamDestroy_v2(void* stream) {
    ENTER("cuStreamDestroy");
    drain();
    if (!streams.erase(stream)) return kInvalidHandle;
    std::free(stream);
    return kSuccess;
}
EXPORT int cuStreamSynchronize(void* stream) {
    ENTER("cuStreamSynchronize");
    const bool standard = reinterpret_cast<uintptr_t>(stream) - 1 < 2;  // the default ones
    return standard || streams.count(stream) ? drain() : kInvalidHandle;
}
EXPORT int cuEventCreate(Event** out, unsigned) {
    ENTER("cuEventCreate");
    events.insert(*out = new Event);
    return kSuccess;
}
EXPORT int cuEventDestroy_v2(Event* event) {
    ENTER("cuEventDestroy");
    drain();
    if (!events.erase(event)) return kInvalidHandle;
    delete event;
    return kSuccess;
}
EXPORT int cuEventRecord(Event* event, void* stream) {
    ENTER("cuEventRecord");
    if (!events.count(event)) return kInvalidHandle;
    event->recorded = true, event->passed = false;
    return enqueue(stream, [=] {
        return event->passed = true, event->time = Clock::now(), kSuccess;
    });
}
EXPORT int cuEventSynchronize(Event* event) {
    ENTER("cuEventSynchronize");
    if (!events.count(event)) return kInvalidHandle;
    return event->recorded ? drain() : kSuccess;  // of a mark that was never set nobody waits
}
EXPORT int cuEventElapsedTime_v2(float* ms, Event* earlier, Event* later) {
    ENTER("cuEventElapsedTime");
    if (!events.count(earlier) || !events.count(later)) return kInvalidHandle;
    if (!earlier->recorded || !later->recorded) return kInvalidHandle;
    if (!earlier->passed || !later->passed) return kNotReady;
    *ms = std::chrono::duration<float, std::milli>(later->time - earlier->time).count();
    return kSuccess;
}
EXPORT int cuModuleLoadDataEx(Module** out, const void* code, unsigned, void*, void** values) {
    ENTER("cuModuleLoadData");
    values[1] = values[3] = nullptr;  // sizes of the logs
    if (std::memcmp(code, "\x7f" "ELF", 4)) return 200;
    modules.insert(*out = new Module);
    return kSuccess;
}
EXPORT int cuModuleLoadData(Module** out, const void* code) {
    ENTER("cuModuleLoadData");
    if (std::memcmp(code, "\x7f" "ELF", 4)) return 200;
    modules.insert(*out = new Module);
    return kSuccess;
}
EXPORT int cuModuleUnload(Module* module) {
    ENTER("cuModuleUnload");
    drain();
    if (!modules.erase(module)) return kInvalidHandle;
    delete module;
    return kSuccess;
}
EXPORT int cuModuleGetFunction(Function** out, Module* module, const char* name) {
    ENTER("cuModuleGetFunction");
    if (!modules.count(module)) return kInvalidHandle;
    if (std::strncmp(name, "mahalanobis_", 12) && std::strcmp(name, "smooth") &&
        std::strncmp(name, "prepare_", 8))
        return kNotFound;
    for (auto& function : module->functions)
        if (function.name == name) return *out = &function, kSuccess;
    module->functions.push_back({name});
    return *out = &module->functions.back(), kSuccess;
}
EXPORT int cuFuncSetAttribute(Function* function, int attribute, int value) {
    ENTER("cuFuncSetAttribute");
    if (attribute != kMaxDynamicShared || value > settings["shared"]) return kInvalidValue;
    function->shared_limit = value;
    return kSuccess;
}
EXPORT int cuFuncSetBlockShape(Function*, int, int, int) {
    ENTER("cuFuncSetBlockShape");
    return kSuccess;
}
EXPORT int cuLaunchKernel(Function* function, unsigned gx, unsigned gy, unsigned gz, unsigned bx,
                          unsigned by, unsigned bz, unsigned shared, void* stream, void**,
                          void** extra) {
    ENTER("cuLaunchKernel");
    if (shared > static_cast<unsigned>(function->shared_limit)) return kInvalidValue;
    const void* argument = nullptr;
    size_t size = 0;
    for (; *extra; extra += 2) {
        if (*extra == reinterpret_cast<void*>(1)) argument = extra[1];
        if (*extra == reinterpret_cast<void*>(2)) size = *static_cast<size_t*>(extra[1]);
    }
    if (!runner || !argument) return kInvalidValue;
    const auto* bytes = static_cast<const char*>(argument);
    std::vector<char> kept(bytes, bytes + size);
    const std::string name = function->name;
    return enqueue(stream, [=] {
        const unsigned grid[] = {gx, gy, gz}, block[] = {bx, by, bz};
        const char* error = runner(name.c_str(), grid, block, shared, kept.data(), size, 0, 0);
        if (error) trouble = error;
        return error ? kLaunchFailed : kSuccess;
    });
}

// --- CUDA graphs ----------------------------------------------------------------------------------

// Work of another library, in the order of a stream.
EXPORT int fake_enqueue(void* stream, int (*work)()) {
    std::lock_guard<std::recursive_mutex> lock(mutex);
    return enqueue(stream, [=] { return static_cast<Result>(work()); });
}
EXPORT int cuStreamBeginCapture_v2(void* stream, int mode) {
    ENTER("cuStreamBeginCapture");
    if (!streams.count(stream) || recording || mode < 0 || mode > 2) return kInvalidValue;
    return graphs.insert(recording = new Graph), recorded = stream, spoilt = false, kSuccess;
}
EXPORT int cuStreamEndCapture(void* stream, Graph** out) {
    Entry entry("cuStreamEndCapture");  // ends it in any case
    *out = nullptr;
    if (!recording || stream != recorded) return kInvalidValue;
    Graph* const graph = recording;
    recording = nullptr;
    if (!entry.result && spoilt) entry.result = kCaptureInvalidated;
    if (entry.result) {
        graphs.erase(graph);
        delete graph;
    } else {
        *out = graph;
    }
    return entry.result;
}
EXPORT int cuGraphInstantiateWithFlags(Graph** out, Graph* graph, unsigned long long flags) {
    ENTER("cuGraphInstantiate");
    if (!graphs.count(graph) || flags) return kInvalidValue;
    return executables.insert(*out = new Graph(*graph)), kSuccess;
}
EXPORT int cuGraphDestroy(Graph* graph) {
    ENTER("cuGraphDestroy");
    if (!graphs.erase(graph)) return kInvalidHandle;
    delete graph;
    return kSuccess;
}
EXPORT int cuGraphLaunch(Graph* executable, void* stream) {
    ENTER("cuGraphLaunch");
    if (!executables.count(executable)) return kInvalidHandle;
    for (const auto& work : executable->work)
        if (const Result result = enqueue(stream, work)) return result;
    return kSuccess;
}
EXPORT int cuGraphExecDestroy(Graph* executable) {
    ENTER("cuGraphExecDestroy");
    drain();
    if (!executables.erase(executable)) return kInvalidHandle;
    delete executable;
    return kSuccess;
}

// --- what pycuda links to and this project must not need ------------------------------------------

#define ABSENT(name) \
    EXPORT int name() { return calls.push_back(#name), kNotSupported; }
// clang-format off
ABSENT(cuArray3DCreate_v2) ABSENT(cuArray3DGetDescriptor_v2) ABSENT(cuArrayCreate_v2)
ABSENT(cuArrayDestroy) ABSENT(cuArrayGetDescriptor_v2) ABSENT(cuCtxAttach) ABSENT(cuCtxCreate_v4)
ABSENT(cuCtxDetach) ABSENT(cuCtxDisablePeerAccess) ABSENT(cuCtxEnablePeerAccess)
ABSENT(cuCtxGetApiVersion) ABSENT(cuCtxGetCacheConfig) ABSENT(cuCtxGetLimit)
ABSENT(cuCtxGetSharedMemConfig) ABSENT(cuCtxSetCacheConfig) ABSENT(cuCtxSetLimit)
ABSENT(cuCtxSetSharedMemConfig) ABSENT(cuDeviceCanAccessPeer) ABSENT(cuDeviceGetByPCIBusId)
ABSENT(cuDeviceGetPCIBusId) ABSENT(cuEventQuery) ABSENT(cuFuncGetAttribute)
ABSENT(cuFuncSetCacheConfig) ABSENT(cuFuncSetSharedSize) ABSENT(cuIpcCloseMemHandle)
ABSENT(cuIpcGetEventHandle) ABSENT(cuIpcGetMemHandle) ABSENT(cuIpcOpenEventHandle)
ABSENT(cuIpcOpenMemHandle_v2) ABSENT(cuLaunch) ABSENT(cuLaunchGrid) ABSENT(cuLaunchGridAsync)
ABSENT(cuLinkAddData_v2) ABSENT(cuLinkAddFile_v2) ABSENT(cuLinkComplete) ABSENT(cuLinkCreate_v2)
ABSENT(cuLinkDestroy) ABSENT(cuMemAllocManaged) ABSENT(cuMemAllocPitch_v2)
ABSENT(cuMemGetAddressRange_v2) ABSENT(cuMemHostGetFlags) ABSENT(cuMemHostRegister_v2)
ABSENT(cuMemHostUnregister) ABSENT(cuMemcpy2DAsync_v2) ABSENT(cuMemcpy2DUnaligned_v2)
ABSENT(cuMemcpy2D_v2) ABSENT(cuMemcpy3DAsync_v2) ABSENT(cuMemcpy3DPeer)
ABSENT(cuMemcpy3DPeerAsync) ABSENT(cuMemcpy3D_v2) ABSENT(cuMemcpyAtoA_v2) ABSENT(cuMemcpyAtoD_v2)
ABSENT(cuMemcpyAtoH_v2) ABSENT(cuMemcpyDtoA_v2) ABSENT(cuMemcpyDtoD_v2) ABSENT(cuMemcpyHtoA_v2)
ABSENT(cuMemcpyPeer) ABSENT(cuMemcpyPeerAsync) ABSENT(cuMemsetD16Async) ABSENT(cuMemsetD16_v2)
ABSENT(cuMemsetD2D16Async) ABSENT(cuMemsetD2D16_v2) ABSENT(cuMemsetD2D32Async)
ABSENT(cuMemsetD2D32_v2) ABSENT(cuMemsetD2D8Async) ABSENT(cuMemsetD2D8_v2) ABSENT(cuMemsetD32Async)
ABSENT(cuMemsetD32_v2) ABSENT(cuMemsetD8Async) ABSENT(cuModuleGetGlobal_v2)
ABSENT(cuModuleGetSurfRef) ABSENT(cuModuleGetTexRef) ABSENT(cuModuleLoad)
ABSENT(cuParamSetSize) ABSENT(cuParamSetTexRef) ABSENT(cuParamSetf) ABSENT(cuParamSeti)
ABSENT(cuParamSetv) ABSENT(cuProfilerInitialize) ABSENT(cuProfilerStart) ABSENT(cuProfilerStop)
ABSENT(cuStreamAttachMemAsync) ABSENT(cuStreamQuery) ABSENT(cuStreamWaitEvent)
ABSENT(cuSurfRefGetArray) ABSENT(cuSurfRefSetArray) ABSENT(cuTexRefCreate) ABSENT(cuTexRefDestroy)
ABSENT(cuTexRefGetAddressMode) ABSENT(cuTexRefGetAddress_v2) ABSENT(cuTexRefGetArray)
ABSENT(cuTexRefGetFilterMode) ABSENT(cuTexRefGetFlags) ABSENT(cuTexRefGetFormat)
ABSENT(cuTexRefSetAddress2D_v3) ABSENT(cuTexRefSetAddressMode) ABSENT(cuTexRefSetAddress_v2)
ABSENT(cuTexRefSetArray) ABSENT(cuTexRefSetFilterMode) ABSENT(cuTexRefSetFlags)
ABSENT(cuTexRefSetFormat)
