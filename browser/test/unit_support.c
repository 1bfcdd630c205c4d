/* unit_support.c: for the unit tests as WebAssembly: the heap of their C library, which is the engine's own,
 * and the tests that make no sense here. */
#include "platform.h"

#include <stdlib.h>
#include <string.h>

void *heap_resize(void *pointer, size_t size);

void *malloc(size_t size) {
    return plat_alloc(size);
}

void *calloc(size_t n, size_t size) {
    return plat_alloc((uint64_t)n * size);
}

void *realloc(void *pointer, size_t size) {
    return pointer ? heap_resize(pointer, size) : plat_alloc(size);
}

void *aligned_alloc(size_t alignment, size_t size) {
    return alignment <= 64 ? plat_alloc(size) : NULL;
}

void free(void *pointer) {
    plat_free(pointer);
}

/* One thread, and no machine to look at: test/engine.test.js has the threads of a browser. */
void test_threads(void);
void test_threads(void) {}

void test_topology(void);
void test_topology(void) {}

/* Session files are files. */
void test_session(void);
void test_session(void) {}
