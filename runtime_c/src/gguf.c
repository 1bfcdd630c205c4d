/* gguf.c: reading GGUF. The keys and tensors are walked twice: first to check them and to count, with nothing
 * allocated, so that a file which claims 2^60 of them costs nothing; then to note them. */
#include "gguf.h"

#include "bytes.h"
#include "error.h"
#include "weights.h"

enum { HEAD = 24, DEFAULT_ALIGNMENT = 32, MAX_ALIGNMENT = 1 << 20, NONE = 0 };

/* ---- walking ---------------------------------------------------------------------------------------------
 */

typedef struct {
    const uint8_t *bytes;
    uint64_t size, at;
    const char *what; /* of what is being read, for messages: "key" or "tensor" */
    uint64_t index, n;
} walker;

/* The next `count` items of `item` bytes; NULL and an error if the file ends before. */
static const uint8_t *take(walker *w, uint64_t count, uint64_t item) {
    uint64_t bytes = times(count, item);
    if (bytes > w->size - w->at) {
        nano_fail(
            NANO_ERR_FORMAT,
            "the file ends too early or is damaged: in %s %llu of %llu, %llu bytes at byte %llu, but %llu "
            "are left",
            w->what, (unsigned long long)w->index + 1, (unsigned long long)w->n, (unsigned long long)bytes,
            (unsigned long long)w->at, (unsigned long long)(w->size - w->at));
        return NULL;
    }
    const uint8_t *here = w->bytes + w->at;
    w->at += bytes;
    return here;
}

static bool take_text(walker *w, text_span *out) {
    const uint8_t *length = take(w, 1, 8);
    if (!length) return false;
    uint64_t n = load_u64(length);
    out->bytes = take(w, n, 1);
    out->n = (size_t)n;
    return out->bytes != NULL;
}

static nano_status check_bools(text_span key, const uint8_t *at, uint64_t n) {
    char name[GGUF_SHOWN];
    for (uint64_t i = 0; i < n; i++)
        if (at[i] > 1)
            return nano_fail(NANO_ERR_FORMAT, "key %s: a bool is %u; it must be 0 or 1", gguf_show(key, name),
                             at[i]);
    return NANO_OK;
}

static nano_status walk_value(walker *w, gguf_value *v) {
    char name[GGUF_SHOWN];
    const uint8_t *word;
    if (!take_text(w, &v->key)) return NANO_ERR_FORMAT;
    if (v->key.n == 0)
        return nano_fail(NANO_ERR_FORMAT, "key %llu has no name", (unsigned long long)w->index);
    if (!(word = take(w, 1, 4))) return NANO_ERR_FORMAT;
    uint32_t type = load_u32(word), item = type;
    v->count = 1;
    if (type == GGUF_ARRAY) {
        if (!(word = take(w, 1, 12))) return NANO_ERR_FORMAT;
        item = load_u32(word);
        v->count = load_u64(word + 4);
        if (item == GGUF_ARRAY)
            return nano_fail(NANO_ERR_FORMAT, "key %s: arrays of arrays are not supported",
                             gguf_show(v->key, name));
    }
    if (type >= GGUF_N_TYPES || item >= GGUF_N_TYPES)
        return nano_fail(NANO_ERR_FORMAT, "key %s: type %u is unknown; known are 0 to %d",
                         gguf_show(v->key, name), type >= GGUF_N_TYPES ? type : item, GGUF_N_TYPES - 1);
    v->type = (gguf_type)type;
    v->item = (gguf_type)item;
    v->at = w->bytes + w->at;
    if (item == GGUF_TEXT) {
        text_span text;
        for (uint64_t i = 0; i < v->count; i++)
            if (!take_text(w, &text)) return NANO_ERR_FORMAT;
        return NANO_OK;
    }
    if (!take(w, v->count, gguf_item_bytes(v->item))) return NANO_ERR_FORMAT;
    return item == GGUF_BOOL ? check_bools(v->key, v->at, v->count) : NANO_OK;
}

/* All but `data`: where the tensors' data begins is only known behind the last of them. `*offset` is in it.
 */
static nano_status walk_tensor(walker *w, gguf_tensor *t, uint64_t *offset) {
    char name[GGUF_SHOWN];
    const uint8_t *word;
    if (!take_text(w, &t->name) || !(word = take(w, 1, 4))) return NANO_ERR_FORMAT;
    gguf_show(t->name, name);
    t->n_dims = load_u32(word);
    if (t->n_dims < 1 || t->n_dims > GGUF_MAX_DIMS)
        return nano_fail(NANO_ERR_FORMAT, "tensor %s has %u dimensions; it must be 1 to %d", name, t->n_dims,
                         GGUF_MAX_DIMS);
    const uint8_t *dims = take(w, t->n_dims, 8);
    if (!dims || !(word = take(w, 1, 12))) return NANO_ERR_FORMAT;
    t->n_weights = 1;
    for (uint32_t i = 0; i < GGUF_MAX_DIMS; i++) {
        t->dims[i] = i < t->n_dims ? load_u64(dims + 8 * i) : 1;
        t->n_weights = times(t->n_weights, t->dims[i]);
        if (t->dims[i] == 0) return nano_fail(NANO_ERR_FORMAT, "tensor %s: dimension %u is 0", name, i);
    }
    uint32_t type = load_u32(word);
    *offset = load_u64(word + 4);
    if (!weight_type_from_gguf(type, &t->type))
        return nano_fail(NANO_ERR_FORMAT,
                         "tensor %s is of type %u, which this engine does not read; it reads %s", name, type,
                         weight_types_of_gguf());
    const weight_type *known = weight_type_of(t->type);
    if (t->dims[0] % known->length)
        return nano_fail(NANO_ERR_FORMAT, "tensor %s: rows of %llu are no multiple of %s's block of %u", name,
                         (unsigned long long)t->dims[0], known->name, known->length);
    /* A block holds at least as many weights as... nothing of its size can overflow once it fits the file. */
    t->n_bytes = t->n_weights == UINT64_MAX ? UINT64_MAX : times(t->n_weights / known->length, known->bytes);
    if (t->n_bytes > w->size)
        return nano_fail(
            NANO_ERR_FORMAT,
            "the file is cut or damaged: tensor %s: %llu weights of type %s cannot be in a file of "
            "%llu bytes",
            name, (unsigned long long)t->n_weights, known->name, (unsigned long long)w->size);
    return NANO_OK;
}

/* ---- names -----------------------------------------------------------------------------------------------
 */

static uint64_t hash_span(text_span s) {
    uint64_t h = s.n;
    for (size_t i = 0; i < s.n; i++) h = (h ^ s.bytes[i]) * 0x100000001B3u;
    return mix(h);
}

static bool spans_equal(text_span a, text_span b) {
    return a.n == b.n && memcmp(a.bytes, b.bytes, a.n) == 0;
}

/* Where this name's index is kept, or the empty slot where it would go. `names` lie `stride` bytes apart. */
static uint32_t *find_slot(uint32_t *slots, uint64_t mask, const void *names, size_t stride, text_span name) {
    uint64_t slot = hash_span(name) & mask;
    for (; slots[slot] != NONE; slot = (slot + 1) & mask) {
        text_span there;
        memcpy(&there, (const char *)names + (slots[slot] - 1) * stride, sizeof there);
        if (spans_equal(there, name)) break;
    }
    return &slots[slot];
}

static nano_status index_names(uint32_t **slots, uint64_t *mask, const void *names, size_t stride, uint32_t n,
                               const char *what) {
    uint64_t size = 16;
    while (size < 2 * (uint64_t)n) size *= 2;
    *mask = size - 1;
    *slots = plat_alloc(size * sizeof **slots);
    if (!*slots) return nano_fail(NANO_ERR_MEMORY, "out of memory for %u names", n);
    for (uint32_t i = 0; i < n; i++) {
        text_span name;
        char shown[GGUF_SHOWN];
        memcpy(&name, (const char *)names + i * stride, sizeof name);
        uint32_t *slot = find_slot(*slots, *mask, names, stride, name);
        if (*slot != NONE)
            return nano_fail(NANO_ERR_FORMAT, "%s %s is there twice", what, gguf_show(name, shown));
        *slot = i + 1;
    }
    return NANO_OK;
}

static text_span span_of(const char *text) {
    return (text_span){(const uint8_t *)text, strlen(text)};
}

const gguf_value *gguf_find(const gguf *g, const char *key) {
    uint32_t found = *find_slot(g->value_slots, g->value_mask, g->values, sizeof *g->values, span_of(key));
    return found == NONE ? NULL : &g->values[found - 1];
}

const gguf_tensor *gguf_find_tensor(const gguf *g, const char *name) {
    uint32_t found =
        *find_slot(g->tensor_slots, g->tensor_mask, g->tensors, sizeof *g->tensors, span_of(name));
    return found == NONE ? NULL : &g->tensors[found - 1];
}

/* ---- the whole file --------------------------------------------------------------------------------------
 */

bool gguf_is(const uint8_t *bytes, size_t size) {
    return size >= 4 && memcmp(bytes, "GGUF", 4) == 0;
}

static nano_status read_head(const gguf *g, uint64_t *n_tensors, uint64_t *n_values) {
    enum { LEAST_VALUE = 8 + 1 + 4, LEAST_TENSOR = 8 + 4 + 8 + 12 };
    if (g->size < HEAD)
        return nano_fail(NANO_ERR_FORMAT,
                         "%llu bytes are too few: a GGUF file starts with a header of %d bytes",
                         (unsigned long long)g->size, HEAD);
    if (!gguf_is(g->bytes, g->size))
        return nano_fail(NANO_ERR_FORMAT, "not a GGUF file: it does not start with the bytes \"GGUF\"");
    if (g->version == 2u << 24 || g->version == 3u << 24)
        return nano_fail(NANO_ERR_FORMAT, "this GGUF file is big-endian: convert it to little-endian first");
    if (g->version != 2 && g->version != 3)
        return nano_fail(NANO_ERR_FORMAT, "GGUF version %u is unknown; known: 2 and 3", g->version);
    *n_tensors = load_u64(g->bytes + 8);
    *n_values = load_u64(g->bytes + 16);
    uint64_t left = g->size - HEAD;
    bool fits = *n_tensors < UINT32_MAX && *n_values < UINT32_MAX &&
                plus(times(*n_tensors, LEAST_TENSOR), times(*n_values, LEAST_VALUE)) <= left;
    if (fits) return NANO_OK;
    return nano_fail(NANO_ERR_FORMAT, "header: %llu tensors and %llu keys cannot be in a file of %llu bytes",
                     (unsigned long long)*n_tensors, (unsigned long long)*n_values,
                     (unsigned long long)g->size);
}

/* Walks over everything; notes it too where g has the lists for it. */
static nano_status walk(gguf *g, uint64_t n_tensors, uint64_t n_values, uint64_t *data_start) {
    walker w = {.bytes = g->bytes, .size = g->size, .at = HEAD, .what = "key", .n = n_values};
    nano_status status;
    g->alignment = DEFAULT_ALIGNMENT;
    for (; w.index < n_values; w.index++) {
        gguf_value v = {0};
        if ((status = walk_value(&w, &v))) return status;
        if (g->values) g->values[w.index] = v;
        if (!span_is(v.key, "general.alignment")) continue;
        uint64_t alignment = v.type == GGUF_U32 ? load_u32(v.at) : 0;
        if (alignment == 0 || alignment & (alignment - 1) || alignment > MAX_ALIGNMENT)
            return nano_fail(NANO_ERR_FORMAT,
                             "general.alignment must be a u32 that is a power of two up to %d",
                             MAX_ALIGNMENT);
        g->alignment = alignment;
    }
    w.what = "tensor";
    w.n = n_tensors;
    for (w.index = 0; w.index < n_tensors; w.index++) {
        gguf_tensor t = {0};
        char name[GGUF_SHOWN];
        uint64_t offset = 0;
        if ((status = walk_tensor(&w, &t, &offset))) return status;
        if (offset % g->alignment)
            return nano_fail(
                NANO_ERR_FORMAT, "tensor %s: its offset %llu is no multiple of the alignment, %llu",
                gguf_show(t.name, name), (unsigned long long)offset, (unsigned long long)g->alignment);
        if (!g->tensors) continue;
        uint64_t end = plus(plus(*data_start, offset), t.n_bytes);
        if (end > g->size)
            return nano_fail(NANO_ERR_FORMAT,
                             "the file is cut: tensor %s ends at byte %llu, but the file has %llu bytes",
                             gguf_show(t.name, name), (unsigned long long)end, (unsigned long long)g->size);
        t.data = g->bytes + *data_start + offset;
        g->tensors[w.index] = t;
    }
    *data_start = (w.at + g->alignment - 1) / g->alignment * g->alignment;
    return NANO_OK;
}

nano_status gguf_read(gguf *g, const uint8_t *bytes, size_t size) {
    uint64_t n_tensors = 0, n_values = 0, data_start = 0;
    *g = (gguf){.bytes = bytes, .size = size, .version = size < HEAD ? 0 : load_u32(bytes + 4)};
    nano_status status = read_head(g, &n_tensors, &n_values);
    if (!status) status = walk(g, n_tensors, n_values, &data_start);
    if (status) return status;

    g->n_values = (uint32_t)n_values;
    g->n_tensors = (uint32_t)n_tensors;
    g->values = plat_alloc(times(n_values + 1, sizeof *g->values));
    g->tensors = plat_alloc(times(n_tensors + 1, sizeof *g->tensors));
    if (!g->values || !g->tensors)
        return nano_fail(NANO_ERR_MEMORY, "out of memory for %u keys and %u tensors", g->n_values,
                         g->n_tensors);
    status = walk(g, n_tensors, n_values, &data_start);
    if (!status)
        status =
            index_names(&g->value_slots, &g->value_mask, g->values, sizeof *g->values, g->n_values, "key");
    if (!status)
        status = index_names(&g->tensor_slots, &g->tensor_mask, g->tensors, sizeof *g->tensors, g->n_tensors,
                             "tensor");
    return status;
}

void gguf_free(gguf *g) {
    plat_free(g->values);
    plat_free(g->tensors);
    plat_free(g->value_slots);
    plat_free(g->tensor_slots);
}
