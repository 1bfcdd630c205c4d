/* kernels_i8mm.c: cores with SMMLA (Cortex-A78C, A710, X2, Neoverse V1 and later): two rows times two tokens
 * of eight columns in one instruction. One token at a time there is no use for it. */
#include "kernels_sdot.h"

/* [4][4][2][8]: eight columns of a pair of rows in a register */
INLINE void arrange(int8_t *out, const int8x16_t *rows) {
    for (int j = 0; j < 4; j++)
        for (int v = 0; v < 2; v++) {
            int32x4_t a = vreinterpretq_s32_s8(rows[4 * j + v]),
                      b = vreinterpretq_s32_s8(rows[4 * j + 2 + v]);
            vst1q_s8(out + 64 * j + 32 * v, vreinterpretq_s8_s32(vzip1q_s32(a, b)));
            vst1q_s8(out + 64 * j + 32 * v + 16, vreinterpretq_s8_s32(vzip2q_s32(a, b)));
        }
}

INLINE void multiply_tile(const uint8_t *w, size_t n, const int8_t *q, const float *scale, const float *sum,
                          const pack_kind kind, float32x4_t *f) {
    for (size_t g = 0; g < n; g++, q += TILE * GROUP, scale += TILE, sum += TILE) {
        const float *own = (const float *)(const void *)(w + 8 * GROUP);
        int32x4_t acc[4][2]; /* pairs of rows, pairs of tokens: r0t0 r0t1 r1t0 r1t1 */
        UNROLL for (int k = 0; k < 8; k++) acc[k / 2][k % 2] = vdupq_n_s32(0);
        UNROLL for (int j = 0; j < 4; j++) {
            int8x16x4_t r = vld1q_s8_x4((const int8_t *)w + 64 * j);
            int8x16x2_t x = vld1q_s8_x2(q + 32 * j);
            int32x4_t a = vreinterpretq_s32_s8(x.val[0]), b = vreinterpretq_s32_s8(x.val[1]);
            int8x16_t tokens[2] = {vreinterpretq_s8_s32(vzip1q_s32(a, b)),
                                   vreinterpretq_s8_s32(vzip2q_s32(a, b))};
            UNROLL for (int k = 0; k < 8; k++) acc[k / 2][k % 2] =
                vmmlaq_s32(acc[k / 2][k % 2], r.val[k / 2], tokens[k % 2]);
        }
        UNROLL for (int t = 0; t < TILE; t++) UNROLL for (int v = 0; v < 2; v++) {
            int32x4_t a = acc[2 * v][t / 2], b = acc[2 * v + 1][t / 2];
            int32x4_t rows = t % 2 ? vuzp2q_s32(a, b) : vuzp1q_s32(a, b);
            f[2 * t + v] =
                vfmaq_f32(f[2 * t + v], to_floats(rows, kind), vmulq_n_f32(vld1q_f32(own + 4 * v), scale[t]));
        }
        if (kind == PACK_I4_OFFSET)
            UNROLL for (int k = 0; k < 2 * TILE; k++) f[k] =
                vfmaq_n_f32(f[k], vld1q_f32(own + 8 + 4 * (k % 2)), sum[k / 2]);
        w += 8 * GROUP + (kind == PACK_I4_OFFSET ? 64 : 32);
    }
}

BYTE_MATMUL(matmul_i8, PACK_I8)
BYTE_MATMUL(matmul_i4, PACK_I4)
BYTE_MATMUL(matmul_i4_offset, PACK_I4_OFFSET)

const kernels kernels_i8mm = {
    .name = "i8mm",
    .usable = plat_has_i8mm,
    .format = {.lanes = LANES, .flip = {[PACK_I4] = 0x88}},
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
