/* kernels_wasm.c: WebAssembly's 128-bit SIMD. 16 rows are interleaved: four registers, each with four columns
 * of 4 rows. Compiled with -mrelaxed-simd it is the table of browsers that have it, whose dot product of
 * bytes is the machine's own instruction. That one is exact for every machine as long as its second operand
 * has 7 bits:
 *
 *   I4   0 .. 15 times x; what is too much, 8 sum(x), is where the sum begins
 *   I8   |x| is the 7-bit one. Where x < 0, -x w = |x| (-w) = |x| ~w + |x|: the bytes of w are inverted,
 * which no w overflows, and sum(|x|) over these columns, one number for all rows, is where the sum begins
 *
 * Pairs of products stay within 2 * 128 * 127 = 32512, and of I4 all 32 columns within 8 * 2 * 15 * 127 =
 * 30480: 16 bits hold them. Scales are halves that are numbers: an infinite one counts as 65536. */
#include "half.h"
#include "kernels.h"

#include <math.h>
#include <string.h>
#include <wasm_simd128.h>

#ifdef __wasm_relaxed_simd__
#define TABLE kernels_wasm_relaxed
#define NAME "wasm-relaxed"
#else
#define TABLE kernels_wasm_simd
#define NAME "wasm-simd"
#endif

#define INLINE static inline __attribute__((always_inline))
#define UNROLLED _Pragma("clang loop unroll(full)")
#define EACH_TOKEN UNROLLED for (int i = 0; i < N; i++)
#define EACH_REGISTER UNROLLED for (int r = 0; r < S; r++)

enum { LANES = 16, R = LANES / 4, MOST = 4 };

static const uint8_t tiles[] = {MOST, 1};

INLINE v128_t multiply_add(v128_t a, v128_t b, v128_t sum) {
#ifdef __wasm_relaxed_simd__
    return wasm_f32x4_relaxed_madd(a, b, sum);
#else
    return wasm_f32x4_add(sum, wasm_f32x4_mul(a, b));
#endif
}

/* ---- halves */

/* A half's bits below the sign are those of a float with another bias of the exponent, which 2^112 makes up
 * for. */
INLINE v128_t finite_halves(const void *from) {
    v128_t wide = wasm_i32x4_shl(wasm_i32x4_load16x4(from), 13);
    return wasm_f32x4_mul(wasm_v128_and(wide, wasm_i32x4_const_splat((int32_t)0x8FFFE000)),
                          wasm_f32x4_const_splat(0x1p112f));
}

/* The same, also of infinities and NaNs: they have an exponent that is filled up. */
INLINE v128_t any_halves(const void *from) {
    v128_t filled = wasm_i32x4_const_splat(0x7C00),
           there = wasm_i32x4_eq(wasm_v128_and(wasm_u32x4_load16x4(from), filled), filled);
    return wasm_v128_or(finite_halves(from), wasm_v128_and(there, wasm_i32x4_const_splat(0x7F800000)));
}

/* ---- matrices: S registers of one block of 16 rows, from register `first` on, times the first N tokens of a
 * tile of T; `x` are pointers to these tokens */

typedef struct {
    const int8_t *q;
    const float *f32, *scale, *sum;
    const int32_t *bias;
} tokens;

INLINE tokens tokens_at(const activations *x, size_t t, int from) {
    size_t group = t * x->groups;
    return (tokens){.q = x->q + group * GROUP + from * 4,
                    .f32 = x->f32 + t * x->cols + from,
                    .scale = x->scale + group + from,
                    .sum = x->sum + group + from,
                    .bias = x->bias + group + from};
}

INLINE v128_t load(const uint8_t *block, int j, int r) { /* columns 4j .. 4j + 3 of rows 4r .. 4r + 3 */
    return wasm_v128_load(block + (j * R + r) * 16);
}

#ifdef __wasm_relaxed_simd__
/* Four bytes of x, four times, and what becomes of them. */
typedef struct {
    v128_t x, size, negative;
} four;

INLINE four spread(const int8_t *q) {
    four f = {.x = wasm_v128_load32_splat(q)};
    f.size = wasm_i8x16_abs(f.x);
    f.negative = wasm_i8x16_shr(f.x, 7);
    return f;
}

/* Sums of I4 have 16 bits until the group is done. */
INLINE v128_t add_i4(v128_t sum, v128_t weights, four x) {
    return wasm_i16x8_add(sum, wasm_i16x8_relaxed_dot_i8x16_i7x16(x.x, weights));
}

INLINE v128_t end_i4(v128_t sum) {
    return wasm_i32x4_extadd_pairwise_i16x8(sum);
}

INLINE v128_t add_i8(v128_t sum, v128_t weights, four x) {
    v128_t pairs = wasm_i16x8_relaxed_dot_i8x16_i7x16(wasm_v128_xor(weights, x.negative), x.size);
    return wasm_i32x4_add(sum, wasm_i32x4_extadd_pairwise_i16x8(pairs));
}

/* Where the sums of I8 begin: sum(|x|) over the negative x of a group, for one token or two, in all lanes. */
INLINE void begin_i8(v128_t sums[MOST], const int8_t *q, const int T, const int N) {
    v128_t total = wasm_i16x8_const_splat(0), none = wasm_i8x16_const_splat(0);
    for (int j = 0; j < (N == 1 ? 2 : 4); j++) { /* one token: 16 bytes of it; two: 8 bytes of each */
        v128_t some = N == 1 ? wasm_v128_load(q + 16 * j)
                             : wasm_v128_load64_lane(q + (2 * j + 1) * T * 4,
                                                     wasm_v128_load64_zero(q + 2 * j * T * 4), 1);
        some = wasm_i8x16_max(wasm_i8x16_neg(some), none);
        total = wasm_i16x8_add(total, wasm_u16x8_extadd_pairwise_u8x16(some));
    }
    total = wasm_i32x4_extadd_pairwise_i16x8(total);
    total = wasm_i32x4_add(total, wasm_i32x4_shuffle(total, total, 2, 3, 0, 1));
    if (N == 1) total = wasm_i32x4_add(total, wasm_i32x4_shuffle(total, total, 1, 0, 3, 2));
    sums[0] = wasm_i32x4_shuffle(total, total, 0, 0, 0, 0);
    if (N == 2) sums[1] = wasm_i32x4_shuffle(total, total, 1, 1, 1, 1);
}
typedef v128_t sums_i4, sums_i8;
#define ZERO_I4 wasm_i32x4_const_splat(0)
#define BEGIN_I8(s) (s)
INLINE v128_t end_i8(v128_t sum) {
    return sum;
}
#else
/* Four bytes of x as 16-bit numbers, twice; products of rows 0 and 1, and of 2 and 3, have sums of their own
 * in two lanes each. */
typedef v128_t four;
typedef struct {
    v128_t low, high;
} sums_i4, sums_i8;

INLINE four spread(const int8_t *q) {
    return wasm_i16x8_extend_low_i8x16(wasm_v128_load32_splat(q));
}

INLINE sums_i8 add_i8(sums_i8 sum, v128_t weights, four x) {
    sum.low = wasm_i32x4_add(sum.low, wasm_i32x4_dot_i16x8(wasm_i16x8_extend_low_i8x16(weights), x));
    sum.high = wasm_i32x4_add(sum.high, wasm_i32x4_dot_i16x8(wasm_i16x8_extend_high_i8x16(weights), x));
    return sum;
}

INLINE v128_t end_i8(sums_i8 sum) {
    return wasm_i32x4_add(wasm_i32x4_shuffle(sum.low, sum.high, 0, 2, 4, 6),
                          wasm_i32x4_shuffle(sum.low, sum.high, 1, 3, 5, 7));
}

INLINE void begin_i8(v128_t sums[MOST], const int8_t *q, const int T, const int N) {
    (void)q, (void)T;
    EACH_TOKEN sums[i] = wasm_i32x4_const_splat(0);
}
#define ZERO_I4 ((sums_i4){wasm_i32x4_const_splat(0), wasm_i32x4_const_splat(0)})
#define BEGIN_I8(s) ((sums_i8){(s), (s)})
#define add_i4 add_i8
#define end_i4 end_i8
#endif

INLINE void multiply_i4(const packed *w, const uint8_t *block, tokens x, const int T, const int N,
                        const bool offset, const int first, const int S, v128_t f[MOST][R]) {
    const size_t bytes = pack_group_bytes(offset ? PACK_I4_OFFSET : PACK_I4, LANES);
    const v128_t low = wasm_i8x16_const_splat(15);
    EACH_TOKEN EACH_REGISTER f[i][r] = wasm_f32x4_const_splat(0);
    for (size_t g = 0; g < w->groups; g++) {
        sums_i4 a[MOST][R];
        EACH_TOKEN EACH_REGISTER a[i][r] = ZERO_I4;
        UNROLLED for (int j = 0; j < 4; j++) {
            v128_t l[R], h[R];
            EACH_REGISTER {
                v128_t both = load(block, j, first + r);
                l[r] = wasm_v128_and(both, low);
                h[r] = wasm_v128_and(wasm_u16x8_shr(both, 4), low);
            }
            EACH_TOKEN {
                four four_low = spread(x.q + (j * T + i) * 4),
                     four_high = spread(x.q + ((j + 4) * T + i) * 4);
                EACH_REGISTER a[i][r] = add_i4(add_i4(a[i][r], l[r], four_low), h[r], four_high);
            }
        }
        EACH_REGISTER {
            v128_t own = finite_halves(block + 16 * LANES + 8 * (first + r)), shift = own;
            if (offset) shift = finite_halves(block + 18 * LANES + 8 * (first + r));
            EACH_TOKEN {
                v128_t total = end_i4(a[i][r]);
                if (!offset) total = wasm_i32x4_add(total, wasm_i32x4_splat(x.bias[i] / 16));
                f[i][r] = multiply_add(wasm_f32x4_convert_i32x4(total),
                                       wasm_f32x4_mul(own, wasm_v128_load32_splat(x.scale + i)), f[i][r]);
                if (offset) f[i][r] = multiply_add(shift, wasm_v128_load32_splat(x.sum + i), f[i][r]);
            }
        }
        block += bytes, x.q += GROUP * T, x.scale += T, x.sum += T, x.bias += T;
    }
}

INLINE void multiply_i8(const packed *w, const uint8_t *block, tokens x, const int T, const int N,
                        const int first, const int S, v128_t f[MOST][R]) {
    EACH_TOKEN EACH_REGISTER f[i][r] = wasm_f32x4_const_splat(0);
    for (size_t g = 0; g < w->groups; g++) {
        v128_t begin[MOST];
        sums_i8 a[MOST][R];
        begin_i8(begin, x.q, T, N);
        EACH_TOKEN EACH_REGISTER a[i][r] = BEGIN_I8(begin[i]);
        UNROLLED for (int j = 0; j < 8; j++) {
            v128_t weights[R];
            EACH_REGISTER weights[r] = load(block, j, first + r);
            EACH_TOKEN {
                four some = spread(x.q + (j * T + i) * 4);
                EACH_REGISTER a[i][r] = add_i8(a[i][r], weights[r], some);
            }
        }
        EACH_REGISTER {
            v128_t own = finite_halves(block + GROUP * LANES + 8 * (first + r));
            EACH_TOKEN f[i][r] =
                multiply_add(wasm_f32x4_convert_i32x4(end_i8(a[i][r])),
                             wasm_f32x4_mul(own, wasm_v128_load32_splat(x.scale + i)), f[i][r]);
        }
        block += pack_group_bytes(PACK_I8, LANES), x.q += GROUP * T, x.scale += T;
    }
}

INLINE v128_t load_weights(const uint8_t *block, size_t column, int r, const pack_kind kind) {
    size_t at = column * LANES + (size_t)r * 4;
    if (kind == PACK_F32) return wasm_v128_load(block + 4 * at);
    if (kind == PACK_F16) return any_halves(block + 2 * at);
    return wasm_i32x4_shl(wasm_u32x4_load16x4(block + 2 * at), 16);
}

INLINE void multiply_floats(const packed *w, const uint8_t *block, tokens x, const int T, const int N,
                            const pack_kind kind, const int first, const int S, v128_t f[MOST][R]) {
    EACH_TOKEN EACH_REGISTER f[i][r] = wasm_f32x4_const_splat(0);
    for (size_t c = 0; c < w->cols; c++, x.f32 += T) EACH_REGISTER {
            v128_t weights = load_weights(block, c, first + r, kind);
            EACH_TOKEN f[i][r] = multiply_add(weights, wasm_v128_load32_splat(x.f32 + i), f[i][r]);
        }
}

INLINE void multiply(const packed *w, size_t b, const activations *x, size_t t, const int T, const int from,
                     const int N, const pack_kind kind, const int first, const int S, float *y,
                     size_t y_stride) {
    const uint8_t *block = w->data + b * w->stride;
    tokens these = tokens_at(x, t, from);
    v128_t f[MOST][R];
    if (kind == PACK_I8)
        multiply_i8(w, block, these, T, N, first, S, f);
    else if (kind == PACK_I4 || kind == PACK_I4_OFFSET)
        multiply_i4(w, block, these, T, N, kind == PACK_I4_OFFSET, first, S, f);
    else
        multiply_floats(w, block, these, T, N, kind, first, S, f);
    size_t row = b * LANES + 4 * (size_t)first, rows = w->rows > row ? w->rows - row : 0;
    float *to = y + (t + (size_t)from) * y_stride + row;
    EACH_TOKEN EACH_REGISTER {
        if (rows >= 4 * (size_t)(r + 1)) {
            wasm_v128_store(to + (size_t)i * y_stride + 4 * r, f[i][r]);
        } else if (rows > 4 * (size_t)r) {
            float room[4];
            wasm_v128_store(room, f[i][r]);
            memcpy(to + (size_t)i * y_stride + 4 * r, room, (rows - 4 * (size_t)r) * sizeof *room);
        }
    }
}

/* Registers are too few for all rows of four tokens: I8, whose x takes more work, is done for two tokens and
 * all rows at a time, the others for four tokens and half of the rows. */
#define MATMUL(name, kind)                                                                                   \
    static void name(const packed *w, const activations *x, size_t begin, size_t end, float *y,              \
                     size_t y_stride) {                                                                      \
        for (size_t b = begin; b < end; b++) {                                                               \
            size_t t = 0;                                                                                    \
            for (; t + MOST <= x->n; t += MOST)                                                              \
                for (int half = 0; half < 2; half++)                                                         \
                    if (kind == PACK_I8)                                                                     \
                        multiply(w, b, x, t, MOST, 2 * half, 2, kind, 0, R, y, y_stride);                    \
                    else                                                                                     \
                        multiply(w, b, x, t, MOST, 0, MOST, kind, 2 * half, 2, y, y_stride);                 \
            for (; t < x->n; t++) multiply(w, b, x, t, 1, 0, 1, kind, 0, R, y, y_stride);                    \
        }                                                                                                    \
    }
MATMUL(matmul_f32, PACK_F32)
MATMUL(matmul_f16, PACK_F16)
MATMUL(matmul_bf16, PACK_BF16)
MATMUL(matmul_i8, PACK_I8)
MATMUL(matmul_i4, PACK_I4)
MATMUL(matmul_i4_offset, PACK_I4_OFFSET)

/* ---- vectors */

INLINE v128_t load_some(const float *from, size_t left) {
    if (left >= 4) return wasm_v128_load(from);
    float room[4] = {0};
    memcpy(room, from, left * sizeof *room);
    return wasm_v128_load(room);
}

INLINE void store_some(float *to, size_t left, v128_t values) {
    if (left >= 4) {
        wasm_v128_store(to, values);
        return;
    }
    float room[4];
    wasm_v128_store(room, values);
    memcpy(to, room, left * sizeof *room);
}

INLINE float add_up(v128_t v) {
    v = wasm_f32x4_add(v, wasm_i32x4_shuffle(v, v, 2, 3, 0, 1));
    return wasm_f32x4_extract_lane(wasm_f32x4_add(v, wasm_i32x4_shuffle(v, v, 1, 0, 3, 2)), 0);
}

/* The higher one; of a NaN and a number, `a`. */
INLINE v128_t higher(v128_t a, v128_t b) {
    return wasm_f32x4_pmax(a, b);
}

INLINE float highest(v128_t v) {
    v = higher(v, wasm_i32x4_shuffle(v, v, 2, 3, 0, 1));
    return wasm_f32x4_extract_lane(higher(v, wasm_i32x4_shuffle(v, v, 1, 0, 3, 2)), 0);
}

/* Nearest integers, ties to even, of what fits into 8 bits; 0 for what is no number. */
static void quantise(const activations *x, size_t t, size_t T, const float *rows, size_t stride) {
    for (size_t i = 0; i < T; i++, rows += stride)
        for (size_t g = 0; g < x->groups; g++) {
            size_t at = t * x->groups + g * T + i;
            v128_t v[8], most = wasm_f32x4_const_splat(0), total = wasm_i32x4_const_splat(0);
            for (size_t j = 0; j < 8; j++) {
                size_t c = g * GROUP + 4 * j;
                v[j] = c < x->cols ? load_some(rows + c, x->cols - c) : wasm_f32x4_const_splat(0);
                most = higher(most, wasm_f32x4_abs(v[j]));
            }
            float top = highest(most);
            v128_t inverse = wasm_f32x4_splat(bytes_per_unit(top));
            int8_t *q = x->q + (t * x->groups + g * T) * GROUP;
            for (size_t j = 0; j < 8; j++) {
                v128_t whole = wasm_i32x4_trunc_sat_f32x4(wasm_f32x4_nearest(wasm_f32x4_mul(v[j], inverse)));
                total = wasm_i32x4_add(total, whole);
                whole = wasm_i16x8_narrow_i32x4(whole, whole);
                wasm_v128_store32_lane(q + (j * T + i) * 4, wasm_i8x16_narrow_i16x8(whole, whole), 0);
            }
            total = wasm_i32x4_add(total, wasm_i32x4_shuffle(total, total, 2, 3, 0, 1));
            int32_t sum = wasm_i32x4_extract_lane(total, 0) + wasm_i32x4_extract_lane(total, 1);
            x->scale[at] = rounded_to_half(top / 127.0f);
            x->bias[at] = -128 * sum;
            x->sum[at] = rounded_to_half(top / 127.0f * (float)sum);
        }
}

static float dot(const float *a, const float *b, size_t n) {
    v128_t sums[4];
    size_t i = 0;
    for (int j = 0; j < 4; j++) sums[j] = wasm_f32x4_const_splat(0);
    for (; i + 16 <= n; i += 16)
        for (int j = 0; j < 4; j++)
            sums[j] = multiply_add(wasm_v128_load(a + i + 4 * j), wasm_v128_load(b + i + 4 * j), sums[j]);
    for (; i < n; i += 4) sums[0] = multiply_add(load_some(a + i, n - i), load_some(b + i, n - i), sums[0]);
    return add_up(wasm_f32x4_add(wasm_f32x4_add(sums[0], sums[1]), wasm_f32x4_add(sums[2], sums[3])));
}

static void add_scaled(float *y, const float *x, float a, size_t n) {
    v128_t factor = wasm_f32x4_splat(a);
    for (size_t i = 0; i < n; i += 4)
        store_some(y + i, n - i, multiply_add(factor, load_some(x + i, n - i), load_some(y + i, n - i)));
}

static void rms_norm(float *y, const float *x, const float *gain, size_t n, float eps) {
    v128_t scale = wasm_f32x4_splat(1.0f / sqrtf(dot(x, x, n) / (float)n + eps));
    for (size_t i = 0; i < n; i += 4) {
        v128_t value = wasm_f32x4_mul(load_some(x + i, n - i), scale);
        store_some(y + i, n - i, wasm_f32x4_mul(value, load_some(gain + i, n - i)));
    }
}

/* e^x = 2^n e^r with |r| <= ln(2) / 2, by Taylor's series to r^7: 2e-7 relative. Too big gives infinity. 2^n
 * is a product of two, since n reaches beyond the exponents that there are. */
INLINE v128_t exponential(v128_t x) {
    static const float terms[] = {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f};
    x = wasm_f32x4_max(wasm_f32x4_min(x, wasm_f32x4_const_splat(90.0f)), wasm_f32x4_const_splat(-110.0f));
    v128_t n = wasm_f32x4_nearest(wasm_f32x4_mul(x, wasm_f32x4_const_splat(1.44269504f)));
    v128_t r = multiply_add(n, wasm_f32x4_const_splat(-0.693145752f), x); /* ln 2 in two parts */
    r = multiply_add(n, wasm_f32x4_const_splat(-1.42860677e-6f), r);
    v128_t p = wasm_f32x4_const_splat(1.0f / 5040);
    UNROLLED for (int i = 0; i < 7; i++) p = multiply_add(p, r, wasm_f32x4_splat(terms[i]));
    v128_t whole = wasm_i32x4_trunc_sat_f32x4(n), half = wasm_i32x4_shr(whole, 1),
           bias = wasm_i32x4_const_splat(127);
    p = wasm_f32x4_mul(p, wasm_i32x4_shl(wasm_i32x4_add(half, bias), 23));
    return wasm_f32x4_mul(p, wasm_i32x4_shl(wasm_i32x4_add(wasm_i32x4_sub(whole, half), bias), 23));
}

static void swiglu(float *gate, const float *up, size_t n) {
    const v128_t one = wasm_f32x4_const_splat(1.0f);
    for (size_t i = 0; i < n; i += 4) {
        v128_t x = load_some(gate + i, n - i);
        v128_t below = wasm_f32x4_add(one, exponential(wasm_f32x4_neg(x)));
        store_some(gate + i, n - i, wasm_f32x4_mul(wasm_f32x4_div(x, below), load_some(up + i, n - i)));
    }
}

static void to_halves(uint16_t *out, const float *x, size_t n) {
    for (size_t i = 0; i < n; i++) out[i] = half_from_float(x[i]);
}

/* ---- attention: halves become floats once for all queries, two of which are done at a time */

enum { PLACES = 64, VALUES = 16 }; /* places of a head that are looked at at once: of keys, of values */

/* n floats, in place or converted into `room`; n is a multiple of 16. */
INLINE const float *as_floats(const void *numbers, size_t at, size_t n, bool halves, float *room) {
    if (!halves) return (const float *)numbers + at;
    for (size_t i = 0; i < n; i += 4)
        wasm_v128_store(room + i, any_halves((const uint16_t *)numbers + at + i));
    return room;
}

/* scores of block b, from `places` places of the head on from d: added to what is there unless d is 0 */
INLINE void score(const attention *a, size_t first, const int N, size_t b, size_t d, size_t places,
                  const float *keys) {
    v128_t sums[2][4];
    const float *q = a->q + d * a->n + first;
    float *scores = a->scores + first * CHUNK + b * KEY_BLOCK;
    EACH_TOKEN UNROLLED for (int r = 0; r < 4; r++) sums[i][r] =
        d ? wasm_v128_load(scores + i * CHUNK + 4 * r) : wasm_f32x4_const_splat(0);
    for (size_t p = 0; p < places; p++, keys += KEY_BLOCK, q += a->n) EACH_TOKEN {
            v128_t own = wasm_v128_load32_splat(q + i);
            UNROLLED for (int r = 0; r < 4; r++) sums[i][r] =
                multiply_add(own, wasm_v128_load(keys + 4 * r), sums[i][r]);
        }
    EACH_TOKEN UNROLLED for (int r = 0; r < 4; r++) wasm_v128_store(scores + i * CHUNK + 4 * r, sums[i][r]);
}

/* Lanes of positions p .. p + 3 that are below n. */
INLINE v128_t below(size_t p, size_t n) {
    return wasm_i32x4_lt(wasm_i32x4_const(0, 1, 2, 3), wasm_i32x4_splat(p < n ? (int32_t)(n - p) : 0));
}

/* Scores become weights exp(score - top), 0 for what query i must not see. */
INLINE void weigh(const attention *a, size_t i, size_t blocks) {
    float *scores = a->scores + i * CHUNK;
    const v128_t lowest = wasm_f32x4_const_splat(-INFINITY);
    v128_t top = lowest, sum = wasm_f32x4_const_splat(0);
    size_t n = a->visible[i];
    for (size_t p = 0; p < n; p += 4)
        top = higher(top, wasm_v128_bitselect(wasm_v128_load(scores + p), lowest, below(p, n)));
    a->top[i] = highest(top);
    top = wasm_f32x4_splat(a->top[i]);
    for (size_t p = 0; p < blocks * KEY_BLOCK; p += 4) {
        v128_t e = exponential(wasm_f32x4_sub(wasm_v128_load(scores + p), top));
        e = wasm_v128_and(below(p, n), e);
        wasm_v128_store(scores + p, e);
        sum = wasm_f32x4_add(sum, e);
    }
    a->sum[i] = add_up(sum);
}

/* out of 16 places of the head from d on, of the n positions whose values these are: `stride` floats apart */
INLINE void mix(const attention *a, size_t first, const int N, size_t n, size_t d, const float *values,
                size_t stride) {
    v128_t sums[2][4];
    const float *weights = a->scores + first * CHUNK;
    EACH_TOKEN UNROLLED for (int r = 0; r < 4; r++) sums[i][r] = wasm_f32x4_const_splat(0);
    for (size_t p = 0; p < n; p++, values += stride) EACH_TOKEN {
            v128_t weight = wasm_v128_load32_splat(weights + i * CHUNK + p);
            UNROLLED for (int r = 0; r < 4; r++) sums[i][r] =
                multiply_add(weight, wasm_v128_load(values + 4 * r), sums[i][r]);
        }
    EACH_TOKEN UNROLLED for (int r = 0; r < 4; r++)
        wasm_v128_store(a->out + (first + (size_t)i) * a->width + d + 4 * r, sums[i][r]);
}

static void attend(const attention *a) {
    float room[CHUNK * VALUES];
    size_t most = 0;
    for (size_t i = 0; i < a->n; i++) most = a->visible[i] > most ? a->visible[i] : most;
    size_t blocks = (most + KEY_BLOCK - 1) / KEY_BLOCK;
    for (size_t b = 0; b < blocks; b++)
        for (size_t d = 0; d < a->width; d += PLACES) {
            size_t places = a->width - d < PLACES ? a->width - d : PLACES, i = 0;
            const float *keys =
                as_floats(a->keys, (b * a->width + d) * KEY_BLOCK, places * KEY_BLOCK, a->halves, room);
            for (; i + 2 <= a->n; i += 2) score(a, i, 2, b, d, places, keys);
            if (i < a->n) score(a, i, 1, b, d, places, keys);
        }
    for (size_t i = 0; i < a->n; i++) weigh(a, i, blocks);
    for (size_t d = 0; d < a->width; d += VALUES) {
        const float *values = (const float *)a->values + d;
        size_t stride = a->width, i = 0;
        if (a->halves) {
            for (size_t p = 0; p < most; p++)
                as_floats(a->values, p * a->width + d, VALUES, true, room + p * VALUES);
            values = room;
            stride = VALUES;
        }
        for (; i + 2 <= a->n; i += 2) mix(a, i, 2, most, d, values, stride);
        if (i < a->n) mix(a, i, 1, most, d, values, stride);
    }
}

const kernels TABLE = {
    .name = NAME,
    .format = {.lanes = LANES},
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
