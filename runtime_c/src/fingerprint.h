/* fingerprint.h: a hash of bytes as they come. It finds accidents, not forgeries. */
#ifndef NANO_FINGERPRINT_H
#define NANO_FINGERPRINT_H

#include <stddef.h>
#include <stdint.h>

enum { HASH_LANES = 4 };

typedef struct {
    uint64_t lanes[HASH_LANES], n_bytes;
    uint8_t held[8 * HASH_LANES]; /* the last n_bytes % sizeof held */
} fingerprint;

void fingerprint_begin(fingerprint *h);
void fingerprint_add(fingerprint *h, const void *bytes, size_t n);
uint64_t fingerprint_end(const fingerprint *h);

#endif
