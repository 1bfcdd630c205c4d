/* kernels_arm.h: what the three tables of 64-bit ARM share. Rows are interleaved by 16, four registers of
 * four; a register of bytes is four columns of four rows. Tiles are four tokens, or one. */
#ifndef NANO_KERNELS_ARM_H
#define NANO_KERNELS_ARM_H

#include "half.h"
#include "kernels.h"

#include <arm_neon.h>
#include <math.h>

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")

enum { LANES = 16, TILE = 4 };

INLINE float32x4_t load_halves(const void *from) {
    return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(from)));
}

/* y of `rows` rows at most, of the 16 that were computed */
INLINE void store_rows(float *y, const float32x4_t *f, size_t rows) {
    if (rows >= LANES) {
        UNROLL for (int v = 0; v < 4; v++) vst1q_f32(y + 4 * v, f[v]);
        return;
    }
    float room[LANES];
    UNROLL for (int v = 0; v < 4; v++) vst1q_f32(room + 4 * v, f[v]);
    memcpy(y, room, rows * sizeof *y);
}

/* kernels_arm.c: in plain ARMv8-A, what is no product of bytes. */
void arm_matmul_f32(const packed *w, const activations *x, size_t begin, size_t end, float *y,
                    size_t y_stride);
void arm_matmul_f16(const packed *w, const activations *x, size_t begin, size_t end, float *y,
                    size_t y_stride);
void arm_matmul_bf16(const packed *w, const activations *x, size_t begin, size_t end, float *y,
                     size_t y_stride);
void arm_quantise(const activations *x, size_t t, size_t T, const float *rows, size_t stride);
void arm_attend(const attention *a);
float arm_dot(const float *a, const float *b, size_t n);
void arm_add_scaled(float *y, const float *x, float a, size_t n);
void arm_rms_norm(float *y, const float *x, const float *gain, size_t n, float eps);
void arm_swiglu(float *gate, const float *up, size_t n);
void arm_to_halves(uint16_t *out, const float *x, size_t n);
extern const uint8_t arm_tiles[];

#endif
