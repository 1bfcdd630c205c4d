/* gguf.h: what a GGUF file (version 2 or 3) holds: keys with values, and where its tensors lie. Nothing is
 * copied but two lists; names, values and tensors stay in the file's bytes. Every number of the file is
 * checked before it is used, so what is in a `gguf` can be followed without another look.
 *
 * The layout, all little-endian:
 *     "GGUF", u32 version, u64 tensors, u64 keys
 *     per key:    text, u32 type, value        a text is u64 length and its bytes; an array u32 type, u64
 * count per tensor: text, u32 dims, u64 x dims (the length of a row first), u32 type, u64 offset in the data
 *     the data, from the next multiple of `general.alignment` (32) on
 */
#ifndef NANO_GGUF_H
#define NANO_GGUF_H

#include "nano.h"
#include "platform.h"
#include "vocab.h"

typedef enum {
    GGUF_U8,
    GGUF_I8,
    GGUF_U16,
    GGUF_I16,
    GGUF_U32,
    GGUF_I32,
    GGUF_F32,
    GGUF_BOOL,
    GGUF_TEXT,
    GGUF_ARRAY,
    GGUF_U64,
    GGUF_I64,
    GGUF_F64,
    GGUF_N_TYPES,
} gguf_type;

typedef struct {
    text_span key;
    gguf_type type, item; /* item: of an array */
    uint64_t count;       /* of an array; else 1 */
    const uint8_t *at;    /* the value, or the array's first item */
} gguf_value;

enum { GGUF_MAX_DIMS = 4 };

typedef struct {
    text_span name;
    nano_quant type;
    uint32_t n_dims;
    uint64_t dims[GGUF_MAX_DIMS]; /* dims[0]: length of a row; unused ones are 1 */
    uint64_t n_weights, n_bytes;
    const uint8_t *data;
} gguf_tensor;

typedef struct {
    const uint8_t *bytes;
    size_t size;
    uint32_t version;
    uint64_t alignment;
    uint32_t n_values, n_tensors;
    gguf_value *values;
    gguf_tensor *tensors;
    uint32_t *value_slots, *tensor_slots; /* hash tables by name: index + 1; 0 is an empty slot */
    uint64_t value_mask, tensor_mask;
} gguf;

bool gguf_is(const uint8_t *bytes, size_t size); /* does it begin like one? */
nano_status gguf_read(gguf *g, const uint8_t *bytes, size_t size);
void gguf_free(gguf *g);

/* NULL: there is none. */
const gguf_value *gguf_find(const gguf *g, const char *key);
const gguf_tensor *gguf_find_tensor(const gguf *g, const char *name);

/* A value of this kind: NANO_ERR_FORMAT if the key is there with another kind or does not fit; where the key
 * is missing *out stays as it is. Whole numbers and floats may be of any width. */
nano_status gguf_get_u32(const gguf *g, const char *key, uint32_t *out);
nano_status gguf_get_float(const gguf *g, const char *key, double *out);
nano_status gguf_get_bool(const gguf *g, const char *key, bool *out);
nano_status gguf_get_text(const gguf *g, const char *key, text_span *out);
/* An array of `item`s: *out is NULL where the key is missing. */
nano_status gguf_get_array(const gguf *g, const char *key, gguf_type item, const gguf_value **out);

/* The number that stands at a place of type U8 to I64 but neither text nor array. */
bool gguf_is_whole(gguf_type type);
int64_t gguf_load_whole(gguf_type type, const uint8_t *at,
                        bool *negative); /* the bits of a u64 unless negative */
double gguf_load_number(gguf_type type, const uint8_t *at);
size_t gguf_item_bytes(gguf_type type); /* 0: text or array */
/* The text at `at`, which is moved behind it. */
text_span gguf_next_text(const uint8_t **at);

/* A name for a message: cut to fit, with '?' for what cannot be printed. */
enum { GGUF_SHOWN = 72 };
const char *gguf_show(text_span name, char room[GGUF_SHOWN]);
bool span_is(text_span span, const char *text);

#endif
