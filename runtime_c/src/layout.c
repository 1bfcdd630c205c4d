/* layout.c: the members of the public structures as a table. A new member of nano.h needs a line here;
 * tests/test_libnano.py finds the one that was forgotten. */
#include "nano.h"

#define KIND(value)                                                                                          \
    _Generic((value),                                                                                        \
        bool: 'b',                                                                                           \
        float: 'f',                                                                                          \
        double: 'f',                                                                                         \
        int32_t: 'i',                                                                                        \
        int64_t: 'i',                                                                                        \
        const char *: 'p',                                                                                   \
        default: 'u')
#define SIZE(s, m) sizeof(((s *)0)->m)
#define STRUCTURE(s) {#s, "", 0, sizeof(s), 1, 's'}
#define MEMBER(s, m) {#s, #m, offsetof(s, m), SIZE(s, m), 1, KIND(((s *)0)->m)}
#define ARRAY(s, m) {#s, #m, offsetof(s, m), SIZE(s, m), SIZE(s, m) / SIZE(s, m[0]), KIND(((s *)0)->m[0])}

static const nano_member members[] = {
    STRUCTURE(nano_config),
    MEMBER(nano_config, version_major),
    MEMBER(nano_config, version_minor),
    MEMBER(nano_config, arch),
    MEMBER(nano_config, quant),
    MEMBER(nano_config, group_size),
    MEMBER(nano_config, header_group_size),
    MEMBER(nano_config, block_size),
    MEMBER(nano_config, vocab_size),
    MEMBER(nano_config, n_layer),
    MEMBER(nano_config, n_embd),
    MEMBER(nano_config, n_head),
    MEMBER(nano_config, n_kv_head),
    MEMBER(nano_config, head_dim),
    MEMBER(nano_config, n_hidden),
    MEMBER(nano_config, tied),
    MEMBER(nano_config, causal),
    MEMBER(nano_config, norm_eps),
    MEMBER(nano_config, rope_theta),
    MEMBER(nano_config, rope_halves),
    MEMBER(nano_config, n_params),
    MEMBER(nano_config, file_bytes),
    MEMBER(nano_config, n_special),
    MEMBER(nano_config, max_token),
    MEMBER(nano_config, byte_tokens),
    MEMBER(nano_config, container),
    MEMBER(nano_config, use_rope),
    MEMBER(nano_config, linear_bias),
    MEMBER(nano_config, qkv_bias),
    MEMBER(nano_config, qk_norm),
    ARRAY(nano_config, quant_tensors),
    STRUCTURE(nano_model_params),
    MEMBER(nano_model_params, non_causal),
    MEMBER(nano_model_params, kernels),
    MEMBER(nano_model_params, overwrite),
    STRUCTURE(nano_meta),
    MEMBER(nano_meta, key),
    MEMBER(nano_meta, key_length),
    MEMBER(nano_meta, type),
    MEMBER(nano_meta, whole),
    MEMBER(nano_meta, number),
    MEMBER(nano_meta, text),
    MEMBER(nano_meta, text_length),
    MEMBER(nano_meta, count),
    STRUCTURE(nano_tensor),
    MEMBER(nano_tensor, name),
    MEMBER(nano_tensor, name_length),
    MEMBER(nano_tensor, type),
    MEMBER(nano_tensor, n_dims),
    ARRAY(nano_tensor, dims),
    MEMBER(nano_tensor, offset),
    MEMBER(nano_tensor, n_bytes),
    STRUCTURE(nano_adapter_config),
    MEMBER(nano_adapter_config, version_major),
    MEMBER(nano_adapter_config, version_minor),
    MEMBER(nano_adapter_config, rank),
    MEMBER(nano_adapter_config, alpha),
    MEMBER(nano_adapter_config, n_layer),
    MEMBER(nano_adapter_config, n_embd),
    MEMBER(nano_adapter_config, n_head),
    MEMBER(nano_adapter_config, n_kv_head),
    MEMBER(nano_adapter_config, n_hidden),
    MEMBER(nano_adapter_config, n_params),
    MEMBER(nano_adapter_config, file_bytes),
    MEMBER(nano_adapter_config, container),
    MEMBER(nano_adapter_config, arch),
    STRUCTURE(nano_session_params),
    MEMBER(nano_session_params, context),
    MEMBER(nano_session_params, threads),
    MEMBER(nano_session_params, cache),
    MEMBER(nano_session_params, draft),
    STRUCTURE(nano_sampler_params),
    MEMBER(nano_sampler_params, repetition_penalty),
    MEMBER(nano_sampler_params, temperature),
    MEMBER(nano_sampler_params, top_k),
    MEMBER(nano_sampler_params, top_p),
    MEMBER(nano_sampler_params, seed),
    STRUCTURE(nano_session_stats),
    MEMBER(nano_session_stats, generated),
    MEMBER(nano_session_stats, evals),
    MEMBER(nano_session_stats, drafted),
    MEMBER(nano_session_stats, accepted),
    MEMBER(nano_session_stats, seconds),
    STRUCTURE(nano_stream),
    ARRAY(nano_stream, held),
    MEMBER(nano_stream, n_held),
    STRUCTURE(nano_member),
    MEMBER(nano_member, structure),
    MEMBER(nano_member, name),
    MEMBER(nano_member, offset),
    MEMBER(nano_member, size),
    MEMBER(nano_member, count),
    MEMBER(nano_member, kind),
};

const nano_member *nano_layout(size_t *n) {
    *n = sizeof members / sizeof *members;
    return members;
}
