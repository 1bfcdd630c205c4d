/* adapter.c: reading a LoRA file. */
#include "bytes.h"
#include "error.h"
#include "reader.h"

static nano_status read_config(nano_adapter *a, const header *h) {
    nano_adapter_config *c = &a->config;
    *c = (nano_adapter_config){
        .version_major = h->word[2],
        .version_minor = h->word[3],
        .rank = h->word[6],
        .alpha = h->word[7],
        .n_layer = h->word[8],
        .n_embd = h->word[9],
        .n_head = h->word[10],
        .n_kv_head = h->word[11],
        .n_hidden = h->word[12],
        .file_bytes = a->storage.size,
    };
    if (h->word[4] != TYPE_LORA)
        return nano_fail(NANO_ERR_FORMAT, "this is a model (type %u), not a LoRA adapter (type 10)",
                         h->word[4]);
    if (c->version_major != 2024 || c->version_minor != 10)
        return nano_fail(NANO_ERR_FORMAT, "LoRA file of version %u.%u; known is 2024.10", c->version_major,
                         c->version_minor);
    nano_status status;
    if ((status = reader_field("LoRA rank", c->rank, 1, 1 << 16))) return status;
    if ((status = reader_field("LoRA alpha", c->alpha, 0, 1 << 20))) return status;
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
    uint64_t count = (uint64_t)rows * cols;
    for (uint32_t l = 0; l < a->config.n_layer; l++) {
        const float *weights = reader_floats(r, count, what);
        if (!weights) return false;
        a->config.n_params += count;
        *(matrix *)(void *)((char *)&a->layers[l] + place) =
            (matrix){.quant = NANO_F32, .rows = rows, .cols = cols, .f32 = weights};
    }
    return true;
}

static nano_status read_adapter(nano_adapter *a) {
    header h;
    nano_status status = reader_header(&h, a->storage.bytes, a->storage.size);
    if (!status) status = read_config(a, &h);
    if (status) return status;

    const nano_adapter_config *c = &a->config;
    a->scale = (float)c->alpha / (float)c->rank;
    a->layers = plat_alloc(c->n_layer * sizeof *a->layers);
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
    if (r.at != a->storage.size)
        return nano_fail(NANO_ERR_FORMAT, "the file has %llu bytes more than its header asks for",
                         (unsigned long long)(a->storage.size - r.at));
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
    if (!status) status = read_adapter(a);
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
    plat_free(adapter->layers);
    plat_free(adapter);
}

const nano_adapter_config *nano_adapter_get_config(const nano_adapter *adapter) {
    return &adapter->config;
}
