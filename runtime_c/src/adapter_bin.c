/* adapter_bin.c: reading a `.bin` LoRA. */
#include "bytes.h"
#include "error.h"
#include "reader.h"

static nano_status read_config(nano_adapter *a, const header *h) {
    nano_adapter_config *c = &a->config;
    *c = (nano_adapter_config){
        .version_major = h->word[2],
        .version_minor = h->word[3],
        .rank = h->word[6],
        .alpha = (float)h->word[7],
        .n_layer = h->word[8],
        .n_embd = h->word[9],
        .n_head = h->word[10],
        .n_kv_head = h->word[11],
        .n_hidden = h->word[12],
        .file_bytes = a->storage.size,
        .arch = NANO_ARCH_NANO,
    };
    if (h->word[4] != TYPE_LORA)
        return nano_fail(NANO_ERR_FORMAT, "this is a model (type %u), not a LoRA adapter (type 10)",
                         h->word[4]);
    if (c->version_major != 2024 || c->version_minor != 10)
        return nano_fail(NANO_ERR_FORMAT, "LoRA file of version %u.%u; known is 2024.10", c->version_major,
                         c->version_minor);
    nano_status status;
    if ((status = reader_field("LoRA rank", c->rank, 1, 1 << 16))) return status;
    if ((status = reader_field("LoRA alpha", h->word[7], 0, 1 << 20))) return status;
    if ((status = reader_field("n_layer", c->n_layer, 1, 1 << 12))) return status;
    if ((status = reader_field("n_embd", c->n_embd, 1, 1 << 20))) return status;
    if ((status = reader_field("n_head", c->n_head, 1, c->n_embd))) return status;
    if ((status = reader_field("n_kv_head", c->n_kv_head, 1, c->n_head))) return status;
    if (c->n_embd % c->n_head)
        return nano_fail(NANO_ERR_FORMAT, "header: n_embd %u is no multiple of n_head %u", c->n_embd,
                         c->n_head);
    return NANO_OK;
}

/* L x [rows, cols], into the same place of each layer. */
static bool take_all(reader *r, nano_adapter *a, size_t place, uint32_t rows, uint32_t cols,
                     const char *what) {
    for (uint32_t l = 0; l < a->config.n_layer; l++) {
        matrix *w = (matrix *)(void *)((char *)&a->layers[l] + place);
        *w = (matrix){.rows = rows, .cols = cols};
        if (reader_matrix(r, w, what)) return false;
        a->config.n_params += (uint64_t)rows * cols;
    }
    return true;
}

nano_status adapter_read_bin(nano_adapter *a) {
    header h;
    nano_status status = reader_header(&h, a->storage.bytes, a->storage.size);
    if (!status) status = read_config(a, &h);
    if (status) return status;

    const nano_adapter_config *c = &a->config;
    a->layers = plat_alloc(c->n_layer * sizeof *a->layers);
    a->n_layers = c->n_layer;
    if (!a->layers) return nano_fail(NANO_ERR_MEMORY, "out of memory for %u layers", c->n_layer);
    reader r = {.storage = &a->storage, .at = HEADER_BYTES};
    uint32_t e = c->n_embd, kv = e / c->n_head * c->n_kv_head, rank = c->rank;
    bool whole = take_all(&r, a, offsetof(lora_layer, q.a), rank, e, "wq_a") &&
                 take_all(&r, a, offsetof(lora_layer, q.b), e, rank, "wq_b") &&
                 take_all(&r, a, offsetof(lora_layer, k.a), rank, e, "wk_a") &&
                 take_all(&r, a, offsetof(lora_layer, k.b), kv, rank, "wk_b") &&
                 take_all(&r, a, offsetof(lora_layer, v.a), rank, e, "wv_a") &&
                 take_all(&r, a, offsetof(lora_layer, v.b), kv, rank, "wv_b") &&
                 take_all(&r, a, offsetof(lora_layer, o.a), rank, e, "wo_a") &&
                 take_all(&r, a, offsetof(lora_layer, o.b), e, rank, "wo_b");
    if (!whole) return r.status;
    for (uint32_t l = 0; l < c->n_layer; l++) {
        lora_layer *w = &a->layers[l];
        w->q.scale = w->k.scale = w->v.scale = w->o.scale = c->alpha / (float)c->rank;
    }
    if (r.at != a->storage.size)
        return nano_fail(NANO_ERR_FORMAT, "the file has %llu bytes more than its header asks for",
                         (unsigned long long)(a->storage.size - r.at));
    return NANO_OK;
}
