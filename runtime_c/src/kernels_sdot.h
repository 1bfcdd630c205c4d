/* kernels_sdot.h: matrices of bytes and halves on cores with SDOT. One token reads the packed weights as they
 * are. For several, a block of 16 rows is unpacked to bytes once, a stretch of columns at a time, and
 * multiplied with tiles of four tokens by multiply_tile(), which each file that includes this brings. */
#ifndef NANO_KERNELS_SDOT_H
#define NANO_KERNELS_SDOT_H

#include "kernels_arm.h"

enum { TILE = 4, STRETCH = 48, TOKENS = 96 }; /* groups unpacked at a time; tokens they are used for */

static const uint8_t tiles[] = {TILE, 1};

/* A stretch of unpacked weights of 8 rows: bytes as multiply_tile() wants them, scales and offsets
 * [groups][8]. */
typedef struct {
    int8_t q[STRETCH][8 * GROUP];
    float scale[STRETCH][8], offset[STRETCH][8];
} stretch;

/* f[t][rows] of four tokens += groups [0, n) of the stretch times x; f has two registers for each token */
INLINE void multiply_tile(const stretch *w, size_t n, const int8_t *q, const float *scale, const float *sum,
                          const bool offset, float32x4_t *f);
/* From 8 rows of 8 x 4 columns, [8][8][4] bytes, to what multiply_tile() reads. */
INLINE void arrange(int8_t *out, const int8x16_t *rows);

/* ---- one token
 * ---------------------------------------------------------------------------------------------
 */

#define SDOT_LANES(acc, w, x, lane)                                                                          \
    UNROLL for (int v = 0; v < 4; v++) acc[v] = vdotq_laneq_s32(acc[v], w[v], x, lane);

/* The next 64 bytes. A pointer that moves on with each load costs no instruction, sums of addresses do: hence
 * the empty assembly, which keeps the compiler from making those. */
INLINE int8x16x4_t next_rows(const uint8_t **from) {
    int8x16x4_t four = vld1q_s8_x4((const int8_t *)*from);
    *from += 64;
    __asm__("" : "+r"(*from));
    return four;
}

INLINE void load_scales(float32x4_t *out, const uint8_t *halves) {
    uint16x8x2_t both = vld1q_u16_x2((const uint16_t *)(const void *)halves);
    UNROLL for (int v = 0; v < 2; v++) {
        float16x8_t eight = vreinterpretq_f16_u16(both.val[v]);
        out[2 * v] = vcvt_f32_f16(vget_low_f16(eight));
        out[2 * v + 1] = vcvt_high_f32_f16(eight);
    }
}

INLINE void one_token_i8(const packed *w, const uint8_t *at, const int8_t *q, const float *scale,
                         float32x4_t *f) {
    for (size_t g = 0; g < w->groups; g++, q += GROUP) {
        int8x16x2_t x = vld1q_s8_x2(q);
        int32x4_t acc[4];
        float32x4_t own[4];
        UNROLL for (int v = 0; v < 4; v++) acc[v] = vdupq_n_s32(0);
#define STEP(half, lane)                                                                                     \
    {                                                                                                        \
        int8x16x4_t rows = next_rows(&at);                                                                   \
        SDOT_LANES(acc, rows.val, x.val[half], lane)                                                         \
    }
        STEP(0, 0)
        STEP(0, 1)
        STEP(0, 2)
        STEP(0, 3)
        STEP(1, 0)
        STEP(1, 1)
        STEP(1, 2)
        STEP(1, 3)
#undef STEP
        load_scales(own, at);
        at += 2 * LANES;
        UNROLL for (int v = 0; v < 4; v++) f[v] =
            vfmaq_f32(f[v], vcvtq_f32_s32(acc[v]), vmulq_n_f32(own[v], scale[g]));
    }
}

/* I4: both halves are two's complement (flip 0x88) and count 16 fold, so that one sum takes both. With
 * offsets they are 0 .. 15 and count once. */
INLINE int8x16_t low_half(int8x16_t both, const bool offset) {
    return offset ? vandq_s8(both, vdupq_n_s8(15)) : vshlq_n_s8(both, 4);
}

INLINE int8x16_t high_half(int8x16_t both, const bool offset) {
    return offset ? vreinterpretq_s8_u8(vshrq_n_u8(vreinterpretq_u8_s8(both), 4))
                  : vandq_s8(both, vdupq_n_s8((int8_t)0xF0));
}

INLINE void one_token_i4(const packed *w, const uint8_t *at, const int8_t *q, const float *scale,
                         const float *sum, const bool offset, float32x4_t *f) {
    for (size_t g = 0; g < w->groups; g++, q += GROUP) {
        int8x16x2_t x = vld1q_s8_x2(q);
        int32x4_t acc[4];
        float32x4_t own[4];
        UNROLL for (int v = 0; v < 4; v++) acc[v] = vdupq_n_s32(0);
#define STEP(j)                                                                                              \
    {                                                                                                        \
        int8x16x4_t rows = next_rows(&at);                                                                   \
        UNROLL for (int v = 0; v < 4; v++) {                                                                 \
            acc[v] = vdotq_laneq_s32(acc[v], low_half(rows.val[v], offset), x.val[0], j);                    \
            acc[v] = vdotq_laneq_s32(acc[v], high_half(rows.val[v], offset), x.val[1], j);                   \
        }                                                                                                    \
    }
        STEP(0)
        STEP(1)
        STEP(2)
        STEP(3)
#undef STEP
        load_scales(own, at);
        at += 2 * LANES;
        UNROLL for (int v = 0; v < 4; v++) f[v] = vfmaq_f32(
            f[v], offset ? vcvtq_f32_s32(acc[v]) : vcvtq_n_f32_s32(acc[v], 4), vmulq_n_f32(own[v], scale[g]));
        if (offset) {
            load_scales(own, at);
            at += 2 * LANES;
            UNROLL for (int v = 0; v < 4; v++) f[v] = vfmaq_n_f32(f[v], own[v], sum[g]);
        }
    }
}

INLINE void one_token(const packed *w, const uint8_t *block, const activations *x, size_t t,
                      const pack_kind kind, float32x4_t *f) {
    const int8_t *q = x->q + t * x->groups * GROUP;
    const float *scale = x->scale + t * x->groups, *sum = x->sum + t * x->groups;
    UNROLL for (int v = 0; v < 4; v++) f[v] = vdupq_n_f32(0);
    if (kind == PACK_I8)
        one_token_i8(w, block, q, scale, f);
    else
        one_token_i4(w, block, q, scale, sum, kind == PACK_I4_OFFSET, f);
}

/* ---- several tokens
 * ----------------------------------------------------------------------------------------
 */

/* Groups [g, g + n) of a block, rows 8 half .. 8 half + 7. */
INLINE void unpack(const uint8_t *block, size_t g, size_t n, size_t half, const pack_kind kind,
                   stretch *out) {
    size_t bytes = pack_group_bytes(kind, LANES), q_bytes = kind == PACK_I8 ? 32 : 16;
    block += g * bytes;
    for (size_t i = 0; i < n; i++, block += bytes) {
        int8x16_t rows[16];
        if (kind == PACK_I8) {
            for (size_t j = 0; j < 16; j++)
                rows[j] = vld1q_s8((const int8_t *)block + j / 2 * 64 + half * 32 + j % 2 * 16);
        } else {
            for (size_t j = 0; j < 8; j++) {
                int8x16_t both = vld1q_s8((const int8_t *)block + j / 2 * 64 + half * 32 + j % 2 * 16);
                if (kind == PACK_I4) {
                    rows[j] = vshrq_n_s8(vshlq_n_s8(both, 4), 4);
                    rows[j + 8] = vshrq_n_s8(both, 4);
                } else {
                    rows[j] = vandq_s8(both, vdupq_n_s8(15));
                    rows[j + 8] = vreinterpretq_s8_u8(vshrq_n_u8(vreinterpretq_u8_s8(both), 4));
                }
            }
        }
        arrange(out->q[i], rows);
        for (size_t v = 0; v < 2; v++) {
            vst1q_f32(out->scale[i] + 4 * v, load_halves(block + q_bytes * LANES + half * 16 + 8 * v));
            if (kind == PACK_I4_OFFSET)
                vst1q_f32(out->offset[i] + 4 * v, load_halves(block + 18 * LANES + half * 16 + 8 * v));
        }
    }
}

/* Tokens [t, t + n), n a multiple of TILE and at most TOKENS. */
INLINE void several_tokens(const packed *w, size_t b, const activations *x, size_t t, size_t n,
                           const pack_kind kind, float *y, size_t y_stride) {
    stretch unpacked;
    float sums[TOKENS][8];
    for (size_t half = 0; half < 2; half++) {
        size_t row = b * LANES + 8 * half;
        if (row >= w->rows) return;
        for (size_t g = 0, now; g < w->groups; g += now) {
            now = w->groups - g < STRETCH ? w->groups - g : STRETCH;
            unpack(w->data + b * w->stride, g, now, half, kind, &unpacked);
            for (size_t i = 0; i < n; i += TILE) {
                size_t first = (t + i) * x->groups + g * TILE;
                float32x4_t f[2 * TILE];
                UNROLL for (int k = 0; k < 2 * TILE; k++) f[k] =
                    g ? vld1q_f32(sums[i + (size_t)k / 2] + 4 * (k % 2)) : vdupq_n_f32(0);
                multiply_tile(&unpacked, now, x->q + first * GROUP, x->scale + first, x->sum + first,
                              kind == PACK_I4_OFFSET, f);
                UNROLL for (int k = 0; k < 2 * TILE; k++)
                    vst1q_f32(sums[i + (size_t)k / 2] + 4 * (k % 2), f[k]);
            }
        }
        size_t rows = w->rows - row < 8 ? w->rows - row : 8;
        for (size_t i = 0; i < n; i++) memcpy(y + (t + i) * y_stride + row, sums[i], rows * sizeof(float));
    }
}

INLINE void matmul_bytes(const packed *w, const activations *x, size_t begin, size_t end, float *y,
                         size_t y_stride, const pack_kind kind) {
    for (size_t b = begin; b < end; b++) {
        size_t t = 0, tiled = x->n / TILE * TILE;
        for (size_t now; t < tiled; t += now) {
            now = tiled - t < TOKENS ? tiled - t : TOKENS;
            several_tokens(w, b, x, t, now, kind, y, y_stride);
        }
        for (; t < x->n; t++) {
            float32x4_t f[4];
            one_token(w, w->data + b * w->stride, x, t, kind, f);
            store_rows(y + t * y_stride + b * LANES, f, w->rows - b * LANES);
        }
    }
}

#define BYTE_MATMUL(name, kind)                                                                              \
    static void name(const packed *w, const activations *x, size_t begin, size_t end, float *y,              \
                     size_t y_stride) {                                                                      \
        matmul_bytes(w, x, begin, end, y, y_stride, kind);                                                   \
    }

#endif
