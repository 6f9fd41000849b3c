/* A stand-in for NVIDIA's driver that takes every call and computes nothing: what is downloaded is zeros. With it a program for CUDA lists devices, compiles all
   its kernels and ends, on a machine without a GPU, and its calls can be counted.

       cc -shared -fPIC -O2 -o FOLDER/libcuda.so.1 tools/null_cuda.c        and then LD_LIBRARY_PATH=FOLDER

   NULL_CUDA_ARCH     compute capability: 80, 89 or 90 (the default)
   NULL_CUDA_DEVICES  number of devices (1)
   NULL_CUDA_LOG      file that gets a line for each launch, copy, synchronisation and module, in the order of the calls
   NULL_CUDA_MODULES  folder that gets the PTX of each module

   As FOLDER/libnvrtc.so the same file stands in for the compiler, too, and compiles nothing:

   NULL_CUDA_SOURCES  folder that gets the CUDA C++ of each kernel, with the options in the first line */

#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

typedef int Result;
typedef unsigned long long Address;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static int setting(const char *name, int otherwise) {
    const char *value = getenv(name);
    return value ? atoi(value) : otherwise;
}

static void record(const char *format, ...) {
    static FILE *file;
    const char *path = getenv("NULL_CUDA_LOG");
    if (!path) return;
    pthread_mutex_lock(&lock);
    if (!file) file = fopen(path, "a");
    if (file) {
        va_list values;
        va_start(values, format);
        vfprintf(file, format, values);
        va_end(values);
        fputc('\n', file);
        fflush(file);
    }
    pthread_mutex_unlock(&lock);
}

/* Handles are numbers that are never 0. */
static void *handle(void) {
    static uintptr_t next = 16;
    return (void *)__atomic_add_fetch(&next, 16, __ATOMIC_RELAXED);
}

/* Memory: address space that takes no memory before it is written. Its size lies in front of it. */
enum { PAGE = 4096 };
static void *reserve(size_t bytes) {
    size_t *all = mmap(NULL, bytes + PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (all == MAP_FAILED) return NULL;
    *all = bytes + PAGE;
    return (char *)all + PAGE;
}
static void release(void *memory) {
    if (!memory) return;
    size_t *all = (size_t *)((char *)memory - PAGE);
    munmap(all, *all);
}

/* Pinned memory of the host. */
enum { PINNED = 4096 };
static struct { char *begin, *end; } pinned[PINNED];
static const char *kind(const void *host) {
    for (int at = 0; at < PINNED; at++)
        if (pinned[at].begin && (char *)host >= pinned[at].begin && (char *)host < pinned[at].end) return "pinned";
    return "pageable";
}

Result cuInit(unsigned flags) { return 0; }
Result cuDriverGetVersion(int *version) { *version = setting("NULL_CUDA_DRIVER", 13000); return 0; }
/* NVRTC asks for it, and does without. */
Result cuGetExportTable(const void **table, const void *id) { *table = NULL; return 500; }
Result cuGetErrorString(Result error, const char **text) { *text = "an error of the stand-in"; return 0; }
Result cuGetErrorName(Result error, const char **text) { *text = "NULL_CUDA"; return 0; }

Result cuDeviceGetCount(int *count) { *count = setting("NULL_CUDA_DEVICES", 1); return 0; }
Result cuDeviceGet(int *device, int number) { *device = number; return 0; }
Result cuDeviceGetName(char *name, int length, int device) { snprintf(name, length, "stand-in sm_%d", setting("NULL_CUDA_ARCH", 90)); return 0; }
Result cuDeviceGetUuid(unsigned char *uuid, int device) { memset(uuid, device + 1, 16); return 0; }
Result cuDeviceGetUuid_v2(unsigned char *uuid, int device) { return cuDeviceGetUuid(uuid, device); }
Result cuDeviceGetLuid(char *luid, unsigned *mask, int device) { memset(luid, 0, 8); *mask = 0; return 0; }
Result cuDeviceGetPCIBusId(char *id, int length, int device) { snprintf(id, length, "0000:%02x:00.0", device + 1); return 0; }
Result cuDeviceTotalMem_v2(size_t *bytes, int device) { *bytes = (size_t)80 << 30; return 0; }
Result cuDeviceCanAccessPeer(int *can, int device, int peer) { *can = device != peer; return 0; }
Result cuDeviceGetP2PAttribute(int *value, int attribute, int device, int peer) { *value = 1; return 0; }
Result cuMemGetInfo_v2(size_t *free, size_t *total) { *free = *total = (size_t)80 << 30; return 0; }

Result cuDeviceGetAttribute(int *value, int attribute, int device) {
    int arch = setting("NULL_CUDA_ARCH", 90), is_hopper = arch == 90, is_ada = arch == 89;
    switch (attribute) {
    case 1: case 2: case 3: *value = 1024; break;                                            /* threads of a block, x, y */
    case 4: *value = 64; break;                                                              /* z */
    case 5: *value = 0x7fffffff; break;                                                      /* blocks, x */
    case 6: case 7: *value = 65535; break;                                                   /* y, z */
    case 8: *value = 49152; break;                                                           /* shared memory of a block */
    case 10: *value = 32; break;                                                             /* threads of a warp */
    case 12: case 82: *value = 65536; break;                                                 /* registers */
    case 16: *value = is_hopper ? 132 : is_ada ? 128 : 108; break;                           /* multiprocessors */
    case 39: *value = is_ada ? 1536 : 2048; break;                                           /* threads of a multiprocessor */
    case 75: *value = arch / 10; break;
    case 76: *value = arch % 10; break;
    case 81: *value = is_hopper ? 233472 : is_ada ? 102400 : 167936; break;                  /* shared memory of a multiprocessor */
    case 97: *value = is_hopper ? 232448 : is_ada ? 101376 : 166912; break;                  /* of a block that asks for it */
    default: *value = 1;
    }
    return 0;
}

Result cuDevicePrimaryCtxRetain(void **context, int device) { *context = (void *)(uintptr_t)(device + 1); return 0; }
Result cuDevicePrimaryCtxRelease_v2(int device) { return 0; }
static _Thread_local void *current;
Result cuCtxSetCurrent(void *context) { current = context; return 0; }
Result cuCtxGetCurrent(void **context) { *context = current; return 0; }
Result cuCtxPushCurrent_v2(void *context) { current = context; return 0; }
Result cuCtxPopCurrent_v2(void **context) { *context = current; return 0; }
Result cuCtxGetDevice(int *device) { *device = current ? (int)(uintptr_t)current - 1 : 0; return 0; }
Result cuCtxSynchronize(void) { record("sync context"); return 0; }
Result cuCtxEnablePeerAccess(void *context, unsigned flags) { record("peer access"); return 0; }
Result cuCtxGetStreamPriorityRange(int *least, int *greatest) { *least = 0; *greatest = -5; return 0; }

Result cuStreamCreate(void **stream, unsigned flags) { *stream = handle(); return 0; }
Result cuStreamCreateWithPriority(void **stream, unsigned flags, int priority) { *stream = handle(); return 0; }
Result cuStreamDestroy_v2(void *stream) { return 0; }
Result cuStreamSynchronize(void *stream) { record("sync stream %p", stream); return 0; }
Result cuStreamQuery(void *stream) { return 0; }
Result cuStreamWaitEvent(void *stream, void *event, unsigned flags) { record("wait stream %p event %p", stream, event); return 0; }
Result cuStreamIsCapturing(void *stream, int *status) { *status = 0; return 0; }
Result cuEventCreate(void **event, unsigned flags) { *event = handle(); return 0; }
Result cuEventDestroy_v2(void *event) { return 0; }
Result cuEventRecord(void *event, void *stream) { return 0; }
Result cuEventQuery(void *event) { return 0; }
Result cuEventSynchronize(void *event) { return 0; }
Result cuEventElapsedTime(float *milliseconds, void *begin, void *end) { *milliseconds = 0.01f; return 0; }
Result cuEventElapsedTime_v2(float *milliseconds, void *begin, void *end) { *milliseconds = 0.01f; return 0; }

Result cuMemAlloc_v2(Address *memory, size_t bytes) { *memory = (Address)reserve(bytes); return *memory ? 0 : 2; }
Result cuMemAllocAsync(Address *memory, size_t bytes, void *stream) { return cuMemAlloc_v2(memory, bytes); }
Result cuMemFree_v2(Address memory) { release((void *)memory); return 0; }
Result cuMemFreeAsync(Address memory, void *stream) { return cuMemFree_v2(memory); }
Result cuMemAllocHost_v2(void **memory, size_t bytes) {
    *memory = reserve(bytes);
    pthread_mutex_lock(&lock);
    for (int at = 0; at < PINNED; at++)
        if (!pinned[at].begin) {
            pinned[at].begin = *memory;
            pinned[at].end = (char *)*memory + bytes;
            break;
        }
    pthread_mutex_unlock(&lock);
    return *memory ? 0 : 2;
}
Result cuMemHostAlloc(void **memory, size_t bytes, unsigned flags) { return cuMemAllocHost_v2(memory, bytes); }
Result cuMemFreeHost(void *memory) {
    pthread_mutex_lock(&lock);
    for (int at = 0; at < PINNED; at++)
        if (pinned[at].begin == memory) pinned[at].begin = NULL;
    pthread_mutex_unlock(&lock);
    release(memory);
    return 0;
}

Result cuMemcpyHtoDAsync_v2(Address to, const void *from, size_t bytes, void *stream) {
    record("h2d %zu %s stream %p", bytes, kind(from), stream);
    return 0;
}
Result cuMemcpyDtoHAsync_v2(void *to, Address from, size_t bytes, void *stream) {
    record("d2h %zu %s stream %p", bytes, kind(to), stream);
    memset(to, 0, bytes);
    return 0;
}
Result cuMemcpyDtoDAsync_v2(Address to, Address from, size_t bytes, void *stream) { record("d2d %zu stream %p", bytes, stream); return 0; }
Result cuMemcpyPeerAsync(Address to, void *to_context, Address from, void *from_context, size_t bytes, void *stream) {
    record("p2p %zu stream %p", bytes, stream);
    return 0;
}
Result cuMemsetD8Async(Address to, unsigned char value, size_t count, void *stream) { record("memset %zu stream %p", count, stream); return 0; }

typedef struct {
    size_t from_x, from_y; int from_kind; const void *from_host; Address from_device; void *from_array; size_t from_pitch;
    size_t to_x, to_y; int to_kind; void *to_host; Address to_device; void *to_array; size_t to_pitch;
    size_t width, height;
} Copy2d;
Result cuMemcpy2DAsync_v2(const Copy2d *copy, void *stream) {
    enum { HOST = 1 };
    size_t bytes = copy->width * copy->height;
    if (copy->to_kind == HOST) {
        record("d2h %zu %s stream %p", bytes, kind(copy->to_host), stream);
        for (size_t row = 0; row < copy->height; row++) memset((char *)copy->to_host + row * copy->to_pitch, 0, copy->width);
    } else if (copy->from_kind == HOST) {
        record("h2d %zu %s stream %p", bytes, kind(copy->from_host), stream);
    } else {
        record("d2d %zu stream %p", bytes, stream);
    }
    return 0;
}

Result cuModuleLoadData(void **module, const void *image) {
    static int number;
    const char *folder = getenv("NULL_CUDA_MODULES");
    int mine = __atomic_add_fetch(&number, 1, __ATOMIC_RELAXED);
    int is_text = memcmp(image, "\x7f" "ELF", 4) != 0;
    record("module %d %s", mine, is_text ? "ptx" : "cubin");
    if (folder && is_text) {
        char path[4096];
        snprintf(path, sizeof path, "%s/%05d.ptx", folder, mine);
        FILE *file = fopen(path, "w");
        if (file) {
            fputs(image, file);
            fclose(file);
        }
    }
    *module = handle();
    return 0;
}
Result cuModuleLoadDataEx(void **module, const void *image, unsigned count, void *options, void *values) { return cuModuleLoadData(module, image); }
Result cuModuleUnload(void *module) { return 0; }
Result cuModuleGetFunction(void **function, void *module, const char *name) { *function = strdup(name); return 0; }
Result cuFuncSetAttribute(void *function, int attribute, int value) { return 0; }
Result cuFuncGetAttribute(int *value, int attribute, void *function) { *value = 0; return 0; }
Result cuLaunchKernel(void *function, unsigned x, unsigned y, unsigned z, unsigned bx, unsigned by, unsigned bz, unsigned shared, void *stream, void **a, void **b) {
    record("launch %s %ux%ux%u of %ux%ux%u stream %p", (char *)function, x, y, z, bx, by, bz, stream);
    return 0;
}
typedef struct { unsigned x, y, z, bx, by, bz, shared; void *stream; } Launch;
Result cuLaunchKernelEx(const Launch *l, void *function, void **a, void **b) {
    return cuLaunchKernel(function, l->x, l->y, l->z, l->bx, l->by, l->bz, l->shared, l->stream, a, b);
}
Result cuTensorMapEncodeTiled(void *map) { memset(map, 0, 128); return 0; }
Result cuTensorMapEncodeIm2col(void *map) { memset(map, 0, 128); return 0; }
Result cuTensorMapEncodeIm2colWide(void *map) { memset(map, 0, 128); return 0; }

typedef struct { char *source; } Program;
static const char PTX[] = "// a kernel of the stand-in";
Result nvrtcVersion(int *major, int *minor) { *major = 13; *minor = 0; return 0; }
const char *nvrtcGetErrorString(Result error) { return "an error of the stand-in"; }
Result nvrtcCreateProgram(Program **program, const char *source, const char *name, int count, const char *const *headers, const char *const *names) {
    *program = malloc(sizeof **program);
    (*program)->source = strdup(source);
    return 0;
}
Result nvrtcDestroyProgram(Program **program) {
    free((*program)->source);
    free(*program);
    return 0;
}
Result nvrtcCompileProgram(Program *program, int count, const char *const *options) {
    static int number;
    const char *folder = getenv("NULL_CUDA_SOURCES");
    if (!folder) return 0;
    char path[4096];
    snprintf(path, sizeof path, "%s/%05d.cu", folder, __atomic_add_fetch(&number, 1, __ATOMIC_RELAXED));
    FILE *file = fopen(path, "w");
    if (!file) return 0;
    fputs("//", file);
    for (int at = 0; at < count; at++) fprintf(file, " %s", options[at]);
    fprintf(file, "\n%s", program->source);
    fclose(file);
    return 0;
}
Result nvrtcGetPTXSize(Program *program, size_t *bytes) { *bytes = sizeof PTX; return 0; }
Result nvrtcGetPTX(Program *program, char *ptx) { memcpy(ptx, PTX, sizeof PTX); return 0; }
Result nvrtcGetProgramLogSize(Program *program, size_t *bytes) { *bytes = 1; return 0; }
Result nvrtcGetProgramLog(Program *program, char *log) { *log = 0; return 0; }
