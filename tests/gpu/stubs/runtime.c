/* The few calls of CUDA's runtime with which torch starts and reads a device's properties, answered for two H100s.
 * Preloaded: each initialises the driver first, as the real runtime does. */
#include <cuda_runtime_api.h>
#include <stdio.h>
#include <string.h>

extern int cuInit(unsigned flags);
extern void driver_log(const char *call);
static int current;

static cudaError_t begun(const char *call) {
    driver_log(call);
    cuInit(0);
    return cudaSuccess;
}

cudaError_t cudaGetDeviceCount(int *count) {
    *count = 2;
    return begun("cudaGetDeviceCount");
}

cudaError_t cudaGetDevice(int *device) {
    *device = current;
    return begun("cudaGetDevice");
}

cudaError_t cudaSetDevice(int device) {
    current = device;
    return begun("cudaSetDevice");
}

cudaError_t cudaDeviceCanAccessPeer(int *can, int device, int peer) {
    *can = 1;
    return begun("cudaDeviceCanAccessPeer");
}

cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr attribute, int device) {
    *value = attribute == cudaDevAttrComputeCapabilityMajor ? 9 : 0;
    return begun("cudaDeviceGetAttribute");
}

cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest) {
    *least = 0;
    *greatest = -5;
    return begun("cudaDeviceGetStreamPriorityRange");
}

cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *found, int device) {
    memset(found, 0, sizeof *found);
    snprintf(found->name, sizeof found->name, "NVIDIA H100 80GB HBM3");
    found->major = 9;
    found->multiProcessorCount = 132;
    found->warpSize = 32;
    found->totalGlobalMem = 85520809984ULL;
    found->maxThreadsPerMultiProcessor = 2048;
    found->regsPerMultiprocessor = 65536;
    found->sharedMemPerBlock = 49152;
    found->sharedMemPerBlockOptin = 232448;
    found->sharedMemPerMultiprocessor = 233472;
    found->l2CacheSize = 52428800;
    found->pciBusID = device + 1;
    found->uuid.bytes[0] = (char)(device + 1);
    return begun("cudaGetDeviceProperties");
}
