/* tiny_gguf.h: small GGUF files for tests, put together key by key; and GGUF's weight types read slowly, a
 * weight at a time, in double precision. Written from the format's description, without a look at the reader.
 */
#ifndef TINY_GGUF_H
#define TINY_GGUF_H

#include "tiny_model.h"

typedef struct {
    tiny_file keys, infos, data;
    uint64_t n_keys, n_tensors;
    uint32_t alignment; /* of the data; not written as a key */
} tiny_gguf;

void tg_u32(tiny_gguf *g, const char *key, uint32_t value);
void tg_float(tiny_gguf *g, const char *key, float value);
void tg_bool(tiny_gguf *g, const char *key, unsigned value);
void tg_text(tiny_gguf *g, const char *key, const char *value);
void tg_texts(tiny_gguf *g, const char *key, const char *const *values, uint64_t n);
void tg_i32s(tiny_gguf *g, const char *key, const int32_t *values, uint64_t n);
/* A value of any type, as its bytes. */
void tg_raw(tiny_gguf *g, const char *key, uint32_t type, const void *bytes, size_t n);
/* rows 0: one dimension. `type` is GGUF's number. */
void tg_tensor(tiny_gguf *g, const char *name, uint32_t type, uint64_t rows, uint64_t cols, const void *bytes,
               size_t n);
void tg_tensor_at(tiny_gguf *g, const char *name, uint32_t type, uint32_t n_dims, const uint64_t *dims,
                  uint64_t offset);
/* The file; g is empty again. */
tiny_file tg_finish(tiny_gguf *g, uint32_t version);

uint32_t tiny_gguf_number(nano_quant type);
size_t tiny_block_length(nano_quant type), tiny_block_bytes(nano_quant type);
/* Random blocks whose weights are of about this size. */
void tiny_random_blocks(nano_quant type, uint8_t *blocks, size_t n_blocks, double spread, uint64_t *state);
double tiny_weight(nano_quant type, const uint8_t *block, size_t i);
double tiny_half(const uint8_t *bytes);

/* The keys and tensors of a whole model, so that a test can add to them; matrices that are not F32 get new
 * random weights, which w then holds. */
void tiny_put_gguf(tiny_gguf *g, tiny_weights *w);
tiny_gguf tiny_begin_gguf(const char *kind); /* the same of a named kind */
tiny_file tiny_write_gguf(tiny_weights *w);
/* An adapter for the seven linears, each of another rank; merges it into w. `arch`: NULL for w's. */
tiny_file tiny_write_gguf_lora(tiny_weights *w, const char *arch, float alpha, uint64_t seed);

#endif
