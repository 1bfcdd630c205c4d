/* tiny_model.c: see tiny_model.h. Written from docs/model_file.md, on purpose without a look at the reader.
 */
#include "tiny_model.h"

#include "tiny_gguf.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

uint64_t tiny_random(uint64_t *state) { /* splitmix64 */
    uint64_t z = *state += 0x9E3779B97F4A7C15u;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    return z ^ z >> 31;
}

double tiny_normal(uint64_t *state) { /* a sum of 12 uniforms is normal enough */
    double sum = -6;
    for (int i = 0; i < 12; i++) sum += (double)(tiny_random(state) >> 11) / 9007199254740992.0;
    return sum;
}

static const struct {
    const char *name;
    tiny_spec spec;
} KINDS[] = {
    /*              version   arch             quant     B   V    L  E   H  KV hd  F  untied bytes  norope gs
       hdr seed */
    {"f32",
     {2026, 1, NANO_ARCH_NANO, NANO_F32, 64, 300, 2, 48, 4, 2, 12, 72, false, true, false, 0, 0, .seed = 1}},
    {"q80",
     {2026, 1, NANO_ARCH_NANO, NANO_Q80, 64, 300, 2, 64, 4, 2, 16, 96, false, true, false, 32, 0, .seed = 2}},
    {"q4k",
     {2026, 1, NANO_ARCH_NANO, NANO_Q4K, 64, 300, 2, 256, 4, 2, 64, 512, false, true, false, 0, 0,
      .seed = 3}},
    {"q4kragged",
     {2026, 1, NANO_ARCH_NANO, NANO_Q4K, 32, 300, 1, 80, 2, 1, 40, 300, false, true, false, 0, 0, .seed = 4}},
    {"2024",
     {2024, 10, NANO_ARCH_NANO, NANO_F32, 64, 120, 2, 40, 4, 4, 10, 56, false, false, false, 0, 0,
      .seed = 5}},
    {"2024untied",
     {2024, 10, NANO_ARCH_NANO, NANO_F32, 64, 120, 2, 40, 4, 4, 10, 56, true, false, false, 0, 0, .seed = 6}},
    {"2024q80",
     {2024, 10, NANO_ARCH_NANO, NANO_Q80, 64, 300, 2, 64, 4, 1, 16, 128, false, true, false, 64, 256,
      .seed = 7}},
    {"2024q80untied",
     {2024, 10, NANO_ARCH_NANO, NANO_Q80, 64, 300, 2, 64, 4, 1, 16, 128, true, true, false, 32, 0,
      .seed = 8}},
    {"2025.8",
     {2025, 8, NANO_ARCH_NANO, NANO_Q80, 64, 300, 2, 64, 4, 2, 16, 96, false, true, false, 16, 0, .seed = 9}},
    {"2025.12",
     {2025, 12, NANO_ARCH_NANO, NANO_F32, 32, 120, 3, 36, 6, 3, 6, 20, false, false, false, 0, 0,
      .seed = 10}},
    {"2025.12q80",
     {2025, 12, NANO_ARCH_NANO, NANO_Q80, 32, 300, 2, 66, 3, 1, 22, 33, false, true, false, 1, 128,
      .seed = 11}},
    {"untied",
     {2026, 1, NANO_ARCH_NANO, NANO_F32, 64, 300, 2, 48, 4, 2, 12, 72, true, true, false, 0, 0, .seed = 12}},
    {"untiedq4k",
     {2026, 1, NANO_ARCH_NANO, NANO_Q4K, 32, 300, 1, 256, 4, 2, 64, 256, true, true, false, 0, 0,
      .seed = 13}},
    {"qwen2",
     {2026, 1, NANO_ARCH_QWEN2, NANO_F32, 32, 300, 2, 48, 4, 2, 12, 72, false, true, false, 0, 0,
      .seed = 14}},
    {"qwen2q80",
     {2026, 1, NANO_ARCH_QWEN2, NANO_Q80, 32, 300, 2, 64, 4, 2, 16, 96, false, true, false, 32, 0,
      .seed = 15}},
    {"qwen3",
     {2026, 1, NANO_ARCH_QWEN3, NANO_F32, 32, 300, 2, 48, 4, 2, 20, 72, false, true, false, 0, 0,
      .seed = 16}},
    {"qwen3q80",
     {2025, 8, NANO_ARCH_QWEN3, NANO_Q80, 32, 300, 2, 64, 4, 2, 24, 96, false, true, true, 32, 0,
      .seed = 17}},
    {"qwen3untied",
     {2026, 1, NANO_ARCH_QWEN3, NANO_Q80, 32, 300, 2, 64, 4, 2, 24, 96, true, true, true, 32, 0, .seed = 18}},
    {"qwen3q4k",
     {2026, 1, NANO_ARCH_QWEN3, NANO_Q4K, 32, 300, 1, 256, 4, 2, 64, 256, false, true, false, 0, 0,
      .seed = 19}},
    {"gguf-llama",
     {.quant = NANO_F32,
      .n_embd = 48,
      .n_head = 4,
      .n_kv_head = 2,
      .head_dim = 12,
      .n_hidden = 72,
      .n_layer = 2,
      .seed = 20,
      .theta = 1e5f,
      .eps = 1e-5f,
      .gguf = "llama",
      .pre = "smollm"}},
    {"gguf-mixed",
     {.quant = NANO_GGUF_Q4_1,
      .embedding_type = NANO_GGUF_Q8_0,
      .ffn_type = NANO_GGUF_Q4_0,
      .n_embd = 64,
      .n_head = 4,
      .n_kv_head = 1,
      .head_dim = 16,
      .n_hidden = 96,
      .n_layer = 2,
      .seed = 21,
      .theta = 1e4f,
      .eps = 1e-6f,
      .gguf = "llama",
      .pre = "gpt-2"}},
    {"gguf-fives",
     {.quant = NANO_GGUF_Q5_0,
      .embedding_type = NANO_F16,
      .ffn_type = NANO_GGUF_Q5_1,
      .n_embd = 64,
      .n_head = 4,
      .n_kv_head = 4,
      .head_dim = 16,
      .n_hidden = 64,
      .n_layer = 2,
      .untied = true,
      .seed = 22,
      .theta = 1e4f,
      .eps = 1e-5f,
      .gguf = "llama",
      .pre = "llama-bpe"}},
    {"gguf-k",
     {.quant = NANO_GGUF_Q4_K,
      .embedding_type = NANO_GGUF_Q6_K,
      .ffn_type = NANO_GGUF_Q5_K,
      .n_embd = 256,
      .n_head = 4,
      .n_kv_head = 2,
      .head_dim = 64,
      .n_hidden = 256,
      .n_layer = 1,
      .seed = 23,
      .theta = 1e4f,
      .eps = 1e-5f,
      .gguf = "llama"}},
    {"gguf-qwen2",
     {.quant = NANO_BF16,
      .ffn_type = NANO_F16,
      .arch = NANO_ARCH_QWEN2,
      .n_embd = 48,
      .n_head = 4,
      .n_kv_head = 2,
      .head_dim = 12,
      .n_hidden = 72,
      .n_layer = 2,
      .untied = true,
      .seed = 24,
      .theta = 1e6f,
      .eps = 1e-6f,
      .halves = true,
      .qkv_bias = true,
      .gguf = "qwen2",
      .pre = "qwen2"}},
    {"gguf-qwen3",
     {.quant = NANO_F32,
      .arch = NANO_ARCH_QWEN3,
      .n_embd = 48,
      .n_head = 4,
      .n_kv_head = 2,
      .head_dim = 20,
      .n_hidden = 72,
      .n_layer = 2,
      .seed = 25,
      .theta = 1e6f,
      .eps = 1e-6f,
      .halves = true,
      .qk_norm = true,
      .gguf = "qwen3",
      .pre = "qwen2"}},
    {"gguf-nano",
     {.quant = NANO_F32,
      .n_embd = 48,
      .n_head = 4,
      .n_kv_head = 2,
      .head_dim = 10,
      .n_hidden = 72,
      .n_layer = 2,
      .seed = 26,
      .theta = 1e4f,
      .eps = 1e-4f,
      .qkv_bias = true,
      .linear_bias = true,
      .qk_norm = true,
      .gguf = "nano",
      .pre = "rwkv"}},
    {"gguf-learned",
     {.quant = NANO_F32,
      .n_embd = 45,
      .n_head = 3,
      .n_kv_head = 3,
      .head_dim = 15,
      .n_hidden = 72,
      .n_layer = 2,
      .seed = 27,
      .theta = 1e4f,
      .eps = 1e-5f,
      .learned = true,
      .non_causal = true,
      .gguf = "nano",
      .pre = "rwkv"}},
};

const char *tiny_kind(unsigned index) {
    return index < sizeof KINDS / sizeof *KINDS ? KINDS[index].name : NULL;
}

tiny_spec tiny_spec_of(const char *kind) {
    tiny_spec s = {0};
    for (unsigned i = 0; tiny_kind(i); i++)
        if (strcmp(KINDS[i].name, kind) == 0) s = KINDS[i].spec;
    if (s.gguf) { /* what they all have */
        s.major = 3;
        s.vocab_size = 300;
        s.block_size = 40;
        s.byte_tokens = true;
        if (strcmp(s.gguf, "llama") == 0) s.arch = NANO_ARCH_LLAMA;
    } else {
        s.qkv_bias = s.arch == NANO_ARCH_QWEN2;
        s.qk_norm = s.halves = s.arch == NANO_ARCH_QWEN3;
        s.eps = 1e-5f;
        s.theta = s.arch == NANO_ARCH_NANO ? 1e4f : 1e6f;
    }
    return s;
}

/* ---- weights ---------------------------------------------------------------------------------------------
 */

static float *random_floats(uint64_t *state, size_t n, double mean, double spread) {
    float *values = malloc(n * sizeof *values);
    for (size_t i = 0; i < n; i++) values[i] = (float)(mean + spread * tiny_normal(state));
    return values;
}

tiny_weights *tiny_make(const tiny_spec *spec) {
    tiny_weights *w = calloc(1, sizeof *w);
    w->spec = *spec;
    uint64_t state = spec->seed;
    uint32_t e = spec->n_embd, q = spec->n_head * spec->head_dim, kv = spec->n_kv_head * spec->head_dim;
    uint32_t f = spec->n_hidden, n = spec->n_layer, v = spec->vocab_size;
    const tiny_tensor shapes[T_N] = {{0, 1, v, e}, {0, n, q, e}, {0, n, kv, e}, {0, n, kv, e}, {0, n, e, q},
                                     {0, n, f, e}, {0, n, e, f}, {0, n, f, e},  {0, 1, v, e}};
    for (int i = 0; i < T_N; i++) {
        w->matrices[i] = shapes[i];
        size_t count = (size_t)shapes[i].layers * shapes[i].rows * shapes[i].cols;
        double spread = i == T_EMB || i == T_OUT ? 1.0 : 1.5 / sqrt(shapes[i].cols);
        w->matrices[i].at = random_floats(&state, count, 0, spread);
    }
    w->attn_norm = random_floats(&state, (size_t)n * e, 1, 0.2);
    w->ffn_norm = random_floats(&state, (size_t)n * e, 1, 0.2);
    w->final_norm = random_floats(&state, e, 1, 0.2);
    w->bq = random_floats(&state, (size_t)n * q, 0, 0.5);
    w->bk = random_floats(&state, (size_t)n * kv, 0, 0.5);
    w->bv = random_floats(&state, (size_t)n * kv, 0, 0.5);
    w->q_norm = random_floats(&state, (size_t)n * spec->head_dim, 1, 0.2);
    w->k_norm = random_floats(&state, (size_t)n * spec->head_dim, 1, 0.2);
    w->bo = random_floats(&state, (size_t)n * e, 0, 0.5);
    w->b1 = random_floats(&state, (size_t)n * f, 0, 0.5);
    w->b2 = random_floats(&state, (size_t)n * e, 0, 0.5);
    w->b3 = random_floats(&state, (size_t)n * f, 0, 0.5);
    w->positions = random_floats(&state, (size_t)spec->block_size * e, 0, 1.0);
    return w;
}

void tiny_free(tiny_weights *w) {
    for (int i = 0; i < T_N; i++) free(w->matrices[i].at);
    float *const others[] = {w->attn_norm, w->ffn_norm, w->final_norm, w->bq, w->bk, w->bv,       w->q_norm,
                             w->k_norm,    w->bo,       w->b1,         w->b2, w->b3, w->positions};
    for (size_t i = 0; i < sizeof others / sizeof *others; i++) free(others[i]);
    free(w);
}

/* ---- file ------------------------------------------------------------------------------------------------
 */

void tiny_put(tiny_file *f, const void *bytes, size_t n) {
    if (!n) return;
    if (f->size + n > f->room) f->bytes = realloc(f->bytes, f->room = 2 * (f->size + n));
    memcpy(f->bytes + f->size, bytes, n);
    f->size += n;
}

static void put_u8(tiny_file *f, unsigned value) {
    tiny_put(f, &(uint8_t){(uint8_t)value}, 1);
}

static void put_u32(tiny_file *f, uint32_t value) {
    tiny_put(f, &value, 4);
}

static void put_token(tiny_file *f, uint32_t id, bool special, const char *ascii, uint32_t code_point) {
    size_t n = ascii ? strlen(ascii) : 1;
    put_u8(f, (unsigned)n);
    put_u8(f, special);
    put_u8(f, 0xFF);
    put_u8(f, 0xFF);
    put_u32(f, id);
    for (size_t i = 0; i < n; i++) put_u32(f, ascii ? (uint8_t)ascii[i] : code_point);
}

/* 0..6 special; with byte tokens 7..262 are the bytes, else 7..101 printable ASCII; some longer ones;
 * Chinese. */
static void put_trie_vocab(tiny_file *f, const tiny_spec *s) {
    static const char *specials[] = {"<|padding|>",       "<|unknown|>",       "<|bos|>",   "<|eos|>",
                                     "<|instruct_mark|>", "<|response_mark|>", "<|BD4SUR|>"};
    static const char *words[] = {"th", "the", "there", "in", "ing", "<|e", "ab", "abc", "abcd"};
    size_t start = f->size;
    uint32_t id = 0;
    put_u32(f, 0);
    put_u32(f, s->vocab_size);
    for (; id < 7; id++) put_token(f, id, true, specials[id], 0);
    uint32_t n_single = s->byte_tokens ? 256 : 95;
    for (uint32_t b = 0; b < n_single; b++, id++)
        put_token(f, id, false, NULL, !s->byte_tokens ? 0x20 + b : b < 0x80 ? b : 0xDC00 + b);
    for (uint32_t i = 0; i < 9; i++, id++) put_token(f, id, false, words[i], 0);
    for (uint32_t i = 0; id < s->vocab_size; i++, id++) put_token(f, id, false, NULL, 0x4E00 + i);
    uint32_t field_bytes = (uint32_t)(f->size - start);
    memcpy(f->bytes + start, &field_bytes, 4);
}

/* 0..255 the bytes, some merges, two stop tokens; fewer than vocab_size. An odd number of bytes, on purpose.
 */
static void put_bpe_vocab(tiny_file *f, const tiny_spec *s) {
    static const char *words[] = {
        "th", "he", "the", " the", "in", "ing", "<|endoftext|>", "<|im_end|>", "\xE4\xBD", "\xE4\xBD\xA0"};
    size_t start = f->size;
    put_u32(f, 0);
    put_u32(f, 13);
    for (uint32_t id = 0; id < 266 && id < s->vocab_size; id++) {
        float score = -(float)id;
        uint8_t byte = (uint8_t)id;
        const void *bytes = id < 256 ? (const void *)&byte : words[id - 256];
        uint32_t n = id < 256 ? 1 : (uint32_t)strlen(words[id - 256]);
        tiny_put(f, &score, 4);
        put_u32(f, n);
        tiny_put(f, bytes, n);
    }
    uint32_t field_bytes = (uint32_t)(f->size - start);
    memcpy(f->bytes + start, &field_bytes, 4);
}

static void put_q80(tiny_file *f, float *w, size_t n, uint32_t group) {
    float *scales = malloc(n / group * sizeof *scales);
    for (size_t g = 0; g < n / group; g++) {
        float top = 0;
        for (size_t i = 0; i < group; i++) top = fmaxf(top, fabsf(w[g * group + i]));
        scales[g] = top / 127;
        for (size_t i = 0; i < group; i++) {
            int8_t q = (int8_t)(top > 0 ? rintf(w[g * group + i] / scales[g]) : 0);
            w[g * group + i] = (float)q * scales[g];
            tiny_put(f, &q, 1);
        }
    }
    tiny_put(f, scales, n / group * sizeof *scales);
    free(scales);
}

static void put_q4k_block(tiny_file *f, float *w, uint32_t n) {
    float s[8] = {0}, b[8] = {0}, s_top = 1e-9f, b_top = 1e-9f;
    for (uint32_t g = 0; g * 32 < n; g++) {
        float low = 0, high = 0;
        for (uint32_t i = g * 32; i < n && i < g * 32 + 32; i++)
            low = fminf(low, w[i]), high = fmaxf(high, w[i]);
        s[g] = (high - low) / 15;
        b[g] = -low;
        s_top = fmaxf(s_top, s[g]);
        b_top = fmaxf(b_top, b[g]);
    }
    float s_scale = s_top / 63, b_scale = b_top / 63;
    unsigned s6[8], b6[8];
    uint8_t sb[12] = {0}, q[256] = {0};
    for (unsigned g = 0; g < 8; g++) {
        s6[g] = (unsigned)rintf(s[g] / s_scale);
        b6[g] = (unsigned)rintf(b[g] / b_scale);
    }
    for (unsigned k = 0; k < 4; k++) {
        sb[k] = (uint8_t)(s6[k] | (s6[4 + k] >> 4) << 6);
        sb[4 + k] = (uint8_t)(b6[k] | (b6[4 + k] >> 4) << 6);
        sb[8 + k] = (uint8_t)((s6[4 + k] & 15) | (b6[4 + k] & 15) << 4);
    }
    for (uint32_t i = 0; i < n; i++) {
        double scale = (double)s6[i / 32] * s_scale, offset = (double)b6[i / 32] * b_scale;
        double level = scale > 0 ? rint((w[i] + offset) / scale) : 0;
        q[i] = (uint8_t)fmin(15, fmax(0, level));
        w[i] = (float)(q[i] * scale - offset);
    }
    put_u32(f, 0x42);
    put_u32(f, n);
    put_u32(f, 0);
    tiny_put(f, &s_scale, 4);
    tiny_put(f, &b_scale, 4);
    tiny_put(f, sb, sizeof sb);
    for (unsigned i = 0; i < 128; i++) put_u8(f, q[2 * i] | (unsigned)q[2 * i + 1] << 4);
}

static void put_q4k(tiny_file *f, const tiny_tensor *t, bool of_layers) {
    uint32_t n_blocks = t->layers * t->rows * ((t->cols + 255) / 256),
             shape[6] = {t->layers, t->rows, t->cols};
    uint64_t total = 44 + 160 * (uint64_t)n_blocks;
    tiny_put(f, &total, 8);
    put_u32(f, 0x42);
    put_u32(f, of_layers ? 3 : 2);
    tiny_put(f, of_layers ? shape : shape + 1, sizeof shape - (of_layers ? 0 : 4));
    if (!of_layers) put_u32(f, 0);
    put_u32(f, n_blocks);
    for (size_t row = 0; row < (size_t)t->layers * t->rows; row++)
        for (uint32_t at = 0; at < t->cols; at += 256)
            put_q4k_block(f, t->at + row * t->cols + at, t->cols - at < 256 ? t->cols - at : 256);
}

static void put_matrix(tiny_file *f, tiny_weights *w, int kind) {
    tiny_tensor *t = &w->matrices[kind];
    size_t per_layer = (size_t)t->rows * t->cols;
    if (w->spec.quant == NANO_F32) tiny_put(f, t->at, t->layers * per_layer * sizeof(float));
    if (w->spec.quant == NANO_Q4K) put_q4k(f, t, kind != T_EMB && kind != T_OUT);
    if (w->spec.quant == NANO_Q80)
        for (uint32_t l = 0; l < t->layers; l++)
            put_q80(f, t->at + l * per_layer, per_layer, w->spec.group_size);
}

static double rope_angle(const tiny_spec *s, size_t position, size_t pair) {
    return (double)position * pow((double)s->theta, -2.0 * (double)pair / s->head_dim);
}

static void put_rope(tiny_file *f, const tiny_spec *s) {
    if (s->no_rope_tables) return;
    for (int table = 0; table < 2; table++)
        for (uint32_t p = 0; p < s->block_size; p++)
            for (uint32_t j = 0; j < s->head_dim / 2; j++) {
                double angle = rope_angle(s, p, j);
                float value = (float)(table ? sin(angle) : cos(angle));
                tiny_put(f, &value, 4);
            }
}

static void put_header(tiny_file *f, const tiny_spec *s) {
    bool first = s->major == 2024, mid = s->minor == 8;
    bool has_head_dim = !first && !(mid && s->arch != NANO_ARCH_QWEN3);
    uint32_t word[64] = {0x42443453, 0x55524c4d, s->major, s->minor, (uint32_t)s->arch, first ? 32 : 36};
    const uint32_t shape[] = {s->block_size, s->vocab_size, s->n_layer,  s->n_embd,
                              s->n_head,     s->n_kv_head,  s->n_hidden, !s->untied};
    memcpy(word + 6, shape, sizeof shape);
    unsigned at = 14;
    if (has_head_dim) word[at++] = s->head_dim;
    uint32_t q80 = first ? 800 : s->minor == 12 ? 10 : 0x80;
    word[at++] = s->quant == NANO_F32 ? 0 : s->quant == NANO_Q80 ? q80 : 0x42;
    if (s->quant == NANO_Q80) word[at] = s->header_group_size ? s->header_group_size : s->group_size;
    tiny_put(f, word, sizeof word);
}

tiny_file tiny_write(tiny_weights *w) {
    const tiny_spec *s = &w->spec;
    tiny_file f = {0};
    if (s->gguf) return tiny_write_gguf(w);
    size_t norms = (size_t)s->n_layer * s->n_embd * sizeof(float);
    size_t q = (size_t)s->n_layer * s->n_head * s->head_dim * sizeof(float),
           kv = q / s->n_head * s->n_kv_head;
    put_header(&f, s);
    (s->arch == NANO_ARCH_NANO ? put_trie_vocab : put_bpe_vocab)(&f, s);

    bool first = s->major == 2024;
    if (first && s->quant == NANO_F32) { /* order A */
        put_matrix(&f, w, T_EMB);
        tiny_put(&f, w->attn_norm, norms);
        for (int i = T_Q; i <= T_O; i++) put_matrix(&f, w, i);
        tiny_put(&f, w->ffn_norm, norms);
        for (int i = T_W1; i <= T_W3; i++) put_matrix(&f, w, i);
        tiny_put(&f, w->final_norm, s->n_embd * sizeof(float));
        put_rope(&f, s);
        if (s->untied) put_matrix(&f, w, T_OUT);
        return f;
    }
    tiny_put(&f, w->attn_norm, norms);
    tiny_put(&f, w->ffn_norm, norms);
    tiny_put(&f, w->final_norm, s->n_embd * sizeof(float));
    for (int i = T_EMB; i <= T_W3; i++) put_matrix(&f, w, i);
    if (s->untied && first) put_matrix(&f, w, T_OUT);
    if (s->arch == NANO_ARCH_QWEN2) tiny_put(&f, w->bq, q), tiny_put(&f, w->bk, kv), tiny_put(&f, w->bv, kv);
    if (s->arch == NANO_ARCH_QWEN3) {
        tiny_put(&f, w->q_norm, (size_t)s->n_layer * s->head_dim * sizeof(float));
        tiny_put(&f, w->k_norm, (size_t)s->n_layer * s->head_dim * sizeof(float));
    }
    put_rope(&f, s);
    if (s->untied && !first) put_matrix(&f, w, T_OUT);
    return f;
}

tiny_file tiny_kind_file(const char *kind) {
    tiny_spec spec = tiny_spec_of(kind);
    tiny_weights *w = tiny_make(&spec);
    tiny_file f = tiny_write(w);
    tiny_free(w);
    return f;
}

tiny_file tiny_write_lora(const tiny_spec *s, uint32_t rank, uint32_t alpha, uint64_t seed,
                          tiny_weights *merged) {
    tiny_file f = {0};
    const uint32_t word[64] = {0x42443453, 0x55524c4d, 2024,      10,        10,           32,         rank,
                               alpha,      s->n_layer, s->n_embd, s->n_head, s->n_kv_head, s->n_hidden};
    tiny_put(&f, word, sizeof word);
    uint32_t e = s->n_embd, kv = s->n_kv_head * s->head_dim;
    for (int i = T_Q; i <= T_O; i++) {
        uint32_t out = i == T_K || i == T_V ? kv : e;
        float *a = random_floats(&seed, (size_t)s->n_layer * rank * e, 0, 0.2);
        float *b = random_floats(&seed, (size_t)s->n_layer * out * rank, 0, 0.2);
        tiny_put(&f, a, (size_t)s->n_layer * rank * e * sizeof *a);
        tiny_put(&f, b, (size_t)s->n_layer * out * rank * sizeof *b);
        for (size_t l = 0; merged && l < s->n_layer; l++)
            for (size_t o = 0; o < out; o++)
                for (size_t c = 0; c < e; c++) {
                    double sum = 0;
                    for (size_t r = 0; r < rank; r++)
                        sum += (double)b[(l * out + o) * rank + r] * a[(l * rank + r) * e + c];
                    float *target = &merged->matrices[i].at[(l * out + o) * e + c];
                    *target = (float)(*target + sum * alpha / rank);
                }
        free(a);
        free(b);
    }
    return f;
}

/* ---- the plain forward pass
 * ---------------------------------------------------------------------------------- */

static void times_matrix(double *y, const tiny_tensor *t, uint32_t l, const double *x) {
    const float *w = t->at + (size_t)l * t->rows * t->cols;
    for (size_t r = 0; r < t->rows; r++) {
        y[r] = 0;
        for (size_t c = 0; c < t->cols; c++) y[r] += (double)w[r * t->cols + c] * x[c];
    }
}

static void rms(const tiny_spec *s, double *y, const double *x, const float *gain, size_t n) {
    double sum = 0;
    for (size_t i = 0; i < n; i++) sum += x[i] * x[i];
    for (size_t i = 0; i < n; i++) y[i] = x[i] / sqrt(sum / (double)n + (double)s->eps) * gain[i];
}

static void shape_head(const tiny_spec *s, double *head, const float *gain, size_t position) {
    size_t half = s->head_dim / 2;
    bool halves = s->halves;
    if (s->qk_norm) rms(s, head, head, gain, s->head_dim);
    for (size_t j = 0; j < half && !s->learned; j++) {
        double *a = &head[halves ? j : 2 * j], *b = &head[halves ? j + half : 2 * j + 1], x = *a, y = *b;
        double angle = rope_angle(s, position, j);
        *a = x * cos(angle) - y * sin(angle);
        *b = x * sin(angle) + y * cos(angle);
    }
}

void tiny_forward(const tiny_weights *w, bool causal, const uint32_t *ids, size_t n, double *logits) {
    const tiny_spec *s = &w->spec;
    size_t e = s->n_embd, hd = s->head_dim, qw = s->n_head * hd, kw = s->n_kv_head * hd, f = s->n_hidden;
    double *x = calloc(n * e, 8), *norm = calloc(e, 8), *q = calloc(n * qw, 8), *k = calloc(n * kw, 8);
    double *v = calloc(n * kw, 8), *att = calloc(qw, 8), *out = calloc(e, 8), *p = calloc(n, 8);
    double *gate = calloc(f, 8), *up = calloc(f, 8);
    for (size_t t = 0; t < n; t++)
        for (size_t i = 0; i < e; i++)
            x[t * e + i] = w->matrices[T_EMB].at[ids[t] * e + i] + (s->learned ? w->positions[t * e + i] : 0);
    for (uint32_t l = 0; l < s->n_layer; l++) {
        for (size_t t = 0; t < n; t++) {
            rms(s, norm, x + t * e, w->attn_norm + l * e, e);
            times_matrix(q + t * qw, &w->matrices[T_Q], l, norm);
            times_matrix(k + t * kw, &w->matrices[T_K], l, norm);
            times_matrix(v + t * kw, &w->matrices[T_V], l, norm);
            if (s->qkv_bias) {
                for (size_t i = 0; i < qw; i++) q[t * qw + i] += w->bq[l * qw + i];
                for (size_t i = 0; i < kw; i++) k[t * kw + i] += w->bk[l * kw + i];
                for (size_t i = 0; i < kw; i++) v[t * kw + i] += w->bv[l * kw + i];
            }
            for (size_t h = 0; h < s->n_head; h++) shape_head(s, q + t * qw + h * hd, w->q_norm + l * hd, t);
            for (size_t h = 0; h < s->n_kv_head; h++)
                shape_head(s, k + t * kw + h * hd, w->k_norm + l * hd, t);
        }
        for (size_t t = 0; t < n; t++) {
            for (size_t h = 0; h < s->n_head; h++) {
                size_t kv = h / (s->n_head / s->n_kv_head) * hd, seen = causal && !s->non_causal ? t + 1 : n;
                double sum = 0;
                for (size_t u = 0; u < seen; u++) {
                    double score = 0;
                    for (size_t i = 0; i < hd; i++) score += q[t * qw + h * hd + i] * k[u * kw + kv + i];
                    sum += p[u] = exp(score / sqrt((double)hd));
                }
                for (size_t i = 0; i < hd; i++) {
                    att[h * hd + i] = 0;
                    for (size_t u = 0; u < seen; u++) att[h * hd + i] += p[u] / sum * v[u * kw + kv + i];
                }
            }
            times_matrix(out, &w->matrices[T_O], l, att);
            for (size_t i = 0; i < e && s->linear_bias; i++) out[i] += w->bo[l * e + i];
            for (size_t i = 0; i < e; i++) x[t * e + i] += out[i];
        }
        for (size_t t = 0; t < n; t++) {
            rms(s, norm, x + t * e, w->ffn_norm + l * e, e);
            times_matrix(gate, &w->matrices[T_W1], l, norm);
            times_matrix(up, &w->matrices[T_W3], l, norm);
            for (size_t i = 0; i < f && s->linear_bias; i++) {
                gate[i] += w->b1[l * f + i];
                up[i] += w->b3[l * f + i];
            }
            for (size_t i = 0; i < f; i++) gate[i] = gate[i] / (1 + exp(-gate[i])) * up[i];
            times_matrix(out, &w->matrices[T_W2], l, gate);
            for (size_t i = 0; i < e && s->linear_bias; i++) out[i] += w->b2[l * e + i];
            for (size_t i = 0; i < e; i++) x[t * e + i] += out[i];
        }
    }
    for (size_t t = 0; t < n; t++) {
        rms(s, norm, x + t * e, w->final_norm, e);
        times_matrix(logits + t * s->vocab_size, &w->matrices[s->untied ? T_OUT : T_EMB], 0, norm);
    }
    double *const all[] = {x, norm, q, k, v, att, out, p, gate, up};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) free(all[i]);
}
