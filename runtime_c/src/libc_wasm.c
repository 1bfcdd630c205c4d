/* libc_wasm.c: what wasm/string.h declares. Blocks of memory are copied and filled by instructions of
 * WebAssembly's own (bulk memory). And what the compiler asks for by itself. */
#include <stdint.h>
#include <string.h>

void *memcpy(void *restrict to, const void *restrict from, size_t n) {
    return __builtin_memcpy(to, from, n);
}

void *memmove(void *to, const void *from, size_t n) {
    return __builtin_memmove(to, from, n);
}

void *memset(void *to, int byte, size_t n) {
    return __builtin_memset(to, byte, n);
}

int memcmp(const void *a, const void *b, size_t n) {
    const unsigned char *x = a, *y = b;
    for (size_t i = 0; i < n; i++)
        if (x[i] != y[i]) return x[i] < y[i] ? -1 : 1;
    return 0;
}

size_t strlen(const char *text) {
    size_t n = 0;
    while (text[n]) n++;
    return n;
}

int strcmp(const char *a, const char *b) {
    for (; *a && *a == *b; a++) b++;
    return (unsigned char)*a - (unsigned char)*b;
}

/* The low 128 bits of a product. The compiler makes one of the question whether 64 bits would overflow. */
__int128 __multi3(__int128 a, __int128 b);
__int128 __multi3(__int128 a, __int128 b) {
    uint64_t a_low = (uint64_t)a, b_low = (uint64_t)b, a_high = (uint64_t)((unsigned __int128)a >> 64),
             b_high = (uint64_t)((unsigned __int128)b >> 64);
    uint64_t a0 = a_low & UINT32_MAX, a1 = a_low >> 32, b0 = b_low & UINT32_MAX, b1 = b_low >> 32;
    uint64_t middle = a1 * b0 + (a0 * b0 >> 32), other = a0 * b1 + (middle & UINT32_MAX);
    uint64_t low = other << 32 | (a0 * b0 & UINT32_MAX), high = a1 * b1 + (middle >> 32) + (other >> 32);
    high += a_low * b_high + a_high * b_low;
    return (__int128)((unsigned __int128)high << 64 | low);
}
