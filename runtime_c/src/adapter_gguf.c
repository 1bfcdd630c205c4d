/* adapter_gguf.c: a LoRA from a GGUF file: general.type "adapter", adapter.type "lora", adapter.lora.alpha,
 * and for each adapted linear W [out, in] of layer N the tensors blk.N.NAME.weight.lora_a [rank, in] and
 * .lora_b [out, rank]. Which layers and linears, and with which ranks, is free; the model's shapes are
 * checked when it meets its model. */
#include "error.h"
#include "model_gguf.h"
#include "reader.h"

enum { MAX_RANK = 1 << 16, MAX_WIDTH = 1 << 24, MAX_LAYERS = 1 << 12 };

static nano_status read_kind(nano_adapter *a, const gguf *g) {
    text_span type = {0}, adapter = {0}, arch = {0};
    char shown[GGUF_SHOWN];
    TRY(gguf_get_text(g, "general.type", &type));
    if (!span_is(type, "adapter"))
        return nano_fail(NANO_ERR_FORMAT,
                         "this is a model, not a LoRA adapter: its general.type is not \"adapter\"");
    TRY(gguf_get_text(g, "adapter.type", &adapter));
    if (!span_is(adapter, "lora"))
        return nano_fail(NANO_ERR_FORMAT, "adapter.type is \"%s\"; known: lora", gguf_show(adapter, shown));
    TRY(gguf_get_text(g, "general.architecture", &arch));
    static const nano_arch known[] = {NANO_ARCH_LLAMA, NANO_ARCH_QWEN2, NANO_ARCH_QWEN3, NANO_ARCH_NANO};
    bool found = false;
    for (size_t i = 0; i < sizeof known / sizeof *known && !found; i++)
        if ((found = span_is(arch, nano_arch_name(known[i])))) a->config.arch = known[i];
    if (!found)
        return nano_fail(NANO_ERR_FORMAT, "general.architecture is \"%s\"; known: llama, qwen2, qwen3, nano",
                         gguf_show(arch, shown));
    double alpha = 0;
    TRY(gguf_get_float(g, "adapter.lora.alpha", &alpha));
    a->config.alpha = (float)alpha;
    if (!(a->config.alpha > -1e6f && a->config.alpha < 1e6f))
        return nano_fail(NANO_ERR_FORMAT, "key adapter.lora.alpha is out of range");
    return NANO_OK;
}

/* Which half of which pair a tensor is; NULL if its name is of no adapter. */
static matrix *find_place(lora_layer *l, text_span rest) {
    static const struct {
        const char *a, *b;
        size_t place;
    } names[] = {
        {"attn_q.weight.lora_a", "attn_q.weight.lora_b", offsetof(lora_layer, q)},
        {"attn_k.weight.lora_a", "attn_k.weight.lora_b", offsetof(lora_layer, k)},
        {"attn_v.weight.lora_a", "attn_v.weight.lora_b", offsetof(lora_layer, v)},
        {"attn_output.weight.lora_a", "attn_output.weight.lora_b", offsetof(lora_layer, o)},
        {"ffn_gate.weight.lora_a", "ffn_gate.weight.lora_b", offsetof(lora_layer, w1)},
        {"ffn_down.weight.lora_a", "ffn_down.weight.lora_b", offsetof(lora_layer, w2)},
        {"ffn_up.weight.lora_a", "ffn_up.weight.lora_b", offsetof(lora_layer, w3)},
    };
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        lora_pair *pair = (lora_pair *)(void *)((char *)l + names[i].place);
        if (span_is(rest, names[i].a)) return &pair->a;
        if (span_is(rest, names[i].b)) return &pair->b;
    }
    return NULL;
}

static nano_status take_tensor(nano_adapter *a, const gguf_tensor *t, uint32_t l, text_span rest) {
    char shown[GGUF_SHOWN];
    matrix *place = find_place(&a->layers[l], rest);
    gguf_show(t->name, shown);
    if (!place)
        return nano_fail(
            NANO_ERR_FORMAT,
            "tensor %s: adapters for it are not supported, only for the seven linears of a layer", shown);
    if (t->dims[0] > MAX_WIDTH || t->dims[1] > MAX_WIDTH)
        return nano_fail(NANO_ERR_FORMAT, "tensor %s: its shape [%llu, %llu] is too big", shown,
                         (unsigned long long)t->dims[1], (unsigned long long)t->dims[0]);
    a->config.n_params += t->n_weights;
    return gguf_take_matrix(t, (uint32_t)t->dims[1], (uint32_t)t->dims[0], place);
}

static nano_status check_pair(nano_adapter *a, lora_pair *pair, uint32_t l, const char *name) {
    if (!pair->a.rows && !pair->b.rows) return NANO_OK;
    if (!pair->a.rows || !pair->b.rows)
        return nano_fail(NANO_ERR_FORMAT, "tensor blk.%u.%s.weight.lora_%s is missing", l, name,
                         pair->a.rows ? "b" : "a");
    if (pair->a.rows != pair->b.cols || pair->a.rows > MAX_RANK)
        return nano_fail(NANO_ERR_FORMAT,
                         "blk.%u.%s: lora_a is of rank %u, lora_b of %u; they must be equal, at "
                         "most %d",
                         l, name, pair->a.rows, pair->b.cols, MAX_RANK);
    if (pair->a.rows > a->config.rank) a->config.rank = pair->a.rows;
    /* As llama.cpp has it: without alpha, or with 0, the product counts as it is. */
    pair->scale = a->config.alpha == 0 ? 1.0f : a->config.alpha / (float)pair->a.rows;
    return NANO_OK;
}

static nano_status read_tensors(nano_adapter *a, const gguf *g) {
    if (!g->n_tensors) return nano_fail(NANO_ERR_FORMAT, "this adapter has no tensors");
    uint32_t n_layer = 0;
    for (uint32_t i = 0; i < g->n_tensors; i++) {
        uint32_t l;
        text_span rest;
        char shown[GGUF_SHOWN];
        if (!gguf_layer_name(g->tensors[i].name, &l, &rest) || l >= MAX_LAYERS)
            return nano_fail(
                NANO_ERR_FORMAT,
                "tensor %s: adapters for it are not supported, only for the seven linears of a layer",
                gguf_show(g->tensors[i].name, shown));
        if (l >= n_layer) n_layer = l + 1;
    }
    a->n_layers = n_layer;
    a->layers = plat_alloc(n_layer * sizeof *a->layers);
    if (!a->layers) return nano_fail(NANO_ERR_MEMORY, "out of memory for %u layers", n_layer);
    for (uint32_t i = 0; i < g->n_tensors; i++) {
        uint32_t l;
        text_span rest;
        gguf_layer_name(g->tensors[i].name, &l, &rest);
        TRY(take_tensor(a, &g->tensors[i], l, rest));
    }
    for (uint32_t l = 0; l < n_layer; l++) {
        lora_layer *w = &a->layers[l];
        TRY(check_pair(a, &w->q, l, "attn_q"));
        TRY(check_pair(a, &w->k, l, "attn_k"));
        TRY(check_pair(a, &w->v, l, "attn_v"));
        TRY(check_pair(a, &w->o, l, "attn_output"));
        TRY(check_pair(a, &w->w1, l, "ffn_gate"));
        TRY(check_pair(a, &w->w2, l, "ffn_down"));
        TRY(check_pair(a, &w->w3, l, "ffn_up"));
    }
    return NANO_OK;
}

nano_status adapter_read_gguf(nano_adapter *a) {
    gguf g;
    nano_status status = gguf_read(&g, a->storage.bytes, a->storage.size);
    a->config = (nano_adapter_config){
        .version_major = g.version, .file_bytes = a->storage.size, .container = NANO_CONTAINER_GGUF};
    if (!status) status = read_kind(a, &g);
    if (!status) status = read_tensors(a, &g);
    gguf_free(&g);
    return status;
}
