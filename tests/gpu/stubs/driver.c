/* A CUDA driver without a device: it writes down who calls what, and computes nothing.
 * Each call is a line "process call" in the file that DRIVER_LOG names. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { SUCCESS = 0, NOT_INITIALIZED = 3, NOT_FOUND = 500, NOT_SUPPORTED = 801 };
static int initialised;

void driver_log(const char *call) {
    const char *path = getenv("DRIVER_LOG");
    FILE *log = path ? fopen(path, "a") : NULL;
    if (log == NULL) return;
    fprintf(log, "%d %s\n", (int)getpid(), call);
    fclose(log);
}

int cuInit(unsigned flags) {
    driver_log("cuInit");
    initialised = 1;
    return SUCCESS;
}

int cuDriverGetVersion(int *version) { /* needs no initialisation, and does none */
    *version = 13000;
    return SUCCESS;
}

int cuDeviceGetCount(int *count) { /* not written down: it is how orchestrator asks whether anybody else asked */
    if (!initialised) return NOT_INITIALIZED;
    *count = 2;
    return SUCCESS;
}

int cuDevicePrimaryCtxGetState(int device, unsigned *flags, int *active) {
    driver_log("cuDevicePrimaryCtxGetState");
    *flags = 0;
    *active = 0;
    return initialised ? SUCCESS : NOT_INITIALIZED;
}

static int anything(void) {
    driver_log("a call by address");
    return initialised ? NOT_SUPPORTED : NOT_INITIALIZED;
}

int cuGetProcAddress(const char *name, void **found, int version, unsigned long long flags) {
    Dl_info self;
    void *library = dladdr((void *)driver_log, &self) ? dlopen(self.dli_fname, RTLD_LAZY) : NULL;
    *found = library ? dlsym(library, name) : NULL;
    if (*found == NULL) *found = (void *)anything;
    return SUCCESS;
}

int cuGetProcAddress_v2(const char *name, void **found, int version, unsigned long long flags, int *status) {
    if (status) *status = 0;
    return cuGetProcAddress(name, found, version, flags);
}

#define REFUSES(name) \
    int name(void) { \
        driver_log(#name); \
        return initialised ? NOT_SUPPORTED : NOT_INITIALIZED; \
    }
/* What libraries of the GPU build are linked with. */
REFUSES(cuCtxGetCurrent) REFUSES(cuCtxGetDevice) REFUSES(cuCtxGetId) REFUSES(cuCtxSetCurrent)
REFUSES(cuDeviceGet) REFUSES(cuDeviceGetAttribute) REFUSES(cuDeviceGetName)
REFUSES(cuDevicePrimaryCtxRetain) REFUSES(cuDevicePrimaryCtxRelease_v2)
REFUSES(cuFuncGetAttribute) REFUSES(cuFuncSetAttribute) REFUSES(cuFuncSetCacheConfig)
REFUSES(cuGetErrorName) REFUSES(cuGetErrorString) REFUSES(cuGetExportTable)
REFUSES(cuKernelGetFunction) REFUSES(cuLaunchCooperativeKernel) REFUSES(cuLaunchKernel) REFUSES(cuLaunchKernelEx)
REFUSES(cuLibraryGetKernel) REFUSES(cuLibraryLoadData) REFUSES(cuLibraryUnload)
REFUSES(cuLinkAddData_v2) REFUSES(cuLinkComplete) REFUSES(cuLinkCreate_v2)
REFUSES(cuMemAddressFree) REFUSES(cuMemAddressReserve) REFUSES(cuMemCreate) REFUSES(cuMemMap) REFUSES(cuMemUnmap)
REFUSES(cuMemExportToShareableHandle) REFUSES(cuMemImportFromShareableHandle) REFUSES(cuMemGetAddressRange_v2)
REFUSES(cuMemGetAllocationGranularity) REFUSES(cuMemRelease) REFUSES(cuMemRetainAllocationHandle)
REFUSES(cuMemSetAccess) REFUSES(cuMemcpyDtoHAsync_v2) REFUSES(cuMemcpyHtoDAsync_v2)
REFUSES(cuModuleGetFunction) REFUSES(cuModuleLoad) REFUSES(cuModuleLoadData) REFUSES(cuModuleLoadDataEx)
REFUSES(cuModuleUnload) REFUSES(cuOccupancyMaxActiveBlocksPerMultiprocessor) REFUSES(cuOccupancyMaxActiveClusters)
REFUSES(cuPointerGetAttribute) REFUSES(cuStreamWaitValue32_v2) REFUSES(cuStreamWriteValue32_v2)
REFUSES(cuTensorMapEncodeIm2col) REFUSES(cuTensorMapEncodeTiled)
