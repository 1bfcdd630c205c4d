/* string.h: the functions of this name that the core uses, for a build without a C library. libc_wasm.c has
 * them. */
#ifndef NANO_WASM_STRING_H
#define NANO_WASM_STRING_H

#include <stddef.h>

void *memcpy(void *restrict to, const void *restrict from, size_t n);
void *memmove(void *to, const void *from, size_t n);
void *memset(void *to, int byte, size_t n);
int memcmp(const void *a, const void *b, size_t n);
size_t strlen(const char *text);
int strcmp(const char *a, const char *b);

#endif
