/* CUDA's runtime as far as agrikd calls it: memory of the host, streams that do at once what they are told. */
#include <stdlib.h>
#include <string.h>

int cudaRuntimeGetVersion(int *version) { *version = 12060; return 0; }
int cudaDeviceGetAttribute(int *value, int attribute, int device)
{
    const char *own = getenv("AGRIKD_FAKE_SM");
    (void)device;
    if (attribute != 75 && attribute != 76) return 1;
    *value = (own ? own : "8.7")[attribute == 75 ? 0 : 2] - '0';
    return 0;
}
int cudaMalloc(void **address, size_t size)
{
    if (getenv("AGRIKD_FAKE_NO_MEMORY")) return 2;
    *address = malloc(size);
    return *address ? 0 : 2;
}
int cudaFree(void *address) { free(address); return 0; }
int cudaStreamCreate(void **stream) { *stream = malloc(1); return 0; }
int cudaStreamDestroy(void *stream) { free(stream); return 0; }
int cudaStreamSynchronize(void *stream) { return stream ? 0 : 400; }
int cudaMemcpyAsync(void *to, const void *from, size_t size, int kind, void *stream)
{
    if (!stream || (kind != 1 && kind != 2)) return 400;
    memcpy(to, from, size);
    return 0;
}
const char *cudaGetErrorString(int code)
{
    return code == 2 ? "out of memory" : code == 400 ? "invalid resource handle" : "invalid argument";
}
