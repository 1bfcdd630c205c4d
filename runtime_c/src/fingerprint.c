/* fingerprint.c: a hash of our own, and what it says of a model. */
#include "fingerprint.h"
#include "bytes.h"
#include "model.h"

enum { WORD = 8, LANE_BYTES = WORD * HASH_LANES };

void fingerprint_begin(fingerprint *h) {
    *h = (fingerprint){.lanes = {1, 2, 3, 4}};
}

/* Each step can be undone, so that one changed word always changes its lane. */
static void take(fingerprint *h, const uint8_t *bytes) {
    for (size_t i = 0; i < HASH_LANES; i++) {
        uint64_t x = (h->lanes[i] ^ load_u64(bytes + WORD * i)) * 0x9E3779B97F4A7C15u;
        h->lanes[i] = x ^ x >> 32;
    }
}

void fingerprint_add(fingerprint *h, const void *bytes, size_t n) {
    const uint8_t *at = bytes;
    size_t held = h->n_bytes % LANE_BYTES;
    h->n_bytes += n;
    while (held && n) {
        h->held[held++] = *at++;
        n--;
        if (held < LANE_BYTES) continue;
        take(h, h->held);
        held = 0;
    }
    for (; n >= LANE_BYTES; n -= LANE_BYTES, at += LANE_BYTES) take(h, at);
    if (n) memcpy(h->held, at, n);
}

uint64_t fingerprint_end(const fingerprint *h) {
    fingerprint all = *h;
    size_t held = h->n_bytes % LANE_BYTES;
    if (held) {
        memset(all.held + held, 0, LANE_BYTES - held);
        take(&all, all.held);
    }
    uint64_t x = h->n_bytes;
    for (size_t i = 0; i < HASH_LANES; i++) x = mix(x ^ all.lanes[i]);
    return x;
}

uint64_t model_fingerprint(const nano_model *m) {
    enum { HEAD = 64 << 10, STRIDE = 256 << 10, SAMPLE = 4 << 10 };
    const nano_config *c = &m->config;
    const uint32_t shape[] = {c->arch,        c->quant,       c->vocab_size, c->n_layer,  c->n_embd,
                              c->n_head,      c->n_kv_head,   c->head_dim,   c->n_hidden, c->block_size,
                              c->use_rope,    c->rope_halves, c->causal,     c->tied,     c->qkv_bias,
                              c->linear_bias, c->qk_norm};
    const float numbers[] = {c->norm_eps, c->rope_theta};
    const uint8_t *bytes = m->storage.bytes;
    size_t size = m->storage.size, last = size > SAMPLE ? size - SAMPLE : 0;
    uint64_t size64 = size;
    fingerprint h;
    fingerprint_begin(&h);
    fingerprint_add(&h, shape, sizeof shape);
    fingerprint_add(&h, numbers, sizeof numbers);
    fingerprint_add(&h, &size64, sizeof size64);
    fingerprint_add(&h, bytes, size < HEAD ? size : HEAD);
    for (size_t at = STRIDE; at < last; at += STRIDE) fingerprint_add(&h, bytes + at, SAMPLE);
    fingerprint_add(&h, bytes + last, size - last);
    return fingerprint_end(&h);
}
