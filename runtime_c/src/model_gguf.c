/* model_gguf.c: a model from a GGUF file: every tensor has its place and its shape, or is refused by name. */
#include "model_gguf.h"

#include "error.h"
#include "reader.h"
#include "weights.h"

#include <string.h>

/* ---- tensors ---------------------------------------------------------------------------------------------
 */

static nano_status check_shape(const gguf_tensor *t, uint32_t rows, uint32_t cols) {
    char shown[GGUF_SHOWN];
    if (t->dims[0] == cols && t->dims[1] == rows && t->dims[2] == 1 && t->dims[3] == 1) return NANO_OK;
    return nano_fail(NANO_ERR_FORMAT,
                     "tensor %s: its shape is [%llu, %llu]; with this header it must be [%u, %u]",
                     gguf_show(t->name, shown), (unsigned long long)t->dims[1],
                     (unsigned long long)t->dims[0], rows, cols);
}

nano_status gguf_take_matrix(const gguf_tensor *t, uint32_t rows, uint32_t cols, matrix *out) {
    TRY(check_shape(t, rows, cols));
    *out = (matrix){.quant = t->type, .rows = rows, .cols = cols, .blocks = t->data};
    if (t->type == NANO_F32) out->f32 = floats_in_place(t->data);
    return NANO_OK;
}

/* Norms and biases are used as floats, whatever the file has. */
static nano_status take_floats(storage *s, const gguf_tensor *t, uint32_t n, const float **out) {
    TRY(check_shape(t, 1, n));
    if (t->type == NANO_F32) {
        *out = storage_floats(s, t->data, n);
        return *out ? NANO_OK : NANO_ERR_MEMORY;
    }
    float *room = storage_room(s, n);
    if (!room) return NANO_ERR_MEMORY;
    const weight_type *type = weight_type_of(t->type);
    type->read(room, t->data, n / type->length);
    *out = room;
    return NANO_OK;
}

typedef enum { WANTED, OPTIONAL, FOREIGN } presence; /* FOREIGN: no such tensor in this architecture */

/* A tensor that each layer has: "blk.N." and this name. */
typedef struct {
    const char *name;
    size_t place;        /* in `layer`, of a matrix or of a pointer to floats */
    uint32_t rows, cols; /* rows 0: floats */
    presence presence;
} layer_tensor;

enum { N_LAYER_TENSORS = 18 };

static void list_layer_tensors(const nano_config *c, layer_tensor list[N_LAYER_TENSORS]) {
    uint32_t e = c->n_embd, q = c->n_head * c->head_dim, kv = c->n_kv_head * c->head_dim, f = c->n_hidden;
    presence qkv_bias = c->arch == NANO_ARCH_QWEN2 ? WANTED : OPTIONAL;
    presence qk_norm = c->arch == NANO_ARCH_QWEN3 ? WANTED : c->arch == NANO_ARCH_NANO ? OPTIONAL : FOREIGN;
    const layer_tensor all[N_LAYER_TENSORS] = {
        {"attn_norm.weight", offsetof(layer, attn_norm), 0, e, WANTED},
        {"ffn_norm.weight", offsetof(layer, ffn_norm), 0, e, WANTED},
        {"attn_q.weight", offsetof(layer, wq), q, e, WANTED},
        {"attn_k.weight", offsetof(layer, wk), kv, e, WANTED},
        {"attn_v.weight", offsetof(layer, wv), kv, e, WANTED},
        {"attn_output.weight", offsetof(layer, wo), e, q, WANTED},
        {"ffn_gate.weight", offsetof(layer, w1), f, e, WANTED},
        {"ffn_down.weight", offsetof(layer, w2), e, f, WANTED},
        {"ffn_up.weight", offsetof(layer, w3), f, e, WANTED},
        {"attn_q.bias", offsetof(layer, bq), 0, q, qkv_bias},
        {"attn_k.bias", offsetof(layer, bk), 0, kv, qkv_bias},
        {"attn_v.bias", offsetof(layer, bv), 0, kv, qkv_bias},
        {"attn_output.bias", offsetof(layer, bo), 0, e, OPTIONAL},
        {"ffn_gate.bias", offsetof(layer, b1), 0, f, OPTIONAL},
        {"ffn_down.bias", offsetof(layer, b2), 0, e, OPTIONAL},
        {"ffn_up.bias", offsetof(layer, b3), 0, f, OPTIONAL},
        {"attn_q_norm.weight", offsetof(layer, q_norm), 0, c->head_dim, qk_norm},
        {"attn_k_norm.weight", offsetof(layer, k_norm), 0, c->head_dim, qk_norm},
    };
    memcpy(list, all, sizeof all);
}

static void *place_of(layer *l, const layer_tensor *kind) {
    return (char *)l + kind->place;
}

static bool is_there(layer *l, const layer_tensor *kind) {
    const float *floats;
    if (kind->rows) return ((matrix *)place_of(l, kind))->rows != 0;
    memcpy(&floats, place_of(l, kind), sizeof floats);
    return floats != NULL;
}

bool gguf_layer_name(text_span name, uint32_t *index, text_span *rest) {
    size_t at = 4;
    uint64_t number = 0;
    if (name.n < 4 || memcmp(name.bytes, "blk.", 4) != 0) return false;
    for (; at < name.n && at < 14 && name.bytes[at] >= '0' && name.bytes[at] <= '9'; at++)
        number = 10 * number + name.bytes[at] - '0';
    if (at == 4 || at == name.n || name.bytes[at] != '.' || (at > 5 && name.bytes[4] == '0')) return false;
    if (number > UINT32_MAX) return false;
    *index = (uint32_t)number;
    *rest = (text_span){name.bytes + at + 1, name.n - at - 1};
    return true;
}

static nano_status unknown_tensor(const nano_model *m, const gguf_tensor *t) {
    char shown[GGUF_SHOWN];
    gguf_show(t->name, shown);
    if (span_is(t->name, "rope_freqs.weight"))
        return nano_fail(NANO_ERR_FORMAT,
                         "tensor %s: RoPE with scaled frequencies (as of Llama 3.1) is not "
                         "supported",
                         shown);
    return nano_fail(
        NANO_ERR_FORMAT,
        "tensor %s is not known in the architecture %s with %u layers: the model needs something that "
        "this engine cannot compute",
        shown, nano_arch_name(m->config.arch), m->config.n_layer);
}

static nano_status take_tensor(nano_model *m, const gguf_tensor *t, const layer_tensor *list) {
    const nano_config *c = &m->config;
    storage *s = &m->storage;
    uint32_t index;
    text_span rest;
    if (span_is(t->name, "token_embd.weight"))
        return gguf_take_matrix(t, c->vocab_size, c->n_embd, &m->embedding);
    if (span_is(t->name, "output.weight")) return gguf_take_matrix(t, c->vocab_size, c->n_embd, &m->output);
    if (span_is(t->name, "output_norm.weight")) return take_floats(s, t, c->n_embd, &m->final_norm);
    if (span_is(t->name, "position_embd.weight") && !c->use_rope)
        return gguf_take_matrix(t, c->block_size, c->n_embd, &m->positions);
    if (!gguf_layer_name(t->name, &index, &rest) || index >= c->n_layer) return unknown_tensor(m, t);
    for (size_t i = 0; i < N_LAYER_TENSORS; i++) {
        if (list[i].presence == FOREIGN || !span_is(rest, list[i].name)) continue;
        void *place = place_of(&m->layers[index], &list[i]);
        if (list[i].rows) return gguf_take_matrix(t, list[i].rows, list[i].cols, place);
        const float *floats;
        TRY(take_floats(s, t, list[i].cols, &floats));
        memcpy(place, &floats, sizeof floats);
        return NANO_OK;
    }
    return unknown_tensor(m, t);
}

/* Nothing that a layer needs may be missing, and what one layer has all must have. */
static nano_status check_whole(nano_model *m, const layer_tensor *list) {
    nano_config *c = &m->config;
    const char *missing = !m->embedding.rows                   ? "token_embd.weight"
                          : !m->final_norm                     ? "output_norm.weight"
                          : !c->use_rope && !m->positions.rows ? "position_embd.weight"
                                                               : NULL;
    if (missing) return nano_fail(NANO_ERR_FORMAT, "tensor %s is missing", missing);
    for (size_t i = 0; i < N_LAYER_TENSORS; i++) {
        uint32_t n = 0, first_missing = 0;
        for (uint32_t l = c->n_layer; l-- > 0;)
            if (is_there(&m->layers[l], &list[i]))
                n++;
            else
                first_missing = l;
        if (n < c->n_layer && (n || list[i].presence == WANTED))
            return nano_fail(NANO_ERR_FORMAT, "tensor blk.%u.%s is missing", first_missing, list[i].name);
    }
    const layer *l = &m->layers[0];
    if (!l->bq != !l->bk || !l->bq != !l->bv || !l->q_norm != !l->k_norm)
        return nano_fail(NANO_ERR_FORMAT, "tensor blk.0.%s is missing: %s",
                         !l->q_norm != !l->k_norm ? (l->q_norm ? "attn_k_norm.weight" : "attn_q_norm.weight")
                         : !l->bq                 ? "attn_q.bias"
                         : !l->bk                 ? "attn_k.bias"
                                                  : "attn_v.bias",
                         "the file has it for some of q, k, v only");
    c->qkv_bias = l->bq != NULL;
    c->linear_bias = l->bo || l->b1 || l->b2 || l->b3;
    c->qk_norm = l->q_norm != NULL;
    return NANO_OK;
}

static nano_status read_tensors(nano_model *m) {
    nano_config *c = &m->config;
    layer_tensor list[N_LAYER_TENSORS];
    uint64_t weights[NANO_N_QUANTS] = {0};
    list_layer_tensors(c, list);
    if (c->n_layer > m->gguf.n_tensors)
        return nano_fail(NANO_ERR_FORMAT, "block_count is %u, but the file has only %u tensors", c->n_layer,
                         m->gguf.n_tensors);
    m->layers = plat_alloc(c->n_layer * sizeof *m->layers);
    if (!m->layers) return nano_fail(NANO_ERR_MEMORY, "out of memory for %u layers", c->n_layer);
    for (uint32_t i = 0; i < m->gguf.n_tensors; i++) {
        const gguf_tensor *t = &m->gguf.tensors[i];
        TRY(take_tensor(m, t, list));
        c->n_params += t->n_weights;
        c->quant_tensors[t->type]++;
        if (memcmp(t->name.bytes, "blk.", 4) == 0 && t->n_dims > 1) weights[t->type] += t->n_weights;
    }
    TRY(check_whole(m, list));
    c->tied = m->output.rows == 0;
    if (c->tied) m->output = m->embedding;
    for (int type = 0; type < NANO_N_QUANTS; type++)
        if (weights[type] > weights[c->quant]) c->quant = (nano_quant)type;
    return NANO_OK;
}

nano_status model_read_gguf(nano_model *m) {
    nano_config *c = &m->config;
    TRY(gguf_read(&m->gguf, m->storage.bytes, m->storage.size));
    TRY(config_read_gguf(m));
    TRY(read_tensors(m));
    TRY(vocab_read_gguf(&m->vocab, &m->gguf, &m->storage, c->vocab_size));
    c->n_special = m->vocab.n_special;
    c->max_token = m->vocab.max_token;
    c->byte_tokens = m->vocab.byte_tokens;
    return NANO_OK;
}
