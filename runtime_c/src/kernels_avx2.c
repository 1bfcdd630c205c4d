/* kernels_avx2.c: x86-64 with AVX2, FMA and F16C (Haswell, Zen and later). 16 rows are interleaved: two
 * registers, each with four columns of 8 rows. VPMADDUBSW multiplies unsigned bytes with signed ones and adds
 * pairs, saturating at 16 bits, which is never reached:
 *
 *   I4   0 .. 15 times x: all 32 columns of a group stay within 8 * 2 * 15 * 127 = 30480
 *   I8   |w| times x with the sign of w: a pair stays within 2 * 128 * 127 = 32512
 *
 * Compiled once more with AVX-VNNI it is the table of Alder Lake and later: VPDPBUSD adds four products to 32
 * bits at once, and I8 is unsigned (w + 128). What unsigned weights have too much (8 of I4, 128 of I8) is
 * taken off by bias = -128 sum(q), for which I4 counts 16 fold. */
#include "half.h"
#include "kernels.h"

#include <immintrin.h>
#include <math.h>

#ifdef __AVXVNNI__
#define TABLE kernels_avxvnni
#define NAME "avxvnni"
enum { VNNI = 1, FLIP_I8 = 0x80 };
#else
#define TABLE kernels_avx2
#define NAME "avx2"
enum { VNNI = 0, FLIP_I8 = 0 };
#endif

#define INLINE static inline __attribute__((always_inline))
#define EACH_TOKEN _Pragma("GCC unroll 8") for (int i = 0; i < T; i++)
#define EACH_REGISTER _Pragma("GCC unroll 2") for (int r = 0; r < R; r++)

enum { LANES = 16, R = LANES / 8, MOST = 4 };
enum { AHEAD = 4096 }; /* bytes between what is read and what is fetched */

static const uint8_t tiles[] = {MOST, 2, 1};

static bool usable(void) {
#ifdef __AVXVNNI__
    if (!__builtin_cpu_supports("avxvnni")) return false;
#endif
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}

/* ---- matrices: one block of 16 rows times a tile of T tokens */

INLINE __m256i load(const uint8_t *block, int j, int r) { /* columns 4j .. 4j + 3 of rows 8r .. 8r + 7 */
    return _mm256_loadu_si256((const void *)(block + (j * R + r) * 32));
}

INLINE __m256i spread(const int8_t *q) { /* four bytes, 8 times */
    int32_t four;
    memcpy(&four, q, sizeof four);
    return _mm256_set1_epi32(four);
}

INLINE __m256 load_halves(const void *from) {
    return _mm256_cvtph_ps(_mm_loadu_si128(from));
}

INLINE void fetch(const uint8_t *from, size_t bytes) {
    for (size_t i = 0; i < bytes; i += 64) _mm_prefetch((const char *)from + AHEAD + i, _MM_HINT_T0);
}

/* sums += the products of four columns: in 32 bits, but for I4 without VNNI in 16 */
#ifdef __AVXVNNI__
INLINE __m256i add_i4(__m256i sums, __m256i weights, __m256i x) {
    return _mm256_dpbusd_avx_epi32(sums, weights, x);
}

INLINE __m256i add_i8(__m256i sums, __m256i weights, __m256i magnitudes, __m256i x) {
    (void)magnitudes;
    return _mm256_dpbusd_avx_epi32(sums, weights, x);
}
#else
/* Compilers make trees of sums, for which the registers are too few: this one stays as it is written, which
 * is a third of the speed. */
INLINE __m256i in_order(__m256i sums) {
    __asm__("" : "+x"(sums));
    return sums;
}

INLINE __m256i add_i4(__m256i sums, __m256i weights, __m256i x) {
    return in_order(_mm256_add_epi16(sums, _mm256_maddubs_epi16(weights, x)));
}

INLINE __m256i add_i8(__m256i sums, __m256i weights, __m256i magnitudes, __m256i x) {
    __m256i pairs = _mm256_maddubs_epi16(magnitudes, _mm256_sign_epi8(x, weights));
    return in_order(_mm256_add_epi32(sums, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1))));
}
#endif

INLINE void multiply_i4(const packed *w, const uint8_t *block, const activations *x, size_t t, const int T,
                        const bool offset, __m256 f[MOST][R]) {
    const size_t bytes = pack_group_bytes(offset ? PACK_I4_OFFSET : PACK_I4, LANES);
    const int8_t *q = x->q + t * x->groups * GROUP;
    const float *scale = x->scale + t * x->groups, *sum = x->sum + t * x->groups;
    const int32_t *bias = x->bias + t * x->groups;
    const __m256i low = _mm256_set1_epi8(15);
    EACH_TOKEN EACH_REGISTER f[i][r] = _mm256_setzero_ps();
    for (size_t g = 0; g < w->groups; g++, block += bytes, q += GROUP * T, scale += T, sum += T, bias += T) {
        __m256i a[MOST][R];
        if (T == 1) fetch(block, bytes);
        EACH_TOKEN EACH_REGISTER a[i][r] = _mm256_setzero_si256();
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++) {
            __m256i l[R], h[R];
            EACH_REGISTER {
                __m256i both = load(block, j, r);
                l[r] = _mm256_and_si256(both, low);
                h[r] = _mm256_and_si256(_mm256_srli_epi16(both, 4), low);
            }
            EACH_TOKEN {
                __m256i four = spread(q + (j * T + i) * 4);
                EACH_REGISTER a[i][r] = add_i4(a[i][r], l[r], four);
            }
            EACH_TOKEN {
                __m256i four = spread(q + ((j + 4) * T + i) * 4);
                EACH_REGISTER a[i][r] = add_i4(a[i][r], h[r], four);
            }
        }
        __m256 own[R], shift[R];
        EACH_REGISTER {
            own[r] = _mm256_mul_ps(load_halves(block + 16 * LANES + 16 * r), _mm256_set1_ps(0.0625f));
            if (offset) shift[r] = load_halves(block + 18 * LANES + 16 * r);
        }
        EACH_TOKEN EACH_REGISTER {
            __m256i total =
                VNNI ? _mm256_slli_epi32(a[i][r], 4) : _mm256_madd_epi16(a[i][r], _mm256_set1_epi16(16));
            if (!offset) total = _mm256_add_epi32(total, _mm256_set1_epi32(bias[i]));
            f[i][r] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(total),
                                      _mm256_mul_ps(own[r], _mm256_set1_ps(scale[i])), f[i][r]);
            if (offset) f[i][r] = _mm256_fmadd_ps(shift[r], _mm256_set1_ps(sum[i]), f[i][r]);
        }
    }
}

INLINE void multiply_i8(const packed *w, const uint8_t *block, const activations *x, size_t t, const int T,
                        __m256 f[MOST][R]) {
    const size_t bytes = pack_group_bytes(PACK_I8, LANES);
    const int8_t *q = x->q + t * x->groups * GROUP;
    const float *scale = x->scale + t * x->groups;
    const int32_t *bias = x->bias + t * x->groups;
    EACH_TOKEN EACH_REGISTER f[i][r] = _mm256_setzero_ps();
    for (size_t g = 0; g < w->groups; g++, block += bytes, q += GROUP * T, scale += T, bias += T) {
        __m256i a[MOST][R];
        if (T == 1) fetch(block, bytes);
        EACH_TOKEN EACH_REGISTER a[i][r] = _mm256_set1_epi32(VNNI ? bias[i] : 0);
#pragma GCC unroll 8
        for (int j = 0; j < 8; j++) {
            __m256i weights[R], magnitudes[R];
            EACH_REGISTER {
                weights[r] = load(block, j, r);
                magnitudes[r] = _mm256_abs_epi8(weights[r]);
            }
            EACH_TOKEN {
                __m256i four = spread(q + (j * T + i) * 4);
                EACH_REGISTER a[i][r] = add_i8(a[i][r], weights[r], magnitudes[r], four);
            }
        }
        EACH_REGISTER {
            __m256 own = load_halves(block + GROUP * LANES + 16 * r);
            EACH_TOKEN f[i][r] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(a[i][r]),
                                                 _mm256_mul_ps(own, _mm256_set1_ps(scale[i])), f[i][r]);
        }
    }
}

INLINE __m256 load_weights(const uint8_t *block, size_t column, int r, const pack_kind kind) {
    size_t at = column * LANES + (size_t)r * 8;
    if (kind == PACK_F32) return _mm256_loadu_ps((const float *)(const void *)block + at);
    if (kind == PACK_F16) return load_halves(block + 2 * at);
    __m128i half = _mm_loadu_si128((const void *)(block + 2 * at));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
}

/* Registers [first, last) of each token. Even and odd columns have sums of their own. */
INLINE void multiply_floats(const packed *w, const uint8_t *block, const activations *x, size_t t,
                            const int T, const pack_kind kind, const int first, const int last,
                            __m256 f[MOST][R]) {
#define EACH_OF_THEM _Pragma("GCC unroll 2") for (int r = first; r < last; r++)
    const float *from = x->f32 + t * w->cols;
    __m256 odd[MOST][R];
    size_t c = 0, bytes = LANES * (kind == PACK_F32 ? 4 : 2);
    EACH_TOKEN EACH_OF_THEM f[i][r] = odd[i][r] = _mm256_setzero_ps();
    for (; c + 2 <= w->cols; c += 2, from += 2 * T) {
        if (T == 1) fetch(block + c * bytes, 2 * bytes);
        EACH_OF_THEM {
            __m256 a = load_weights(block, c, r, kind), b = load_weights(block, c + 1, r, kind);
            EACH_TOKEN f[i][r] = _mm256_fmadd_ps(a, _mm256_set1_ps(from[i]), f[i][r]);
            EACH_TOKEN odd[i][r] = _mm256_fmadd_ps(b, _mm256_set1_ps(from[T + i]), odd[i][r]);
        }
    }
    EACH_OF_THEM {
        if (c < w->cols) {
            __m256 a = load_weights(block, c, r, kind);
            EACH_TOKEN f[i][r] = _mm256_fmadd_ps(a, _mm256_set1_ps(from[i]), f[i][r]);
        }
        EACH_TOKEN f[i][r] = _mm256_add_ps(f[i][r], odd[i][r]);
    }
}

INLINE __m256i mask_of(size_t left) { /* the first `left` of 8 */
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(left < 8 ? (int)left : 8),
                              _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

INLINE void multiply(const packed *w, size_t b, const activations *x, size_t t, const int T,
                     const pack_kind kind, float *y, size_t y_stride) {
    const uint8_t *block = w->data + b * w->stride;
    __m256 f[MOST][R];
    if (kind == PACK_I8) {
        multiply_i8(w, block, x, t, T, f);
    } else if (kind == PACK_I4 || kind == PACK_I4_OFFSET) {
        multiply_i4(w, block, x, t, T, kind == PACK_I4_OFFSET, f);
    } else if (T <= 2) {
        multiply_floats(w, block, x, t, T, kind, 0, R, f);
    } else { /* registers are too few for both halves of the rows */
        multiply_floats(w, block, x, t, T, kind, 0, 1, f);
        multiply_floats(w, block, x, t, T, kind, 1, 2, f);
    }
    size_t row = b * LANES, rows = w->rows - row;
    float *to = y + t * y_stride + row;
    if (rows >= LANES)
        EACH_TOKEN EACH_REGISTER _mm256_storeu_ps(to + (size_t)i * y_stride + 8 * r, f[i][r]);
    else
        EACH_TOKEN {
            _mm256_maskstore_ps(to + (size_t)i * y_stride, mask_of(rows), f[i][0]);
            if (rows > 8) _mm256_maskstore_ps(to + (size_t)i * y_stride + 8, mask_of(rows - 8), f[i][1]);
        }
}

#define MATMUL(name, kind)                                                                                   \
    static void name(const packed *w, const activations *x, size_t begin, size_t end, float *y,              \
                     size_t y_stride) {                                                                      \
        for (size_t b = begin; b < end; b++)                                                                 \
            for (size_t t = 0; t < x->n;) {                                                                  \
                size_t left = x->n - t;                                                                      \
                if (left >= MOST)                                                                            \
                    multiply(w, b, x, t, MOST, kind, y, y_stride), t += MOST;                                \
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

/* ---- vectors */

INLINE __m256 load_some(const float *from, size_t left) {
    return left >= 8 ? _mm256_loadu_ps(from) : _mm256_maskload_ps(from, mask_of(left));
}

INLINE void store_some(float *to, size_t left, __m256 values) {
    if (left >= 8)
        _mm256_storeu_ps(to, values);
    else
        _mm256_maskstore_ps(to, mask_of(left), values);
}

INLINE float add_up(__m256 v) {
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

INLINE float highest(__m256 v) {
    __m128 four = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}

/* The low bytes of 32 integers: of what is no number (INT_MIN) that is 0. */
INLINE __m256i to_bytes(__m256i a, __m256i b, __m256i c, __m256i d) {
    const __m256i low = _mm256_set1_epi32(255);
    __m256i ab = _mm256_packus_epi32(_mm256_and_si256(a, low), _mm256_and_si256(b, low)),
            cd = _mm256_packus_epi32(_mm256_and_si256(c, low), _mm256_and_si256(d, low));
    return _mm256_permutevar8x32_epi32(_mm256_packus_epi16(ab, cd), /* packing leaves a0 b0 c0 d0 a1 b1 .. */
                                       _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
}

INLINE int32_t sum_of_bytes(__m256i bytes) {
    __m256i sums =
        _mm256_sad_epu8(_mm256_xor_si256(bytes, _mm256_set1_epi8((char)0x80)), _mm256_setzero_si256());
    __m128i two = _mm_add_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256(sums, 1));
    return _mm_cvtsi128_si32(two) + _mm_extract_epi32(two, 2) - GROUP * 128;
}

static void quantise(const activations *x, size_t t, size_t T, const float *rows, size_t stride) {
    const __m256 magnitude = _mm256_castsi256_ps(_mm256_set1_epi32(0x7FFFFFFF));
    for (size_t i = 0; i < T; i++, rows += stride)
        for (size_t g = 0; g < x->groups; g++) {
            size_t at = t * x->groups + g * T + i;
            __m256 v[4], most = _mm256_setzero_ps();
            __m256i p[4];
            for (size_t j = 0; j < 4; j++) {
                size_t c = g * GROUP + 8 * j;
                v[j] = c < x->cols ? load_some(rows + c, x->cols - c) : _mm256_setzero_ps();
                most = _mm256_max_ps(most, _mm256_and_ps(v[j], magnitude));
            }
            float top = highest(most);
            __m256 inverse = _mm256_set1_ps(bytes_per_unit(top));
            for (size_t j = 0; j < 4; j++) p[j] = _mm256_cvtps_epi32(_mm256_mul_ps(v[j], inverse));
            __m256i bytes = to_bytes(p[0], p[1], p[2], p[3]);
            int8_t *q = x->q + (t * x->groups + g * T) * GROUP;
            if (T == 1) {
                _mm256_storeu_si256((void *)q, bytes);
            } else {
                int8_t room[GROUP];
                _mm256_storeu_si256((void *)room, bytes);
                for (size_t j = 0; j < 8; j++) memcpy(q + (j * T + i) * 4, room + 4 * j, 4);
            }
            int32_t total = sum_of_bytes(bytes);
            x->scale[at] = rounded_to_half(top / 127.0f);
            x->bias[at] = -128 * total;
            x->sum[at] = rounded_to_half(top / 127.0f * (float)total);
        }
}

static float dot(const float *a, const float *b, size_t n) {
    __m256 sums[4] = {_mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps()};
    size_t i = 0;
    for (; i + 32 <= n; i += 32)
        for (size_t j = 0; j < 4; j++)
            sums[j] =
                _mm256_fmadd_ps(_mm256_loadu_ps(a + i + 8 * j), _mm256_loadu_ps(b + i + 8 * j), sums[j]);
    for (; i < n; i += 8)
        sums[0] = _mm256_fmadd_ps(load_some(a + i, n - i), load_some(b + i, n - i), sums[0]);
    return add_up(_mm256_add_ps(_mm256_add_ps(sums[0], sums[1]), _mm256_add_ps(sums[2], sums[3])));
}

static void add_scaled(float *y, const float *x, float a, size_t n) {
    __m256 factor = _mm256_set1_ps(a);
    for (size_t i = 0; i < n; i += 8)
        store_some(y + i, n - i, _mm256_fmadd_ps(factor, load_some(x + i, n - i), load_some(y + i, n - i)));
}

static void rms_norm(float *y, const float *x, const float *gain, size_t n, float eps) {
    __m256 scale = _mm256_set1_ps(1.0f / sqrtf(dot(x, x, n) / (float)n + eps));
    for (size_t i = 0; i < n; i += 8) {
        __m256 value = _mm256_mul_ps(load_some(x + i, n - i), scale);
        store_some(y + i, n - i, _mm256_mul_ps(value, load_some(gain + i, n - i)));
    }
}

/* e^x = 2^n e^r with |r| <= ln(2) / 2, by Taylor's series to r^7: 2e-7 relative. Too big gives infinity. 2^n
 * is a product of two, since n reaches beyond the exponents that there are. */
INLINE __m256 exponential(__m256 x) {
    x = _mm256_max_ps(_mm256_min_ps(x, _mm256_set1_ps(90.0f)), _mm256_set1_ps(-110.0f));
    __m256 n = _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(1.44269504f)), _MM_FROUND_TO_NEAREST_INT);
    __m256 r = _mm256_fnmadd_ps(n, _mm256_set1_ps(0.693145752f), x); /* ln 2 in two parts */
    r = _mm256_fnmadd_ps(n, _mm256_set1_ps(1.42860677e-6f), r);
    __m256 p = _mm256_set1_ps(1.0f / 5040);
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f / 720));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f / 120));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f / 24));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f / 6));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(0.5f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f));
    __m256i whole = _mm256_cvtps_epi32(n), half = _mm256_srai_epi32(whole, 1), bias = _mm256_set1_epi32(127);
    __m256i rest = _mm256_sub_epi32(whole, half);
    p = _mm256_mul_ps(p, _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(half, bias), 23)));
    return _mm256_mul_ps(p, _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(rest, bias), 23)));
}

static void swiglu(float *gate, const float *up, size_t n) {
    const __m256 one = _mm256_set1_ps(1.0f);
    for (size_t i = 0; i < n; i += 8) {
        __m256 x = load_some(gate + i, n - i);
        __m256 below = _mm256_add_ps(one, exponential(_mm256_sub_ps(_mm256_setzero_ps(), x)));
        store_some(gate + i, n - i, _mm256_mul_ps(_mm256_div_ps(x, below), load_some(up + i, n - i)));
    }
}

static void to_halves(uint16_t *out, const float *x, size_t n) {
    for (size_t i = 0; i < n; i += 8) {
        uint16_t room[8];
        _mm_storeu_si128((void *)room, _mm256_cvtps_ph(load_some(x + i, n - i), _MM_FROUND_TO_NEAREST_INT));
        memcpy(out + i, room, n - i < 8 ? (n - i) * sizeof *room : sizeof room);
    }
}

/* ---- attention: Q queries at a time */

enum { QUERIES = 3 };
#define EACH_QUERY _Pragma("GCC unroll 3") for (int i = 0; i < Q; i++)
#define EACH_VALUE _Pragma("GCC unroll 4") for (int v = 0; v < V; v++)

INLINE __m256 load_cached(const void *numbers, size_t i, const bool halves) {
    return halves ? load_halves((const uint16_t *)numbers + i) : _mm256_loadu_ps((const float *)numbers + i);
}

/* scores[i][p] of `blocks` blocks of 16 positions; even and odd places of a head have sums of their own */
INLINE void score(const attention *a, size_t first, const int Q, size_t blocks, const bool halves) {
    for (size_t b = 0; b < blocks; b++) {
        __m256 even[QUERIES][2], odd[QUERIES][2];
        const float *q = a->q + first;
        EACH_QUERY EACH_REGISTER even[i][r] = odd[i][r] = _mm256_setzero_ps();
        for (size_t d = 0; d < a->width; d += 2, q += 2 * a->n) {
            size_t at = (b * a->width + d) * KEY_BLOCK;
            __m256 key[2];
            EACH_REGISTER key[r] = load_cached(a->keys, at + 8 * (size_t)r, halves);
            EACH_QUERY EACH_REGISTER even[i][r] = _mm256_fmadd_ps(key[r], _mm256_set1_ps(q[i]), even[i][r]);
            EACH_REGISTER key[r] = load_cached(a->keys, at + KEY_BLOCK + 8 * (size_t)r, halves);
            EACH_QUERY EACH_REGISTER odd[i][r] =
                _mm256_fmadd_ps(key[r], _mm256_set1_ps(q[a->n + (size_t)i]), odd[i][r]);
        }
        EACH_QUERY EACH_REGISTER _mm256_storeu_ps(a->scores + (first + (size_t)i) * CHUNK + b * KEY_BLOCK +
                                                      8 * r,
                                                  _mm256_add_ps(even[i][r], odd[i][r]));
    }
}

/* Scores become weights exp(score - top), 0 for what query i must not see. */
INLINE void weigh(const attention *a, size_t i, size_t blocks) {
    float *scores = a->scores + i * CHUNK;
    const __m256 lowest = _mm256_set1_ps(-INFINITY);
    __m256 top = lowest, sum = _mm256_setzero_ps();
    size_t n = a->visible[i];
    for (size_t p = 0; p < n; p += 8)
        top = _mm256_max_ps(
            top, _mm256_blendv_ps(lowest, _mm256_loadu_ps(scores + p), _mm256_castsi256_ps(mask_of(n - p))));
    a->top[i] = highest(top);
    top = _mm256_set1_ps(a->top[i]);
    for (size_t p = 0; p < blocks * KEY_BLOCK; p += 8) {
        __m256 there = _mm256_castsi256_ps(mask_of(p < n ? n - p : 0));
        __m256 e = _mm256_and_ps(there, exponential(_mm256_sub_ps(_mm256_loadu_ps(scores + p), top)));
        _mm256_storeu_ps(scores + p, e);
        sum = _mm256_add_ps(sum, e);
    }
    a->sum[i] = add_up(sum);
}

/* 32 or 16 places of a head at once: V registers */
INLINE void mix_values(const attention *a, size_t first, const int Q, size_t n, size_t d, const int V,
                       const bool halves) {
    __m256 sums[QUERIES][4];
    const float *weights = a->scores + first * CHUNK;
    EACH_QUERY EACH_VALUE sums[i][v] = _mm256_setzero_ps();
    for (size_t p = 0; p < n; p++) {
        __m256 weight[QUERIES];
        EACH_QUERY weight[i] = _mm256_set1_ps(weights[i * CHUNK + (int)p]);
        EACH_VALUE {
            __m256 value = load_cached(a->values, p * a->width + d + 8 * (size_t)v, halves);
            EACH_QUERY sums[i][v] = _mm256_fmadd_ps(weight[i], value, sums[i][v]);
        }
    }
    EACH_QUERY EACH_VALUE _mm256_storeu_ps(a->out + (first + (size_t)i) * a->width + d + 8 * (size_t)v,
                                           sums[i][v]);
}

INLINE void attend_some(const attention *a, size_t first, const int Q, const bool halves) {
    size_t most = 0, d = 0;
    EACH_QUERY most = a->visible[first + (size_t)i] > most ? a->visible[first + (size_t)i] : most;
    size_t blocks = (most + KEY_BLOCK - 1) / KEY_BLOCK;
    score(a, first, Q, blocks, halves);
    for (int i = 0; i < Q; i++) weigh(a, first + (size_t)i, blocks);
    for (; d + 32 <= a->width; d += 32) mix_values(a, first, Q, most, d, 4, halves);
    if (d < a->width) mix_values(a, first, Q, most, d, 2, halves);
}

INLINE void attend_all(const attention *a, const bool halves) {
    for (size_t first = 0; first < a->n;) {
        size_t left = a->n - first;
        if (left >= 3)
            attend_some(a, first, 3, halves), first += 3;
        else if (left >= 2)
            attend_some(a, first, 2, halves), first += 2;
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

const kernels TABLE = {
    .name = NAME,
    .usable = usable,
    .format = {.lanes = LANES, .flip = {[PACK_I8] = FLIP_I8}},
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
