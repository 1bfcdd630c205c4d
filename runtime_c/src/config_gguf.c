/* config_gguf.c: a model's shape from the keys of a GGUF file of the architectures llama, qwen2, qwen3 (as
 * llama.cpp defines them) and nano (our own: docs/model_file.md). Keys that would change the computation in a
 * way that this engine does not know are refused; others are passed over. */
#include "error.h"
#include "model_gguf.h"

#include <string.h>

enum { KEY_ROOM = 80 };

/* "llama" and "block_count" make "llama.block_count". */
static const char *key_of(const nano_config *c, const char *name, char room[KEY_ROOM]) {
    const char *arch = nano_arch_name(c->arch);
    size_t n = strlen(arch);
    memcpy(room, arch, n);
    room[n] = '.';
    memcpy(room + n + 1, name, strlen(name) + 1);
    return room;
}

/* A whole number from `low` to `high`. Where the key is missing *out stays, or is refused if it is 0. */
static nano_status get_size(const nano_model *m, const char *name, uint32_t low, uint32_t high,
                            uint32_t *out) {
    char key[KEY_ROOM];
    key_of(&m->config, name, key);
    TRY(gguf_get_u32(&m->gguf, key, out));
    if (!gguf_find(&m->gguf, key) && *out == 0)
        return nano_fail(NANO_ERR_FORMAT,
                         "key %s is missing: the file does not say what its model looks like", key);
    if (*out >= low && *out <= high) return NANO_OK;
    return nano_fail(NANO_ERR_FORMAT, "key %s is %u; it must be between %u and %u", key, *out, low, high);
}

/* A float above 0; `otherwise` where the key is missing, which is refused if that is 0. */
static nano_status get_positive(const nano_model *m, const char *name, double otherwise, float *out) {
    char key[KEY_ROOM];
    double value = otherwise;
    TRY(gguf_get_float(&m->gguf, key_of(&m->config, name, key), &value));
    *out = (float)value;
    if (*out > 0 && *out < 1e30f) return NANO_OK;
    return nano_fail(NANO_ERR_FORMAT, "key %s is missing or not a number above 0", key);
}

static nano_status get_bool(const nano_model *m, const char *name, bool *out) {
    char key[KEY_ROOM];
    return gguf_get_bool(&m->gguf, key_of(&m->config, name, key), out);
}

/* Keys whose models this engine would compute wrongly, unless they say "off". */
static nano_status refuse_unknown_math(const nano_model *m) {
    static const struct {
        const char *name, *why;
    } refused[] = {
        {"attention.sliding_window", "attention in sliding windows"},
        {"expert_count", "a mixture of experts"},
        {"rope.scaling.factor", "scaled RoPE"},
        {"rope.scale_linear", "scaled RoPE"},
        {"rope.dimension_sections", "RoPE in sections"},
        {"attention.scale", "attention scores with a scale of their own"},
        {"attention.clamp_kqv", "clamped queries, keys and values"},
        {"attention.max_alibi_bias", "ALiBi"},
        {"logit_scale", "scaled logits"},
        {"residual_scale", "scaled residuals"},
        {"embedding_scale", "scaled embeddings"},
        {"attn_logit_softcapping", "soft-capped attention"},
        {"final_logit_softcapping", "soft-capped logits"},
    };
    char key[KEY_ROOM];
    text_span scaling = {0};
    TRY(gguf_get_text(&m->gguf, key_of(&m->config, "rope.scaling.type", key), &scaling));
    if (scaling.n && !span_is(scaling, "none")) {
        char shown[GGUF_SHOWN];
        return nano_fail(NANO_ERR_FORMAT, "key %s is \"%s\": scaled RoPE is not supported", key,
                         gguf_show(scaling, shown));
    }
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++) {
        const gguf_value *v = gguf_find(&m->gguf, key_of(&m->config, refused[i].name, key));
        if (!v) continue;
        bool negative, off = false,
                       factor = strcmp(refused[i].name, "rope.scaling.factor") == 0 ||
                                strcmp(refused[i].name, "rope.scale_linear") == 0;
        if (gguf_is_whole(v->type)) off = gguf_load_whole(v->type, v->at, &negative) == 0;
        if (v->type == GGUF_F32 || v->type == GGUF_F64) {
            double value = gguf_load_number(v->type, v->at);
            off = value == 0 || (factor && (value == 1 || scaling.n));
        }
        if (!off) return nano_fail(NANO_ERR_FORMAT, "key %s: %s: not supported", key, refused[i].why);
    }
    return NANO_OK;
}

static nano_status read_kind(nano_model *m) {
    text_span type = {0}, name = {0};
    char shown[GGUF_SHOWN];
    uint32_t parts = 1;
    TRY(gguf_get_text(&m->gguf, "general.type", &type));
    if (span_is(type, "adapter"))
        return nano_fail(NANO_ERR_FORMAT, "this is a LoRA adapter, not a model: give it with a model");
    if (type.n && !span_is(type, "model"))
        return nano_fail(NANO_ERR_FORMAT, "general.type is \"%s\": this is no language model",
                         gguf_show(type, shown));
    TRY(gguf_get_u32(&m->gguf, "split.count", &parts));
    if (parts > 1)
        return nano_fail(NANO_ERR_FORMAT,
                         "this is one of %u parts of a model: merge them into one file first", parts);
    TRY(gguf_get_text(&m->gguf, "general.architecture", &name));
    static const nano_arch known[] = {NANO_ARCH_LLAMA, NANO_ARCH_QWEN2, NANO_ARCH_QWEN3, NANO_ARCH_NANO};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (span_is(name, nano_arch_name(known[i]))) {
            m->config.arch = known[i];
            return NANO_OK;
        }
    return nano_fail(NANO_ERR_FORMAT, "general.architecture is \"%s\"; known: llama, qwen2, qwen3, nano",
                     gguf_show(name, shown));
}

static nano_status read_shape(nano_model *m) {
    nano_config *c = &m->config;
    uint32_t value_length, rope_dims;
    bool causal = true, interleaved = true;
    c->container = NANO_CONTAINER_GGUF;
    c->version_major = m->gguf.version;
    TRY(read_kind(m));
    TRY(refuse_unknown_math(m));
    TRY(get_size(m, "block_count", 1, 1 << 12, &c->n_layer));
    TRY(get_size(m, "context_length", 1, 1 << 24, &c->block_size));
    TRY(get_size(m, "embedding_length", 1, 1 << 20, &c->n_embd));
    TRY(get_size(m, "feed_forward_length", 1, 1 << 24, &c->n_hidden));
    TRY(get_size(m, "attention.head_count", 1, 1 << 16, &c->n_head));
    c->n_kv_head = c->n_head;
    TRY(get_size(m, "attention.head_count_kv", 1, c->n_head, &c->n_kv_head));
    if (c->n_head % c->n_kv_head)
        return nano_fail(NANO_ERR_FORMAT,
                         "attention.head_count %u is no multiple of attention.head_count_kv %u", c->n_head,
                         c->n_kv_head);
    char key[KEY_ROOM];
    bool own_head_dim = gguf_find(&m->gguf, key_of(c, "attention.key_length", key)) != NULL;
    if (!own_head_dim && c->n_embd % c->n_head)
        return nano_fail(NANO_ERR_FORMAT, "embedding_length %u is no multiple of attention.head_count %u",
                         c->n_embd, c->n_head);
    c->head_dim = c->n_embd / c->n_head;
    TRY(get_size(m, "attention.key_length", 1, 1 << 14, &c->head_dim));
    value_length = own_head_dim ? c->n_embd / c->n_head : c->head_dim; /* what llama.cpp assumes */
    TRY(get_size(m, "attention.value_length", 1, 1 << 14, &value_length));
    if (value_length != c->head_dim)
        return nano_fail(NANO_ERR_FORMAT,
                         "attention.key_length %u and attention.value_length %u must be equal", c->head_dim,
                         value_length);
    if ((uint64_t)c->n_head * c->head_dim > 1 << 24)
        return nano_fail(NANO_ERR_FORMAT,
                         "attention.head_count %u times attention.key_length %u is above "
                         "16777216",
                         c->n_head, c->head_dim);
    TRY(get_positive(m, "attention.layer_norm_rms_epsilon", 0, &c->norm_eps));

    c->use_rope = true;
    c->qk_norm = c->arch == NANO_ARCH_QWEN3;
    c->rope_halves = c->arch == NANO_ARCH_QWEN2 || c->arch == NANO_ARCH_QWEN3;
    if (c->arch == NANO_ARCH_NANO) {
        TRY(get_bool(m, "use_rope", &c->use_rope));
        TRY(get_bool(m, "rope.interleaved", &interleaved));
        c->rope_halves = !interleaved;
    }
    TRY(get_bool(m, "attention.causal", &causal));
    c->causal = c->causal && causal;
    TRY(get_positive(m, "rope.freq_base", 1e4, &c->rope_theta));
    if (!c->use_rope) return NANO_OK;
    rope_dims = c->head_dim;
    TRY(get_size(m, "rope.dimension_count", 1, 1 << 14, &rope_dims));
    if (rope_dims != c->head_dim)
        return nano_fail(NANO_ERR_FORMAT,
                         "rope.dimension_count is %u, but heads are %u wide: RoPE on a part of a head is not "
                         "supported",
                         rope_dims, c->head_dim);
    if (c->head_dim % 2)
        return nano_fail(NANO_ERR_FORMAT, "heads are %u wide; it must be even (RoPE turns pairs)",
                         c->head_dim);
    return NANO_OK;
}

/* The rows of the embedding; what the keys say must be the same. */
static nano_status find_vocab_size(nano_model *m) {
    const gguf_tensor *embedding = gguf_find_tensor(&m->gguf, "token_embd.weight");
    if (!embedding) return nano_fail(NANO_ERR_FORMAT, "tensor token_embd.weight is missing");
    uint64_t rows = embedding->dims[1];
    if (rows > 1 << 24)
        return nano_fail(NANO_ERR_FORMAT, "tensor token_embd.weight has %llu rows; at most 16777216",
                         (unsigned long long)rows);
    m->config.vocab_size = (uint32_t)rows;
    return get_size(m, "vocab_size", (uint32_t)rows, (uint32_t)rows, &m->config.vocab_size);
}

nano_status config_read_gguf(nano_model *m) {
    TRY(read_shape(m));
    return find_vocab_size(m);
}
