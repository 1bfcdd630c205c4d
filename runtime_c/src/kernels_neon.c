/* kernels_neon.c: any 64-bit ARM core (Cortex-A53, A72, ...): no dot products of bytes, so these are
 * multiplied to 16 bits and added up in pairs. One token at a time. */
#include "kernels_arm.h"

/* Sums of 16 bits of two columns each become sums of 32 bits of rows: pairs[2v], pairs[2v + 1] are rows 4v ..
 */
INLINE int32x4_t join(int32x4_t a, int32x4_t b) {
    return vpaddq_s32(a, b);
}

INLINE int8x16_t four_columns(const int8_t *q) {
    int32_t four;
    memcpy(&four, q, sizeof four);
    return vreinterpretq_s8_s32(vdupq_n_s32(four));
}

/* acc[2v], acc[2v + 1] += the products of four columns of rows 4v .. 4v + 3, two of them to a number of 32
 * bits */
INLINE void add_bytes(int32x4_t *acc, const int8_t *w, int8x16_t x) {
    UNROLL for (int v = 0; v < 4; v++) {
        int8x16_t rows = vld1q_s8(w + 16 * v);
        acc[2 * v] = vpadalq_s16(acc[2 * v], vmull_s8(vget_low_s8(rows), vget_low_s8(x)));
        acc[2 * v + 1] = vpadalq_s16(acc[2 * v + 1], vmull_high_s8(rows, x));
    }
}

/* Where a token's numbers lie: tiles of four, the last tokens each for itself. */
typedef struct {
    const int8_t *q; /* its first four bytes; the next ones 4T further on */
    size_t first, T; /* its number of group 0, and from a group to the next */
} place;

static place place_of(const activations *x, size_t t) {
    size_t T = t < x->n / TILE * TILE ? TILE : 1, i = t % T, tile = (t - i) * x->groups;
    return (place){x->q + tile * GROUP + 4 * i, tile + i, T};
}

static void matmul_i8(const packed *w, const activations *x, size_t begin, size_t end, float *y,
                      size_t y_stride) {
    for (size_t b = begin; b < end; b++)
        for (size_t t = 0; t < x->n; t++) {
            const uint8_t *at = w->data + b * w->stride;
            const place p = place_of(x, t);
            float32x4_t f[4];
            UNROLL for (int v = 0; v < 4; v++) f[v] = vdupq_n_f32(0);
            for (size_t g = 0; g < w->groups; g++, at += pack_group_bytes(PACK_I8, LANES)) {
                const int8_t *q = p.q + g * p.T * GROUP;
                int32x4_t acc[8];
                UNROLL for (int v = 0; v < 8; v++) acc[v] = vdupq_n_s32(0);
                for (int j = 0; j < 8; j++)
                    add_bytes(acc, (const int8_t *)at + 64 * j, four_columns(q + 4 * p.T * (size_t)j));
                float scale = x->scale[p.first + g * p.T];
                UNROLL for (int v = 0; v < 4; v++) f[v] =
                    vfmaq_f32(f[v], vcvtq_f32_s32(join(acc[2 * v], acc[2 * v + 1])),
                              vmulq_n_f32(load_halves(at + 32 * LANES + 8 * v), scale));
            }
            store_rows(y + t * y_stride + b * LANES, f, w->rows - b * LANES);
        }
}

/* Halves are 0 .. 15, so that all eight products of a place of the group fit into 16 bits. */
INLINE void matmul_halves(const packed *w, const activations *x, size_t begin, size_t end, float *y,
                          size_t y_stride, const bool offset) {
    const int8x16_t low = vdupq_n_s8(15);
    for (size_t b = begin; b < end; b++)
        for (size_t t = 0; t < x->n; t++) {
            const uint8_t *at = w->data + b * w->stride;
            const place p = place_of(x, t);
            float32x4_t f[4];
            UNROLL for (int v = 0; v < 4; v++) f[v] = vdupq_n_f32(0);
            for (size_t g = 0; g < w->groups; g++, at += pack_group_bytes(w->kind, LANES)) {
                size_t group = p.first + g * p.T;
                const int8_t *q = p.q + g * p.T * GROUP;
                int16x8_t sums[8];
                UNROLL for (int v = 0; v < 8; v++) sums[v] = vdupq_n_s16(0);
                for (int j = 0; j < 4; j++) {
                    int8x16_t x0 = four_columns(q + 4 * p.T * (size_t)j),
                              x1 = four_columns(q + 4 * p.T * (size_t)(j + 4));
                    UNROLL for (int v = 0; v < 4; v++) {
                        uint8x16_t both = vld1q_u8(at + 64 * j + 16 * v);
                        int8x16_t l = vandq_s8(vreinterpretq_s8_u8(both), low),
                                  h = vreinterpretq_s8_u8(vshrq_n_u8(both, 4));
                        sums[2 * v] = vmlal_s8(sums[2 * v], vget_low_s8(l), vget_low_s8(x0));
                        sums[2 * v] = vmlal_s8(sums[2 * v], vget_low_s8(h), vget_low_s8(x1));
                        sums[2 * v + 1] = vmlal_high_s8(sums[2 * v + 1], l, x0);
                        sums[2 * v + 1] = vmlal_high_s8(sums[2 * v + 1], h, x1);
                    }
                }
                int32x4_t bias = vdupq_n_s32(offset ? 0 : x->bias[group] / 16);
                UNROLL for (int v = 0; v < 4; v++) {
                    int32x4_t total = join(vpaddlq_s16(sums[2 * v]), vpaddlq_s16(sums[2 * v + 1]));
                    f[v] = vfmaq_f32(f[v], vcvtq_f32_s32(vaddq_s32(total, bias)),
                                     vmulq_n_f32(load_halves(at + 16 * LANES + 8 * v), x->scale[group]));
                    if (offset) f[v] = vfmaq_n_f32(f[v], load_halves(at + 18 * LANES + 8 * v), x->sum[group]);
                }
            }
            store_rows(y + t * y_stride + b * LANES, f, w->rows - b * LANES);
        }
}

static void matmul_i4(const packed *w, const activations *x, size_t begin, size_t end, float *y,
                      size_t y_stride) {
    matmul_halves(w, x, begin, end, y, y_stride, false);
}

static void matmul_i4_offset(const packed *w, const activations *x, size_t begin, size_t end, float *y,
                             size_t y_stride) {
    matmul_halves(w, x, begin, end, y, y_stride, true);
}

const kernels kernels_neon = {
    .name = "neon",
    .format = {.lanes = LANES},
    .tiles = arm_tiles,
    .matmul = {arm_matmul_f32, arm_matmul_f16, arm_matmul_bf16, matmul_i8, matmul_i4, matmul_i4_offset},
    .quantise = arm_quantise,
    .attend = arm_attend,
    .dot = arm_dot,
    .add_scaled = arm_add_scaled,
    .rms_norm = arm_rms_norm,
    .swiglu = arm_swiglu,
    .to_halves = arm_to_halves,
};
