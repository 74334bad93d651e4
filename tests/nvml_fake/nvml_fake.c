/* A small library that speaks NVML's C interface, so that nvidia-ml-py itself runs where there is no GPU.
 *
 * Every figure follows from the GPU's index, so that tests can tell one GPU from another. The environment, read at
 * nvmlInit, says what else is wanted:
 *
 *   NVML_FAKE_GPUS=2              how many GPUs (1)
 *   NVML_FAKE_NAMES=A,B           their names ("Fake GPU")
 *   NVML_FAKE_MIG=1:2             GPU 1 is in MIG mode and has 2 instances
 *   NVML_FAKE_ERRORS=f=3;g@1=4    function f returns 3 for every GPU, g returns 4 for GPU 1 (nvmlReturn_t)
 *   NVML_FAKE_LOST=1:3            GPU 1 falls off the bus after its memory was asked for 3 times
 *   NVML_FAKE_PROCESS=own         "own" lists this process, "graphics" only among those that draw, "foreign" lists
 *                                 another one, "silent" lists this one without its memory
 *   NVML_FAKE_REASONS=0x44        the bits of the throttle reasons (0)
 *   NVML_FAKE_TELLS=1             "init" and "shutdown" are written to standard error when they are called
 *
 * Compiled with -DOLD_DRIVER, it lacks the functions that came with drivers after 525.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { SUCCESS = 0, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7, GPU_IS_LOST = 15 };
enum { MOST_GPUS = 16, MOST_INSTANCES = 7 };
#define MIB (1024ull * 1024ull)

/* An instance is told from its card by `instance`, which is -1 for the card itself. */
typedef struct { int index, instance; unsigned memory_reads; } device;
typedef struct { unsigned long long total, free, used; } memory;
typedef struct { unsigned version; unsigned long long total, reserved, free, used; } memory_v2;
typedef struct { unsigned gpu, memory; } utilization;
typedef struct { unsigned pid; unsigned long long used; unsigned gpu_instance, compute_instance; } process;
typedef struct { unsigned version, sensor; int celsius; } temperature;
typedef struct {
    char legacy_bus_id[16];
    unsigned domain, bus, device, device_id, subsystem_id;
    char bus_id[32];
} pci_info;

static device cards[MOST_GPUS], instances[MOST_GPUS][MOST_INSTANCES];
static int gpus, mig_gpu, mig_count, lost_gpu, lost_after;

static const char *setting(const char *name, const char *otherwise) {
    const char *value = getenv(name);
    return value ? value : otherwise;
}

/* The code that a function is to fail with, for all GPUs ("f=3") or for one ("f@1=3"). */
static int failure(const char *function, int index) {
    char plain[96], of_gpu[96];
    snprintf(plain, sizeof plain, "%s=", function);
    snprintf(of_gpu, sizeof of_gpu, "%s@%d=", function, index);
    const char *errors = setting("NVML_FAKE_ERRORS", ""), *found = strstr(errors, of_gpu);
    if (found) return atoi(found + strlen(of_gpu));
    found = strstr(errors, plain);
    return found ? atoi(found + strlen(plain)) : SUCCESS;
}

static int failure_of(const char *function, const device *d) {
    if (d->index == lost_gpu && (int)cards[d->index].memory_reads >= lost_after) return GPU_IS_LOST;
    return failure(function, d->index);
}

#define FAIL(d) do { int code = failure_of(__func__, d); if (code) return code; } while (0)

static void tell(const char *what) { if (getenv("NVML_FAKE_TELLS")) fprintf(stderr, "%s\n", what); }

int nvmlInitWithFlags(unsigned flags) {
    (void)flags;
    tell("init");
    gpus = atoi(setting("NVML_FAKE_GPUS", "1"));
    mig_gpu = lost_gpu = -1;
    sscanf(setting("NVML_FAKE_MIG", ""), "%d:%d", &mig_gpu, &mig_count);
    sscanf(setting("NVML_FAKE_LOST", ""), "%d:%d", &lost_gpu, &lost_after);
    for (int i = 0; i < MOST_GPUS; i++) {
        cards[i] = (device){i, -1, 0};
        for (int k = 0; k < MOST_INSTANCES; k++) instances[i][k] = (device){i, k, 0};
    }
    return failure(__func__, -1);
}

int nvmlShutdown(void) {
    tell("shutdown");
    return SUCCESS;
}

const char *nvmlErrorString(int code) { (void)code; return "an error of the fake"; }

static int text(char *buffer, unsigned size, const char *value) { snprintf(buffer, size, "%s", value); return SUCCESS; }
int nvmlSystemGetDriverVersion(char *buffer, unsigned size) { return text(buffer, size, "580.82.07"); }
int nvmlSystemGetCudaDriverVersion(int *version) { *version = 12080; return SUCCESS; }

int nvmlDeviceGetCount_v2(unsigned *count) { *count = gpus; return SUCCESS; }

int nvmlDeviceGetHandleByIndex_v2(unsigned index, device **d) {
    if ((int)index >= gpus) return INVALID_ARGUMENT;
    *d = &cards[index];
    return failure(__func__, index);
}

int nvmlDeviceGetName(device *d, char *buffer, unsigned size) {
    char names[512], *name;
    FAIL(d);
    snprintf(names, sizeof names, "%s", setting("NVML_FAKE_NAMES", ""));
    name = strtok(names, ",");
    for (int i = 0; name && i < d->index; i++) name = strtok(NULL, ",");
    snprintf(buffer, size, "%s%s", name ? name : "Fake GPU", d->instance < 0 ? "" : " MIG 1g.10gb");
    return SUCCESS;
}

int nvmlDeviceGetUUID(device *d, char *buffer, unsigned size) {
    FAIL(d);
    if (d->instance < 0) snprintf(buffer, size, "GPU-%02d000000-aaaa-bbbb-cccc-000000000000", d->index);
    else snprintf(buffer, size, "MIG-%02d%02d0000-aaaa-bbbb-cccc-000000000000", d->index, d->instance);
    return SUCCESS;
}

int nvmlDeviceGetPciInfo_v3(device *d, pci_info *info) {
    FAIL(d);
    memset(info, 0, sizeof *info);
    info->bus = 0x10 + d->index;
    snprintf(info->bus_id, sizeof info->bus_id, "00000000:%02X:00.0", info->bus);
    return SUCCESS;
}

int nvmlDeviceGetCudaComputeCapability(device *d, int *major, int *minor) { FAIL(d); *major = 9; *minor = 0; return SUCCESS; }

int nvmlDeviceGetMigMode(device *d, unsigned *current, unsigned *pending) {
    if (mig_gpu < 0) return NOT_SUPPORTED;
    *current = *pending = d->index == mig_gpu;
    return SUCCESS;
}

int nvmlDeviceGetMaxMigDeviceCount(device *d, unsigned *count) { *count = d->index == mig_gpu ? MOST_INSTANCES : 0; return SUCCESS; }

/* Slot 0 is empty, as slots are once an instance was destroyed. */
int nvmlDeviceGetMigDeviceHandleByIndex(device *d, unsigned slot, device **instance) {
    if (slot == 0 || (int)slot > mig_count) return NOT_FOUND;
    *instance = &instances[d->index][slot];
    return SUCCESS;
}

int nvmlDeviceGetGpuInstanceId(device *d, unsigned *id) { *id = 10 + d->instance; return SUCCESS; }
int nvmlDeviceGetComputeInstanceId(device *d, unsigned *id) { (void)d; *id = 0; return SUCCESS; }

/* GPU i has 80 GiB, of which 1000 * (i + 1) MiB and 1 MiB for each earlier look are in use; an instance has 10 GiB. */
static void fill(device *d, unsigned long long *total, unsigned long long *used) {
    *total = (d->instance < 0 ? 81920 : 10240) * MIB;
    *used = (d->instance < 0 ? 1000 * (d->index + 1) + d->memory_reads : 100 * d->instance) * MIB;
    d->memory_reads++;
}

int nvmlDeviceGetMemoryInfo(device *d, memory *info) {
    FAIL(d);
    fill(d, &info->total, &info->used);
    info->used += 500 * MIB; /* what the driver keeps for itself counts as used here */
    info->free = info->total - info->used;
    return SUCCESS;
}

int nvmlDeviceGetUtilizationRates(device *d, utilization *rates) {
    FAIL(d);
    if (d->instance >= 0) return NOT_SUPPORTED;
    *rates = (utilization){90 + d->index, 40 + d->index};
    return SUCCESS;
}

int nvmlDeviceGetPowerUsage(device *d, unsigned *milliwatts) {
    FAIL(d);
    if (d->instance >= 0) return NOT_SUPPORTED;
    *milliwatts = 300000 + d->index;
    return SUCCESS;
}

int nvmlDeviceGetTemperature(device *d, unsigned sensor, unsigned *celsius) {
    FAIL(d);
    if (d->instance >= 0 || sensor != 0) return INVALID_ARGUMENT;
    *celsius = 50 + d->index;
    return SUCCESS;
}

int nvmlDeviceGetClockInfo(device *d, unsigned type, unsigned *mhz) {
    FAIL(d);
    if (d->instance >= 0) return INVALID_ARGUMENT;
    *mhz = 1000 * type + d->index; /* 1 is the SM clock, 2 the memory's */
    return SUCCESS;
}

static int reasons(unsigned long long *bits) { *bits = strtoull(setting("NVML_FAKE_REASONS", "0"), NULL, 0); return SUCCESS; }
int nvmlDeviceGetCurrentClocksThrottleReasons(device *d, unsigned long long *bits) {
    FAIL(d);
    return d->instance < 0 ? reasons(bits) : INVALID_ARGUMENT;
}

/* Two processes that are not this one, and this one where it is wanted. */
static int list(unsigned *count, process *processes, int with_own) {
    unsigned wanted = 2 + with_own, room = *count;
    const int silent = !strcmp(setting("NVML_FAKE_PROCESS", "own"), "silent");
    *count = wanted;
    if (room < wanted) return INSUFFICIENT_SIZE;
    processes[0] = (process){1, 7 * MIB, -1, -1};
    processes[1] = (process){2, 8 * MIB, -1, -1};
    if (with_own) processes[2] = (process){(unsigned)getpid(), silent ? ~0ull : 600 * MIB, -1, -1};
    return SUCCESS;
}

int nvmlDeviceGetComputeRunningProcesses_v3(device *d, unsigned *count, process *processes) {
    const char *who = setting("NVML_FAKE_PROCESS", "own");
    FAIL(d);
    return list(count, processes, !strcmp(who, "own") || !strcmp(who, "silent"));
}

int nvmlDeviceGetGraphicsRunningProcesses_v3(device *d, unsigned *count, process *processes) {
    FAIL(d);
    return list(count, processes, !strcmp(setting("NVML_FAKE_PROCESS", "own"), "graphics"));
}

#ifndef OLD_DRIVER
int nvmlDeviceGetMemoryInfo_v2(device *d, memory_v2 *info) {
    FAIL(d);
    if (info->version != (sizeof *info | 2u << 24)) return 25;
    fill(d, &info->total, &info->used);
    info->reserved = 500 * MIB;
    info->free = info->total - info->used - info->reserved;
    return SUCCESS;
}

int nvmlDeviceGetTemperatureV(device *d, temperature *t) {
    unsigned celsius = 0;
    FAIL(d);
    int code = nvmlDeviceGetTemperature(d, t->sensor, &celsius);
    t->celsius = (int)celsius;
    return code;
}

int nvmlDeviceGetCurrentClocksEventReasons(device *d, unsigned long long *bits) {
    FAIL(d);
    return d->instance < 0 ? reasons(bits) : INVALID_ARGUMENT;
}
#endif
