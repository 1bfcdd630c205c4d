/* kernels_dotprod.c: ARMv8.2 cores with SDOT and without SMMLA: Cortex-A55, A76 (RK3588, Raspberry Pi 5),
 * A78AE (Jetson Orin). A register of bytes is four columns of four rows; SDOT multiplies them with four
 * columns of a token, which lie in one lane of another register. */
#include "kernels_sdot.h"

INLINE void arrange(int8_t *out, const int8x16_t *rows) {
    for (int j = 0; j < 16; j++) vst1q_s8(out + 16 * j, rows[j]);
}

/* acc[2t], acc[2t + 1] += rows 0-3, 4-7 of the next 64 bytes, eight columns, times token t: four columns of
 * each token in x, the next four in y */
#define TOKEN(t)                                                                                             \
    "sdot %[a" #t "].4s, v24.16b, %[x].4b[" #t "]\n\t"                                                       \
    "sdot %[b" #t "].4s, v25.16b, %[x].4b[" #t "]\n\t"                                                       \
    "sdot %[a" #t "].4s, v26.16b, %[y].4b[" #t "]\n\t"                                                       \
    "sdot %[b" #t "].4s, v27.16b, %[y].4b[" #t "]\n\t"
INLINE void add_columns(int32x4_t *acc, const uint8_t **w, int8x16_t x, int8x16_t y) {
    __asm__("ld1 {v24.16b-v27.16b}, [%[w]], #64\n\t" TOKEN(0) TOKEN(1) TOKEN(2) TOKEN(3)
            : [w] "+r"(*w), [a0] "+w"(acc[0]), [b0] "+w"(acc[1]), [a1] "+w"(acc[2]), [b1] "+w"(acc[3]),
              [a2] "+w"(acc[4]), [b2] "+w"(acc[5]), [a3] "+w"(acc[6]), [b3] "+w"(acc[7])
            : [x] "w"(x), [y] "w"(y)
            : "v24", "v25", "v26", "v27", "memory");
}
#undef TOKEN

INLINE void multiply_tile(const uint8_t *w, size_t n, const int8_t *q, const float *scale, const float *sum,
                          const pack_kind kind, float32x4_t *f) {
    const uint8_t *columns = (const uint8_t *)q;
    for (const float *end = scale + n * TILE; scale < end; scale += TILE, sum += TILE) {
        int32x4_t acc[2 * TILE];
        UNROLL for (int k = 0; k < 2 * TILE; k++) acc[k] = vdupq_n_s32(0);
        UNROLL for (int j = 0; j < 2; j++) {
            int8x16x4_t x = next_rows(&columns); /* four columns of four tokens each */
            add_columns(acc, &w, x.val[0], x.val[1]);
            add_columns(acc, &w, x.val[2], x.val[3]);
        }
        float32x4x2_t own = vld1q_f32_x2((const float *)(const void *)w);
        float32x4_t x4 = vld1q_f32(scale);
        w += 32;
#define TOKEN(t)                                                                                             \
    UNROLL for (int v = 0; v < 2; v++) f[2 * t + v] =                                                        \
        vfmaq_f32(f[2 * t + v], to_floats(acc[2 * t + v], kind), vmulq_laneq_f32(own.val[v], x4, t));
        TOKEN(0)
        TOKEN(1)
        TOKEN(2)
        TOKEN(3)
#undef TOKEN
        if (kind == PACK_I4_OFFSET) {
            own = vld1q_f32_x2((const float *)(const void *)w);
            w += 32;
            UNROLL for (int k = 0; k < 2 * TILE; k++) f[k] = vfmaq_n_f32(f[k], own.val[k % 2], sum[k / 2]);
        }
    }
}

BYTE_MATMUL(matmul_i8, PACK_I8)
BYTE_MATMUL(matmul_i4, PACK_I4)
BYTE_MATMUL(matmul_i4_offset, PACK_I4_OFFSET)

const kernels kernels_dotprod = {
    .name = "dotprod",
    .usable = plat_has_dotprod,
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
