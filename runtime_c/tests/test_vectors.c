/* test_vectors.c: the kernels that work on vectors, and halves. */
#include "half.h"
#include "random_matrix.h"
#include "test.h"
#include "tiny_gguf.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { PAD = 16 };
static const float CANARY = 1234.5f;

/* A copy with canaries on both sides. */
static float *guarded(const float *from, size_t n) {
    float *room = malloc((n + 2 * PAD) * sizeof *room);
    for (size_t i = 0; i < n + 2 * PAD; i++) room[i] = CANARY;
    memcpy(room + PAD, from, n * sizeof *room);
    return room + PAD;
}

static void release(const kernels *k, float *guard, size_t n, const char *what) {
    bool same = true;
    for (size_t i = 0; i < PAD; i++) same &= guard[n + i] == CANARY && guard[(ptrdiff_t)i - PAD] == CANARY;
    CHECK_THAT(same, "%s: %s writes outside of its %zu numbers", k->name, what, n);
    free(guard - PAD);
}

static void arithmetic(const kernels *k) {
    uint64_t state = 12;
    TEST("vectors: dot, add_scaled, rms_norm, swiglu");
    for (size_t n = 1; n < 400; n += 1 + n / 9) {
        float *a = random_floats(&state, n), *b = random_floats(&state, n);
        double sum = 0, size = 0, squares = 0, worst = 0;
        for (size_t i = 0; i < n; i++)
            sum += (double)a[i] * b[i], size += fabs((double)a[i] * b[i]), squares += (double)a[i] * a[i];
        CHECK_THAT(fabs((double)k->dot(a, b, n) - sum) < 1e-6 * size, "%s: dot of %zu", k->name, n);

        float *c = guarded(b, n);
        k->add_scaled(c, a, 0.5f, n);
        for (size_t i = 0; i < n; i++) worst = fmax(worst, fabs(c[i] - (b[i] + 0.5 * a[i])));
        release(k, c, n, "add_scaled");

        float *norm = guarded(b, n), *in_place = guarded(a, n);
        double rms = sqrt(squares / (double)n + 1e-5);
        k->rms_norm(norm, a, b, n, 1e-5f);
        k->rms_norm(in_place, in_place, b, n, 1e-5f);
        for (size_t i = 0; i < n; i++)
            worst = fmax(worst, fabs(norm[i] - a[i] / rms * b[i]) / (1 + fabs((double)norm[i])));
        CHECK_THAT(memcmp(norm, in_place, n * sizeof *norm) == 0, "%s: rms_norm in place", k->name);
        release(k, norm, n, "rms_norm");
        release(k, in_place, n, "rms_norm");

        for (size_t i = 0; i < n; i++) a[i] *= 8;
        float *gate = guarded(a, n);
        k->swiglu(gate, b, n);
        for (size_t i = 0; i < n; i++) {
            double silu = a[i] / (1 + exp(-(double)a[i]));
            worst = fmax(worst, fabs(gate[i] - silu * b[i]) / (1e-3 + fabs(silu * b[i])));
        }
        release(k, gate, n, "swiglu");
        CHECK_THAT(worst < 2e-6, "%s: %zu numbers are %g off", k->name, n, worst);
        free(a);
        free(b);
    }

    TEST("vectors: the result of a part is the part of the result");
    float *x = random_floats(&state, 100), *up = random_floats(&state, 100);
    float *all = guarded(x, 100), *sum = guarded(x, 100);
    k->swiglu(all, up, 100);
    k->add_scaled(sum, up, -1.7f, 100);
    for (size_t from = 0; from < 100; from += 7)
        for (size_t n = 1; from + n <= 100; n += 5) {
            float *some = guarded(x + from, n), *some_sum = guarded(x + from, n);
            k->swiglu(some, up + from, n);
            k->add_scaled(some_sum, up + from, -1.7f, n);
            CHECK_THAT(memcmp(some, all + from, n * sizeof *some) == 0, "%s: swiglu", k->name);
            CHECK_THAT(memcmp(some_sum, sum + from, n * sizeof *some) == 0, "%s: add_scaled", k->name);
            release(k, some, n, "swiglu");
            release(k, some_sum, n, "add_scaled");
        }
    release(k, all, 100, "swiglu");
    release(k, sum, 100, "add_scaled");
    free(x);
    free(up);

    TEST("vectors: swiglu of huge numbers stays finite");
    for (size_t at = 0; at < 20; at++) { /* in every place of a register, and in what is left over */
        static const float gates[] = {-1e30f, 1e5f, -200.f, 0.f, -87.5f, -88.5f, -89.f, -104.f, 1e30f, 90.f};
        for (size_t i = 0; i < sizeof gates / sizeof *gates; i++) {
            float gate[21] = {0}, ones[21];
            for (size_t j = 0; j < 21; j++) ones[j] = 1;
            gate[at] = gates[i];
            k->swiglu(gate, ones, at + 1);
            double expected = gates[i] / (1 + exp(-(double)gates[i]));
            CHECK_THAT(fabs(gate[at] - expected) <= 2e-6 * fabs(expected) + 1e-36, "%s: silu(%g) is %g",
                       k->name, (double)gates[i], (double)gate[at]);
        }
    }
}

static uint16_t convert(const kernels *k, float value) {
    uint16_t half;
    k->to_halves(&half, &value, 1);
    return half;
}

static void halves(const kernels *k) {
    TEST("vectors: to_halves gives every half back, and rounds what lies between to the nearest, ties to "
         "even");
    enum { ALL = 0x10000 };
    float *values = malloc(ALL * sizeof *values);
    uint16_t *out = malloc((ALL + 2) * sizeof *out);
    for (unsigned bits = 0; bits < ALL; bits++) values[bits] = half_to_float((uint16_t)bits);
    k->to_halves(out, values, ALL);
    for (unsigned bits = 0; bits < ALL; bits++) {
        bool nan = (bits & 0x7FFF) > 0x7C00;
        if (out[bits] != (bits | (nan ? 0x200u : 0))) /* a NaN becomes a quiet one */
            CHECK_THAT(false, "%s: half %04x became %04x", k->name, bits, out[bits]);
    }
    for (unsigned bits = 0; bits < 0x7BFF; bits++) {
        float tie = (values[bits] + values[bits + 1]) / 2;
        uint16_t even = (uint16_t)(bits + bits % 2);
        bool right = convert(k, tie) == even && convert(k, nextafterf(tie, 0)) == bits &&
                     convert(k, nextafterf(tie, INFINITY)) == bits + 1 && convert(k, -tie) == (even | 0x8000);
        if (!right) CHECK_THAT(false, "%s: between the halves %04x and %04x", k->name, bits, bits + 1);
    }
    CHECK(convert(k, 65519.99f) == 0x7BFF && convert(k, 65520.f) == 0x7C00 && convert(k, 1e30f) == 0x7C00);
    for (size_t n = 1; n < 40; n++) {
        out[n] = 0xBEEF;
        k->to_halves(out, values + 0x3C00, n);
        CHECK_THAT(out[n] == 0xBEEF && out[n - 1] == 0x3C00 + n - 1, "%s: %zu halves", k->name, n);
    }
    free(values);
    free(out);
}

/* half.h itself, against the compiler's own type, where it has one. */
static void conversions(void) {
    TEST("halves: half.h converts as the compiler does");
#ifdef __FLT16_MAX__
    for (unsigned bits = 0; bits < 0x10000; bits++) {
        uint16_t half = (uint16_t)bits;
        _Float16 theirs;
        memcpy(&theirs, &half, sizeof half);
        float ours = half_to_float(half), wanted = (float)theirs;
        bool nan = (bits & 0x7FFF) > 0x7C00;
        if (nan ? !isnan(ours) : memcmp(&ours, &wanted, sizeof ours) != 0)
            CHECK_THAT(false, "half %04x became %g, not %g", bits, (double)ours, (double)wanted);
    }
    uint64_t state = 3;
    for (unsigned i = 0; i < 300000; i++) {
        uint32_t bits = (uint32_t)tiny_random(&state);
        if (i % 2) bits = (bits & 0x8FFFFFFF) | 0x30000000; /* more of those that are halves */
        float value = from_bits(bits);
        _Float16 theirs = (_Float16)value;
        uint16_t wanted, ours = half_from_float(value);
        memcpy(&wanted, &theirs, sizeof wanted);
        if (isnan(value) ? (ours & 0x7FFF) <= 0x7C00 : ours != wanted)
            CHECK_THAT(false, "%g became %04x, not %04x", (double)value, ours, wanted);
    }
#endif
    for (unsigned bits = 0; bits < 0x7C00; bits++) {
        const uint8_t bytes[2] = {(uint8_t)bits, (uint8_t)(bits >> 8)};
        float value = half_to_float((uint16_t)bits);
        if (value != (float)tiny_half(bytes)) CHECK_THAT(false, "half %04x became %g", bits, (double)value);
        CHECK(bits < 0x400 || rounded_to_half(value) == value);
    }
    CHECK(rounded_to_half(1e-7f) == 1e-7f && rounded_to_half(70000.f) == 70000.f && rounded_to_half(0) == 0);
    CHECK(rounded_to_half(1.0001f) == 1.0f && rounded_to_half(-1.0006f) == -1.0009765625f);
}

void test_vectors(void) {
    const kernels *k;
    conversions();
    for (size_t i = 0; (k = kernels_at(i)); i++) {
        arithmetic(k);
        halves(k);
    }
}
