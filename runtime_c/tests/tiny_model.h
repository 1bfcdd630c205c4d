/* tiny_model.h: small model files of every kind, made from a seed, for tests; and a slow, plain,
 * double-precision forward pass over the same weights to compare with. */
#ifndef TINY_MODEL_H
#define TINY_MODEL_H

#include "nano.h"

typedef struct {
    uint32_t major, minor; /* of the file format */
    nano_arch arch;
    nano_quant quant;
    uint32_t block_size, vocab_size, n_layer, n_embd, n_head, n_kv_head, head_dim, n_hidden;
    bool untied, byte_tokens;
    bool no_rope_tables;        /* Qwen3: leave them out */
    uint32_t group_size;        /* Q80 */
    uint32_t header_group_size; /* Q80: what the header says; 0: the truth */
    uint64_t seed;

    /* What a `.bin` file implies and a GGUF file says. */
    bool qkv_bias, qk_norm, halves;
    float eps, theta;
    /* Only GGUF can say these. `quant` is the type of the attention's matrices. */
    const char *gguf; /* the architecture; NULL: a `.bin` */
    const char *pre;  /* of a BPE vocabulary; "rwkv": Nano's; NULL: no vocabulary */
    nano_quant embedding_type, ffn_type;
    bool linear_bias, learned, non_causal;
} tiny_spec;

typedef struct {
    float *at;
    uint32_t layers, rows, cols;
} tiny_tensor;

enum { T_EMB, T_Q, T_K, T_V, T_O, T_W1, T_W2, T_W3, T_OUT, T_N };

typedef struct {
    tiny_spec spec;
    tiny_tensor matrices[T_N];
    float *attn_norm, *ffn_norm, *final_norm, *bq, *bk, *bv, *q_norm, *k_norm;
    float *bo, *b1, *b2, *b3; /* [L,E] [L,F] [L,E] [L,F] */
    float *positions;         /* [B,E] */
} tiny_weights;

typedef struct {
    uint8_t *bytes;
    size_t size, room;
} tiny_file;

/* The named kinds: "f32", "q80", "q4k", "2024", "2024q80", "2025.8", "2025.12", "untied", "qwen2", "qwen3",
 * "gguf-llama", ...; NULL for an index past the last. */
const char *tiny_kind(unsigned index);
tiny_spec tiny_spec_of(const char *kind); /* vocab_size 0: no such kind */

tiny_weights *tiny_make(const tiny_spec *spec);
void tiny_free(tiny_weights *w);
/* The file; quantising changes w's weights to what the file holds. free() its bytes. */
tiny_file tiny_write(tiny_weights *w);
tiny_file tiny_kind_file(const char *kind); /* both in one */

/* A LoRA of this rank for the spec; merges alpha/rank B A into `merged` if that is not NULL. */
tiny_file tiny_write_lora(const tiny_spec *spec, uint32_t rank, uint32_t alpha, uint64_t seed,
                          tiny_weights *merged);

/* logits [n, vocab_size] */
void tiny_forward(const tiny_weights *w, bool causal, const uint32_t *ids, size_t n, double *logits);

void tiny_put(tiny_file *f, const void *bytes, size_t n);

/* Numbers from a seed. */
uint64_t tiny_random(uint64_t *state);
double tiny_normal(uint64_t *state);

#endif
