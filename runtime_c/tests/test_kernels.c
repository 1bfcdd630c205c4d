/* test_kernels.c: packed matrices of every type times batches of every size, by every table of this build,
 * against three measures: the scalar table on the same bytes, double arithmetic on the packed weights and the
 * rounded activations, and the exact product of what was neither packed nor rounded. */
#include "random_matrix.h"
#include "test.h"
#include "tiny_gguf.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static const uint32_t CANARY = 0x7FC0BEEF;

static float *canaries(size_t n) {
    float *y = malloc(n * sizeof *y);
    for (size_t i = 0; i < n; i++) memcpy(y + i, &CANARY, sizeof *y);
    return y;
}

static bool is_canary(const float *y) {
    return memcmp(y, &CANARY, sizeof *y) == 0;
}

static void *aligned(size_t bytes) {
    return aligned_alloc(64, (bytes + 64) / 64 * 64);
}

/* ---- a packed matrix, and a look into it by formulas of the test's own, from the words of pack.h */

static packed pack_all(const matrix *m, const kernels *k) {
    uint64_t bytes;
    packed p = pack_plan(m, &k->format, &bytes);
    size_t blocks = pack_n_blocks(&p);
    CHECK(bytes == blocks * p.stride);
    uint8_t *data = aligned((size_t)bytes);
    memset(data, 0xA5, (size_t)bytes);
    pack_blocks(&p, m, blocks / 2, blocks, data);
    pack_blocks(&p, m, 0, blocks / 2, data);
    p.data = data;
    return p;
}

typedef struct {
    double scaled, offset; /* the weight is their sum */
} part;

static part look_into(const packed *p, size_t row, size_t col) {
    size_t lanes = p->lanes, lane = row % lanes, c = col % 32;
    const uint8_t *block = p->data + row / lanes * p->stride;
    if (p->kind < PACK_I8) {
        nano_quant type = p->kind == PACK_F32 ? NANO_F32 : p->kind == PACK_F16 ? NANO_F16 : NANO_BF16;
        return (part){tiny_weight(type, block + (col * lanes + lane) * (p->kind == PACK_F32 ? 4 : 2), 0), 0};
    }
    bool eight = p->kind == PACK_I8, offsets = p->kind == PACK_I4_OFFSET, high = !eight && c >= 16;
    size_t numbers = lanes * (eight ? 32 : 16);
    const uint8_t *group = block + col / 32 * (numbers + lanes * (offsets ? 4 : 2));
    size_t place = high ? c - 16 : c;
    int byte = group[(place / 4 * lanes + lane) * 4 + place % 4] ^ p->flip;
    int q = eight ? (int8_t)byte : (high ? byte / 16 : byte % 16) - (offsets ? 0 : 8);
    return (part){tiny_half(group + numbers + 2 * lane) * q,
                  offsets ? tiny_half(group + numbers + 2 * (lanes + lane)) : 0};
}

/* How far packing may move a weight. `top`: the largest of its group of 32. */
static double allowed(const matrix *m, part w, double top) {
    switch (m->quant) {
    case NANO_Q80:
        if (m->group % 32) return 0x1p-23 * fabs(w.scaled); /* kept as floats */
        return 0x1.01p-11 * fabs(w.scaled) + 0x1p-18;
    case NANO_Q4K:
    case NANO_GGUF_Q4_K: /* scale and offset become halves */
        return 0x1.01p-11 * (fabs(w.scaled) + fabs(w.offset)) + 0x1p-20;
    case NANO_GGUF_Q5_1:
    case NANO_GGUF_Q5_K:
    case NANO_GGUF_Q6_K: /* quantised again */
        return top * (1.001 / 254 + 0x1p-11) + 0x1p-18;
    default:
        return 0;
    }
}

/* ---- activations */

typedef struct {
    activations a;
    size_t *tile; /* [n] where the tile of each token begins */
    size_t *size; /* [n] and its tokens */
} batch;

static batch batch_of(const kernels *k, const float *rows, size_t n, size_t cols) {
    size_t groups = (cols + 31) / 32;
    batch b = {.a = {.n = n, .cols = cols, .groups = groups}};
    b.a.f32 = aligned(n * cols * 4);
    b.a.q = aligned(n * groups * 32);
    b.a.scale = aligned(n * groups * 4);
    b.a.bias = aligned(n * groups * 4);
    b.a.sum = aligned(n * groups * 4);
    b.tile = malloc(n * sizeof *b.tile);
    b.size = malloc(n * sizeof *b.size);
    memset(b.a.q, 0x5A, n * groups * 32);
    for (size_t t = 0, T; t < n; t += T) {
        T = kernels_tile(k, n - t);
        k->quantise(&b.a, t, T, rows + t * cols, cols);
        for (size_t i = 0; i < T; i++) {
            b.tile[t + i] = t;
            b.size[t + i] = T;
            for (size_t c = 0; c < cols; c++) b.a.f32[t * cols + c * T + i] = rows[(t + i) * cols + c];
        }
    }
    return b;
}

static void free_batch(batch *b) {
    free(b->a.f32);
    free(b->a.q);
    free(b->a.scale);
    free(b->a.bias);
    free(b->a.sum);
    free(b->tile);
    free(b->size);
}

/* Where group g of token t has its scale, bias and sum. */
static size_t group_at(const batch *b, size_t t, size_t g) {
    return b->tile[t] * b->a.groups + g * b->size[t] + (t - b->tile[t]);
}

static int q_at(const batch *b, size_t t, size_t c) {
    size_t first = b->tile[t], T = b->size[t];
    return b->a.q[first * b->a.groups * 32 + ((c / 4) * T + (t - first)) * 4 + c % 4];
}

/* ---- products */

typedef struct {
    const kernels *k;
    random_matrix w;
    packed p;
    part *parts;       /* [rows, cols] */
    const float *x;    /* [n, cols] */
    const double *top; /* [rows, groups] of the weights */
    size_t n, rows, cols, groups;
} product_case;

#define NAMED(c) (c)->k->name, nano_quant_name((c)->w.m.quant), (c)->rows, (c)->cols, (c)->n

/* y [n, rows] of tokens [from, to) and row blocks in two shares; what lies around y must stay. */
static void multiply_share(const product_case *c, size_t from, size_t to, size_t middle, float *out) {
    enum { PAD = 19 };
    size_t stride = c->rows + PAD, n = to - from, blocks = pack_n_blocks(&c->p), split = middle * c->p.lanes;
    batch b = batch_of(c->k, c->x + from * c->cols, n, c->cols);
    float *room = canaries(n * stride + PAD), *y = room + PAD;
    bool untouched = true;
    if (split > c->rows) split = c->rows;
    c->k->matmul[c->p.kind](&c->p, &b.a, middle, blocks, y, stride);
    for (size_t t = 0; t < n; t++)
        for (size_t r = 0; r < split; r++) untouched &= is_canary(y + t * stride + r);
    c->k->matmul[c->p.kind](&c->p, &b.a, 0, middle, y, stride);
    for (size_t i = 0; i < PAD; i++) untouched &= is_canary(room + i);
    for (size_t t = 0; t < n; t++)
        for (size_t i = 0; i < PAD; i++) untouched &= is_canary(y + t * stride + c->rows + i);
    CHECK_THAT(untouched, "%s %s [%zu,%zu] x %zu: writes outside of its rows", NAMED(c));
    for (size_t t = 0; t < n; t++) memcpy(out + (from + t) * c->rows, y + t * stride, c->rows * sizeof *out);
    free(room);
    free_batch(&b);
}

/* Each output against double arithmetic, the scalar table's and the exact one. */
static void check_values(const product_case *c, const float *y) {
    float *plain_c = malloc(c->n * c->rows * sizeof *plain_c),
          *exact = malloc(c->n * c->rows * sizeof *exact);
    batch b = batch_of(c->k, c->x, c->n, c->cols), s = batch_of(&kernels_scalar, c->x, c->n, c->cols);
    kernels_scalar.matmul[c->p.kind](&c->p, &s.a, 0, pack_n_blocks(&c->p), plain_c, c->rows);
    matrix_multiply(&c->w.m, c->x, c->n, 0, c->rows, exact, c->rows);
    double from_double = 0, from_scalar = 0, from_exact = 0;
    for (size_t t = 0; t < c->n; t++)
        for (size_t r = 0; r < c->rows; r++) {
            double sum = 0, size = 1e-30, room = 0;
            for (size_t g = 0; g < c->groups; g++) {
                double scale = b.a.scale[group_at(&b, t, g)], top = 0;
                size_t end = g * 32 + 32 < c->cols ? g * 32 + 32 : c->cols;
                bool rounded = c->p.kind >= PACK_I8;
                for (size_t i = g * 32; i < end; i++) top = fmax(top, fabs(c->x[t * c->cols + i]));
                double moved = rounded ? top * (1.001 / 254 + 0x1p-11) : 0;
                for (size_t i = g * 32; i < end; i++) {
                    part w = c->parts[r * c->cols + i];
                    double x = c->x[t * c->cols + i], used = rounded ? scale * q_at(&b, t, i) : x;
                    sum += w.scaled * used;
                    size += fabs(w.scaled * used) + fabs(w.offset * used);
                    room += moved * fabs(c->w.plain[r * c->cols + i]) +
                            (fabs(x) + moved) * allowed(&c->w.m, w, c->top[r * c->groups + g]) +
                            0x1p-11 * fabs(w.offset * used);
                }
                double offset = c->parts[r * c->cols + g * 32].offset;
                if (offset != 0) sum += offset * b.a.sum[group_at(&b, t, g)];
            }
            size_t at = t * c->rows + r;
            from_double = fmax(from_double, fabs(y[at] - sum) / size);
            from_scalar = fmax(from_scalar, fabs((double)y[at] - plain_c[at]) / size);
            from_exact = fmax(from_exact, fabs((double)y[at] - exact[at]) / (room + 2e-6 * size));
            if (!(fabsf(y[at]) < INFINITY)) from_double = INFINITY;
        }
    CHECK_THAT(from_double < 1e-6, "%s %s [%zu,%zu] x %zu: %g off", NAMED(c), from_double);
    CHECK_THAT(from_scalar < 1e-6, "%s %s [%zu,%zu] x %zu: %g from scalar", NAMED(c), from_scalar);
    CHECK_THAT(from_exact < 1, "%s %s [%zu,%zu] x %zu: %g of what rounding may move", NAMED(c), from_exact);
    free(plain_c);
    free(exact);
    free_batch(&b);
    free_batch(&s);
}

/* Packing must move no weight by more than the kind allows. */
static void check_packing(const product_case *c) {
    double worst = 0;
    for (size_t r = 0; r < c->rows; r++)
        for (size_t i = 0; i < c->cols; i++) {
            part w = c->parts[r * c->cols + i];
            double moved = fabs(w.scaled + w.offset - c->w.plain[r * c->cols + i]),
                   may = allowed(&c->w.m, w, c->top[r * c->groups + i / 32]);
            worst = fmax(worst, moved > 0 ? moved / (may + 1e-30) : 0);
        }
    CHECK_THAT(worst <= 1, "%s %s [%zu,%zu] x %zu: packed weights are %g times too far off", NAMED(c), worst);
}

static void product_of(const kernels *k, nano_quant type, uint32_t rows, uint32_t cols, uint32_t group,
                       size_t n, uint64_t *state) {
    product_case c = {.k = k, .n = n, .rows = rows, .cols = cols, .groups = (cols + 31) / 32};
    c.w = random_matrix_make(type, rows, cols, group, state);
    c.p = pack_all(&c.w.m, k);
    c.parts = malloc((size_t)rows * cols * sizeof *c.parts);
    double *top = calloc(rows * c.groups, sizeof *top);
    for (size_t r = 0; r < rows; r++)
        for (size_t i = 0; i < cols; i++) {
            double *group_top = &top[r * c.groups + i / 32];
            c.parts[r * cols + i] = look_into(&c.p, r, i);
            *group_top = fmax(*group_top, fabs(c.w.plain[r * cols + i]));
        }
    c.top = top;
    float *x = random_floats(state, n * cols), *y = malloc(n * rows * sizeof *y),
          *again = malloc(n * rows * sizeof *again);
    for (size_t t = 1; t < n; t += 3) { /* tokens of another size, and zeros */
        float factor = t % 2 ? 300.0f : 0.004f;
        for (size_t i = 0; i < cols; i++) x[t * cols + i] = i % 96 < 32 ? 0 : x[t * cols + i] * factor;
    }
    c.x = x;
    size_t blocks = pack_n_blocks(&c.p);
    multiply_share(&c, 0, n, blocks / 2, y);
    check_packing(&c);
    check_values(&c, y);

    bool same = true;
    for (size_t size = 1; size <= n;
         size += 1 + size / 3) { /* batches of `size`, rows shared out elsewhere */
        memset(again, 0, n * rows * sizeof *again);
        for (size_t t = 0; t < n; t += size)
            multiply_share(&c, t, t + size < n ? t + size : n, (t + size) % (blocks + 1), again);
        same &= memcmp(again, y, n * rows * sizeof *y) == 0;
    }
    CHECK_THAT(same, "%s %s [%zu,%zu] x %zu: depends on the batch or the share", NAMED(&c));
    free((void *)(uintptr_t)c.p.data);
    free(c.parts);
    free(top);
    free(x);
    free(y);
    free(again);
    random_matrix_free(&c.w);
}

static void products(const kernels *k) {
    static const uint32_t rows[] = {1, 16, 7, 33, 8, 15, 17, 3, 40, 31, 2, 24},
                          odd[] = {1, 31, 33, 64, 100, 255, 257, 2, 300, 513, 96, 32};
    static const nano_quant blocks[] = {NANO_GGUF_Q8_0, NANO_GGUF_Q4_0, NANO_GGUF_Q4_1, NANO_GGUF_Q5_0,
                                        NANO_GGUF_Q5_1, NANO_GGUF_Q4_K, NANO_GGUF_Q5_K, NANO_GGUF_Q6_K};
    static const nano_quant ragged[] = {NANO_F32, NANO_F16, NANO_BF16, NANO_Q4K};
    static const uint32_t groups[] = {1, 3, 16, 32, 64, 128, 256, 100};
    enum { N_SHAPES = sizeof rows / sizeof *rows };
    uint64_t state = 11;

    TEST("kernels: products with floats and Nano's Q4K, any number of columns");
    for (unsigned i = 0; i < sizeof ragged / sizeof *ragged; i++)
        for (unsigned j = 0; j < N_SHAPES; j++)
            product_of(k, ragged[i], rows[j], odd[(j + i) % N_SHAPES], 0, 1 + (j * 5 + i) % 30, &state);
    TEST("kernels: products with Nano's Q80 in groups of any size");
    for (unsigned j = 0; j < N_SHAPES; j++)
        product_of(k, NANO_Q80, rows[j], groups[j % 8] * (1 + j % 3), groups[j % 8], 1 + (j * 7 + 3) % 30,
                   &state);
    TEST("kernels: products with GGUF's types");
    for (unsigned i = 0; i < sizeof blocks / sizeof *blocks; i++)
        for (unsigned j = 0; j < N_SHAPES; j++) {
            uint32_t length = (uint32_t)tiny_block_length(blocks[i]);
            product_of(k, blocks[i], rows[j], length * (1 + (j + i) % (length == 32 ? 11 : 3)), 0,
                       1 + (j * 5 + i) % 30, &state);
        }
    TEST("kernels: every size of batch");
    for (unsigned n = 1; n <= 30; n++)
        product_of(k, (nano_quant[]){NANO_GGUF_Q4_0, NANO_GGUF_Q8_0, NANO_F16}[n % 3], 19, 64, 0, n, &state);
}

/* The largest numbers that 8 and 4 bits hold: nothing may overflow on the way. */
static void extremes(const kernels *k) {
    TEST("kernels: products of the largest integers");
    enum { ROWS = 16, COLS = 64, N = 13 };
    static const nano_quant types[] = {NANO_Q80, NANO_GGUF_Q4_0, NANO_GGUF_Q4_1};
    static int8_t q[ROWS * COLS];
    static float scales[ROWS * COLS / 32], x[N * COLS];
    for (unsigned i = 0; i < 3; i++)
        for (unsigned signs = 0; signs < 8; signs++) {
            size_t bytes = i ? tiny_block_bytes(types[i]) : 0;
            uint8_t *blocks = calloc(ROWS * COLS / 32, bytes + 1);
            for (size_t j = 0; j < ROWS * COLS; j++) q[j] = (j ^ signs) & 1 ? 127 : -128;
            for (size_t j = 0; j < ROWS * COLS / 32; j++) {
                scales[j] = 1;
                memset(blocks + j * bytes, signs & 2 ? 0xFF : signs & 1 ? 0xF0 : 0, bytes);
                if (bytes) memcpy(blocks + j * bytes, (uint16_t[]){0x3C00, 0}, i == 2 ? 4 : 2);
            }
            for (size_t j = 0; j < N * COLS; j++) x[j] = (signs & 4 && j & 1 ? -1.0f : 1.0f) * 127.0f;
            const matrix m = {.quant = types[i],
                              .rows = ROWS,
                              .cols = COLS,
                              .q = q,
                              .scales = (const uint8_t *)scales,
                              .group = 32,
                              .blocks = blocks};
            packed p = pack_all(&m, k);
            batch b = batch_of(k, x, N, COLS);
            float y[N * ROWS], exact[N * ROWS];
            k->matmul[p.kind](&p, &b.a, 0, pack_n_blocks(&p), y, ROWS);
            matrix_multiply(&m, x, N, 0, ROWS, exact, ROWS);
            CHECK_THAT(memcmp(y, exact, sizeof y) == 0, "%s %s, signs %u: %g, not %g", k->name,
                       nano_quant_name(types[i]), signs, (double)y[0], (double)exact[0]);
            free((void *)(uintptr_t)p.data);
            free(blocks);
            free_batch(&b);
        }
}

/* ---- rounding activations */

static void roundings(const kernels *k) {
    TEST("kernels: activations are rounded to the same integers, scales and sums as in plain C");
    uint64_t state = 21;
    for (uint32_t cols = 1; cols < 200; cols += 1 + cols / 4)
        for (size_t n = 1; n <= 30; n += 3) {
            float *x = random_floats(&state, n * cols);
            for (size_t i = 0; i < n * cols; i += 1 + i % 7) x[i] *= 3.5f;
            static const float factors[] = {1, 0, 1e-4f, 1e4f, 1e-38f, 1e30f, 1e-44f, 0.5f};
            for (size_t t = 0; t < n; t++)
                for (size_t c = 0; c < cols; c++) x[t * cols + c] *= factors[t % 8];
            if (n > 3 && cols > 2) x[cols] = -0.0f, x[2 * cols] = -127.5f, x[2 * cols + 1] = 127.5f;
            batch b = batch_of(k, x, n, cols), s = batch_of(&kernels_scalar, x, n, cols);
            bool same = true, right = true;
            for (size_t t = 0; t < n; t++)
                for (size_t g = 0; g < b.a.groups; g++) {
                    size_t i = group_at(&b, t, g), j = group_at(&s, t, g);
                    float top = 0;
                    same &= memcmp(b.a.scale + i, s.a.scale + j, 4) == 0 && b.a.bias[i] == s.a.bias[j] &&
                            memcmp(b.a.sum + i, s.a.sum + j, 4) == 0;
                    for (size_t c = g * 32; c < g * 32 + 32; c++) {
                        same &= q_at(&b, t, c) == q_at(&s, t, c);
                        if (c < cols) top = fmaxf(top, fabsf(x[t * cols + c]));
                    }
                    for (size_t c = g * 32; c < g * 32 + 32; c++) {
                        double value = c < cols ? x[t * cols + c] : 0;
                        right &= fabs(value - (double)b.a.scale[i] * q_at(&b, t, c)) <=
                                 top * (1.001 / 254 + 0x1p-11) + 1e-36;
                    }
                }
            CHECK_THAT(same, "%s: %u columns, %zu tokens: not as in plain C", k->name, cols, n);
            CHECK_THAT(right, "%s: %u columns, %zu tokens: not what was rounded", k->name, cols, n);
            free(x);
            free_batch(&b);
            free_batch(&s);
        }

    TEST("kernels: infinities and NaNs in activations spoil the product, not the program");
    for (unsigned i = 0; i < 6; i++) {
        float x[64] = {0};
        x[3] = 1;
        x[i % 3 * 7] = i < 3 ? INFINITY : NAN;
        x[40] = i % 2 ? -INFINITY : 1e38f;
        random_matrix w = random_matrix_make(i % 2 ? NANO_GGUF_Q8_0 : NANO_GGUF_Q4_1, 5, 64, 0, &state);
        packed p = pack_all(&w.m, k);
        batch b = batch_of(k, x, 1, 64);
        float y[5];
        k->matmul[p.kind](&p, &b.a, 0, pack_n_blocks(&p), y, 5);
        for (size_t g = 0; g < 2; g++) {
            int total = 0;
            for (size_t c = g * 32; c < g * 32 + 32; c++) {
                CHECK_THAT(q_at(&b, 0, c) >= -127, "%s: integers of -128 would overflow", k->name);
                total += q_at(&b, 0, c);
            }
            CHECK_THAT(b.a.bias[g] == -128 * total, "%s: bias %d of %d", k->name, (int)b.a.bias[g], total);
        }
        free((void *)(uintptr_t)p.data);
        free_batch(&b);
        random_matrix_free(&w);
    }
}

void test_kernels(void) {
    const kernels *k;
    TEST("kernels: the tables of this machine have names, and are found by them");
    for (size_t i = 0; (k = kernels_at(i)); i++) {
        CHECK(kernels_named(k->name) == k);
        for (const uint8_t *tile = k->tiles; *tile > 1; tile++) CHECK(tile[0] > tile[1]);
        CHECK(k->format.lanes <= MAX_LANES);
    }
    CHECK(kernels_named(NULL) == kernels_at(0) && !kernels_named("abacus") && kernels_named("scalar"));
    for (size_t i = 0; (k = kernels_at(i)); i++) {
        products(k);
        extremes(k);
        roundings(k);
    }
}
