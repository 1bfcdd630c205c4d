/* kernels_sdot.h: matrices of bytes and halves on cores with SDOT. One token reads the packed weights as they
 * are. For several, 8 rows of a block are unpacked to bytes once, a stretch of columns at a time, and
 * multiplied with tiles of four tokens by multiply_tile(), which each file that includes this brings.
 *
 * I4: both halves are two's complement (flip 0x88) and count 16 fold, the low one shifted up and the high one
 * masked, so that one sum takes both. With offsets they are 0 .. 15 and count once.
 *
 * The innermost steps are assembly: gcc 12 puts up to 12 moves of registers into each hundred instructions of
 * the same in intrinsics. */
#ifndef NANO_KERNELS_SDOT_H
#define NANO_KERNELS_SDOT_H

#include "kernels_arm.h"

enum { STRETCH = 48, TOKENS = 96 }; /* groups unpacked at a time; tokens they are used for */

/* f[t][rows] of four tokens += n unpacked groups of 8 rows times x; f has two registers for each token. A
 * group is 256 bytes as arrange() leaves them, 8 scales, and with offsets 8 of these. */
INLINE void multiply_tile(const uint8_t *w, size_t n, const int8_t *q, const float *scale, const float *sum,
                          const pack_kind kind, float32x4_t *f);
/* From 8 rows of 8 x 4 columns, [8][8][4] bytes, to what multiply_tile() reads. */
INLINE void arrange(int8_t *out, const int8x16_t *rows);

INLINE float32x4_t to_floats(int32x4_t sums, const pack_kind kind) {
    return kind == PACK_I4 ? vcvtq_n_f32_s32(sums, 4) : vcvtq_f32_s32(sums);
}

/* ---- one token
 * ---------------------------------------------------------------------------------------------
 */

/* acc[v] += rows 4v .. 4v + 3 of the next 64 bytes, eight columns in halves, times those of lane `lane` of x:
 * LOW and HIGH take the halves out of v24 .. v27. */
#define HALVES_OF(v, row, LOW, HIGH, lane)                                                                   \
    LOW("v28.16b", row ".16b")                                                                               \
    HIGH(row ".16b", row ".16b")                                                                             \
    "sdot %[a" #v "].4s, v28.16b, %[low].4b[" #lane "]\n\t"                                                  \
    "sdot %[a" #v "].4s, " row ".16b, %[high].4b[" #lane "]\n\t"
#define ADD_HALVES(acc, at, x, mask_, LOW, HIGH, lane)                                                       \
    __asm__("ld1 {v24.16b-v27.16b}, [%[at_]], #64\n\t" HALVES_OF(0, "v24", LOW, HIGH, lane)                  \
                HALVES_OF(1, "v25", LOW, HIGH, lane) HALVES_OF(2, "v26", LOW, HIGH, lane)                    \
                    HALVES_OF(3, "v27", LOW, HIGH, lane)                                                     \
            : [at_] "+r"(at), [a0] "+w"(acc[0]), [a1] "+w"(acc[1]), [a2] "+w"(acc[2]), [a3] "+w"(acc[3])     \
            : [low] "w"(x.val[0]), [high] "w"(x.val[1]), [mask] "w"(mask_)                                   \
            : "v24", "v25", "v26", "v27", "v28", "memory")
#define SHIFT_UP(to, from) "shl " to ", " from ", #4\n\t"
#define SHIFT_DOWN(to, from) "ushr " to ", " from ", #4\n\t"
#define MASK(to, from) "and " to ", " from ", %[mask].16b\n\t"

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

#define SDOT_LANES(acc, w, x, lane)                                                                          \
    UNROLL for (int v = 0; v < 4; v++) acc[v] = vdotq_laneq_s32(acc[v], w[v], x, lane);

INLINE void one_token_i8(const packed *w, const uint8_t *at, const int8_t *q, const float *scale,
                         float32x4_t *f) {
    for (const float *end = scale + w->groups; scale < end; scale++, q += GROUP) {
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
            vfmaq_f32(f[v], vcvtq_f32_s32(acc[v]), vmulq_n_f32(own[v], *scale));
    }
}

INLINE void one_token_i4(const packed *w, const uint8_t *at, const int8_t *q, const float *scale,
                         const float *sum, const bool offset, float32x4_t *f) {
    const int8x16_t mask = vdupq_n_s8(offset ? 15 : (int8_t)0xF0);
    _Pragma("GCC unroll 2") for (const float *end = scale + w->groups; scale < end;
                                 scale++, sum++, q += GROUP) {
        int8x16x2_t x = vld1q_s8_x2(q);
        int32x4_t acc[4];
        float32x4_t own[4];
        UNROLL for (int v = 0; v < 4; v++) acc[v] = vdupq_n_s32(0);
        if (offset) {
            ADD_HALVES(acc, at, x, mask, MASK, SHIFT_DOWN, 0);
            ADD_HALVES(acc, at, x, mask, MASK, SHIFT_DOWN, 1);
            ADD_HALVES(acc, at, x, mask, MASK, SHIFT_DOWN, 2);
            ADD_HALVES(acc, at, x, mask, MASK, SHIFT_DOWN, 3);
        } else {
            ADD_HALVES(acc, at, x, mask, SHIFT_UP, MASK, 0);
            ADD_HALVES(acc, at, x, mask, SHIFT_UP, MASK, 1);
            ADD_HALVES(acc, at, x, mask, SHIFT_UP, MASK, 2);
            ADD_HALVES(acc, at, x, mask, SHIFT_UP, MASK, 3);
        }
        load_scales(own, at);
        at += 2 * LANES;
        UNROLL for (int v = 0; v < 4; v++) f[v] = vfmaq_f32(
            f[v], to_floats(acc[v], offset ? PACK_I4_OFFSET : PACK_I4), vmulq_n_f32(own[v], *scale));
        if (offset) {
            load_scales(own, at);
            at += 2 * LANES;
            UNROLL for (int v = 0; v < 4; v++) f[v] = vfmaq_n_f32(f[v], own[v], *sum);
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

INLINE uint8_t *unpack_scales(uint8_t *out, const uint8_t *halves) {
    float16x8_t eight = vreinterpretq_f16_u16(vld1q_u16((const uint16_t *)(const void *)halves));
    float32x4x2_t both = {{vcvt_f32_f16(vget_low_f16(eight)), vcvt_high_f32_f16(eight)}};
    vst1q_f32_x2((float *)(void *)out, both);
    return out + 32;
}

/* Groups [g, g + n) of a block, rows 8 half .. 8 half + 7. */
INLINE void unpack(const uint8_t *block, size_t g, size_t n, size_t half, const pack_kind kind,
                   uint8_t *out) {
    const uint8_t *at = block + g * pack_group_bytes(kind, LANES) + half * 32;
    for (size_t i = 0; i < n; i++) {
        int8x16_t rows[16];
        const int words = kind == PACK_I8 ? 8 : 4;
        UNROLL for (int j = 0; j < words; j++) {
            const int8x16_t both[2] = {vld1q_s8((const int8_t *)at), vld1q_s8((const int8_t *)at + 16)};
            at += 64;
            UNROLL for (int v = 0; v < 2; v++) {
                if (kind == PACK_I8) {
                    rows[2 * j + v] = both[v];
                } else if (kind == PACK_I4) {
                    rows[2 * j + v] = vshlq_n_s8(both[v], 4);
                    rows[2 * j + v + 8] = vandq_s8(both[v], vdupq_n_s8((int8_t)0xF0));
                } else {
                    rows[2 * j + v] = vandq_s8(both[v], vdupq_n_s8(15));
                    rows[2 * j + v + 8] = vreinterpretq_s8_u8(vshrq_n_u8(vreinterpretq_u8_s8(both[v]), 4));
                }
            }
        }
        arrange((int8_t *)out, rows);
        out = unpack_scales(out + 8 * GROUP, at - half * 16);
        at += 2 * LANES;
        if (kind == PACK_I4_OFFSET) {
            out = unpack_scales(out, at - half * 16);
            at += 2 * LANES;
        }
    }
}

/* Tokens [t, t + n), n a multiple of TILE and at most TOKENS. */
INLINE void several_tokens(const packed *w, size_t b, const activations *x, size_t t, size_t n,
                           const pack_kind kind, float *y, size_t y_stride) {
    _Alignas(64) uint8_t unpacked[STRETCH * (8 * GROUP + 64)];
    float sums[TOKENS][8];
    for (size_t half = 0; half < 2; half++) {
        size_t row = b * LANES + 8 * half;
        if (row >= w->rows) return;
        for (size_t g = 0, now; g < w->groups; g += now) {
            now = w->groups - g < STRETCH ? w->groups - g : STRETCH;
            unpack(w->data + b * w->stride, g, now, half, kind, unpacked);
            for (size_t i = 0; i < n; i += TILE) {
                size_t first = (t + i) * x->groups + g * TILE;
                float32x4_t f[2 * TILE];
                UNROLL for (int k = 0; k < 2 * TILE; k++) f[k] =
                    g ? vld1q_f32(sums[i + (size_t)k / 2] + 4 * (k % 2)) : vdupq_n_f32(0);
                multiply_tile(unpacked, now, x->q + first * GROUP, x->scale + first, x->sum + first, kind, f);
                UNROLL for (int k = 0; k < 2 * TILE; k++)
                    vst1q_f32(sums[i + (size_t)k / 2] + 4 * (k % 2), f[k]);
            }
        }
        size_t rows = w->rows - row < 8 ? w->rows - row : 8;
        for (size_t i = 0; i < n; i++) {
            float *to = y + (t + i) * y_stride + row;
            if (rows == 8) /* known to the compiler, this is no call */
                memcpy(to, sums[i], 8 * sizeof(float));
            else
                memcpy(to, sums[i], rows * sizeof(float));
        }
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
