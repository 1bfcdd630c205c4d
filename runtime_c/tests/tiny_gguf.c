/* tiny_gguf.c: see tiny_gguf.h. */
#include "tiny_gguf.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- a file, key by key ----------------------------------------------------------------------------------
 */

static void put_text(tiny_file *f, const char *text) {
    uint64_t n = strlen(text);
    tiny_put(f, &n, 8);
    tiny_put(f, text, n);
}

void tg_raw(tiny_gguf *g, const char *key, uint32_t type, const void *bytes, size_t n) {
    put_text(&g->keys, key);
    tiny_put(&g->keys, &type, 4);
    tiny_put(&g->keys, bytes, n);
    g->n_keys++;
}

void tg_u32(tiny_gguf *g, const char *key, uint32_t value) {
    tg_raw(g, key, 4, &value, 4);
}

void tg_float(tiny_gguf *g, const char *key, float value) {
    tg_raw(g, key, 6, &value, 4);
}

void tg_bool(tiny_gguf *g, const char *key, unsigned value) {
    uint8_t byte = (uint8_t)value;
    tg_raw(g, key, 7, &byte, 1);
}

void tg_text(tiny_gguf *g, const char *key, const char *value) {
    tg_raw(g, key, 8, NULL, 0);
    put_text(&g->keys, value);
}

static void begin_array(tiny_gguf *g, const char *key, uint32_t item, uint64_t n) {
    tg_raw(g, key, 9, &item, 4);
    tiny_put(&g->keys, &n, 8);
}

void tg_texts(tiny_gguf *g, const char *key, const char *const *values, uint64_t n) {
    begin_array(g, key, 8, n);
    for (uint64_t i = 0; i < n; i++) put_text(&g->keys, values[i]);
}

void tg_i32s(tiny_gguf *g, const char *key, const int32_t *values, uint64_t n) {
    begin_array(g, key, 5, n);
    tiny_put(&g->keys, values, n * 4);
}

void tg_tensor_at(tiny_gguf *g, const char *name, uint32_t type, uint32_t n_dims, const uint64_t *dims,
                  uint64_t offset) {
    put_text(&g->infos, name);
    tiny_put(&g->infos, &n_dims, 4);
    tiny_put(&g->infos, dims, n_dims * sizeof *dims);
    tiny_put(&g->infos, &type, 4);
    tiny_put(&g->infos, &offset, 8);
    g->n_tensors++;
}

static void align(tiny_file *f, uint32_t alignment) {
    while (f->size % alignment) tiny_put(f, "", 1);
}

void tg_tensor(tiny_gguf *g, const char *name, uint32_t type, uint64_t rows, uint64_t cols, const void *bytes,
               size_t n) {
    const uint64_t dims[2] = {cols, rows};
    align(&g->data, g->alignment);
    tg_tensor_at(g, name, type, rows ? 2 : 1, dims, g->data.size);
    tiny_put(&g->data, bytes, n);
}

tiny_file tg_finish(tiny_gguf *g, uint32_t version) {
    tiny_file f = {0};
    tiny_put(&f, "GGUF", 4);
    tiny_put(&f, &version, 4);
    tiny_put(&f, &g->n_tensors, 8);
    tiny_put(&f, &g->n_keys, 8);
    tiny_put(&f, g->keys.bytes, g->keys.size);
    tiny_put(&f, g->infos.bytes, g->infos.size);
    if (g->data.size) align(&f, g->alignment);
    tiny_put(&f, g->data.bytes, g->data.size);
    free(g->keys.bytes);
    free(g->infos.bytes);
    free(g->data.bytes);
    *g = (tiny_gguf){.alignment = g->alignment};
    return f;
}

/* ---- weights ---------------------------------------------------------------------------------------------
 */

static const struct {
    nano_quant type;
    uint8_t number;
    uint16_t length, bytes;
    uint8_t d_at, m_at; /* where a block's scale and offset are; m_at 0: none */
} TYPES[] = {
    {NANO_F32, 0, 1, 4, 0, 0},
    {NANO_F16, 1, 1, 2, 0, 0},
    {NANO_BF16, 30, 1, 2, 0, 0},
    {NANO_GGUF_Q8_0, 8, 32, 34, 0, 0},
    {NANO_GGUF_Q4_0, 2, 32, 18, 0, 0},
    {NANO_GGUF_Q4_1, 3, 32, 20, 0, 2},
    {NANO_GGUF_Q5_0, 6, 32, 22, 0, 0},
    {NANO_GGUF_Q5_1, 7, 32, 24, 0, 2},
    {NANO_GGUF_Q4_K, 12, 256, 144, 0, 2},
    {NANO_GGUF_Q5_K, 13, 256, 176, 0, 2},
    {NANO_GGUF_Q6_K, 14, 256, 210, 208, 0},
};

static unsigned find_type(nano_quant type) {
    unsigned i = 0;
    while (TYPES[i].type != type) i++;
    return i;
}

uint32_t tiny_gguf_number(nano_quant type) {
    return TYPES[find_type(type)].number;
}

size_t tiny_block_length(nano_quant type) {
    return TYPES[find_type(type)].length;
}

size_t tiny_block_bytes(nano_quant type) {
    return TYPES[find_type(type)].bytes;
}

double tiny_half(const uint8_t *bytes) {
    unsigned bits = bytes[0] | (unsigned)bytes[1] << 8, exponent = bits >> 10 & 31, fraction = bits & 1023;
    double value = exponent ? ldexp(1024 + fraction, (int)exponent - 25) : ldexp(fraction, -24);
    return bits >> 15 ? -value : value;
}

/* Rounds what is normal as a half, the rest to 0. */
static void put_half(uint8_t *out, double x) {
    int exponent;
    double fraction = rint(frexp(fabs(x), &exponent) * 2048);
    unsigned bits = fabs(x) < 0x1p-14 ? 0 : (unsigned)((exponent + 14) * 1024 + (int)fraction - 1024);
    bits |= x < 0 ? 0x8000 : 0;
    out[0] = (uint8_t)bits;
    out[1] = (uint8_t)(bits >> 8);
}

void tiny_random_blocks(nano_quant type, uint8_t *blocks, size_t n_blocks, double spread, uint64_t *state) {
    static const double top[NANO_N_QUANTS] = {[NANO_GGUF_Q8_0] = 128,       [NANO_GGUF_Q4_0] = 8,
                                              [NANO_GGUF_Q4_1] = 15,        [NANO_GGUF_Q5_0] = 16,
                                              [NANO_GGUF_Q5_1] = 31,        [NANO_GGUF_Q4_K] = 15 * 63,
                                              [NANO_GGUF_Q5_K] = 31 * 63.0, [NANO_GGUF_Q6_K] = 32 * 128.0};
    size_t bytes = tiny_block_bytes(type);
    for (; n_blocks--; blocks += bytes) {
        double w = spread * tiny_normal(state),
               scale = 2 * spread * (0.5 + (double)(tiny_random(state) >> 11) / 0x1p54);
        if (type == NANO_F16) {
            put_half(blocks, w);
        } else if (type == NANO_BF16 || type == NANO_F32) {
            float value = (float)w;
            memcpy(blocks, (uint8_t *)&value + 4 - bytes, bytes);
        } else {
            for (size_t i = 0; i < bytes; i++) blocks[i] = (uint8_t)tiny_random(state);
            size_t d_at = TYPES[find_type(type)].d_at, m_at = TYPES[find_type(type)].m_at;
            /* halves below 2^-14 would be 0: whoever wants such small weights gets bigger ones */
            put_half(blocks + d_at, fmax(scale / top[type], 0x1p-14) * (w < 0 ? -1 : 1));
            bool k = type == NANO_GGUF_Q4_K || type == NANO_GGUF_Q5_K;
            if (m_at) put_half(blocks + m_at, k ? fmax(scale / 63, 0x1p-14) : -scale / 2);
        }
    }
}

static unsigned nibble(const uint8_t *bytes, size_t i) { /* of 32 in 16 bytes */
    return i < 16 ? bytes[i] % 16 : bytes[i - 16] / 16;
}

static unsigned fifth(const uint8_t *bytes, size_t i) { /* of 32 in 4 bytes */
    return bytes[i / 8] >> i % 8 & 1;
}

/* Weight i of a block of 256 with eight scaled groups. */
static double k_weight(const uint8_t *b, const uint8_t *high, const uint8_t *q, size_t i) {
    size_t g = i / 32;
    const uint8_t *s = b + 4;
    int scale = g < 4 ? s[g] % 64 : s[g + 4] % 16 + s[g - 4] / 64 * 16;
    int offset = g < 4 ? s[g + 4] % 64 : s[g + 4] / 16 + s[g] / 64 * 16;
    int byte = q[i / 64 * 32 + i % 32], value = g % 2 ? byte / 16 : byte % 16;
    if (high) value += 16 * (high[i % 32] >> g & 1);
    return tiny_half(b) * scale * value - tiny_half(b + 2) * offset;
}

double tiny_weight(nano_quant type, const uint8_t *b, size_t i) {
    float single = 0;
    switch (type) {
    case NANO_F32:
        memcpy(&single, b, 4);
        return single;
    case NANO_F16:
        return tiny_half(b);
    case NANO_BF16:
        memcpy((uint8_t *)&single + 2, b, 2);
        return single;
    case NANO_GGUF_Q8_0:
        return tiny_half(b) * (int8_t)b[2 + i];
    case NANO_GGUF_Q4_0:
        return tiny_half(b) * ((int)nibble(b + 2, i) - 8);
    case NANO_GGUF_Q4_1:
        return tiny_half(b) * nibble(b + 4, i) + tiny_half(b + 2);
    case NANO_GGUF_Q5_0:
        return tiny_half(b) * ((int)(nibble(b + 6, i) + 16 * fifth(b + 2, i)) - 16);
    case NANO_GGUF_Q5_1:
        return tiny_half(b) * (nibble(b + 8, i) + 16 * fifth(b + 4, i)) + tiny_half(b + 2);
    case NANO_GGUF_Q4_K:
        return k_weight(b, NULL, b + 16, i);
    case NANO_GGUF_Q5_K:
        return k_weight(b, b + 16, b + 48, i);
    case NANO_GGUF_Q6_K: {
        size_t half = i / 128, quarter = i % 128 / 32, l = i % 32;
        int byte = b[half * 64 + quarter % 2 * 32 + l], low = quarter < 2 ? byte % 16 : byte / 16;
        int high = b[128 + half * 32 + l] >> 2 * quarter & 3;
        return tiny_half(b + 208) * (int8_t)b[192 + i / 16] * (low + 16 * high - 32);
    }
    default:
        abort();
    }
}

/* ---- a model ---------------------------------------------------------------------------------------------
 */

static char *key_in(const tiny_spec *s, const char *name) {
    static char key[100];
    snprintf(key, sizeof key, "%s.%s", s->gguf, name);
    return key;
}

static void put_floats(tiny_gguf *g, const char *name, int l, const float *values, size_t n) {
    char full[64];
    snprintf(full, sizeof full, "blk.%d.%s", l, name);
    if (l >= 0) values += (size_t)l * n;
    tg_tensor(g, l < 0 ? name : full, 0, 0, n, values, n * sizeof *values);
}

static void put_matrix(tiny_gguf *g, const char *name, int l, nano_quant type, float *at, size_t rows,
                       size_t cols, uint64_t *state) {
    char full[64];
    snprintf(full, sizeof full, "blk.%d.%s", l, name);
    size_t n = rows * cols, length = tiny_block_length(type), bytes = n / length * tiny_block_bytes(type);
    if (l >= 0) at += (size_t)l * n;
    uint8_t *blocks = malloc(bytes);
    if (type == NANO_F32) {
        memcpy(blocks, at, bytes);
    } else {
        tiny_random_blocks(type, blocks, n / length, l < 0 ? 1.0 : 1.5 / sqrt((double)cols), state);
        for (size_t i = 0; i < n; i++)
            at[i] = (float)tiny_weight(type, blocks + i / length * tiny_block_bytes(type), i % length);
    }
    tg_tensor(g, l < 0 ? name : full, tiny_gguf_number(type), rows, cols, blocks, bytes);
    free(blocks);
}

/* GPT-2's alphabet: the character that stands for a byte. */
static void byte_character(unsigned byte, char out[4]) {
    unsigned shifted = 0, cp = 0;
    for (unsigned b = 0; b <= byte; b++) {
        bool itself = (b >= '!' && b <= '~') || (b >= 0xA1 && b <= 0xAC) || b >= 0xAE;
        cp = itself ? b : 256 + shifted++;
    }
    memset(out, 0, 4);
    out[0] = (char)(cp < 0x80 ? cp : 0xC0 | cp >> 6);
    if (cp >= 0x80) out[1] = (char)(0x80 | (cp & 63));
}

/* 0..255 the bytes, five merged ones, the specials of ChatML and Llama 3, the rest unused. */
static void put_bpe(tiny_gguf *g, const tiny_spec *s) {
    static const char *more[] = {"th",
                                 "the",
                                 "\xC4\xA0the",
                                 "in",
                                 "ing",
                                 "<|endoftext|>",
                                 "<|im_start|>",
                                 "<|im_end|>",
                                 "<|eot_id|>",
                                 "<|start_header_id|>",
                                 "<|end_header_id|>",
                                 "<|begin_of_text|>"};
    static const char *merges[] = {"t h", "th e", "\xC4\xA0 the", "i n", "in g"};
    char (*texts)[24] = calloc(s->vocab_size, sizeof *texts);
    const char **tokens = calloc(s->vocab_size, sizeof *tokens);
    int32_t *types = calloc(s->vocab_size, sizeof *types);
    for (uint32_t id = 0; id < s->vocab_size; id++) {
        tokens[id] = texts[id];
        types[id] = id < 261 ? 1 : id < 268 ? 3 : 5;
        if (id < 256)
            byte_character(id, texts[id]);
        else if (id < 268)
            tokens[id] = more[id - 256];
        else
            snprintf(texts[id], sizeof *texts, "unused %u", id);
    }
    tg_text(g, "tokenizer.ggml.model", "gpt2");
    tg_text(g, "tokenizer.ggml.pre", s->pre);
    tg_texts(g, "tokenizer.ggml.tokens", tokens, s->vocab_size);
    tg_i32s(g, "tokenizer.ggml.token_type", types, s->vocab_size);
    tg_texts(g, "tokenizer.ggml.merges", merges, 5);
    tg_u32(g, "tokenizer.ggml.eos_token_id", 263);
    tg_bool(g, "tokenizer.ggml.add_bos_token", 0);
    free(texts);
    free(tokens);
    free(types);
}

/* Nano's seven specials, the bytes, some words; escaped as GGUF has it. */
static void put_trie(tiny_gguf *g, const tiny_spec *s) {
    static const char *specials[] = {"<|padding|>",       "<|unknown|>",       "<|bos|>",   "<|eos|>",
                                     "<|instruct_mark|>", "<|response_mark|>", "<|BD4SUR|>"};
    char (*texts)[24] = calloc(s->vocab_size, sizeof *texts);
    const char **tokens = calloc(s->vocab_size, sizeof *tokens);
    int32_t *types = calloc(s->vocab_size, sizeof *types);
    for (uint32_t id = 0; id < s->vocab_size; id++) {
        tokens[id] = texts[id];
        types[id] = id < 7 ? 3 : 1;
        if (id < 7)
            tokens[id] = specials[id];
        else if (id < 263)
            snprintf(texts[id], sizeof *texts, "\\x%02x", id - 7);
        else
            snprintf(texts[id], sizeof *texts, id == 263 ? "the" : id == 264 ? "a\\n\\\\b" : "w%u", id);
    }
    tg_text(g, "tokenizer.ggml.model", "rwkv");
    tg_texts(g, "tokenizer.ggml.tokens", tokens, s->vocab_size);
    tg_i32s(g, "tokenizer.ggml.token_type", types, s->vocab_size);
    tg_u32(g, "tokenizer.ggml.eos_token_id", 3);
    free(texts);
    free(tokens);
    free(types);
}

static const char *const MATRIX_NAMES[T_N] = {"token_embd.weight", "attn_q.weight",      "attn_k.weight",
                                              "attn_v.weight",     "attn_output.weight", "ffn_gate.weight",
                                              "ffn_down.weight",   "ffn_up.weight",      "output.weight"};

void tiny_put_gguf(tiny_gguf *g, tiny_weights *w) {
    const tiny_spec *s = &w->spec;
    uint64_t state = s->seed + 1000;
    uint32_t q = s->n_head * s->head_dim, kv = s->n_kv_head * s->head_dim;
    bool nano = strcmp(s->gguf, "nano") == 0;
    if (!g->alignment) g->alignment = 32;
    tg_text(g, "general.architecture", s->gguf);
    tg_text(g, "general.name", "tiny");
    tg_u32(g, key_in(s, "block_count"), s->n_layer);
    tg_u32(g, key_in(s, "context_length"), s->block_size);
    tg_u32(g, key_in(s, "embedding_length"), s->n_embd);
    tg_u32(g, key_in(s, "feed_forward_length"), s->n_hidden);
    tg_u32(g, key_in(s, "attention.head_count"), s->n_head);
    tg_u32(g, key_in(s, "attention.head_count_kv"), s->n_kv_head);
    if (s->n_head * s->head_dim != s->n_embd) {
        tg_u32(g, key_in(s, "attention.key_length"), s->head_dim);
        tg_u32(g, key_in(s, "attention.value_length"), s->head_dim);
    }
    tg_float(g, key_in(s, "attention.layer_norm_rms_epsilon"), s->eps);
    tg_float(g, key_in(s, "rope.freq_base"), s->theta);
    if (nano) {
        tg_bool(g, "nano.attention.causal", !s->non_causal);
        tg_bool(g, "nano.use_rope", !s->learned);
        tg_bool(g, "nano.rope.interleaved", !s->halves);
    }
    if (s->pre) (strcmp(s->pre, "rwkv") == 0 ? put_trie : put_bpe)(g, s);

    for (int i = 0; i < T_N; i++) {
        tiny_tensor *t = &w->matrices[i];
        bool whole = i == T_EMB || i == T_OUT;
        nano_quant type = whole ? s->embedding_type : i >= T_W1 ? s->ffn_type : s->quant;
        if (i == T_OUT && !s->untied) continue;
        for (uint32_t l = 0; l < t->layers; l++)
            put_matrix(g, MATRIX_NAMES[i], whole ? -1 : (int)l, type, t->at, t->rows, t->cols, &state);
    }
    for (int l = 0; l < (int)s->n_layer; l++) {
        put_floats(g, "attn_norm.weight", l, w->attn_norm, s->n_embd);
        put_floats(g, "ffn_norm.weight", l, w->ffn_norm, s->n_embd);
        if (s->qkv_bias) {
            put_floats(g, "attn_q.bias", l, w->bq, q);
            put_floats(g, "attn_k.bias", l, w->bk, kv);
            put_floats(g, "attn_v.bias", l, w->bv, kv);
        }
        if (s->linear_bias) {
            put_floats(g, "attn_output.bias", l, w->bo, s->n_embd);
            put_floats(g, "ffn_gate.bias", l, w->b1, s->n_hidden);
            put_floats(g, "ffn_down.bias", l, w->b2, s->n_embd);
            put_floats(g, "ffn_up.bias", l, w->b3, s->n_hidden);
        }
        if (s->qk_norm) {
            put_floats(g, "attn_q_norm.weight", l, w->q_norm, s->head_dim);
            put_floats(g, "attn_k_norm.weight", l, w->k_norm, s->head_dim);
        }
    }
    if (s->learned)
        put_matrix(g, "position_embd.weight", -1, NANO_F32, w->positions, s->block_size, s->n_embd, &state);
    put_floats(g, "output_norm.weight", -1, w->final_norm, s->n_embd);
}

tiny_gguf tiny_begin_gguf(const char *kind) {
    tiny_spec spec = tiny_spec_of(kind);
    tiny_weights *w = tiny_make(&spec);
    tiny_gguf g = {0};
    tiny_put_gguf(&g, w);
    tiny_free(w);
    return g;
}

tiny_file tiny_write_gguf(tiny_weights *w) {
    tiny_gguf g = {0};
    tiny_put_gguf(&g, w);
    return tg_finish(&g, w->spec.major);
}

tiny_file tiny_write_gguf_lora(tiny_weights *w, const char *arch, float alpha, uint64_t seed) {
    const tiny_spec *s = &w->spec;
    tiny_gguf g = {.alignment = 32};
    tg_text(&g, "general.type", "adapter");
    tg_text(&g, "general.architecture", arch ? arch : s->gguf);
    tg_text(&g, "adapter.type", "lora");
    tg_float(&g, "adapter.lora.alpha", alpha);
    for (int i = T_Q; i <= T_W3; i++) {
        tiny_tensor *t = &w->matrices[i];
        size_t rank = 1 + (size_t)i % 4;
        for (size_t l = i == T_V ? 1 : 0; l < t->layers; l++) { /* v: not in the first layer */
            float *a = malloc(rank * t->cols * sizeof *a), *b = malloc(t->rows * rank * sizeof *b);
            for (size_t k = 0; k < rank * t->cols; k++) a[k] = (float)(0.2 * tiny_normal(&seed));
            for (size_t k = 0; k < t->rows * rank; k++) b[k] = (float)(0.2 * tiny_normal(&seed));
            char name[64];
            snprintf(name, sizeof name, "blk.%zu.%s.lora_a", l, MATRIX_NAMES[i]);
            tg_tensor(&g, name, 0, rank, t->cols, a, rank * t->cols * sizeof *a);
            name[strlen(name) - 1] = 'b';
            tg_tensor(&g, name, 0, t->rows, rank, b, t->rows * rank * sizeof *b);
            for (size_t o = 0; o < t->rows; o++)
                for (size_t c = 0; c < t->cols; c++) {
                    double sum = 0;
                    for (size_t r = 0; r < rank; r++) sum += (double)b[o * rank + r] * a[r * t->cols + c];
                    float *target = &t->at[(l * t->rows + o) * t->cols + c];
                    *target = (float)(*target + sum * alpha / (double)rank);
                }
            free(a);
            free(b);
        }
    }
    return tg_finish(&g, 3);
}
