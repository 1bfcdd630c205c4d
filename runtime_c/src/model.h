/* model.h: what a model file holds, ready for use. */
#ifndef NANO_MODEL_H
#define NANO_MODEL_H

#include "kernels.h"
#include "nano.h"
#include "vocab.h"

/* Legend: E n_embd, Q = n_head head_dim, KV = n_kv_head head_dim, F n_hidden, V vocab_size, B block_size. */
typedef struct {
    const float *attn_norm, *ffn_norm; /* [E] */
    matrix wq, wk, wv, wo;             /* [Q,E] [KV,E] [KV,E] [E,Q] */
    matrix w1, w2, w3;                 /* [F,E] [E,F] [F,E]; w2(silu(w1 x) * w3 x) */
    const float *bq, *bk, *bv;         /* Qwen2: [Q] [KV] [KV]; else NULL */
    const float *q_norm, *k_norm;      /* Qwen3: [head_dim]; else NULL */
} layer;

/* A file's bytes, and copies of those arrays in it that do not lie on a 4-byte boundary. */
typedef struct {
    const uint8_t *bytes;
    size_t size;
    bool mapped; /* ours to unmap; else the caller's */
    void **copies;
    size_t n_copies;
} storage;

struct nano_model {
    nano_config config;
    storage storage;
    vocab vocab;
    layer *layers;
    matrix embedding, output;         /* [V,E]; the same one if tied */
    const float *final_norm;          /* [E] */
    const float *rope_cos, *rope_sin; /* [B, head_dim / 2], NULL: the file has none, compute them */
};

/* y += scale B(A x) */
typedef struct {
    matrix a, b; /* [rank, in] [out, rank] */
} lora_pair;

typedef struct {
    lora_pair q, k, v, o;
} lora_layer;

struct nano_adapter {
    nano_adapter_config config;
    storage storage;
    lora_layer *layers;
    float scale; /* alpha / rank */
};

#endif
