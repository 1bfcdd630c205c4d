/* model.h: what a model file holds, ready for use. */
#ifndef NANO_MODEL_H
#define NANO_MODEL_H

#include "gguf.h"
#include "kernels.h"
#include "nano.h"
#include "vocab.h"

/* Legend: E n_embd, Q = n_head head_dim, KV = n_kv_head head_dim, F n_hidden, V vocab_size, B block_size. */
typedef struct {
    const float *attn_norm, *ffn_norm; /* [E] */
    matrix wq, wk, wv, wo;             /* [Q,E] [KV,E] [KV,E] [E,Q] */
    matrix w1, w2, w3;                 /* [F,E] [E,F] [F,E]; w2(silu(w1 x) * w3 x) */
    const float *bq, *bk, *bv, *bo;    /* [Q] [KV] [KV] [E]; each NULL where the linear has no bias */
    const float *b1, *b2, *b3;         /* [F] [E] [F]; the same */
    const float *q_norm, *k_norm;      /* [head_dim]; NULL without QK-norm */
} layer;

/* A file's bytes, and copies of those arrays in it that do not lie on a 4-byte boundary. */
typedef struct {
    const uint8_t *bytes;
    size_t size;
    bool mapped;    /* ours to unmap; else the caller's */
    bool overwrite; /* the caller does not mind if they change */
    void **copies;
    size_t n_copies;
} storage;

struct nano_model {
    nano_config config;
    storage storage;
    gguf gguf; /* what a GGUF file holds; empty for a `.bin` */
    vocab vocab;
    layer *layers;
    matrix embedding, output;         /* [V,E]; the same one if tied */
    matrix positions;                 /* [B,E], learned; rows 0: none, RoPE */
    const float *final_norm;          /* [E] */
    const float *rope_cos, *rope_sin; /* [B, head_dim / 2], NULL: the file has none, compute them */
    const kernels *k;
    bool exact;     /* nothing is packed: weights are used in place, in float32 */
    uint8_t *arena; /* the packed matrices */
    uint64_t arena_bytes;
};

/* model_pack.c: packs every matrix that tokens are multiplied with; the file's pages are given back. */
nano_status model_pack(nano_model *m);

/* Both read m->storage, with m->config.causal as the caller of the library wants it. */
nano_status model_read_bin(nano_model *m);
nano_status model_read_gguf(nano_model *m);

/* y += scale B(A x); a.rows 0: none for this linear */
typedef struct {
    matrix a, b;            /* [rank, in] [out, rank] */
    float scale;            /* alpha / rank */
    const float *down, *up; /* [rank, in] A; [rank, out] scale B, turned over: for use */
} lora_pair;

typedef struct {
    lora_pair q, k, v, o, w1, w2, w3;
} lora_layer;

struct nano_adapter {
    nano_adapter_config config;
    storage storage;
    uint32_t n_layers;  /* a GGUF adapter may have fewer than its model: the rest is as it is */
    lora_layer *layers; /* [n_layers] */
    float *arena;       /* what their `down` and `up` point into */
    uint64_t arena_bytes;
    uint64_t fingerprint; /* of the file's bytes, never 0 */
};

/* fingerprint.c: is this the same model? Of its configuration, and of samples of the file: its size, the
 * first 64 KiB, and 4 KiB of every 256, spread from the first to the last: all weights change when a model is
 * trained. */
uint64_t model_fingerprint(const nano_model *m);

/* May it be used with this model? */
nano_status adapter_check(const nano_adapter *adapter, const nano_model *model);

/* Both read a->storage. */
nano_status adapter_read_bin(nano_adapter *a);
nano_status adapter_read_gguf(nano_adapter *a);

#endif
