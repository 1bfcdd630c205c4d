/* kernels_dotprod.c: ARMv8.2 cores with SDOT and without SMMLA: Cortex-A55, A76 (RK3588, Raspberry Pi 5),
 * A78AE (Jetson Orin). A register of bytes is four columns of four rows; SDOT multiplies them with four
 * columns of a token, which lie in one lane of another register. */
#include "kernels_sdot.h"

INLINE void arrange(int8_t *out, const int8x16_t *rows) {
    for (int j = 0; j < 16; j++) vst1q_s8(out + 16 * j, rows[j]);
}

INLINE void multiply_tile(const stretch *w, size_t n, const int8_t *q, const float *scale, const float *sum,
                          const bool offset, float32x4_t *f) {
    const uint8_t *columns = (const uint8_t *)q;
    for (size_t g = 0; g < n; g++, scale += TILE, sum += TILE) {
        int32x4_t acc[2 * TILE];
        const uint8_t *rows = (const uint8_t *)w->q[g];
        UNROLL for (int k = 0; k < 2 * TILE; k++) acc[k] = vdupq_n_s32(0);
        UNROLL for (int j = 0; j < 2; j++) {
            int8x16x4_t x = next_rows(&columns); /* four columns of four tokens each */
            UNROLL for (int h = 0; h < 2; h++) {
                int8x16x4_t r = next_rows(&rows); /* rows 0-3, 4-7 of four columns, and of the next four */
#define TOKEN(t)                                                                                             \
    acc[2 * t] = vdotq_laneq_s32(acc[2 * t], r.val[0], x.val[2 * h], t);                                     \
    acc[2 * t + 1] = vdotq_laneq_s32(acc[2 * t + 1], r.val[1], x.val[2 * h], t);                             \
    acc[2 * t] = vdotq_laneq_s32(acc[2 * t], r.val[2], x.val[2 * h + 1], t);                                 \
    acc[2 * t + 1] = vdotq_laneq_s32(acc[2 * t + 1], r.val[3], x.val[2 * h + 1], t);
                TOKEN(0) TOKEN(1) TOKEN(2) TOKEN(3)
#undef TOKEN
            }
        }
        float32x4_t own[2] = {vld1q_f32(w->scale[g]), vld1q_f32(w->scale[g] + 4)}, x4 = vld1q_f32(scale);
#define TOKEN(t)                                                                                             \
    UNROLL for (int v = 0; v < 2; v++) f[2 * t + v] =                                                        \
        vfmaq_f32(f[2 * t + v], vcvtq_f32_s32(acc[2 * t + v]), vmulq_laneq_f32(own[v], x4, t));
        TOKEN(0)
        TOKEN(1)
        TOKEN(2)
        TOKEN(3)
#undef TOKEN
            if (offset) UNROLL for (int k = 0; k < 2 * TILE; k++) f[k] =
                vfmaq_n_f32(f[k], vld1q_f32(w->offset[g] + 4 * (k % 2)), sum[k / 2]);
    }
}

BYTE_MATMUL(matmul_i8, PACK_I8)
BYTE_MATMUL(matmul_i4, PACK_I4)
BYTE_MATMUL(matmul_i4_offset, PACK_I4_OFFSET)
FLOAT_MATMUL(matmul_f32, PACK_F32, 4)
FLOAT_MATMUL(matmul_f16, PACK_F16, 4)
FLOAT_MATMUL(matmul_bf16, PACK_BF16, 4)

const kernels kernels_dotprod = {
    .name = "dotprod",
    .usable = plat_has_dotprod,
    .format = {.lanes = LANES, .flip = {[PACK_I4] = 0x88}},
    .tiles = tiles,
    .matmul = {matmul_f32, matmul_f16, matmul_bf16, matmul_i8, matmul_i4, matmul_i4_offset},
    .quantise = quantise,
    .attend = attend,
    .dot = dot,
    .add_scaled = add_scaled,
    .rms_norm = rms_norm,
    .swiglu = swiglu,
    .to_halves = to_halves,
};
