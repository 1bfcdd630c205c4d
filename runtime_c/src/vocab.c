/* vocab.c: the public face of the vocabulary, and what its kinds share. */
#include "vocab.h"

#include "bytes.h"
#include "error.h"
#include "model.h"

void vocab_free(vocab *v) {
    plat_free(v->bytes);
    plat_free(v->starts);
    plat_free(v->special);
    plat_free(v->scores);
    plat_free(v->by_bytes);
    trie_free(&v->tokens);
    merge_table_free(&v->merges);
}

nano_status vocab_open_tokens(vocab *v, const text_span *tokens, const uint8_t *types) {
    uint64_t n_bytes = 0;
    for (uint32_t id = 0; id < v->size; id++) {
        n_bytes = plus(n_bytes, tokens[id].n);
        if (types[id] < TYPE_NORMAL || types[id] > TYPE_BYTE)
            return nano_fail(NANO_ERR_FORMAT, "vocabulary: token %u has type %u; there are types 1 to 6", id,
                             types[id]);
        if (tokens[id].n > UINT32_MAX / 4)
            return nano_fail(NANO_ERR_FORMAT, "vocabulary: token %u has %llu bytes, which is too many", id,
                             (unsigned long long)tokens[id].n);
    }
    v->bytes = plat_alloc(n_bytes);
    v->starts = plat_alloc(((uint64_t)v->size + 1) * sizeof *v->starts);
    v->special = plat_alloc(v->size);
    if (!v->bytes || !v->starts || !v->special)
        return nano_fail(NANO_ERR_MEMORY, "out of memory for a vocabulary of %u tokens", v->size);
    for (uint32_t id = 0; id < v->size; id++) {
        v->special[id] = types[id] == TYPE_UNKNOWN || types[id] == TYPE_CONTROL;
        v->n_special += v->special[id];
    }
    return NANO_OK;
}

nano_status vocab_check_id(const vocab *v, const char *what, uint32_t id) {
    if (id < v->size) return NANO_OK;
    return nano_fail(NANO_ERR_FORMAT, "vocabulary: the %s token has id %u, but there are only %u tokens",
                     what, id, v->size);
}

bool vocab_open_by_bytes(vocab *v, uint64_t n_tokens) {
    uint64_t slots = 16;
    while (slots < 2 * n_tokens) slots *= 2;
    v->bytes_mask = slots - 1;
    v->by_bytes = plat_alloc(slots * sizeof *v->by_bytes);
    return v->by_bytes != NULL;
}

static uint64_t hash_bytes(const uint8_t *bytes, size_t n) {
    uint64_t h = n;
    for (size_t i = 0; i < n; i++) h = (h ^ bytes[i]) * 0x100000001B3u;
    return mix(h);
}

uint32_t *vocab_find_bytes(const vocab *v, const uint8_t *bytes, size_t n) {
    uint64_t slot = hash_bytes(bytes, n) & v->bytes_mask;
    for (; v->by_bytes[slot]; slot = (slot + 1) & v->bytes_mask) {
        uint32_t id = v->by_bytes[slot] - 1;
        if (v->starts[id + 1] - v->starts[id] == n && memcmp(v->bytes + v->starts[id], bytes, n) == 0) break;
    }
    return &v->by_bytes[slot];
}

const char *nano_token_bytes(const nano_model *model, uint32_t id, size_t *n_bytes) {
    const vocab *v = &model->vocab;
    *n_bytes = 0;
    return id < v->size ? (const char *)vocab_bytes(v, id, n_bytes) : NULL;
}

bool nano_token_is_special(const nano_model *model, uint32_t id) {
    return id < model->vocab.size && model->vocab.special[id];
}

bool nano_token_is_stop(const nano_model *model, uint32_t id) {
    const vocab *v = &model->vocab;
    if (id >= v->size) return false;
    for (uint32_t i = 0; i < v->n_stop; i++)
        if (v->stop_ids[i] == id) return true;
    return false;
}

bool nano_token_bos(const nano_model *model, uint32_t *id) {
    *id = model->vocab.bos;
    return *id != NO_ID;
}

nano_status vocab_encode(const vocab *v, const uint8_t *text, size_t n, bool allow_special, uint32_t **ids,
                         size_t *n_ids) {
    *ids = NULL;
    *n_ids = 0;
    if (!v->size) return nano_fail(NANO_ERR_FORMAT, "this file has no vocabulary: give token ids");
    switch (v->kind) {
    case VOCAB_SCORES:
        return vocab_encode_bpe(v, text, n, allow_special, ids, n_ids);
    case VOCAB_MERGES:
        return vocab_encode_merges(v, text, n, allow_special, ids, n_ids);
    case VOCAB_POINTS:
    case VOCAB_BYTES:
        break;
    }
    return vocab_encode_trie(v, text, n, allow_special, ids, n_ids);
}

nano_status nano_tokenize(const nano_model *model, const char *text, size_t n_bytes, bool allow_special,
                          uint32_t **ids, size_t *n_ids) {
    return vocab_encode(&model->vocab, (const uint8_t *)text, n_bytes, allow_special, ids, n_ids);
}

void nano_free(void *pointer) {
    plat_free(pointer);
}
