/* test_attention.c: one chunk of the cache, looked at by every number of queries, against double arithmetic.
 */
#include "half.h"
#include "random_matrix.h"
#include "test.h"
#include "tiny_gguf.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static void *aligned(size_t bytes) {
    return aligned_alloc(64, (bytes + 63) / 64 * 64);
}

/* Keys and values of a chunk, of which `known` positions are filled; the rest is NaN: nobody may use it. */
typedef struct {
    size_t width, known;
    bool halves;
    void *keys, *values;
} chunk;

static void put(void *numbers, size_t i, float value, bool halves) {
    uint16_t half = half_from_float(value);
    memcpy((char *)numbers + i * (halves ? 2 : 4), halves ? (void *)&half : (void *)&value, halves ? 2 : 4);
}

static double get(const void *numbers, size_t i, bool halves) {
    float value;
    if (halves) return tiny_half((const uint8_t *)numbers + 2 * i);
    memcpy(&value, (const char *)numbers + 4 * i, sizeof value);
    return value;
}

static size_t key_at(size_t width, size_t position, size_t d) {
    return (position / 16 * width + d) * 16 + position % 16;
}

static float number(uint64_t *state) { /* of about 1 */
    return (float)((double)(tiny_random(state) >> 11) / 0x1p52 - 1);
}

static chunk make_chunk(size_t width, size_t known, bool halves, uint64_t *state) {
    chunk c = {.width = width, .known = known, .halves = halves};
    c.keys = aligned(CHUNK * width * 4);
    c.values = aligned(CHUNK * width * 4);
    for (size_t p = 0; p < CHUNK; p++)
        for (size_t d = 0; d < width; d++) {
            put(c.keys, key_at(width, p, d), p < known ? number(state) : NAN, halves);
            put(c.values, p * width + d, p < known ? number(state) : NAN, halves);
        }
    return c;
}

/* What attend() leaves for n queries: [n] rows of top, sum and out[width]. */
static float *look(const kernels *k, const chunk *c, size_t n, const float *queries,
                   const uint32_t *visible) {
    enum { PAD = 16 };
    size_t w = c->width;
    float *q = aligned(w * n * 4), *scores = aligned(n * CHUNK * 4 + 64),
          *room = aligned((n * w + 2 * PAD) * 4), *top = aligned((2 * n + PAD) * 4),
          *found = malloc(n * (w + 2) * sizeof *found);
    for (size_t i = 0; i < n * w + 2 * PAD; i++) room[i] = NAN;
    for (size_t i = 0; i < n * CHUNK + PAD; i++) scores[i] = NAN;
    for (size_t i = 0; i < 2 * n + PAD; i++) top[i] = 1234;
    for (size_t i = 0; i < n; i++)
        for (size_t d = 0; d < w; d++) q[d * n + i] = queries[i * w + d];
    const attention a = {.n = n,
                         .width = w,
                         .q = q,
                         .keys = c->keys,
                         .values = c->values,
                         .halves = c->halves,
                         .visible = visible,
                         .scores = scores,
                         .top = top,
                         .sum = top + n,
                         .out = room + PAD};
    k->attend(&a);
    bool clean = true;
    for (size_t i = 0; i < PAD; i++)
        clean &= isnan(room[i]) && isnan(room[PAD + n * w + i]) && top[2 * n + i] == 1234 &&
                 isnan(scores[n * CHUNK + i]);
    CHECK_THAT(clean, "%s: attend writes outside of its room", k->name);
    for (size_t i = 0; i < n; i++) {
        found[i * (w + 2)] = top[i];
        found[i * (w + 2) + 1] = top[n + i];
        memcpy(found + i * (w + 2) + 2, room + PAD + i * w, w * sizeof *found);
    }
    free(q);
    free(scores);
    free(room);
    free(top);
    return found;
}

/* The largest error of one query, relative. */
static double error_of(const chunk *c, const float *query, size_t n, const float *found) {
    double scores[CHUNK], top = -INFINITY, worst = 0, sum = 0;
    for (size_t p = 0; p < n; p++) {
        scores[p] = 0;
        for (size_t d = 0; d < c->width; d++)
            scores[p] += (double)query[d] * get(c->keys, key_at(c->width, p, d), c->halves);
        top = fmax(top, scores[p]);
    }
    for (size_t p = 0; p < n; p++) sum += exp(scores[p] - top);
    worst = n ? fabs(found[0] - top) / (1 + fabs(top)) : found[0] == -INFINITY ? 0 : 1;
    worst = fmax(worst, fabs(found[1] - sum) / (1 + sum));
    for (size_t d = 0; d < c->width; d++) {
        double out = 0, size = 1;
        for (size_t p = 0; p < n; p++) {
            double term = exp(scores[p] - top) * get(c->values, p * c->width + d, c->halves);
            out += term;
            size += fabs(term);
        }
        double off = fabs(found[2 + d] - out) / size;
        if (!(off <= worst)) worst = off; /* also a NaN */
    }
    return worst;
}

static void attention_of(const kernels *k, size_t width, size_t n, unsigned pattern, bool halves,
                         uint64_t *state) {
    uint32_t visible[MAX_QUERIES];
    size_t known = 0, row = width + 2;
    for (size_t i = 0; i < n; i++) {
        visible[i] = pattern == 0   ? CHUNK
                     : pattern == 1 ? (uint32_t)(i < 3 ? 0 : 3 * i) /* as at the beginning of a text */
                     : pattern == 2 ? (uint32_t)(tiny_random(state) % (CHUNK + 1))
                                    : 60 + (uint32_t)i / 3; /* three heads of each token */
        known = visible[i] > known ? visible[i] : known;
    }
    chunk c = make_chunk(width, known, halves, state);
    float *queries = random_floats(state, n * width), factor = 3.0f / sqrtf((float)width);
    for (size_t i = 0; i < n * width; i++) queries[i] *= factor;
    float *found = look(k, &c, n, queries, visible);
    bool same = true;
    double worst = 0;
    for (size_t i = 0; i < n; i++) {
        double error = error_of(&c, queries + i * width, visible[i], found + i * row);
        if (!(error <= worst)) worst = error;
        float *alone = look(k, &c, 1, queries + i * width, visible + i);
        same &= memcmp(alone, found + i * row, row * sizeof *alone) == 0;
        free(alone);
    }
    CHECK_THAT(worst < 1e-5, "%s: width %zu, %zu queries, pattern %u, %s: %g off", k->name, width, n, pattern,
               halves ? "halves" : "floats", worst);
    CHECK_THAT(same, "%s: width %zu, %zu queries, pattern %u, %s: a query alone gets another result", k->name,
               width, n, pattern, halves ? "halves" : "floats");
    free(found);
    free(queries);
    free(c.keys);
    free(c.values);
}

void test_attention(void) {
    static const size_t widths[] = {16, 32, 48, 64, 80, 96, 112, 128, 256};
    const kernels *k;
    uint64_t state = 31;
    for (size_t i = 0; (k = kernels_at(i)); i++) {
        TEST("attention: any width, queries and visible positions, of halves and floats");
        for (size_t w = 0; w < sizeof widths / sizeof *widths; w++)
            for (size_t n = 1; n <= MAX_QUERIES; n++)
                for (unsigned pattern = (w + n) % 3; pattern < 4; pattern += 3)
                    attention_of(k, widths[w], n, pattern, (w + n / 2) % 2, &state);
        TEST("attention: scores far apart, and far from 0");
        for (int sign = -1; sign <= 1; sign += 2) {
            chunk c = make_chunk(16, 40, true, &state);
            float q[16], *found;
            for (size_t d = 0; d < 16; d++) q[d] = (float)sign * 200.0f * (float)(d + 1);
            found = look(k, &c, 1, q, (uint32_t[]){40});
            double error = error_of(&c, q, 40, found);
            CHECK_THAT(error < 2e-3, "%s: %g off", k->name, error);
            free(found);
            free(c.keys);
            free(c.values);
        }
    }
}
