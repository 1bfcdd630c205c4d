/* adapter.c: opening and closing LoRA adapters, whichever container they come in, and which model
 * they fit. */
#include "bytes.h"
#include "error.h"
#include "fingerprint.h"
#include "reader.h"

static uint64_t pair_floats(const lora_pair *pair) {
    return times(pair->a.rows, (uint64_t)pair->a.cols + pair->b.rows);
}

/* A as floats; scale B turned over, so that a row of it is what one of A's outputs adds. */
static nano_status make_pair_usable(float **room, lora_pair *pair) {
    uint32_t rank = pair->a.rows, in = pair->a.cols, out = pair->b.rows;
    if (!rank) return NANO_OK;
    float *down = *room, *up = down + (size_t)rank * in;
    *room += pair_floats(pair);
    for (uint32_t j = 0; j < rank; j++) matrix_row(down + (size_t)j * in, &pair->a, j);
    float *row = plat_alloc((uint64_t)rank * sizeof *row);
    if (!row) return nano_fail(NANO_ERR_MEMORY, "out of memory for an adapter of rank %u", rank);
    for (uint32_t r = 0; r < out; r++) {
        matrix_row(row, &pair->b, r);
        for (uint32_t j = 0; j < rank; j++) up[(size_t)j * out + r] = pair->scale * row[j];
    }
    plat_free(row);
    pair->down = down;
    pair->up = up;
    return NANO_OK;
}

enum { N_PAIRS = 7 };
static void list_pairs(lora_layer *w, lora_pair *list[N_PAIRS]) {
    lora_pair *const all[N_PAIRS] = {&w->q, &w->k, &w->v, &w->o, &w->w1, &w->w3, &w->w2};
    for (size_t i = 0; i < N_PAIRS; i++) list[i] = all[i];
}

/* All of it in one piece and in the order of use: it is read with each token, as the model's weights are. */
static nano_status make_usable(nano_adapter *a) {
    uint64_t total = 0;
    lora_pair *list[N_PAIRS];
    for (uint32_t l = 0; l < a->n_layers; l++) {
        list_pairs(&a->layers[l], list);
        for (size_t i = 0; i < N_PAIRS; i++) total = plus(total, pair_floats(list[i]));
    }
    if (!total) return NANO_OK;
    a->arena_bytes = times(total, sizeof(float));
    float *room = plat_alloc_arena(a->arena_bytes);
    a->arena = room;
    if (!room)
        return nano_fail(NANO_ERR_MEMORY, "out of memory: the adapter takes %llu MB",
                         (unsigned long long)(a->arena_bytes >> 20));
    for (uint32_t l = 0; l < a->n_layers; l++) {
        list_pairs(&a->layers[l], list);
        for (size_t i = 0; i < N_PAIRS; i++) {
            nano_status status = make_pair_usable(&room, list[i]);
            if (status) return status;
        }
    }
    return NANO_OK;
}

static nano_status open_adapter(nano_adapter **out, const char *path, const void *bytes, size_t size) {
    *out = NULL;
    if (!path && !bytes)
        return nano_fail(NANO_ERR_ARGUMENT, "no adapter given: path or bytes must not be NULL");
    nano_adapter *a = plat_alloc(sizeof *a);
    if (!a) return nano_fail(NANO_ERR_MEMORY, "out of memory");
    a->storage.bytes = bytes;
    a->storage.size = size;
    nano_status status = path ? storage_map(&a->storage, path) : NANO_OK;
    if (!status)
        status = (gguf_is(a->storage.bytes, a->storage.size) ? adapter_read_gguf : adapter_read_bin)(a);
    if (!status) status = make_usable(a);
    fingerprint h;
    fingerprint_begin(&h);
    if (!status) fingerprint_add(&h, a->storage.bytes, a->storage.size);
    a->fingerprint = fingerprint_end(&h) | 1;
    if (!status && path) plat_forget_file(a->storage.bytes, a->storage.size); /* copied, all of it */
    if (status) {
        nano_adapter_close(a);
        return status;
    }
    *out = a;
    return NANO_OK;
}

nano_status nano_adapter_open_file(nano_adapter **out, const char *path) {
    return open_adapter(out, path, NULL, 0);
}

nano_status nano_adapter_open_memory(nano_adapter **out, const void *bytes, size_t size) {
    return open_adapter(out, NULL, bytes, size);
}

void nano_adapter_close(nano_adapter *adapter) {
    if (!adapter) return;
    storage_release(&adapter->storage);
    plat_free_arena(adapter->arena, adapter->arena_bytes);
    plat_free(adapter->layers);
    plat_free(adapter);
}

const nano_adapter_config *nano_adapter_get_config(const nano_adapter *adapter) {
    return &adapter->config;
}

/* ---- adapter and model -------------------------------------------------------------------------------- */

/* May this pair be added to this matrix? */
static nano_status check_pair(const lora_pair *pair, const matrix *w, uint32_t l, const char *name) {
    if (!pair->a.rows || (pair->a.cols == w->cols && pair->b.rows == w->rows)) return NANO_OK;
    return nano_fail(
        NANO_ERR_MISMATCH,
        "this adapter is not for this model: layer %u's %s adds a matrix [%u, %u], the model's is [%u, "
        "%u]",
        l, name, pair->b.rows, pair->a.cols, w->rows, w->cols);
}

static nano_status check_config(const nano_config *m, const nano_adapter_config *a) {
    /* A GGUF adapter does not say most of these: 0. */
    const struct {
        const char *name;
        uint32_t model, adapter;
    } dims[] = {
        {"n_layer", m->n_layer, a->n_layer},
        {"n_embd", m->n_embd, a->n_embd},
        {"n_head", m->n_head, a->n_head},
        {"n_kv_head", m->n_kv_head, a->n_kv_head},
        {"n_hidden", m->n_hidden, a->n_hidden},
        {"head_dim", m->head_dim, a->n_head ? a->n_embd / a->n_head : 0},
    };
    /* Nano's own models are llama's. The order of rows in q and k must be the same, too: a `.bin` adapter has
     * pairs; one of the architecture nano has what its model has. A `.bin` of each is not looked at so
     * closely, for such files never said what they are for. */
    bool model_is_nano = m->arch == NANO_ARCH_NANO || m->arch == NANO_ARCH_LLAMA;
    bool adapter_is_nano = a->arch == NANO_ARCH_NANO || a->arch == NANO_ARCH_LLAMA;
    bool bin = a->container == NANO_CONTAINER_BIN, own_order = a->arch == NANO_ARCH_NANO && !bin;
    bool unsaid = bin && m->container == NANO_CONTAINER_BIN;
    if (!unsaid && (adapter_is_nano ? !model_is_nano : a->arch != m->arch))
        return nano_fail(
            NANO_ERR_MISMATCH,
            "this adapter is not for this model: it is for the architecture %s, the model's is %s",
            nano_arch_name(a->arch), nano_arch_name(m->arch));
    if (!unsaid && !own_order && m->use_rope && m->rope_halves == adapter_is_nano)
        return nano_fail(NANO_ERR_MISMATCH,
                         "this adapter is not for this model: their rows of q and k are in different orders");
    for (size_t i = 0; i < sizeof dims / sizeof *dims; i++)
        if (dims[i].adapter && dims[i].model != dims[i].adapter)
            return nano_fail(NANO_ERR_MISMATCH,
                             "this adapter is not for this model: its %s is %u, the model's is %u",
                             dims[i].name, dims[i].adapter, dims[i].model);
    return NANO_OK;
}

static nano_status check_pairs(const nano_model *m, const nano_adapter *adapter) {
    if (adapter->n_layers > m->config.n_layer)
        return nano_fail(
            NANO_ERR_MISMATCH,
            "this adapter is not for this model: it has something for layer %u, the model has %u layers",
            adapter->n_layers - 1, m->config.n_layer);
    for (uint32_t l = 0; l < adapter->n_layers; l++) {
        const lora_layer *a = &adapter->layers[l];
        const layer *w = &m->layers[l];
        const struct {
            const lora_pair *pair;
            const matrix *w;
            const char *name;
        } all[] = {{&a->q, &w->wq, "q"},      {&a->k, &w->wk, "k"},     {&a->v, &w->wv, "v"},
                   {&a->o, &w->wo, "output"}, {&a->w1, &w->w1, "gate"}, {&a->w2, &w->w2, "down"},
                   {&a->w3, &w->w3, "up"}};
        for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
            nano_status status = check_pair(all[i].pair, all[i].w, l, all[i].name);
            if (status) return status;
        }
    }
    return NANO_OK;
}

nano_status adapter_check(const nano_adapter *adapter, const nano_model *model) {
    nano_status status = check_config(&model->config, &adapter->config);
    return status ? status : check_pairs(model, adapter);
}
