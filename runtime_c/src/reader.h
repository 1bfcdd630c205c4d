/* reader.h: walking through a `.bin` file whose every number is distrusted; and files in memory, whatever
 * they are. */
#ifndef NANO_READER_H
#define NANO_READER_H

#include "model.h"

enum { HEADER_BYTES = 256, TYPE_NANO = 0, TYPE_QWEN2 = 2, TYPE_QWEN3 = 3, TYPE_LORA = 10 };

/* The header's 64 words, its magic number checked. */
typedef struct {
    uint32_t word[64];
} header;

nano_status reader_header(header *h, const uint8_t *bytes, size_t size);

/* One header field, refused with a message if it is not in [low, high]. */
nano_status reader_field(const char *name, uint32_t value, uint32_t low, uint32_t high);

typedef struct {
    storage *storage;
    uint64_t at;        /* next byte */
    nano_status status; /* why the last take failed */
} reader;

/* The next `count` items of `item` bytes, in place; NULL and an error if the file ends before. */
const uint8_t *reader_take(reader *r, uint64_t count, uint64_t item, const char *what);
/* The same for floats, copied if they do not lie on a 4-byte boundary. */
const float *reader_floats(reader *r, uint64_t count, const char *what);

/* `count` floats at any address of the storage's bytes: in place, or copied if they do not lie on a 4-byte
 * boundary. NULL: out of memory. */
const float *storage_floats(storage *s, const uint8_t *bytes, uint64_t count);
/* Zeroed room for that many floats, which lives as long as the storage. NULL: out of memory. */
float *storage_room(storage *s, uint64_t count);

/* The next rows * cols floats as m's weights, in place wherever they lie: matrices are too big to copy. */
nano_status reader_matrix(reader *r, matrix *m, const char *what);

/* Bytes as floats; NULL if they do not lie on a 4-byte boundary. */
static inline const float *floats_in_place(const uint8_t *bytes) {
    return (uintptr_t)bytes % sizeof(float) == 0 ? (const float *)(const void *)bytes : NULL;
}

nano_status storage_map(storage *s, const char *path);
void storage_release(storage *s);

#endif
