/* model.c: opening and closing models, whichever container they come in. */
#include "model.h"

#include "error.h"
#include "reader.h"
#include "weights.h"

#include <string.h>

nano_model_params nano_model_default_params(void) {
    return (nano_model_params){.non_causal = false, .kernels = NULL};
}

static nano_status choose_kernels(nano_model *m, const char *name) {
    m->exact = name && strcmp(name, "exact") == 0;
    m->k = m->exact ? &kernels_scalar : kernels_named(name);
    if (m->k) return NANO_OK;
    char here[64] = "";
    size_t at = 0;
    for (size_t i = 0; kernels_at(i); i++) {
        size_t n = strlen(kernels_at(i)->name);
        if (at + n + 2 > sizeof here) break;
        here[at++] = ' ';
        memcpy(here + at, kernels_at(i)->name, n + 1);
        at += n;
    }
    return nano_fail(NANO_ERR_ARGUMENT, "there are no kernels \"%s\" here: this machine can run exact%s",
                     name, here);
}

static nano_status open_model(nano_model **out, const char *path, const void *bytes, size_t size,
                              const nano_model_params *params) {
    *out = NULL;
    if (!path && !bytes)
        return nano_fail(NANO_ERR_ARGUMENT, "no model given: path or bytes must not be NULL");
    nano_model *m = plat_alloc(sizeof *m);
    if (!m) return nano_fail(NANO_ERR_MEMORY, "out of memory");
    m->config.causal = !(params && params->non_causal);
    m->storage.bytes = bytes;
    m->storage.size = size;
    m->storage.overwrite = bytes && params && params->overwrite;
    nano_status status = choose_kernels(m, params ? params->kernels : NULL);
    if (!status && path) status = storage_map(&m->storage, path);
    if (!status) {
        m->config.file_bytes = m->storage.size;
        status = (gguf_is(m->storage.bytes, m->storage.size) ? model_read_gguf : model_read_bin)(m);
    }
    if (!status && !m->exact) status = model_pack(m);
    if (status) {
        nano_model_close(m);
        return status;
    }
    *out = m;
    return NANO_OK;
}

nano_status nano_model_open_file(nano_model **out, const char *path, const nano_model_params *params) {
    return open_model(out, path, NULL, 0, params);
}

nano_status nano_model_open_memory(nano_model **out, const void *bytes, size_t size,
                                   const nano_model_params *params) {
    return open_model(out, NULL, bytes, size, params);
}

void nano_model_close(nano_model *model) {
    if (!model) return;
    vocab_free(&model->vocab);
    gguf_free(&model->gguf);
    storage_release(&model->storage);
    plat_free(model->layers);
    plat_free_arena(model->arena, model->arena_bytes);
    plat_free(model);
}

const char *nano_model_kernels(const nano_model *model) {
    return model->exact ? "exact" : model->k->name;
}

uint64_t nano_model_packed_bytes(const nano_model *model) {
    return model->arena_bytes;
}

const nano_config *nano_model_config(const nano_model *model) {
    return &model->config;
}

const char *nano_arch_name(nano_arch arch) {
    switch (arch) {
    case NANO_ARCH_NANO:
        return "nano";
    case NANO_ARCH_QWEN2:
        return "qwen2";
    case NANO_ARCH_QWEN3:
        return "qwen3";
    case NANO_ARCH_LLAMA:
        return "llama";
    }
    return "?";
}

static nano_status probe_gguf(const storage *s, nano_kind *kind) {
    gguf g;
    text_span type = {0};
    nano_status status = gguf_read(&g, s->bytes, s->size);
    if (!status) status = gguf_get_text(&g, "general.type", &type);
    if (!status) *kind = span_is(type, "adapter") ? NANO_KIND_ADAPTER : NANO_KIND_MODEL;
    gguf_free(&g);
    return status;
}

nano_status nano_probe_file(const char *path, nano_kind *kind) {
    storage s = {0};
    header h;
    nano_status status = storage_map(&s, path);
    if (!status && gguf_is(s.bytes, s.size)) {
        status = probe_gguf(&s, kind);
    } else if (!status) {
        status = reader_header(&h, s.bytes, s.size);
        if (!status) *kind = h.word[4] == TYPE_LORA ? NANO_KIND_ADAPTER : NANO_KIND_MODEL;
    }
    storage_release(&s);
    return status;
}

/* ---- a GGUF file's keys and tensors ----------------------------------------------------------------------
 */

static void describe(nano_meta *out, gguf_type type, const uint8_t *at) {
    bool negative = false;
    if (type == GGUF_TEXT) {
        text_span text = gguf_next_text(&at);
        out->type = NANO_META_TEXT;
        out->text = (const char *)text.bytes;
        out->text_length = text.n;
    } else if (type == GGUF_F32 || type == GGUF_F64) {
        out->type = NANO_META_NUMBER;
        out->number = gguf_load_number(type, at);
    } else if (type == GGUF_BOOL) {
        out->type = NANO_META_BOOL;
        out->whole = at[0];
    } else {
        out->whole = (uint64_t)gguf_load_whole(type, at, &negative);
        out->type = negative ? NANO_META_SIGNED : NANO_META_UNSIGNED;
    }
}

bool nano_model_meta(const nano_model *model, uint32_t index, nano_meta *out) {
    if (index >= model->gguf.n_values) return false;
    const gguf_value *v = &model->gguf.values[index];
    *out = (nano_meta){.key = (const char *)v->key.bytes, .key_length = v->key.n, .count = v->count};
    if (v->type == GGUF_ARRAY)
        out->type = NANO_META_ARRAY;
    else
        describe(out, v->type, v->at);
    return true;
}

bool nano_model_meta_item(const nano_model *model, uint32_t index, uint64_t item, nano_meta *out) {
    if (index >= model->gguf.n_values) return false;
    const gguf_value *v = &model->gguf.values[index];
    if (v->type != GGUF_ARRAY || item >= v->count) return false;
    *out = (nano_meta){.key = (const char *)v->key.bytes, .key_length = v->key.n, .count = 1};
    const uint8_t *at = v->at;
    if (v->item != GGUF_TEXT)
        at += item * gguf_item_bytes(v->item);
    else
        while (item--) gguf_next_text(&at);
    describe(out, v->item, at);
    return true;
}

bool nano_model_tensor(const nano_model *model, uint32_t index, nano_tensor *out) {
    if (index >= model->gguf.n_tensors) return false;
    const gguf_tensor *t = &model->gguf.tensors[index];
    *out = (nano_tensor){.name = (const char *)t->name.bytes,
                         .name_length = t->name.n,
                         .type = t->type,
                         .n_dims = t->n_dims,
                         .offset = (uint64_t)(t->data - model->gguf.bytes),
                         .n_bytes = t->n_bytes};
    for (unsigned i = 0; i < GGUF_MAX_DIMS; i++) out->dims[i] = t->dims[i];
    return true;
}
