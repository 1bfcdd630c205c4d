/* kernels_scalar.c: every kernel in plain C, for any layout: what runs where nothing better does, and what
 * the others are compared with. */
#include "half.h"
#include "kernels.h"

#include <math.h>
#include <string.h>

enum { MOST = 4, LANES = 16 };

/* ---- matrices
 * ----------------------------------------------------------------------------------------------
 */

static float number_at(const packed *w, const uint8_t *data, size_t i) {
    if (w->kind == PACK_F32) {
        float value;
        memcpy(&value, data + 4 * i, sizeof value);
        return value;
    }
    return w->kind == PACK_F16 ? load_half(data + 2 * i) : from_bits((uint32_t)load_u16(data + 2 * i) << 16);
}

static void store(const packed *w, size_t block, size_t t, size_t T, float sums[MOST][MAX_LANES], float *y,
                  size_t y_stride) {
    size_t row = block * w->lanes, n = w->rows - row < w->lanes ? w->rows - row : w->lanes;
    for (size_t i = 0; i < T; i++) memcpy(y + (t + i) * y_stride + row, sums[i], n * sizeof(float));
}

static void multiply_floats(const packed *w, const uint8_t *block, const float *x, size_t T,
                            float sums[MOST][MAX_LANES]) {
    for (size_t c = 0; c < w->cols; c++)
        for (size_t r = 0; r < w->lanes; r++) {
            float weight = number_at(w, block, c * w->lanes + r);
            for (size_t i = 0; i < T; i++) sums[i][r] += weight * x[c * T + i];
        }
}

/* The 32 weights of row r of a group, without scale and offset. */
static void read_group(const packed *w, const uint8_t *group, size_t r, int *out) {
    for (size_t c = 0; c < GROUP; c++) {
        bool high = w->kind != PACK_I8 && c >= GROUP / 2;
        size_t column = high ? c - GROUP / 2 : c;
        int byte = group[column / 4 * w->lanes * 4 + r * 4 + column % 4] ^ w->flip;
        out[c] = w->kind == PACK_I8 ? (int8_t)byte : high ? byte >> 4 : byte & 15;
        if (w->kind == PACK_I4) out[c] -= 8;
    }
}

static void multiply_groups(const packed *w, const uint8_t *block, const activations *x, size_t t, size_t T,
                            float sums[MOST][MAX_LANES]) {
    size_t lanes = w->lanes, bytes = pack_group_bytes(w->kind, lanes);
    for (size_t g = 0; g < w->groups; g++, block += bytes) {
        const uint8_t *scales = block + lanes * (w->kind == PACK_I8 ? GROUP : GROUP / 2),
                      *offsets = scales + 2 * lanes;
        const int8_t *q = x->q + (t * x->groups + g * T) * GROUP;
        const float *scale = x->scale + t * x->groups + g * T, *sum = x->sum + t * x->groups + g * T;
        for (size_t r = 0; r < lanes; r++) {
            int weights[GROUP];
            read_group(w, block, r, weights);
            float own = load_half(scales + 2 * r);
            for (size_t i = 0; i < T; i++) {
                int32_t products = 0;
                for (size_t c = 0; c < GROUP; c++) products += weights[c] * q[c / 4 * T * 4 + i * 4 + c % 4];
                sums[i][r] += (float)products * (own * scale[i]);
                if (w->kind == PACK_I4_OFFSET) sums[i][r] += load_half(offsets + 2 * r) * sum[i];
            }
        }
    }
}

static const uint8_t tiles[] = {MOST, 2, 1};

static void matmul(const packed *w, const activations *x, size_t begin, size_t end, float *y,
                   size_t y_stride) {
    for (size_t b = begin; b < end; b++)
        for (size_t t = 0, T; t < x->n; t += T) {
            float sums[MOST][MAX_LANES] = {{0}};
            T = x->n - t >= MOST ? MOST : x->n - t >= 2 ? 2 : 1;
            if (w->kind < PACK_I8)
                multiply_floats(w, w->data + b * w->stride, x->f32 + t * x->cols, T, sums);
            else
                multiply_groups(w, w->data + b * w->stride, x, t, T, sums);
            store(w, b, t, T, sums, y, y_stride);
        }
}

static void quantise(const activations *x, size_t t, size_t T, const float *rows, size_t stride) {
    for (size_t i = 0; i < T; i++, rows += stride)
        for (size_t g = 0; g < x->groups; g++) {
            size_t n = x->cols - g * GROUP < GROUP ? x->cols - g * GROUP : GROUP,
                   at = t * x->groups + g * T + i;
            float top = 0;
            for (size_t c = 0; c < n; c++)
                top = fabsf(rows[g * GROUP + c]) > top ? fabsf(rows[g * GROUP + c]) : top;
            float inverse = bytes_per_unit(top), scale = rounded_to_half(top / 127.0f);
            int8_t *q = x->q + (t * x->groups + g * T) * GROUP + i * 4;
            int32_t total = 0;
            for (size_t c = 0; c < GROUP; c++) {
                int8_t value = c < n ? (int8_t)lrintf(rows[g * GROUP + c] * inverse) : 0;
                q[c / 4 * T * 4 + c % 4] = value;
                total += value;
            }
            x->scale[at] = scale;
            x->bias[at] = -128 * total;
            x->sum[at] = rounded_to_half(top / 127.0f * (float)total);
        }
}

/* ---- vectors
 * -----------------------------------------------------------------------------------------------
 */

static float dot(const float *a, const float *b, size_t n) {
    float sums[LANES] = {0};
    size_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (size_t k = 0; k < LANES; k++) sums[k] += a[i + k] * b[i + k];
    for (size_t k = 0; i + k < n; k++) sums[k] += a[i + k] * b[i + k];
    for (size_t half = LANES / 2; half; half /= 2)
        for (size_t k = 0; k < half; k++) sums[k] += sums[k + half];
    return sums[0];
}

static void add_scaled(float *restrict y, const float *restrict x, float a, size_t n) {
    for (size_t i = 0; i < n; i++) y[i] += a * x[i];
}

static void rms_norm(float *y, const float *x, const float *gain, size_t n, float eps) {
    float scale = 1.0f / sqrtf(dot(x, x, n) / (float)n + eps);
    for (size_t i = 0; i < n; i++) y[i] = x[i] * scale * gain[i];
}

static void swiglu(float *restrict gate, const float *restrict up, size_t n) {
    for (size_t i = 0; i < n; i++) gate[i] = gate[i] / (1.0f + expf(-gate[i])) * up[i];
}

static void to_halves(uint16_t *out, const float *x, size_t n) {
    for (size_t i = 0; i < n; i++) out[i] = half_from_float(x[i]);
}

/* ---- attention
 * ---------------------------------------------------------------------------------------------
 */

static float cached(const void *numbers, bool halves, size_t i) {
    return halves ? half_to_float(((const uint16_t *)numbers)[i]) : ((const float *)numbers)[i];
}

static void attend(const attention *a) {
    for (size_t i = 0; i < a->n; i++) {
        float *scores = a->scores + i * CHUNK, *out = a->out + i * a->width, top = -INFINITY, sum = 0;
        size_t n = a->visible[i];
        for (size_t p = 0; p < n; p++) {
            float score = 0;
            for (size_t d = 0; d < a->width; d++)
                score +=
                    a->q[d * a->n + i] *
                    cached(a->keys, a->halves, (p / KEY_BLOCK * a->width + d) * KEY_BLOCK + p % KEY_BLOCK);
            scores[p] = score;
            top = score > top ? score : top;
        }
        memset(out, 0, a->width * sizeof *out);
        for (size_t p = 0; p < n; p++) {
            float weight = expf(scores[p] - top);
            sum += weight;
            for (size_t d = 0; d < a->width; d++)
                out[d] += weight * cached(a->values, a->halves, p * a->width + d);
        }
        a->top[i] = top;
        a->sum[i] = sum;
    }
}

const kernels kernels_scalar = {
    .name = "scalar",
    .format = {.lanes = 4},
    .tiles = tiles,
    .matmul = {matmul, matmul, matmul, matmul, matmul, matmul},
    .quantise = quantise,
    .attend = attend,
    .dot = dot,
    .add_scaled = add_scaled,
    .rms_norm = rms_norm,
    .swiglu = swiglu,
    .to_halves = to_halves,
};
