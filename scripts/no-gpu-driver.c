/* The driver's library for a machine without a GPU: finds no device, and lets cuDNN load the kernels that it compiles for a
 * GPU that is only described, so that its plans can be checked. Nothing can be run. check-cuda.sh adds all other functions
 * that cuDNN looks for, which fail. */
#include <stddef.h>

enum { SUCCESS = 0, NO_DEVICE = 100 };

static int some(void **object) {
    *object = (void *)1;
    return SUCCESS;
}

int cuInit(unsigned flags) { return (void)flags, NO_DEVICE; }

int cuLibraryLoadData(void **library, const void *code) { return (void)code, some(library); }
int cuLibraryGetKernel(void **kernel, void *library, const char *name) {
    return (void)library, (void)name, some(kernel);
}
int cuKernelGetFunction(void **function, void *kernel) { return (void)kernel, some(function); }
int cuKernelSetAttribute(int attribute, int value, void *kernel, int device) {
    return (void)attribute, (void)value, (void)kernel, (void)device, SUCCESS;
}
int cuKernelGetAttribute(int *value, int attribute, void *kernel, int device) {
    return (void)attribute, (void)kernel, (void)device, *value = 0, SUCCESS;
}
int cuLibraryUnload(void *library) { return (void)library, SUCCESS; }
