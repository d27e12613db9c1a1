/* NVML for two H100s: it initialises no driver. */
#include <stdio.h>

typedef long device;
struct memory { unsigned long long total, free, used; };
#define DONE return 0

int nvmlInit(void) { DONE; }
int nvmlInit_v2(void) { DONE; }
int nvmlInitWithFlags(unsigned flags) { DONE; }
int nvmlShutdown(void) { DONE; }
const char *nvmlErrorString(int error) { return "no such call"; }
int nvmlDeviceGetCount(unsigned *count) { *count = 2; DONE; }
int nvmlDeviceGetCount_v2(unsigned *count) { *count = 2; DONE; }
int nvmlDeviceGetHandleByIndex(unsigned index, device *found) { *found = index + 1; DONE; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, device *found) { *found = index + 1; DONE; }
int nvmlDeviceGetIndex(device of, unsigned *index) { *index = (unsigned)(of - 1); DONE; }
int nvmlDeviceGetCudaComputeCapability(device of, int *major, int *minor) { *major = 9; *minor = 0; DONE; }
int nvmlDeviceGetName(device of, char *name, unsigned size) { snprintf(name, size, "NVIDIA H100 80GB HBM3"); DONE; }
int nvmlDeviceGetUUID(device of, char *name, unsigned size) {
    snprintf(name, size, "GPU-%08lx-0000-0000-0000-000000000000", of << 24);
    DONE;
}
int nvmlDeviceGetMemoryInfo(device of, struct memory *found) {
    found->total = 85520809984ULL;
    found->free = 85000000000ULL;
    found->used = found->total - found->free;
    DONE;
}
int nvmlDeviceGetP2PStatus(device of, device peer, int kind, int *status) { *status = 0; DONE; }
int nvmlSystemGetDriverVersion(char *version, unsigned size) { snprintf(version, size, "580.95.05"); DONE; }
int nvmlSystemGetCudaDriverVersion(int *version) { *version = 13000; DONE; }
int nvmlSystemGetCudaDriverVersion_v2(int *version) { *version = 13000; DONE; }
