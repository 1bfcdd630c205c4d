/* pack.c: from the layouts of files to that of the kernels. */
#include "pack.h"

#include "bytes.h"
#include "half.h"
#include "kernels.h"

#include <math.h>

/* ---- one row's group of 32, whatever its type
 * --------------------------------------------------------------
 */

/* I8: 32 signed bytes and a scale. I4: 16 bytes as in pack.h (without flip), a scale, and an offset. */
typedef struct {
    uint8_t bytes[GROUP];
    uint16_t scale, offset;
} group;

/* 8-bit weights of floats: what is left of types that no kind holds exactly. */
static void quantise_group(group *out, const float *values, size_t n) {
    float top = 0;
    for (size_t i = 0; i < n; i++) top = fabsf(values[i]) > top ? fabsf(values[i]) : top;
    float scale = top / 127.0f, inverse = bytes_per_unit(top);
    out->scale = half_from_float(scale);
    memset(out->bytes, 0, GROUP);
    for (size_t i = 0; i < n; i++) out->bytes[i] = (uint8_t)(int8_t)lrintf(values[i] * inverse);
}

static void read_blocks(group *out, const matrix *w, size_t row, size_t g) {
    const weight_type *type = weight_type_of(w->quant);
    const uint8_t *b = w->blocks + ((uint64_t)row * w->cols / type->length) * type->bytes;
    if (type->length != GROUP) { /* blocks of 256, of which 32 are wanted */
        float values[Q4K_LENGTH];
        type->read(values, b + g * GROUP / type->length * type->bytes, 1);
        quantise_group(out, values + g * GROUP % type->length, GROUP);
        return;
    }
    b += g * type->bytes;
    out->scale = load_u16(b);
    switch (w->quant) {
    case NANO_GGUF_Q8_0:
        memcpy(out->bytes, b + 2, GROUP);
        return;
    case NANO_GGUF_Q4_0:
        memcpy(out->bytes, b + 2, GROUP / 2);
        return;
    case NANO_GGUF_Q4_1:
        out->offset = load_u16(b + 2);
        memcpy(out->bytes, b + 4, GROUP / 2);
        return;
    case NANO_GGUF_Q5_0: {
        uint32_t fifth = load_u32(b + 2);
        for (size_t i = 0; i < GROUP; i++) {
            uint32_t four = i < 16 ? b[6 + i] & 15u : b[6 + i - 16] >> 4;
            out->bytes[i] = (uint8_t)((four | (fifth >> i & 1) << 4) - 16);
        }
        return;
    }
    default: {
        float values[GROUP];
        type->read(values, b, 1);
        quantise_group(out, values, GROUP);
    }
    }
}

static void read_q80(group *out, const matrix *w, size_t row, size_t g) {
    memcpy(out->bytes, w->q + (uint64_t)row * w->cols + g * GROUP, GROUP);
    uint64_t at = (uint64_t)row * (w->cols / w->group) + g * GROUP / w->group;
    out->scale = half_from_float(from_bits(load_u32(w->scales + 4 * at)));
}

/* The halves of Q4_K and Q4K with 6-bit scales and offsets; the last group of a row of Q4K may be ragged. */
static void read_four_bits(group *out, const matrix *w, size_t row, size_t g) {
    uint8_t q[GROUP];
    float scale, offset;
    if (w->quant == NANO_Q4K)
        weight_q4k_group(w->blocks +
                             ((uint64_t)row * ((w->cols + Q4K_LENGTH - 1) / Q4K_LENGTH) + g / 8) * Q4K_BLOCK,
                         g % 8, q, &scale, &offset);
    else
        weight_q4_k_group(w->blocks +
                              ((uint64_t)row * w->cols / 256 + g / 8) * weight_type_of(w->quant)->bytes,
                          g % 8, q, &scale, &offset);
    out->scale = half_from_float(scale);
    out->offset = half_from_float(offset);
    for (size_t i = 0; i < GROUP / 2; i++) out->bytes[i] = (uint8_t)(q[i] | q[i + GROUP / 2] << 4);
}

static void read_group(group *out, const matrix *w, size_t row, size_t g) {
    if (w->quant == NANO_Q80)
        read_q80(out, w, row, g);
    else if (w->quant == NANO_Q4K || w->quant == NANO_GGUF_Q4_K)
        read_four_bits(out, w, row, g);
    else
        read_blocks(out, w, row, g);
}

/* ---- planning
 * ----------------------------------------------------------------------------------------------
 */

/* Floats that were 16-bit numbers before, as most of those in the world were, need no more room than these.
 * The first one that was not ends the search. */
static pack_kind narrowest(const matrix *w) {
    uint64_t n = (uint64_t)w->rows * w->cols, i = 0;
    while (i < n && load_u16(w->blocks + 4 * i) == 0) i++; /* the lower half */
    if (i == n) return PACK_BF16;
    for (i = 0; i < n; i++) {
        uint32_t bits = load_u32(w->blocks + 4 * i);
        if (to_bits(half_to_float(half_from_float(from_bits(bits)))) != bits) break;
    }
    return i == n ? PACK_F16 : PACK_F32;
}

pack_kind pack_kind_of(const matrix *w) {
    switch (w->quant) {
    case NANO_F32:
        return narrowest(w);
    case NANO_F16:
        return PACK_F16;
    case NANO_BF16:
        return PACK_BF16;
    case NANO_GGUF_Q4_0:
        return PACK_I4;
    case NANO_GGUF_Q4_1:
    case NANO_GGUF_Q4_K:
    case NANO_Q4K:
        return PACK_I4_OFFSET;
    case NANO_Q80: /* groups that are no multiples of 32 become floats: only toys have them */
        return w->group % GROUP == 0 ? PACK_I8 : PACK_F32;
    default:
        return PACK_I8;
    }
}

packed pack_plan(const matrix *w, const pack_format *format, uint64_t *bytes) {
    static const uint32_t item[] = {[PACK_F32] = 4, [PACK_F16] = 2, [PACK_BF16] = 2};
    packed p = {.kind = pack_kind_of(w), .rows = w->rows, .cols = w->cols, .lanes = format->lanes};
    p.flip = format->flip[p.kind];
    p.groups = (w->cols + GROUP - 1) / GROUP;
    uint64_t stride = p.kind < PACK_I8 ? (uint64_t)w->cols * format->lanes * item[p.kind]
                                       : (uint64_t)p.groups * pack_group_bytes(p.kind, format->lanes);
    *bytes = times(stride, pack_n_blocks(&p));
    if (*bytes > SIZE_MAX) *bytes = UINT64_MAX;
    p.stride = (size_t)stride;
    return p;
}

/* ---- filling
 * -----------------------------------------------------------------------------------------------
 */

/* Rows of a block side by side, columns of all before the next: what is written is written in order. */
static void pack_floats(const packed *p, const matrix *w, size_t row, size_t n_rows, uint8_t *to) {
    size_t lanes = p->lanes;
    if (p->kind == PACK_F32) {
        float *out = (float *)(void *)to, room[MAX_LANES][Q4K_LENGTH];
        for (size_t at = 0; at < w->cols; at += Q4K_LENGTH) {
            const float *from[MAX_LANES];
            size_t n = w->cols - at < Q4K_LENGTH ? w->cols - at : Q4K_LENGTH;
            for (size_t r = 0; r < n_rows; r++) from[r] = matrix_chunk(w, row + r, at, n, room[r]);
            for (size_t i = 0; i < n; i++)
                for (size_t r = 0; r < n_rows; r++) out[(at + i) * lanes + r] = from[r][i];
        }
        return;
    }
    uint16_t *out = (uint16_t *)(void *)to;
    bool wide = w->quant == NANO_F32, halves = p->kind == PACK_F16;
    uint64_t stride = (uint64_t)w->cols * (wide ? 4 : 2);
    const uint8_t *from = w->blocks + row * stride;
    for (size_t i = 0; i < w->cols; i++)
        for (size_t r = 0; r < n_rows; r++) {
            const uint8_t *at = from + r * stride + i * (wide ? 4 : 2);
            out[i * lanes + r] = !wide    ? load_u16(at)
                                 : halves ? half_from_float(from_bits(load_u32(at)))
                                          : load_u16(at + 2);
        }
}

static void pack_groups(const packed *p, const matrix *w, size_t row, size_t n_rows, uint8_t *to) {
    size_t lanes = p->lanes, words = p->kind == PACK_I8 ? 8 : 4;
    uint32_t flip = p->flip * 0x01010101u;
    size_t group_bytes = pack_group_bytes(p->kind, lanes);
    for (size_t g = 0; g < p->groups; g++, to += group_bytes) {
        uint32_t *q = (uint32_t *)(void *)to;
        uint16_t *scales = (uint16_t *)(void *)(q + words * lanes), *offsets = scales + lanes;
        for (size_t r = 0; r < n_rows; r++) {
            group one;
            read_group(&one, w, row + r, g);
            for (size_t j = 0; j < words; j++) q[j * lanes + r] = load_u32(one.bytes + 4 * j) ^ flip;
            scales[r] = one.scale;
            if (p->kind == PACK_I4_OFFSET) offsets[r] = one.offset;
        }
        for (size_t r = n_rows; r < lanes; r++) { /* zero scales make zeros of any bytes */
            for (size_t j = 0; j < words; j++) q[j * lanes + r] = 0;
            scales[r] = 0;
            if (p->kind == PACK_I4_OFFSET) offsets[r] = 0;
        }
    }
}

void pack_blocks(const packed *p, const matrix *w, size_t begin, size_t end, uint8_t *to) {
    for (size_t b = begin; b < end; b++) {
        size_t row = b * p->lanes, n_rows = p->rows - row < p->lanes ? p->rows - row : p->lanes;
        uint8_t *block = to + b * p->stride;
        if (p->kind < PACK_I8) {
            if (n_rows < p->lanes) memset(block, 0, p->stride);
            pack_floats(p, w, row, n_rows, block);
        } else {
            pack_groups(p, w, row, n_rows, block);
        }
    }
}
