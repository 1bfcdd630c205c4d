/* gguf_values.c: the values of a GGUF file's keys, as what is wanted of them or refused by name. */
#include "bytes.h"
#include "error.h"
#include "gguf.h"

#include <math.h>

static const char *const TYPE_NAMES[GGUF_N_TYPES] = {"u8",   "i8",   "u16",   "i16", "u32", "i32", "f32",
                                                     "bool", "text", "array", "u64", "i64", "f64"};

const char *gguf_show(text_span name, char room[GGUF_SHOWN]) {
    size_t n = name.n < GGUF_SHOWN - 1 ? name.n : GGUF_SHOWN - 1;
    for (size_t i = 0; i < n; i++)
        room[i] = name.bytes[i] >= 0x20 && name.bytes[i] < 0x7F ? (char)name.bytes[i] : '?';
    room[n] = 0;
    return room;
}

bool span_is(text_span span, const char *text) {
    size_t n = strlen(text);
    return span.n == n && memcmp(span.bytes, text, n) == 0;
}

size_t gguf_item_bytes(gguf_type type) {
    static const uint8_t sizes[GGUF_N_TYPES] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
    return sizes[type];
}

bool gguf_is_whole(gguf_type type) {
    return type <= GGUF_I32 || type == GGUF_U64 || type == GGUF_I64;
}

int64_t gguf_load_whole(gguf_type type, const uint8_t *at, bool *negative) {
    uint64_t value = 0;
    size_t n = gguf_item_bytes(type);
    memcpy(&value, at, n);
    bool is_signed = type == GGUF_I8 || type == GGUF_I16 || type == GGUF_I32 || type == GGUF_I64;
    *negative = is_signed && at[n - 1] & 0x80;
    if (*negative && n < 8) value |= UINT64_MAX << (8 * n);
    int64_t out;
    memcpy(&out, &value, sizeof out);
    return out;
}

double gguf_load_number(gguf_type type, const uint8_t *at) {
    float single;
    double both;
    if (type == GGUF_F32) {
        memcpy(&single, at, sizeof single);
        return (double)single;
    }
    memcpy(&both, at, sizeof both);
    return both;
}

text_span gguf_next_text(const uint8_t **at) {
    text_span text = {*at + 8, (size_t)load_u64(*at)};
    *at = text.bytes + text.n;
    return text;
}

static nano_status wrong_type(const gguf_value *v, const char *wanted) {
    char name[GGUF_SHOWN];
    return nano_fail(NANO_ERR_FORMAT, "key %s is of type %s%s; it must be %s", gguf_show(v->key, name),
                     v->type == GGUF_ARRAY ? "array of " : "", TYPE_NAMES[v->item], wanted);
}

nano_status gguf_get_u32(const gguf *g, const char *key, uint32_t *out) {
    const gguf_value *v = gguf_find(g, key);
    if (!v) return NANO_OK;
    if (!gguf_is_whole(v->type)) return wrong_type(v, "one whole number");
    bool negative;
    uint64_t value = (uint64_t)gguf_load_whole(v->type, v->at, &negative);
    if (negative || value > UINT32_MAX)
        return nano_fail(NANO_ERR_FORMAT, "key %s: its value is not between 0 and 4294967295", key);
    *out = (uint32_t)value;
    return NANO_OK;
}

nano_status gguf_get_float(const gguf *g, const char *key, double *out) {
    const gguf_value *v = gguf_find(g, key);
    if (!v) return NANO_OK;
    if (v->type != GGUF_F32 && v->type != GGUF_F64) return wrong_type(v, "one f32 or f64");
    double value = gguf_load_number(v->type, v->at);
    if (!isfinite(value)) return nano_fail(NANO_ERR_FORMAT, "key %s is not a finite number", key);
    *out = value;
    return NANO_OK;
}

nano_status gguf_get_bool(const gguf *g, const char *key, bool *out) {
    const gguf_value *v = gguf_find(g, key);
    if (!v) return NANO_OK;
    if (v->type != GGUF_BOOL) return wrong_type(v, "one bool");
    *out = v->at[0] != 0;
    return NANO_OK;
}

nano_status gguf_get_text(const gguf *g, const char *key, text_span *out) {
    const gguf_value *v = gguf_find(g, key);
    if (!v) return NANO_OK;
    if (v->type != GGUF_TEXT) return wrong_type(v, "one text");
    const uint8_t *at = v->at;
    *out = gguf_next_text(&at);
    return NANO_OK;
}

nano_status gguf_get_array(const gguf *g, const char *key, gguf_type item, const gguf_value **out) {
    const gguf_value *v = gguf_find(g, key);
    *out = NULL;
    if (!v) return NANO_OK;
    if (v->type != GGUF_ARRAY || v->item != item) {
        char wanted[32] = "an array of ";
        memcpy(wanted + 12, TYPE_NAMES[item], strlen(TYPE_NAMES[item]) + 1);
        return wrong_type(v, wanted);
    }
    *out = v;
    return NANO_OK;
}
