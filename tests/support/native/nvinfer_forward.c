/* libnvinfer.so.11 made of TensorRT for RTX, which has the same C++ interface and can build plans
   without a GPU. The library checks that its caller was compiled for its own version number, so
   it is told that number instead of the bindings'. */
#include <dlfcn.h>

static void *rtx(const char *name) {
    static void *library;
    if (!library) library = dlopen("libtensorrt_rtx.so.1", RTLD_NOW | RTLD_GLOBAL);
    return library ? dlsym(library, name) : 0;
}

int getInferLibVersion(void) { return ((int (*)(void))rtx("getInferLibVersion"))(); }

#define FACTORY(name)                                                                       \
    void *name(void *argument, int version) {                                               \
        return ((void *(*)(void *, int))rtx(#name))(argument, getInferLibVersion());        \
    }
FACTORY(createInferBuilder_INTERNAL)
FACTORY(createInferRuntime_INTERNAL)

void *createInferRefitter_INTERNAL(void *engine, void *logger, int version) {
    void *(*make)(void *, void *, int) = rtx("createInferRefitter_INTERNAL");
    return make(engine, logger, getInferLibVersion());
}

void *getPluginRegistry(void) { return ((void *(*)(void))rtx("getPluginRegistry"))(); }

void *getBuilderPluginRegistry(int capability) {
    return ((void *(*)(int))rtx("getBuilderPluginRegistry"))(capability);
}
