/* kernels_scalar.c: the reference kernels, in plain C that compilers vectorise without being allowed to
 * reorder sums: a dot product is LANES running sums, added up at the end in a fixed order. */
#include "kernels.h"

#include "weights.h"

#include <math.h>
#include <string.h>

enum { LANES = 16, CHUNK = Q4K_LENGTH, TILE = 32 };

/* sums[k] += the products at k, k + LANES, ... */
static void add_products(float *restrict sums, const float *restrict a, const float *restrict b, size_t n) {
    float s[LANES];
    memcpy(s, sums, sizeof s);
    size_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (size_t k = 0; k < LANES; k++) s[k] += a[i + k] * b[i + k];
    for (size_t k = 0; i + k < n; k++) s[k] += a[i + k] * b[i + k];
    memcpy(sums, s, sizeof s);
}

static float add_up(const float *sums) {
    float s[LANES];
    memcpy(s, sums, sizeof s);
    for (size_t half = LANES / 2; half; half /= 2)
        for (size_t k = 0; k < half; k++) s[k] += s[k + half];
    return s[0];
}

static float dot(const float *a, const float *b, size_t n) {
    float sums[LANES] = {0};
    add_products(sums, a, b, n);
    return add_up(sums);
}

static float load_f32(const uint8_t *bytes) {
    float value;
    memcpy(&value, bytes, sizeof value);
    return value;
}

/* One Q4K block (see docs/model_file.md): 8 groups of 32 nibbles, each with a 6-bit scale and a 6-bit offset.
 */
static void read_q4k_block(float *restrict out, const uint8_t *restrict block, size_t n) {
    const float s_scale = load_f32(block + 12), b_scale = load_f32(block + 16);
    const uint8_t *sb = block + 20, *q = block + 32;
    for (size_t g = 0; g * 32 < n; g++) {
        size_t k = g & 3;
        unsigned s = g < 4 ? sb[k] & 63u : (unsigned)(sb[k] >> 6) << 4 | (sb[8 + k] & 15u);
        unsigned b = g < 4 ? sb[4 + k] & 63u : (unsigned)(sb[4 + k] >> 6) << 4 | (unsigned)(sb[8 + k] >> 4);
        float scale = (float)s * s_scale, offset = (float)b * b_scale;
        float values[32];
        for (size_t j = 0; j < 16; j++) {
            uint8_t byte = q[g * 16 + j];
            values[2 * j] = (float)(byte & 15) * scale - offset;
            values[2 * j + 1] = (float)(byte >> 4) * scale - offset;
        }
        size_t left = n - g * 32;
        memcpy(out + g * 32, values, (left < 32 ? left : 32) * sizeof(float));
    }
}

/* Columns [at, at + n) of a row, n <= CHUNK, `at` a multiple of CHUNK: in place if they are floats, else in
 * `room`. */
static const float *read_chunk(const matrix *w, size_t row, size_t at, size_t n, float *room) {
    switch (w->quant) {
    case NANO_F32:
        return w->f32 + row * w->cols + at;
    case NANO_Q80: {
        const int8_t *q = w->q + row * w->cols + at;
        const float *scales = w->scales + row * (w->cols / w->group);
        for (size_t i = 0; i < n;) {
            size_t group = (at + i) / w->group, end = (group + 1) * w->group - at;
            float scale = scales[group];
            for (end = end < n ? end : n; i < end; i++) room[i] = (float)q[i] * scale;
        }
        return room;
    }
    case NANO_Q4K: {
        size_t blocks_per_row = (w->cols + Q4K_LENGTH - 1) / Q4K_LENGTH;
        read_q4k_block(room, w->blocks + (row * blocks_per_row + at / Q4K_LENGTH) * Q4K_BLOCK, n);
        return room;
    }
    default: { /* a block's length divides CHUNK and cols, so n and `at` as well */
        const weight_type *type = weight_type_of(w->quant);
        uint64_t first = ((uint64_t)row * w->cols + at) / type->length;
        type->read(room, w->blocks + first * type->bytes, n / type->length);
        return room;
    }
    }
}

static void read_row(float *out, const matrix *w, size_t row) {
    for (size_t at = 0; at < w->cols; at += CHUNK) {
        size_t n = w->cols - at < CHUNK ? w->cols - at : CHUNK;
        const float *chunk = read_chunk(w, row, at, n, out + at);
        if (chunk != out + at) memcpy(out + at, chunk, n * sizeof(float));
    }
}

/* A chunk of weights is read (and turned into floats) once for a tile of tokens. */
static void matmul(float *y, size_t y_stride, const matrix *w, const float *x, size_t x_stride,
                   size_t n_tokens, size_t begin, size_t end) {
    for (size_t t0 = 0; t0 < n_tokens; t0 += TILE) {
        size_t tile = n_tokens - t0 < TILE ? n_tokens - t0 : TILE;
        for (size_t row = begin; row < end; row++) {
            float sums[TILE][LANES], room[CHUNK];
            memset(sums, 0, tile * sizeof sums[0]);
            for (size_t at = 0; at < w->cols; at += CHUNK) {
                size_t n = w->cols - at < CHUNK ? w->cols - at : CHUNK;
                const float *chunk = read_chunk(w, row, at, n, room);
                for (size_t t = 0; t < tile; t++)
                    add_products(sums[t], chunk, x + (t0 + t) * x_stride + at, n);
            }
            for (size_t t = 0; t < tile; t++) y[(t0 + t) * y_stride + row] = add_up(sums[t]);
        }
    }
}

static void add_scaled(float *restrict y, const float *restrict x, float a, size_t n) {
    for (size_t i = 0; i < n; i++) y[i] += a * x[i];
}

static void rms_norm(float *y, const float *x, const float *gain, size_t n, float eps) {
    float scale = 1.0f / sqrtf(dot(x, x, n) / (float)n + eps);
    for (size_t i = 0; i < n; i++) y[i] = x[i] * scale * gain[i];
}

static void softmax(float *x, size_t n) {
    float top = x[0], sum = 0;
    for (size_t i = 1; i < n; i++)
        if (x[i] > top) top = x[i];
    for (size_t i = 0; i < n; i++) sum += x[i] = expf(x[i] - top);
    for (size_t i = 0; i < n; i++) x[i] /= sum;
}

static void swiglu(float *restrict gate, const float *restrict up, size_t n) {
    for (size_t i = 0; i < n; i++) gate[i] = gate[i] / (1.0f + expf(-gate[i])) * up[i];
}

const kernels kernels_scalar = {
    .name = "scalar",
    .matmul = matmul,
    .read_row = read_row,
    .dot = dot,
    .add_scaled = add_scaled,
    .rms_norm = rms_norm,
    .softmax = softmax,
    .swiglu = swiglu,
};

const kernels *kernels_choose(void) {
    return &kernels_scalar;
}
