/* kernels_avx512.c: x86-64 with AVX-512 and VNNI (Ice Lake, Zen 4 and later). 16 rows are interleaved, so
 * that a register holds four columns of each; VPDPBUSD multiplies unsigned weights with signed activations,
 * and what the weights have too much (128 of I8, 8 of I4) is taken off by starting at -128 sum(q). Halves of
 * I4 count 16 fold, which saves a shift. */
#include "half.h"
#include "kernels.h"

#include <immintrin.h>
#include <math.h>

#define INLINE static inline __attribute__((always_inline))
#define EACH_TOKEN _Pragma("GCC unroll 12") for (int i = 0; i < T; i++)

enum { LANES = 16, AHEAD = 4096 }; /* bytes between what is read and what is fetched */

static const uint8_t tiles[] = {12, 8, 4, 2, 1};

static bool usable(void) {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("f16c") &&
           __builtin_cpu_supports("fma");
}

/* ---- matrices: one block of 16 rows times a tile of T tokens
 * -------------------------------------------------
 */

INLINE __m512i spread(const int8_t *q) { /* four bytes, 16 times */
    int32_t four;
    memcpy(&four, q, sizeof four);
    return _mm512_set1_epi32(four);
}

INLINE __m512 load_halves(const void *from) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(from));
}

INLINE void fetch(const uint8_t *from, size_t bytes) {
    for (size_t i = 0; i < bytes; i += 64) _mm_prefetch((const char *)from + AHEAD + i, _MM_HINT_T0);
}

INLINE void multiply_i4(const packed *w, const uint8_t *block, const activations *x, size_t t, const int T,
                        const bool offset, __m512 *f) {
    const size_t bytes = pack_group_bytes(offset ? PACK_I4_OFFSET : PACK_I4, LANES);
    const int8_t *q = x->q + t * x->groups * GROUP;
    const float *scale = x->scale + t * x->groups, *sum = x->sum + t * x->groups;
    const int32_t *bias = x->bias + t * x->groups;
    const __m512i low = _mm512_set1_epi8(15), high = _mm512_set1_epi8((char)0xF0);
    EACH_TOKEN f[i] = _mm512_setzero_ps();
    for (size_t g = 0; g < w->groups; g++, block += bytes, q += GROUP * T, scale += T, sum += T, bias += T) {
        __m512i a[12];
        if (T == 1) fetch(block, bytes);
        EACH_TOKEN a[i] = offset ? _mm512_setzero_si512() : _mm512_set1_epi32(bias[i]);
        if (T <= 2) { /* low halves apart: a shift for all of them at the end */
            __m512i l[2] = {_mm512_setzero_si512(), _mm512_setzero_si512()};
#pragma GCC unroll 4
            for (int j = 0; j < 4; j++) {
                __m512i both = _mm512_loadu_si512(block + 64 * j);
                EACH_TOKEN {
                    l[i] =
                        _mm512_dpbusd_epi32(l[i], _mm512_and_si512(both, low), spread(q + (j * T + i) * 4));
                    a[i] = _mm512_dpbusd_epi32(a[i], _mm512_and_si512(both, high),
                                               spread(q + ((j + 4) * T + i) * 4));
                }
            }
            EACH_TOKEN a[i] = _mm512_add_epi32(a[i], _mm512_slli_epi32(l[i], 4));
        } else {
#pragma GCC unroll 4
            for (int j = 0; j < 4; j++) {
                __m512i both = _mm512_loadu_si512(block + 64 * j), h = _mm512_and_si512(both, high),
                        l = _mm512_and_si512(_mm512_slli_epi16(both, 4), high);
                EACH_TOKEN a[i] = _mm512_dpbusd_epi32(a[i], l, spread(q + (j * T + i) * 4));
                EACH_TOKEN a[i] = _mm512_dpbusd_epi32(a[i], h, spread(q + ((j + 4) * T + i) * 4));
            }
        }
        __m512 own = _mm512_mul_ps(load_halves(block + 16 * LANES), _mm512_set1_ps(0.0625f));
        EACH_TOKEN f[i] =
            _mm512_fmadd_ps(_mm512_cvtepi32_ps(a[i]), _mm512_mul_ps(own, _mm512_set1_ps(scale[i])), f[i]);
        if (offset) {
            __m512 o = load_halves(block + 18 * LANES);
            EACH_TOKEN f[i] = _mm512_fmadd_ps(o, _mm512_set1_ps(sum[i]), f[i]);
        }
    }
}

INLINE void multiply_i8(const packed *w, const uint8_t *block, const activations *x, size_t t, const int T,
                        __m512 *f) {
    const size_t bytes = pack_group_bytes(PACK_I8, LANES);
    const int8_t *q = x->q + t * x->groups * GROUP;
    const float *scale = x->scale + t * x->groups;
    const int32_t *bias = x->bias + t * x->groups;
    EACH_TOKEN f[i] = _mm512_setzero_ps();
    for (size_t g = 0; g < w->groups; g++, block += bytes, q += GROUP * T, scale += T, bias += T) {
        __m512i a[12], b[2] = {_mm512_setzero_si512(), _mm512_setzero_si512()};
        if (T == 1) fetch(block, bytes);
        EACH_TOKEN a[i] = _mm512_set1_epi32(bias[i]);
#pragma GCC unroll 8
        for (int j = 0; j < 8; j++) {
            __m512i four = _mm512_loadu_si512(block + 64 * j);
            EACH_TOKEN {
                __m512i *sum = T <= 2 && j % 2 ? &b[i] : &a[i];
                *sum = _mm512_dpbusd_epi32(*sum, four, spread(q + (j * T + i) * 4));
            }
        }
        if (T <= 2) EACH_TOKEN a[i] = _mm512_add_epi32(a[i], b[i]);
        __m512 own = load_halves(block + GROUP * LANES);
        EACH_TOKEN f[i] =
            _mm512_fmadd_ps(_mm512_cvtepi32_ps(a[i]), _mm512_mul_ps(own, _mm512_set1_ps(scale[i])), f[i]);
    }
}

INLINE __m512 load_weights(const uint8_t *block, size_t column, const pack_kind kind) {
    if (kind == PACK_F32) return _mm512_loadu_ps(block + column * LANES * 4);
    if (kind == PACK_F16) return load_halves(block + column * LANES * 2);
    __m256i half = _mm256_loadu_si256((const void *)(block + column * LANES * 2));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}

/* Even and odd columns have sums of their own. */
INLINE void multiply_floats(const packed *w, const uint8_t *block, const activations *x, size_t t,
                            const int T, const pack_kind kind, __m512 *f) {
    const float *from = x->f32 + t * w->cols;
    __m512 odd[12];
    size_t c = 0, bytes = kind == PACK_F32 ? 4 * LANES : 2 * LANES;
    EACH_TOKEN f[i] = odd[i] = _mm512_setzero_ps();
    for (; c + 2 <= w->cols; c += 2, from += 2 * T) {
        if (T == 1) fetch(block + c * bytes, 2 * bytes);
        __m512 a = load_weights(block, c, kind), b = load_weights(block, c + 1, kind);
        EACH_TOKEN f[i] = _mm512_fmadd_ps(a, _mm512_set1_ps(from[i]), f[i]);
        EACH_TOKEN odd[i] = _mm512_fmadd_ps(b, _mm512_set1_ps(from[T + i]), odd[i]);
    }
    if (c < w->cols) {
        __m512 a = load_weights(block, c, kind);
        EACH_TOKEN f[i] = _mm512_fmadd_ps(a, _mm512_set1_ps(from[i]), f[i]);
    }
    EACH_TOKEN f[i] = _mm512_add_ps(f[i], odd[i]);
}

INLINE void multiply(const packed *w, size_t b, const activations *x, size_t t, const int T,
                     const pack_kind kind, float *y, size_t y_stride) {
    const uint8_t *block = w->data + b * w->stride;
    __m512 f[12];
    if (kind == PACK_I8)
        multiply_i8(w, block, x, t, T, f);
    else if (kind == PACK_I4 || kind == PACK_I4_OFFSET)
        multiply_i4(w, block, x, t, T, kind == PACK_I4_OFFSET, f);
    else
        multiply_floats(w, block, x, t, T, kind, f);
    size_t row = b * LANES, rows = w->rows - row;
    __mmask16 there = (__mmask16)(rows < LANES ? (1u << rows) - 1 : 0xFFFF);
    EACH_TOKEN _mm512_mask_storeu_ps(y + (t + (size_t)i) * y_stride + row, there, f[i]);
}

#define MATMUL(name, kind)                                                                                   \
    static void name(const packed *w, const activations *x, size_t begin, size_t end, float *y,              \
                     size_t y_stride) {                                                                      \
        for (size_t b = begin; b < end; b++)                                                                 \
            for (size_t t = 0; t < x->n;) {                                                                  \
                size_t left = x->n - t;                                                                      \
                if (left >= 12)                                                                              \
                    multiply(w, b, x, t, 12, kind, y, y_stride), t += 12;                                    \
                else if (left >= 8)                                                                          \
                    multiply(w, b, x, t, 8, kind, y, y_stride), t += 8;                                      \
                else if (left >= 4)                                                                          \
                    multiply(w, b, x, t, 4, kind, y, y_stride), t += 4;                                      \
                else if (left >= 2)                                                                          \
                    multiply(w, b, x, t, 2, kind, y, y_stride), t += 2;                                      \
                else                                                                                         \
                    multiply(w, b, x, t, 1, kind, y, y_stride), t += 1;                                      \
            }                                                                                                \
    }
MATMUL(matmul_f32, PACK_F32)
MATMUL(matmul_f16, PACK_F16)
MATMUL(matmul_bf16, PACK_BF16)
MATMUL(matmul_i8, PACK_I8)
MATMUL(matmul_i4, PACK_I4)
MATMUL(matmul_i4_offset, PACK_I4_OFFSET)

/* ---- vectors
 * -----------------------------------------------------------------------------------------------
 */

INLINE __mmask16 mask_of(size_t left) {
    return (__mmask16)(left >= LANES ? 0xFFFF : (1u << left) - 1);
}

static void quantise(const activations *x, size_t t, size_t T, const float *rows, size_t stride) {
    for (size_t i = 0; i < T; i++, rows += stride)
        for (size_t g = 0; g < x->groups; g++) {
            size_t c = g * GROUP, left = x->cols - c, at = t * x->groups + g * T + i;
            __m512 a = _mm512_maskz_loadu_ps(mask_of(left), rows + c),
                   b = _mm512_maskz_loadu_ps(left > LANES ? mask_of(left - LANES) : 0, rows + c + LANES);
            float top = _mm512_reduce_max_ps(_mm512_max_ps(_mm512_abs_ps(a), _mm512_abs_ps(b)));
            __m512 inverse = _mm512_set1_ps(bytes_per_unit(top));
            __m512i p = _mm512_cvtps_epi32(_mm512_mul_ps(a, inverse)),
                    r = _mm512_cvtps_epi32(_mm512_mul_ps(b, inverse));
            /* what is no number became INT_MIN: kept to a byte, as the stored ones are */
            p = _mm512_srai_epi32(_mm512_slli_epi32(p, 24), 24);
            r = _mm512_srai_epi32(_mm512_slli_epi32(r, 24), 24);
            int8_t bytes[GROUP];
            _mm_storeu_si128((void *)bytes, _mm512_cvtepi32_epi8(p));
            _mm_storeu_si128((void *)(bytes + LANES), _mm512_cvtepi32_epi8(r));
            int32_t total = _mm512_reduce_add_epi32(_mm512_add_epi32(p, r));
            int8_t *q = x->q + (t * x->groups + g * T) * GROUP;
            if (T == 1)
                memcpy(q, bytes, GROUP);
            else
                for (size_t j = 0; j < 8; j++) memcpy(q + (j * T + i) * 4, bytes + 4 * j, 4);
            x->scale[at] = rounded_to_half(top / 127.0f);
            x->bias[at] = -128 * total;
            x->sum[at] = rounded_to_half(top / 127.0f * (float)total);
        }
}

static float dot(const float *a, const float *b, size_t n) {
    __m512 sums[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
    size_t i = 0;
    for (; i + 2 * LANES <= n; i += 2 * LANES) {
        sums[0] = _mm512_fmadd_ps(_mm512_loadu_ps(a + i), _mm512_loadu_ps(b + i), sums[0]);
        sums[1] = _mm512_fmadd_ps(_mm512_loadu_ps(a + i + LANES), _mm512_loadu_ps(b + i + LANES), sums[1]);
    }
    for (; i < n; i += LANES) {
        __mmask16 there = mask_of(n - i);
        sums[0] = _mm512_fmadd_ps(_mm512_maskz_loadu_ps(there, a + i), _mm512_maskz_loadu_ps(there, b + i),
                                  sums[0]);
    }
    return _mm512_reduce_add_ps(_mm512_add_ps(sums[0], sums[1]));
}

static void add_scaled(float *y, const float *x, float a, size_t n) {
    __m512 factor = _mm512_set1_ps(a);
    size_t i = 0;
    /* whole registers without a mask: what a masked store has written is slow to be read again */
    for (; i + LANES <= n; i += LANES)
        _mm512_storeu_ps(y + i, _mm512_fmadd_ps(factor, _mm512_loadu_ps(x + i), _mm512_loadu_ps(y + i)));
    if (i < n) {
        __mmask16 there = mask_of(n - i);
        __m512 sum =
            _mm512_fmadd_ps(factor, _mm512_maskz_loadu_ps(there, x + i), _mm512_maskz_loadu_ps(there, y + i));
        _mm512_mask_storeu_ps(y + i, there, sum);
    }
}

static void rms_norm(float *y, const float *x, const float *gain, size_t n, float eps) {
    __m512 scale = _mm512_set1_ps(1.0f / sqrtf(dot(x, x, n) / (float)n + eps));
    for (size_t i = 0; i < n; i += LANES) {
        __mmask16 there = mask_of(n - i);
        __m512 value = _mm512_mul_ps(_mm512_maskz_loadu_ps(there, x + i), scale);
        _mm512_mask_storeu_ps(y + i, there, _mm512_mul_ps(value, _mm512_maskz_loadu_ps(there, gain + i)));
    }
}

/* e^x = 2^n e^r with |r| <= ln(2) / 2, by Taylor's series to r^7: 2e-7 relative. Too big gives infinity. */
INLINE __m512 exponential(__m512 x) {
    x = _mm512_max_ps(_mm512_min_ps(x, _mm512_set1_ps(90.0f)), _mm512_set1_ps(-110.0f));
    __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), _MM_FROUND_TO_NEAREST_INT);
    __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693145752f), x); /* ln 2 in two parts */
    r = _mm512_fnmadd_ps(n, _mm512_set1_ps(1.42860677e-6f), r);
    __m512 p = _mm512_set1_ps(1.0f / 5040);
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 720));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 120));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 24));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 6));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.5f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
    return _mm512_scalef_ps(p, n);
}

static void swiglu(float *gate, const float *up, size_t n) {
    const __m512 one = _mm512_set1_ps(1.0f);
    for (size_t i = 0; i < n; i += LANES) {
        __mmask16 there = mask_of(n - i);
        __m512 x = _mm512_maskz_loadu_ps(there, gate + i);
        __m512 below = _mm512_add_ps(one, exponential(_mm512_sub_ps(_mm512_setzero_ps(), x)));
        _mm512_mask_storeu_ps(gate + i, there,
                              _mm512_mul_ps(_mm512_div_ps(x, below), _mm512_maskz_loadu_ps(there, up + i)));
    }
}

static void to_halves(uint16_t *out, const float *x, size_t n) {
    for (size_t i = 0; i < n; i += LANES) {
        __mmask16 there = mask_of(n - i);
        __m256i half = _mm512_cvtps_ph(_mm512_maskz_loadu_ps(there, x + i), _MM_FROUND_TO_NEAREST_INT);
        _mm256_mask_storeu_epi16(out + i, there, half);
    }
}

/* ---- attention: Q queries at a time
 * --------------------------------------------------------------------------
 */

INLINE __m512 load_cached(const void *numbers, size_t i, const bool halves) {
    return halves ? load_halves((const uint16_t *)numbers + i) : _mm512_loadu_ps((const float *)numbers + i);
}

#define EACH_QUERY _Pragma("GCC unroll 6") for (int i = 0; i < Q; i++)

/* scores[i][p] of `blocks` blocks of 16 positions; even and odd places of a head have sums of their own */
INLINE void score(const attention *a, size_t first, const int Q, size_t blocks, const bool halves) {
    for (size_t b = 0; b < blocks; b++) {
        __m512 even[6], odd[6];
        const float *q = a->q + first;
        EACH_QUERY even[i] = odd[i] = _mm512_setzero_ps();
        for (size_t d = 0; d < a->width; d += 2, q += 2 * a->n) {
            size_t at = (b * a->width + d) * KEY_BLOCK;
            __m512 k0 = load_cached(a->keys, at, halves), k1 = load_cached(a->keys, at + KEY_BLOCK, halves);
            EACH_QUERY even[i] = _mm512_fmadd_ps(k0, _mm512_set1_ps(q[i]), even[i]);
            EACH_QUERY odd[i] = _mm512_fmadd_ps(k1, _mm512_set1_ps(q[a->n + (size_t)i]), odd[i]);
        }
        EACH_QUERY _mm512_storeu_ps(a->scores + (first + (size_t)i) * CHUNK + b * KEY_BLOCK,
                                    _mm512_add_ps(even[i], odd[i]));
    }
}

/* Scores become weights exp(score - top), 0 for what query i must not see. */
INLINE void weigh(const attention *a, size_t i, size_t blocks) {
    float *scores = a->scores + i * CHUNK;
    __m512 top = _mm512_set1_ps(-INFINITY), sum = _mm512_setzero_ps();
    size_t n = a->visible[i];
    for (size_t p = 0; p < n; p += LANES)
        top = _mm512_mask_max_ps(top, mask_of(n - p), top, _mm512_loadu_ps(scores + p));
    a->top[i] = _mm512_reduce_max_ps(top);
    top = _mm512_set1_ps(a->top[i]);
    for (size_t p = 0; p < blocks * KEY_BLOCK; p += LANES) {
        __mmask16 there = p < n ? mask_of(n - p) : 0;
        __m512 e = _mm512_maskz_mov_ps(there, exponential(_mm512_sub_ps(_mm512_loadu_ps(scores + p), top)));
        _mm512_storeu_ps(scores + p, e);
        sum = _mm512_add_ps(sum, e);
    }
    a->sum[i] = _mm512_reduce_add_ps(sum);
}

/* 64 or 16 places of a head at once: V registers */
INLINE void mix_values(const attention *a, size_t first, const int Q, size_t n, size_t d, const int V,
                       const bool halves) {
    __m512 sums[6][4];
    EACH_QUERY
#pragma GCC unroll 4
    for (int v = 0; v < V; v++) sums[i][v] = _mm512_setzero_ps();
    const float *weights = a->scores + first * CHUNK;
    for (size_t p = 0; p < n; p++) {
        __m512 value[4];
#pragma GCC unroll 4
        for (int v = 0; v < V; v++)
            value[v] = load_cached(a->values, p * a->width + d + (size_t)v * LANES, halves);
        EACH_QUERY {
            __m512 weight = _mm512_set1_ps(weights[i * CHUNK + (int)p]);
#pragma GCC unroll 4
            for (int v = 0; v < V; v++) sums[i][v] = _mm512_fmadd_ps(weight, value[v], sums[i][v]);
        }
    }
    EACH_QUERY
#pragma GCC unroll 4
    for (int v = 0; v < V; v++)
        _mm512_storeu_ps(a->out + (first + (size_t)i) * a->width + d + (size_t)v * LANES, sums[i][v]);
}

INLINE void attend_some(const attention *a, size_t first, const int Q, const bool halves) {
    size_t most = 0, d = 0;
    EACH_QUERY most = a->visible[first + (size_t)i] > most ? a->visible[first + (size_t)i] : most;
    size_t blocks = (most + KEY_BLOCK - 1) / KEY_BLOCK;
    score(a, first, Q, blocks, halves);
    for (int i = 0; i < Q; i++) weigh(a, first + (size_t)i, blocks);
    for (; d + 4 * LANES <= a->width; d += 4 * LANES) mix_values(a, first, Q, most, d, 4, halves);
    for (; d < a->width; d += LANES) mix_values(a, first, Q, most, d, 1, halves);
}

INLINE void attend_all(const attention *a, const bool halves) {
    for (size_t first = 0; first < a->n;) {
        size_t left = a->n - first;
        if (left >= 6)
            attend_some(a, first, 6, halves), first += 6;
        else if (left >= 3)
            attend_some(a, first, 3, halves), first += 3;
        else
            attend_some(a, first, 1, halves), first += 1;
    }
}

static void attend(const attention *a) {
    if (a->halves)
        attend_all(a, true);
    else
        attend_all(a, false);
}

const kernels kernels_avx512 = {
    .name = "avx512",
    .usable = usable,
    .format = {.lanes = LANES, .flip = {[PACK_I8] = 0x80}},
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
