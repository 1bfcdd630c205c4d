/* kernels_arm.c: floats, vectors and attention for every 64-bit ARM core: plain ARMv8-A, compiled once. */
#include "kernels_arm.h"

const uint8_t arm_tiles[] = {TILE, 1};

/* ---- floats: even and odd columns have sums of their own
 * ---------------------------------------------------
 */

INLINE float32x4_t load_weights(const uint8_t *block, size_t number, const pack_kind kind) {
    if (kind == PACK_F32) return vld1q_f32((const float *)(const void *)(block + number * 4));
    if (kind == PACK_F16) return load_halves(block + number * 2);
    return vreinterpretq_f32_u32(
        vshll_n_u16(vld1_u16((const uint16_t *)(const void *)(block + number * 2)), 16));
}

/* `n_vectors` registers of rows from `first` on, for T tokens */
INLINE void multiply_columns(const packed *w, const uint8_t *block, const float *x, const int T,
                             const int first, const int n_vectors, const pack_kind kind, float32x4_t *f) {
    float32x4_t odd[8];
    size_t c = 0;
    UNROLL for (int i = 0; i < T * n_vectors; i++) f[i] = odd[i] = vdupq_n_f32(0);
    for (; c + 2 <= w->cols; c += 2, x += 2 * T) UNROLL for (int v = 0; v < n_vectors; v++) {
            float32x4_t a = load_weights(block, c * LANES + 4 * (size_t)(first + v), kind),
                        b = load_weights(block, (c + 1) * LANES + 4 * (size_t)(first + v), kind);
            UNROLL for (int i = 0; i < T; i++) {
                f[i * n_vectors + v] = vfmaq_n_f32(f[i * n_vectors + v], a, x[i]);
                odd[i * n_vectors + v] = vfmaq_n_f32(odd[i * n_vectors + v], b, x[T + i]);
            }
        }
    if (c < w->cols) UNROLL for (int v = 0; v < n_vectors; v++) {
            float32x4_t a = load_weights(block, c * LANES + 4 * (size_t)(first + v), kind);
            UNROLL for (int i = 0; i < T; i++) f[i * n_vectors + v] =
                vfmaq_n_f32(f[i * n_vectors + v], a, x[i]);
        }
    UNROLL for (int i = 0; i < T * n_vectors; i++) f[i] = vaddq_f32(f[i], odd[i]);
}

INLINE void matmul_floats(const packed *w, const activations *x, size_t begin, size_t end, float *y,
                          size_t y_stride, const pack_kind kind) {
    for (size_t b = begin; b < end; b++) {
        const uint8_t *block = w->data + b * w->stride;
        size_t row = b * LANES, t = 0;
        float32x4_t f[8], half[4];
        for (; t + TILE <= x->n; t += TILE)
            for (int first = 0; first < 4; first += 2) {
                multiply_columns(w, block, x->f32 + t * w->cols, 4, first, 2, kind, f);
                for (size_t i = 0; i < 4; i++) {
                    half[0] = f[2 * i], half[1] = f[2 * i + 1], half[2] = half[3] = vdupq_n_f32(0);
                    size_t at = row + 4 * (size_t)first;
                    if (at < w->rows)
                        store_rows(y + (t + i) * y_stride + at, half, w->rows - at < 8 ? w->rows - at : 8);
                }
            }
        for (; t < x->n; t++) {
            multiply_columns(w, block, x->f32 + t * w->cols, 1, 0, 4, kind, f);
            store_rows(y + t * y_stride + row, f, w->rows - row);
        }
    }
}

void arm_matmul_f32(const packed *w, const activations *x, size_t begin, size_t end, float *y,
                    size_t y_stride) {
    matmul_floats(w, x, begin, end, y, y_stride, PACK_F32);
}

void arm_matmul_f16(const packed *w, const activations *x, size_t begin, size_t end, float *y,
                    size_t y_stride) {
    matmul_floats(w, x, begin, end, y, y_stride, PACK_F16);
}

void arm_matmul_bf16(const packed *w, const activations *x, size_t begin, size_t end, float *y,
                     size_t y_stride) {
    matmul_floats(w, x, begin, end, y, y_stride, PACK_BF16);
}

/* ---- vectors
 * -----------------------------------------------------------------------------------------------
 */

/* What half.h's function of this name does, by the core's own conversions. */
INLINE float to_half_and_back(float value) {
    float rounded = (float)(__fp16)value, size = fabsf(value);
    return size >= 0x1p-14f && size < 65520.0f ? rounded : value;
}

/* 32 numbers become bytes, those of columns 4j .. 4j + 3 in number j; `at`: where the rest of it goes. */
INLINE void quantise_group(const activations *x, size_t at, const float *from, int32x4_t *low,
                           int32x4_t *high) {
    float32x4_t v[8], top4[2];
    int32x4_t whole[8];
    int16x8_t narrow[4];
    UNROLL for (int k = 0; k < 8; k++) v[k] = vld1q_f32(from + 4 * k);
    top4[0] = vmaxq_f32(vabsq_f32(v[0]), vabsq_f32(v[1]));
    top4[1] = vmaxq_f32(vabsq_f32(v[2]), vabsq_f32(v[3]));
    UNROLL for (int k = 4; k < 8; k++) top4[k % 2] = vmaxq_f32(top4[k % 2], vabsq_f32(v[k]));
    float top = vmaxvq_f32(vmaxq_f32(top4[0], top4[1])), inverse = bytes_per_unit(top), step = top / 127.0f;
    UNROLL for (int k = 0; k < 8; k++) whole[k] = vcvtnq_s32_f32(vmulq_n_f32(v[k], inverse));
    UNROLL for (int k = 0; k < 4; k++) narrow[k] =
        vuzp1q_s16(vreinterpretq_s16_s32(whole[2 * k]), vreinterpretq_s16_s32(whole[2 * k + 1]));
    int8x16_t a = vuzp1q_s8(vreinterpretq_s8_s16(narrow[0]), vreinterpretq_s8_s16(narrow[1])),
              b = vuzp1q_s8(vreinterpretq_s8_s16(narrow[2]), vreinterpretq_s8_s16(narrow[3]));
    int32_t total = vaddvq_s16(vpadalq_s8(vpaddlq_s8(a), b));
    *low = vreinterpretq_s32_s8(a);
    *high = vreinterpretq_s32_s8(b);
    x->scale[at] = to_half_and_back(step);
    x->bias[at] = -128 * total;
    x->sum[at] = to_half_and_back(step * (float)total);
}

INLINE void quantise_tile(const activations *x, size_t t, const int T, const float *rows, size_t stride) {
    int32_t *q = (int32_t *)(void *)(x->q + t * x->groups * GROUP);
    for (size_t g = 0, at = t * x->groups; g < x->groups; g++, at += (size_t)T, q += 8 * T) {
        size_t left = x->cols - g * GROUP;
        int32x4x4_t low, high;
        for (int i = 0; i < T; i++) {
            const float *from = rows + (size_t)i * stride + g * GROUP;
            float room[GROUP] = {0};
            if (left < GROUP) from = memcpy(room, from, left * sizeof *room);
            quantise_group(x, at + (size_t)i, from, &low.val[i], &high.val[i]);
        }
        if (T == 1) {
            vst1q_s32(q, low.val[0]);
            vst1q_s32(q + 4, high.val[0]);
        } else { /* token by token within each four columns */
            vst4q_s32(q, low);
            vst4q_s32(q + 16, high);
        }
    }
}

void arm_quantise(const activations *x, size_t t, size_t T, const float *rows, size_t stride) {
    if (T == 1)
        quantise_tile(x, t, 1, rows, stride);
    else
        quantise_tile(x, t, 4, rows, stride);
}

float arm_dot(const float *a, const float *b, size_t n) {
    float32x4_t sums[4];
    size_t i = 0;
    UNROLL for (int k = 0; k < 4; k++) sums[k] = vdupq_n_f32(0);
    for (; i + 16 <= n; i += 16)
        UNROLL for (int k = 0; k < 4; k++) sums[k] =
            vfmaq_f32(sums[k], vld1q_f32(a + i + 4 * (size_t)k), vld1q_f32(b + i + 4 * (size_t)k));
    for (; i + 4 <= n; i += 4) sums[0] = vfmaq_f32(sums[0], vld1q_f32(a + i), vld1q_f32(b + i));
    float rest = 0;
    for (; i < n; i++) rest += a[i] * b[i];
    return vaddvq_f32(vaddq_f32(vaddq_f32(sums[0], sums[1]), vaddq_f32(sums[2], sums[3]))) + rest;
}

void arm_add_scaled(float *y, const float *x, float a, size_t n) {
    size_t i = 0;
    for (; i + 4 <= n; i += 4) vst1q_f32(y + i, vfmaq_n_f32(vld1q_f32(y + i), vld1q_f32(x + i), a));
    for (; i < n; i++) y[i] = fmaf(x[i], a, y[i]);
}

void arm_rms_norm(float *y, const float *x, const float *gain, size_t n, float eps) {
    float scale = 1.0f / sqrtf(arm_dot(x, x, n) / (float)n + eps);
    size_t i = 0;
    for (; i + 4 <= n; i += 4)
        vst1q_f32(y + i, vmulq_f32(vmulq_n_f32(vld1q_f32(x + i), scale), vld1q_f32(gain + i)));
    for (; i < n; i++) y[i] = x[i] * scale * gain[i];
}

/* e^x = 2^n e^r with |r| <= ln(2) / 2, by Taylor's series to r^7: 2e-7 relative. Too big gives infinity, too
 * small zero. */
INLINE float32x4_t exponential(float32x4_t x) {
    float32x4_t within = vmaxnmq_f32(vminnmq_f32(x, vdupq_n_f32(88.0f)), vdupq_n_f32(-87.0f));
    float32x4_t n = vrndnq_f32(vmulq_n_f32(within, 1.44269504f));
    float32x4_t r = vfmsq_n_f32(within, n, 0.693145752f); /* ln 2 in two parts */
    r = vfmsq_n_f32(r, n, 1.42860677e-6f);
    float32x4_t p = vdupq_n_f32(1.0f / 5040);
    p = vfmaq_f32(vdupq_n_f32(1.0f / 720), p, r);
    p = vfmaq_f32(vdupq_n_f32(1.0f / 120), p, r);
    p = vfmaq_f32(vdupq_n_f32(1.0f / 24), p, r);
    p = vfmaq_f32(vdupq_n_f32(1.0f / 6), p, r);
    p = vfmaq_f32(vdupq_n_f32(0.5f), p, r);
    p = vfmaq_f32(vdupq_n_f32(1.0f), p, r);
    p = vfmaq_f32(vdupq_n_f32(1.0f), p, r);
    /* n + 127 is 1 .. 254: a factor that is a normal number */
    int32x4_t power = vshlq_n_s32(vaddq_s32(vcvtq_s32_f32(n), vdupq_n_s32(127)), 23);
    p = vmulq_f32(p, vreinterpretq_f32_s32(power));
    p = vbslq_f32(vcgtq_f32(x, vdupq_n_f32(88.0f)), vdupq_n_f32(INFINITY), p);
    return vbslq_f32(vcltq_f32(x, vdupq_n_f32(-87.0f)), vdupq_n_f32(0), p);
}

INLINE float32x4_t silu_times(float32x4_t gate, float32x4_t up) {
    float32x4_t below = vaddq_f32(vdupq_n_f32(1.0f), exponential(vnegq_f32(gate)));
    return vmulq_f32(vdivq_f32(gate, below), up);
}

void arm_swiglu(float *gate, const float *up, size_t n) {
    size_t i = 0;
    for (; i + 4 <= n; i += 4) vst1q_f32(gate + i, silu_times(vld1q_f32(gate + i), vld1q_f32(up + i)));
    if (i == n) return;
    float a[4] = {0}, b[4] = {0};
    memcpy(a, gate + i, (n - i) * sizeof *a);
    memcpy(b, up + i, (n - i) * sizeof *b);
    vst1q_f32(a, silu_times(vld1q_f32(a), vld1q_f32(b)));
    memcpy(gate + i, a, (n - i) * sizeof *a);
}

void arm_to_halves(uint16_t *out, const float *x, size_t n) {
    size_t i = 0;
    for (; i + 4 <= n; i += 4) vst1_u16(out + i, vreinterpret_u16_f16(vcvt_f16_f32(vld1q_f32(x + i))));
    for (; i < n; i++) out[i] = half_from_float(x[i]);
}

/* ---- attention: Q queries at a time
 * --------------------------------------------------------------------------
 */

INLINE void load_sixteen(float32x4_t *out, const void *numbers, size_t i, const bool halves) {
    if (halves) {
        const uint16_t *from = (const uint16_t *)numbers + i;
        float16x8_t low = vreinterpretq_f16_u16(vld1q_u16(from)),
                    high = vreinterpretq_f16_u16(vld1q_u16(from + 8));
        out[0] = vcvt_f32_f16(vget_low_f16(low));
        out[1] = vcvt_high_f32_f16(low);
        out[2] = vcvt_f32_f16(vget_low_f16(high));
        out[3] = vcvt_high_f32_f16(high);
    } else {
        UNROLL for (int v = 0; v < 4; v++) out[v] = vld1q_f32((const float *)numbers + i + 4 * v);
    }
}

/* scores[i][p] of `blocks` blocks of 16 positions */
INLINE void score(const attention *a, size_t first, const int Q, size_t blocks, const bool halves) {
    for (size_t b = 0; b < blocks; b++) {
        float32x4_t sums[6][4];
        const float *q = a->q + first;
        size_t at = b * a->width * KEY_BLOCK;
        UNROLL for (int i = 0; i < Q; i++) UNROLL for (int v = 0; v < 4; v++) sums[i][v] = vdupq_n_f32(0);
        for (size_t d = 0; d < a->width; d++, q += a->n, at += KEY_BLOCK) {
            float32x4_t key[4];
            load_sixteen(key, a->keys, at, halves);
            UNROLL for (int i = 0; i < Q; i++) UNROLL for (int v = 0; v < 4; v++) sums[i][v] =
                vfmaq_n_f32(sums[i][v], key[v], q[i]);
        }
        UNROLL for (int i = 0; i < Q; i++) UNROLL for (int v = 0; v < 4; v++)
            vst1q_f32(a->scores + (first + (size_t)i) * CHUNK + b * KEY_BLOCK + 4 * (size_t)v, sums[i][v]);
    }
}

/* Scores become weights exp(score - top), 0 for what query i must not see. */
INLINE void weigh(const attention *a, size_t i, size_t blocks) {
    float *scores = a->scores + i * CHUNK, top = -INFINITY;
    size_t n = a->visible[i], all = blocks * KEY_BLOCK;
    for (size_t p = n; p < all; p++) scores[p] = -INFINITY;
    float32x4_t most = vdupq_n_f32(-INFINITY), sum = vdupq_n_f32(0);
    for (size_t p = 0; p < all; p += 4) most = vmaxnmq_f32(most, vld1q_f32(scores + p));
    a->top[i] = top = vmaxnmvq_f32(most);
    for (size_t p = 0; p < all && n; p += 4) {
        float32x4_t e = exponential(vsubq_f32(vld1q_f32(scores + p), vdupq_n_f32(top)));
        vst1q_f32(scores + p, e);
        sum = vaddq_f32(sum, e);
    }
    if (!n) memset(scores, 0, all * sizeof *scores);
    a->sum[i] = vaddvq_f32(sum);
}

/* 16 places of a head at once */
INLINE void mix_values(const attention *a, size_t first, const int Q, size_t n, size_t d, const bool halves) {
    float32x4_t sums[6][4];
    const float *weights = a->scores + first * CHUNK;
    size_t at = d;
    UNROLL for (int i = 0; i < Q; i++) UNROLL for (int v = 0; v < 4; v++) sums[i][v] = vdupq_n_f32(0);
    for (size_t p = 0; p < n; p++, weights++, at += a->width) {
        float32x4_t value[4];
        load_sixteen(value, a->values, at, halves);
        UNROLL for (int i = 0; i < Q; i++) UNROLL for (int v = 0; v < 4; v++) sums[i][v] =
            vfmaq_n_f32(sums[i][v], value[v], weights[i * CHUNK]);
    }
    UNROLL for (int i = 0; i < Q; i++) UNROLL for (int v = 0; v < 4; v++)
        vst1q_f32(a->out + (first + (size_t)i) * a->width + d + 4 * (size_t)v, sums[i][v]);
}

INLINE void attend_some(const attention *a, size_t first, const int Q, const bool halves) {
    size_t most = 0;
    for (size_t i = first; i < first + (size_t)Q; i++) most = a->visible[i] > most ? a->visible[i] : most;
    size_t blocks = (most + KEY_BLOCK - 1) / KEY_BLOCK;
    score(a, first, Q, blocks, halves);
    for (size_t i = first; i < first + (size_t)Q; i++) weigh(a, i, blocks);
    for (size_t d = 0; d < a->width; d += 16) mix_values(a, first, Q, most, d, halves);
}

/* ---- attention of twelve queries, a whole tile: they lie across three registers, and keys, values and
 * weights are taken number by number. Sums have the same order as above. Scores are [CHUNK][12].
 * --------------------------------------------------------------------------
 */

enum { TWELVE = 12 };
_Static_assert(MAX_QUERIES == 12, "a whole tile");

INLINE void load_eight(float32x4_t *out, const void *numbers, size_t i, const bool halves) {
    if (halves) {
        float16x8_t both = vreinterpretq_f16_u16(vld1q_u16((const uint16_t *)numbers + i));
        out[0] = vcvt_f32_f16(vget_low_f16(both));
        out[1] = vcvt_high_f32_f16(both);
    } else {
        UNROLL for (int v = 0; v < 2; v++) out[v] = vld1q_f32((const float *)numbers + i + 4 * v);
    }
}

/* Scores of 8 positions at a time. */
INLINE void score_twelve(const attention *a, size_t positions, const bool halves) {
    for (size_t p = 0; p < positions; p += 8) {
        float32x4_t sums[8][3];
        const float *q = a->q;
        size_t at = p / KEY_BLOCK * KEY_BLOCK * a->width + p % KEY_BLOCK;
        UNROLL for (int i = 0; i < 8; i++) UNROLL for (int k = 0; k < 3; k++) sums[i][k] = vdupq_n_f32(0);
        for (const float *end = q + a->width * TWELVE; q < end; q += TWELVE, at += KEY_BLOCK) {
            float32x4_t key[2], query[3];
            load_eight(key, a->keys, at, halves);
            UNROLL for (int k = 0; k < 3; k++) query[k] = vld1q_f32(q + 4 * k);
            UNROLL for (int i = 0; i < 8; i++) UNROLL for (int k = 0; k < 3; k++) sums[i][k] =
                vfmaq_n_f32(sums[i][k], query[k], key[i / 4][i % 4]);
        }
        UNROLL for (int i = 0; i < 8; i++) UNROLL for (int k = 0; k < 3; k++)
            vst1q_f32(a->scores + (p + (size_t)i) * TWELVE + 4 * k, sums[i][k]);
    }
}

/* weigh() for queries 4k .. 4k + 3 */
INLINE void weigh_four(const attention *a, size_t k, size_t positions) {
    float *scores = a->scores + 4 * k;
    uint32x4_t seen = vld1q_u32(a->visible + 4 * k);
    float32x4_t top = vdupq_n_f32(-INFINITY), sums[4];
    for (size_t p = 0; p < positions; p++) {
        uint32x4_t sees = vcgtq_u32(seen, vdupq_n_u32((uint32_t)p));
        top = vmaxnmq_f32(top, vbslq_f32(sees, vld1q_f32(scores + p * TWELVE), vdupq_n_f32(-INFINITY)));
    }
    UNROLL for (int i = 0; i < 4; i++) sums[i] = vdupq_n_f32(0);
    for (size_t p = 0; p < positions; p += 4) UNROLL for (size_t i = 0; i < 4; i++) {
            float *at = scores + (p + i) * TWELVE;
            uint32x4_t sees = vcgtq_u32(seen, vdupq_n_u32((uint32_t)(p + i)));
            float32x4_t e = exponential(vsubq_f32(vld1q_f32(at), top));
            e = vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_f32(e), sees));
            vst1q_f32(at, e);
            sums[i] = vaddq_f32(sums[i], e);
        }
    vst1q_f32(a->top + 4 * k, top);
    vst1q_f32(a->sum + 4 * k, vaddq_f32(vaddq_f32(sums[0], sums[1]), vaddq_f32(sums[2], sums[3])));
}

/* 8 places of a head at once */
INLINE void mix_twelve(const attention *a, size_t n, size_t d, const bool halves) {
    float32x4_t sums[TWELVE][2];
    const float *weights = a->scores;
    size_t at = d;
    UNROLL for (int i = 0; i < TWELVE; i++) UNROLL for (int v = 0; v < 2; v++) sums[i][v] = vdupq_n_f32(0);
    for (const float *end = weights + n * TWELVE; weights < end; weights += TWELVE, at += a->width) {
        float32x4_t value[2], weight[3];
        load_eight(value, a->values, at, halves);
        UNROLL for (int k = 0; k < 3; k++) weight[k] = vld1q_f32(weights + 4 * k);
        UNROLL for (int i = 0; i < TWELVE; i++) UNROLL for (int v = 0; v < 2; v++) sums[i][v] =
            vfmaq_n_f32(sums[i][v], value[v], weight[i / 4][i % 4]);
    }
    UNROLL for (int i = 0; i < TWELVE; i++) UNROLL for (int v = 0; v < 2; v++)
        vst1q_f32(a->out + (size_t)i * a->width + d + 4 * (size_t)v, sums[i][v]);
}

INLINE void attend_twelve(const attention *a, const bool halves) {
    size_t most = 0;
    for (size_t i = 0; i < TWELVE; i++) most = a->visible[i] > most ? a->visible[i] : most;
    size_t positions = (most + 7) / 8 * 8;
    score_twelve(a, positions, halves);
    for (size_t k = 0; k < 3; k++) weigh_four(a, k, positions);
    for (size_t d = 0; d < a->width; d += 8) mix_twelve(a, most, d, halves);
}

INLINE void attend_all(const attention *a, const bool halves) {
    if (a->n == TWELVE) {
        attend_twelve(a, halves);
        return;
    }
    for (size_t first = 0; first < a->n;) {
        if (a->n - first >= 6)
            attend_some(a, first, 6, halves), first += 6;
        else if (a->n - first >= 3)
            attend_some(a, first, 3, halves), first += 3;
        else
            attend_some(a, first, 1, halves), first += 1;
    }
}

void arm_attend(const attention *a) {
    if (a->halves)
        attend_all(a, true);
    else
        attend_all(a, false);
}
