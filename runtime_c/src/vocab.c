/* vocab.c: the public face of the vocabulary. */
#include "vocab.h"

#include "error.h"
#include "model.h"

void vocab_free(vocab *v) {
    plat_free(v->bytes);
    plat_free(v->starts);
    plat_free(v->special);
    plat_free(v->edges);
    plat_free(v->node_ids);
    plat_free(v->scores);
    plat_free(v->by_bytes);
}

const char *nano_token_bytes(const nano_model *model, uint32_t id, size_t *n_bytes) {
    const vocab *v = &model->vocab;
    if (id >= v->size) {
        *n_bytes = 0;
        return NULL;
    }
    *n_bytes = (size_t)(v->starts[id + 1] - v->starts[id]);
    return v->bytes + v->starts[id];
}

bool nano_token_is_special(const nano_model *model, uint32_t id) {
    return id < model->vocab.size && model->vocab.special[id];
}

bool nano_token_is_stop(const nano_model *model, uint32_t id) {
    enum { NANO_PADDING = 0, NANO_EOS = 3 };
    const vocab *v = &model->vocab;
    if (id >= v->size) return false;
    return v->is_bpe ? id == v->stop_ids[0] || id == v->stop_ids[1] : id == NANO_PADDING || id == NANO_EOS;
}

nano_status nano_tokenize(const nano_model *model, const char *text, size_t n_bytes, bool allow_special,
                          uint32_t **ids, size_t *n_ids) {
    const vocab *v = &model->vocab;
    *ids = NULL;
    *n_ids = 0;
    return (v->is_bpe ? vocab_encode_bpe : vocab_encode_trie)(v, (const uint8_t *)text, n_bytes,
                                                              allow_special, ids, n_ids);
}

void nano_free(void *pointer) {
    plat_free(pointer);
}
